//! UDP headers (RFC 768).

use super::checksum::{ChecksumPolicy, Sum};
use super::ip::{IpHeader, UDP};
use super::{ParseError, u16_at};
use alloc::vec::Vec;
use core::ops::Range;

/// The length of a header.
pub const HEADER_LEN: usize = 8;

/// The longest payload of a datagram: that of a whole IPv4 packet.
pub const PAYLOAD_MAX: usize = 0xffff - 20 - HEADER_LEN;

/// A parsed datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpDatagram {
    /// The sender's port.
    pub source: u16,
    /// The receiver's port.
    pub destination: u16,
    /// Where the payload is in the parsed bytes.
    pub payload: Range<usize>,
}

impl UdpDatagram {
    /// Parses the payload of a packet with the header `ip`.
    ///
    /// # Errors
    ///
    /// See [`ParseError`]. A datagram without a checksum is valid in IPv4 only.
    pub fn parse(ip: &IpHeader, bytes: &[u8]) -> Result<Self, ParseError> {
        Self::parse_with(ip, bytes, ChecksumPolicy::Verify)
    }

    /// Like [`parse`](Self::parse), with a policy for the checksum.
    ///
    /// # Errors
    ///
    /// As for [`parse`](Self::parse).
    pub fn parse_with(
        ip: &IpHeader,
        bytes: &[u8],
        policy: ChecksumPolicy,
    ) -> Result<Self, ParseError> {
        let len = usize::from(u16_at(bytes, 4)?);
        let checksum = u16_at(bytes, 6)?;
        if len < HEADER_LEN {
            return Err(ParseError::Malformed);
        }
        let datagram = bytes.get(..len).ok_or(ParseError::Truncated)?;
        let mut sum = Sum::of_pseudo_header(ip.source, ip.destination, UDP, len);
        match checksum {
            _ if policy == ChecksumPolicy::Ignore => {}
            0 if ip.source.is_ipv4() => {}
            0 => return Err(ParseError::Malformed),
            _ if sum.add(datagram).is_valid() => {}
            _ => return Err(ParseError::Checksum),
        }
        Ok(Self {
            source: u16_at(bytes, 0)?,
            destination: u16_at(bytes, 2)?,
            payload: HEADER_LEN..len,
        })
    }
}

/// Appends a datagram, with its IP header, to `frame`.
///
/// # Panics
///
/// When the payload does not fit into a datagram.
pub fn write(ip: &IpHeader, ports: (u16, u16), payload: &[u8], frame: &mut Vec<u8>) {
    let len = HEADER_LEN + payload.len();
    let ip = IpHeader { protocol: UDP, ..*ip };
    ip.write(len, frame);
    let mut header = [0; HEADER_LEN];
    header[..2].copy_from_slice(&ports.0.to_be_bytes());
    header[2..4].copy_from_slice(&ports.1.to_be_bytes());
    header[4..6].copy_from_slice(&(len as u16).to_be_bytes());
    let mut sum = Sum::of_pseudo_header(ip.source, ip.destination, UDP, len);
    // Zero means "no checksum", so a sum of zero is sent as its other form.
    let checksum = match sum.add(&header).add(payload).checksum() {
        0 => 0xffff,
        checksum => checksum,
    };
    header[6..].copy_from_slice(&checksum.to_be_bytes());
    frame.extend_from_slice(&header);
    frame.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::IpPacket;
    use core::net::IpAddr;

    fn datagram() -> (IpPacket, Vec<u8>) {
        let ip = IpHeader {
            source: IpAddr::from([10, 0, 2, 15]),
            destination: IpAddr::from([10, 0, 2, 3]),
            protocol: UDP,
            hop_limit: 64,
        };
        let mut bytes = Vec::new();
        write(&ip, (1000, 53), b"query", &mut bytes);
        (IpPacket::parse_v4(&bytes).unwrap(), bytes)
    }

    #[test]
    fn datagram_round_trip() {
        let (packet, bytes) = datagram();
        let payload = &bytes[packet.payload];
        let udp = UdpDatagram::parse(&packet.header, payload).unwrap();
        assert_eq!((udp.source, udp.destination), (1000, 53));
        assert_eq!(&payload[udp.payload], b"query");
    }

    #[test]
    fn parse_wrong_length_or_checksum_is_error() {
        let (packet, bytes) = datagram();
        let mut payload = bytes[packet.payload].to_vec();
        let error = |payload: &[u8]| UdpDatagram::parse(&packet.header, payload).unwrap_err();
        assert_eq!(error(&payload[..12]), ParseError::Truncated);
        payload[12] ^= 1;
        assert_eq!(error(&payload), ParseError::Checksum);
        payload[5] = 7;
        assert_eq!(error(&payload), ParseError::Malformed);
    }
}
