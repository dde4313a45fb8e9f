//! Ethernet II frames.

use super::{ParseError, bytes_at, u16_at};
use alloc::vec::Vec;
use core::net::IpAddr;

pub use capsa_proto::plan::MacAddress;

/// The length of a frame's header.
pub const HEADER_LEN: usize = 14;

/// The protocol of a frame's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtherType {
    /// 0x0800
    Ipv4,
    /// 0x0806
    Arp,
    /// 0x86dd
    Ipv6,
}

impl EtherType {
    /// The protocol of packets to and from `address`.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }

    const fn number(self) -> u16 {
        match self {
            Self::Ipv4 => 0x0800,
            Self::Arp => 0x0806,
            Self::Ipv6 => 0x86dd,
        }
    }
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EthernetHeader {
    /// The receiver.
    pub destination: MacAddress,
    /// The sender.
    pub source: MacAddress,
    /// The protocol of the payload.
    pub ether_type: EtherType,
}

impl EthernetHeader {
    /// Parses the header of `frame`. The payload begins at [`HEADER_LEN`].
    ///
    /// # Errors
    ///
    /// [`ParseError::Unsupported`] for protocols other than ARP and IP, VLAN tags among them.
    pub fn parse(frame: &[u8]) -> Result<Self, ParseError> {
        let destination = MacAddress(bytes_at(frame, 0)?);
        let source = MacAddress(bytes_at(frame, 6)?);
        let ether_type = match u16_at(frame, 12)? {
            0x0800 => EtherType::Ipv4,
            0x0806 => EtherType::Arp,
            0x86dd => EtherType::Ipv6,
            _ => return Err(ParseError::Unsupported),
        };
        Ok(Self { destination, source, ether_type })
    }

    /// Appends the header to `frame`.
    pub fn write(&self, frame: &mut Vec<u8>) {
        frame.extend_from_slice(&self.destination.0);
        frame.extend_from_slice(&self.source.0);
        frame.extend_from_slice(&self.ether_type.number().to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trip() {
        let header = EthernetHeader {
            destination: MacAddress::BROADCAST,
            source: MacAddress([2, 0, 0, 0, 0, 1]),
            ether_type: EtherType::Arp,
        };
        let mut frame = Vec::new();
        header.write(&mut frame);
        assert_eq!((frame.len(), EthernetHeader::parse(&frame)), (HEADER_LEN, Ok(header)));
    }

    #[test]
    fn parse_vlan_tag_is_unsupported() {
        let mut frame = [0; 18];
        frame[12..14].copy_from_slice(&[0x81, 0x00]);
        assert_eq!(EthernetHeader::parse(&frame), Err(ParseError::Unsupported));
        assert_eq!(EthernetHeader::parse(&frame[..13]), Err(ParseError::Truncated));
    }
}
