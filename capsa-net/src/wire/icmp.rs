//! ICMP and ICMPv6 messages: echo, and destination unreachable (RFC 792, RFC 4443).

use super::checksum::Sum;
use super::ip::{ICMP, ICMPV6, IpHeader};
use super::{ParseError, bytes_at, u16_at};
use alloc::vec::Vec;
use core::net::IpAddr;
use core::ops::Range;

/// The length of a header, with the four bytes that depend on the type.
pub const HEADER_LEN: usize = 8;

/// How much of a packet an error quotes: its IP header and the first 8 bytes of its payload, which hold
/// the ports.
const QUOTED_PAYLOAD: usize = 8;

/// A parsed echo message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EchoMessage {
    /// Whether it is the reply.
    pub is_reply: bool,
    /// Identifies the sending program.
    pub id: u16,
    /// Counts the messages.
    pub sequence: u16,
    /// Where the data is in the parsed bytes.
    pub data: Range<usize>,
}

impl EchoMessage {
    /// Parses the header of a message to or from `remote`: whether it is the reply, and its sequence
    /// number.
    pub(crate) fn parse_header(remote: IpAddr, bytes: &[u8]) -> Result<(bool, u16), ParseError> {
        let [kind, code] = bytes_at(bytes, 0)?;
        let is_reply = match (remote.is_ipv4(), kind) {
            (true, 8) | (false, 128) => false,
            (true, 0) | (false, 129) => true,
            _ => return Err(ParseError::Unsupported),
        };
        match code {
            0 => Ok((is_reply, u16_at(bytes, 6)?)),
            _ => Err(ParseError::Malformed),
        }
    }

    /// Parses the payload of a packet with the header `ip`.
    ///
    /// # Errors
    ///
    /// [`ParseError::Unsupported`] for other types of message.
    pub fn parse(ip: &IpHeader, bytes: &[u8]) -> Result<Self, ParseError> {
        let (is_reply, sequence) = Self::parse_header(ip.source, bytes)?;
        if !sum_of(ip, bytes.len()).add(bytes).is_valid() {
            return Err(ParseError::Checksum);
        }
        Ok(Self { is_reply, id: u16_at(bytes, 4)?, sequence, data: HEADER_LEN..bytes.len() })
    }

    /// Appends an echo message with `data`, and its IP header, to `frame`.
    pub fn write(&self, ip: &IpHeader, data: &[u8], frame: &mut Vec<u8>) {
        let kind = match (ip.source.is_ipv4(), self.is_reply) {
            (true, false) => 8,
            (true, true) => 0,
            (false, is_reply) => 128 + u8::from(is_reply),
        };
        let ([a, b], [c, d]) = (self.id.to_be_bytes(), self.sequence.to_be_bytes());
        write(ip, [kind, 0, 0, 0, a, b, c, d], &[data], frame);
    }
}

/// Why a packet does not reach its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unreachable {
    /// No route to the network.
    Network,
    /// The host does not answer.
    Host,
    /// No program receives at the port.
    Port,
    /// A policy forbids it.
    Prohibited,
}

impl Unreachable {
    /// The type and the code.
    const fn kind(self, is_v4: bool) -> [u8; 2] {
        match (self, is_v4) {
            (Self::Network, true) => [3, 0],
            (Self::Host, true) => [3, 1],
            (Self::Port, true) => [3, 3],
            (Self::Prohibited, true) => [3, 13],
            (Self::Network, false) => [1, 0],
            (Self::Prohibited, false) => [1, 1],
            (Self::Host, false) => [1, 3],
            (Self::Port, false) => [1, 4],
        }
    }

    /// Appends an error about `packet`, an IP packet with a header of `header_len` bytes, to `frame`.
    /// The quoted header is the packet's own, so that the sender finds the connection.
    pub fn write(self, ip: &IpHeader, packet: &[u8], header_len: usize, frame: &mut Vec<u8>) {
        let [kind, code] = self.kind(ip.source.is_ipv4());
        let quoted = &packet[..packet.len().min(header_len + QUOTED_PAYLOAD)];
        write(ip, [kind, code, 0, 0, 0, 0, 0, 0], &[quoted], frame);
    }
}

/// The protocol number of ICMP for the version of `address`.
pub(crate) fn protocol(address: IpAddr) -> u8 {
    if address.is_ipv4() { ICMP } else { ICMPV6 }
}

/// The type and the code of an echo request to `address`.
pub(crate) fn request(address: IpAddr) -> [u8; 2] {
    [if address.is_ipv4() { 8 } else { 128 }, 0]
}

pub(super) fn sum_of(ip: &IpHeader, len: usize) -> Sum {
    match ip.source.is_ipv4() {
        true => Sum::default(),
        false => Sum::of_pseudo_header(ip.source, ip.destination, ICMPV6, len),
    }
}

/// Appends a message with its IP header; the checksum is not yet in `header`.
pub(crate) fn write(
    ip: &IpHeader,
    mut header: [u8; HEADER_LEN],
    data: &[&[u8]],
    frame: &mut Vec<u8>,
) {
    let len = HEADER_LEN + data.iter().map(|part| part.len()).sum::<usize>();
    let protocol = protocol(ip.source);
    IpHeader { protocol, ..*ip }.write(len, frame);
    let mut sum = sum_of(ip, len);
    sum.add(&header);
    for part in data {
        sum.add(part);
    }
    header[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
    frame.extend_from_slice(&header);
    for part in data {
        frame.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::IpPacket;

    fn ip(v6: bool) -> IpHeader {
        let address = |n: u8| match v6 {
            false => IpAddr::from([10, 0, 2, n]),
            true => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)]),
        };
        IpHeader { source: address(15), destination: address(2), protocol: ICMP, hop_limit: 64 }
    }

    fn parse(v6: bool, bytes: &[u8]) -> (IpPacket, Vec<u8>) {
        let packet =
            if v6 { IpPacket::parse_v6(bytes) } else { IpPacket::parse_v4(bytes) }.unwrap();
        let payload = bytes[packet.payload.clone()].to_vec();
        (packet, payload)
    }

    #[test]
    fn echo_round_trip() {
        for v6 in [false, true] {
            let echo = EchoMessage { is_reply: true, id: 7, sequence: 9, data: 8..12 };
            let mut bytes = Vec::new();
            echo.write(&ip(v6), b"data", &mut bytes);
            let (packet, mut payload) = parse(v6, &bytes);
            assert_eq!(EchoMessage::parse(&packet.header, &payload), Ok(echo));
            payload[9] ^= 1;
            assert_eq!(EchoMessage::parse(&packet.header, &payload), Err(ParseError::Checksum));
        }
    }

    #[test]
    fn unreachable_quotes_header_and_ports() {
        let mut quoted = Vec::new();
        crate::wire::udp::write(&ip(false), (1000, 2000), b"long payload", &mut quoted);
        let mut bytes = Vec::new();
        Unreachable::Port.write(&ip(false), &quoted, 20, &mut bytes);
        let (_, payload) = parse(false, &bytes);
        assert_eq!((payload[0], payload[1], &payload[8..]), (3, 3, &quoted[..28]));
    }
}
