//! Packet formats: each type parses a header from bytes, and writes it.
//!
//! A parser checks every length and checksum before it returns, so the values that it returns can be
//! used without further checks. It does not know addresses or connections.
//!
//! | module | format | source |
//! | --- | --- | --- |
//! | [`checksum`] | the Internet checksum | RFC 1071 |
//! | [`ethernet`] | Ethernet II frames | IEEE 802.3 |
//! | [`arp`] | ARP for IPv4 | RFC 826 |
//! | [`ip`] | IPv4 and IPv6 headers | RFC 791, RFC 8200 |
//! | [`icmp`] | echo and unreachable messages of ICMP and ICMPv6 | RFC 792, RFC 4443 |
//! | [`ndp`] | neighbor discovery and router advertisements | RFC 4861, RFC 8106 |
//! | [`tcp`] | TCP headers, with the options MSS and window scale | RFC 9293, RFC 7323 |
//! | [`udp`] | UDP headers | RFC 768 |
//! | [`dns`] | DNS messages | RFC 1035, RFC 6891 |

pub mod arp;
pub mod checksum;
pub mod dns;
pub mod ethernet;
pub mod icmp;
pub mod ip;
pub mod ndp;
pub mod tcp;
pub mod udp;

/// Why bytes are not a packet of the expected format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParseError {
    /// The packet ends within its header, or before the length that its header states.
    Truncated,
    /// A field has a value that the format forbids.
    Malformed,
    /// The checksum is wrong.
    Checksum,
    /// The packet is well-formed, and of a kind that this stack does not handle.
    Unsupported,
}

/// The `N` bytes at `at`.
///
/// # Errors
///
/// [`ParseError::Truncated`] when there are fewer.
pub(crate) fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], ParseError> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(ParseError::Truncated)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, ParseError> {
    bytes_at(bytes, at).map(u16::from_be_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, ParseError> {
    bytes_at(bytes, at).map(u32::from_be_bytes)
}
