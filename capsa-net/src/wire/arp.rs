//! ARP for IPv4 on Ethernet (RFC 826).

use super::ethernet::MacAddress;
use super::{ParseError, bytes_at, u16_at};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

/// Ethernet, IPv4, and the lengths of their addresses.
const FORMAT: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// What a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArpOperation {
    /// Asks for the hardware address of the target.
    Request = 1,
    /// States the hardware address of the sender.
    Reply = 2,
}

/// An ARP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArpMessage {
    /// Request or reply.
    pub operation: ArpOperation,
    /// The sender's hardware address.
    pub sender_mac: MacAddress,
    /// The sender's address; unspecified in a probe for duplicate addresses (RFC 5227).
    pub sender: Ipv4Addr,
    /// The target's hardware address; any value in a request.
    pub target_mac: MacAddress,
    /// The target's address.
    pub target: Ipv4Addr,
}

impl ArpMessage {
    /// Parses the payload of a frame. Padding after the message is ignored.
    ///
    /// # Errors
    ///
    /// [`ParseError::Unsupported`] for other networks and other operations.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        if bytes_at::<6>(bytes, 0)? != FORMAT {
            return Err(ParseError::Unsupported);
        }
        let operation = match u16_at(bytes, 6)? {
            1 => ArpOperation::Request,
            2 => ArpOperation::Reply,
            _ => return Err(ParseError::Unsupported),
        };
        Ok(Self {
            operation,
            sender_mac: MacAddress(bytes_at(bytes, 8)?),
            sender: bytes_at::<4>(bytes, 14)?.into(),
            target_mac: MacAddress(bytes_at(bytes, 18)?),
            target: bytes_at::<4>(bytes, 24)?.into(),
        })
    }

    /// Appends the message to `frame`.
    pub fn write(&self, frame: &mut Vec<u8>) {
        frame.extend_from_slice(&FORMAT);
        frame.extend_from_slice(&(self.operation as u16).to_be_bytes());
        frame.extend_from_slice(&self.sender_mac.0);
        frame.extend_from_slice(&self.sender.octets());
        frame.extend_from_slice(&self.target_mac.0);
        frame.extend_from_slice(&self.target.octets());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_round_trip() {
        let message = ArpMessage {
            operation: ArpOperation::Reply,
            sender_mac: MacAddress([2, 0, 0, 0, 0, 1]),
            sender: Ipv4Addr::new(10, 0, 2, 2),
            target_mac: MacAddress([2, 0, 0, 0, 0, 2]),
            target: Ipv4Addr::new(10, 0, 2, 15),
        };
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        assert_eq!(ArpMessage::parse(&bytes), Ok(message));
        for len in 0..bytes.len() {
            assert_eq!(ArpMessage::parse(&bytes[..len]), Err(ParseError::Truncated), "{len}");
        }
    }
}
