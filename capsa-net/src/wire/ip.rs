//! IPv4 and IPv6 headers (RFC 791, RFC 8200).
//!
//! IPv4 options and routing headers are rejected: ordinary guests do not send them. Of the other IPv6
//! extension headers, a packet may have hop-by-hop and destination options, and after them a fragment
//! header. The transport header follows at once, so that every fragment shows the protocol.

use super::checksum::checksum;
use super::{ParseError, bytes_at, u16_at, u32_at};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::ops::Range;

/// The length of an IPv4 header without options.
pub const IPV4_HEADER_LEN: usize = 20;
/// The length of an IPv6 header.
pub const IPV6_HEADER_LEN: usize = 40;
const IPV6_FRAGMENT_LEN: usize = 8;
const IPV6_FRAGMENT: u8 = 44;
const HOP_BY_HOP_OPTIONS: u8 = 0;
const DESTINATION_OPTIONS: u8 = 60;

/// Headers with options in a packet, at most.
const OPTION_HEADERS: usize = 7;

/// ICMP for IPv4.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;

/// The header of a packet, of either version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpHeader {
    /// The sender. Both addresses have the same version.
    pub source: IpAddr,
    /// The receiver.
    pub destination: IpAddr,
    /// The protocol of the payload.
    pub protocol: u8,
    /// The remaining number of routers: time to live, or hop limit.
    pub hop_limit: u8,
}

/// The place of a fragment in its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Identifies the datagram among those of the same addresses and protocol.
    pub id: u32,
    /// The position of the fragment's first byte in the datagram's payload: a multiple of 8.
    pub offset: usize,
    /// Whether further fragments follow.
    pub more: bool,
}

/// A parsed packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpPacket {
    /// The header.
    pub header: IpHeader,
    /// Where the payload is in the parsed bytes. Link padding after it is excluded.
    pub payload: Range<usize>,
    /// Present unless the packet is a whole datagram.
    pub fragment: Option<Fragment>,
}

impl IpPacket {
    /// Parses an IPv4 packet.
    ///
    /// # Errors
    ///
    /// See [`ParseError`]; a header with options is unsupported.
    pub fn parse_v4(bytes: &[u8]) -> Result<Self, ParseError> {
        let header = bytes_at::<IPV4_HEADER_LEN>(bytes, 0)?;
        match header[0] {
            0x45 => {}
            0x46..=0x4f => return Err(ParseError::Unsupported),
            _ => return Err(ParseError::Malformed),
        }
        if checksum(&header) != 0 {
            return Err(ParseError::Checksum);
        }
        let total = usize::from(u16_at(&header, 2)?);
        if total < IPV4_HEADER_LEN {
            return Err(ParseError::Malformed);
        }
        if bytes.len() < total {
            return Err(ParseError::Truncated);
        }
        let payload = IPV4_HEADER_LEN..total;
        let flags = u16_at(&header, 6)?;
        let (offset, more) = (usize::from(flags & 0x1fff) * 8, flags & 0x2000 != 0);
        let id = u32::from(u16_at(&header, 4)?);
        // The whole datagram has at most 64 KiB with its header.
        if IPV4_HEADER_LEN + offset + payload.len() > 0xffff {
            return Err(ParseError::Malformed);
        }
        let fragment = fragment(id, offset, more, payload.len())?;
        Ok(Self {
            header: IpHeader {
                source: Ipv4Addr::from(bytes_at::<4>(&header, 12)?).into(),
                destination: Ipv4Addr::from(bytes_at::<4>(&header, 16)?).into(),
                protocol: header[9],
                hop_limit: header[8],
            },
            payload,
            fragment,
        })
    }

    /// Parses an IPv6 packet.
    ///
    /// # Errors
    ///
    /// See [`ParseError`]; extension headers other than options and one fragment header are unsupported.
    pub fn parse_v6(bytes: &[u8]) -> Result<Self, ParseError> {
        let header = bytes_at::<IPV6_HEADER_LEN>(bytes, 0)?;
        if header[0] >> 4 != 6 {
            return Err(ParseError::Malformed);
        }
        let total = IPV6_HEADER_LEN + usize::from(u16_at(&header, 4)?);
        if bytes.len() < total {
            return Err(ParseError::Truncated);
        }
        let mut packet = Self {
            header: IpHeader {
                source: Ipv6Addr::from(bytes_at::<16>(&header, 8)?).into(),
                destination: Ipv6Addr::from(bytes_at::<16>(&header, 24)?).into(),
                protocol: header[6],
                hop_limit: header[7],
            },
            payload: IPV6_HEADER_LEN..total,
            fragment: None,
        };
        packet.skip_options(bytes)?;
        if packet.header.protocol == IPV6_FRAGMENT {
            let extension = &bytes[packet.payload.clone()];
            let flags = u16_at(extension, 2)?;
            let id = u32_at(extension, 4)?;
            packet.header.protocol = extension[0];
            packet.payload.start += IPV6_FRAGMENT_LEN;
            let (offset, more) = (usize::from(flags & 0xfff8), flags & 1 != 0);
            packet.fragment = fragment(id, offset, more, packet.payload.len())?;
        }
        match packet.header.protocol {
            // Hop-by-hop options, routing, fragment, ESP, AH, destination options, mobility, HIP, shim6.
            0 | 43 | IPV6_FRAGMENT | 50 | 51 | 60 | 135 | 139 | 140 => Err(ParseError::Unsupported),
            _ => Ok(packet),
        }
    }

    /// Skips the headers with options of an IPv6 packet.
    fn skip_options(&mut self, bytes: &[u8]) -> Result<(), ParseError> {
        for n in 0..=OPTION_HEADERS {
            match self.header.protocol {
                // Only the first header may have hop-by-hop options.
                HOP_BY_HOP_OPTIONS if n == 0 => {}
                DESTINATION_OPTIONS => {}
                _ => return Ok(()),
            }
            let rest = &bytes[self.payload.clone()];
            let [next, len] = bytes_at(rest, 0)?;
            let len = (usize::from(len) + 1) * 8;
            check_options(rest.get(2..len).ok_or(ParseError::Truncated)?)?;
            self.header.protocol = next;
            self.payload.start += len;
        }
        Err(ParseError::Unsupported)
    }
}

/// Checks that a node which does not know the options of a header may skip them (RFC 8200, 4.2). The
/// option for jumbograms is not such a one.
fn check_options(mut options: &[u8]) -> Result<(), ParseError> {
    loop {
        options = match *options {
            [] => return Ok(()),
            [0, ref rest @ ..] => rest,
            // The two highest bits are not zero: unknown options are an error.
            [kind, ..] if kind >= 0x40 => return Err(ParseError::Unsupported),
            [_, len, ref rest @ ..] => rest.get(usize::from(len)..).ok_or(ParseError::Malformed)?,
            [_] => return Err(ParseError::Malformed),
        };
    }
}

/// The place of a fragment, or `None` for a whole datagram.
fn fragment(
    id: u32,
    offset: usize,
    more: bool,
    len: usize,
) -> Result<Option<Fragment>, ParseError> {
    if offset == 0 && !more {
        return Ok(None);
    }
    // Only the last fragment may have a length that is not a multiple of 8, and none is empty.
    if len == 0 || (more && !len.is_multiple_of(8)) || offset + len > 0xffff {
        return Err(ParseError::Malformed);
    }
    Ok(Some(Fragment { id, offset, more }))
}

impl IpHeader {
    /// Appends the header of a whole datagram with `payload` bytes to `frame`.
    ///
    /// # Panics
    ///
    /// When the versions of the addresses differ, or the payload does not fit into a datagram.
    pub fn write(&self, payload: usize, frame: &mut Vec<u8>) {
        let length = |len: usize| u16::try_from(len).expect("a datagram has at most 64 KiB");
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = [0; IPV4_HEADER_LEN];
                header[0] = 0x45;
                header[2..4].copy_from_slice(&length(IPV4_HEADER_LEN + payload).to_be_bytes());
                // Do not fragment: the identification may be zero (RFC 6864).
                header[6] = 0x40;
                header[8] = self.hop_limit;
                header[9] = self.protocol;
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&destination.octets());
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend_from_slice(&header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend_from_slice(&[0x60, 0, 0, 0]);
                frame.extend_from_slice(&length(payload).to_be_bytes());
                frame.extend_from_slice(&[self.protocol, self.hop_limit]);
                frame.extend_from_slice(&source.octets());
                frame.extend_from_slice(&destination.octets());
            }
            _ => panic!("a packet has addresses of one version"),
        }
    }

    /// The length of the header.
    pub fn header_len(&self) -> usize {
        if self.source.is_ipv4() { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN }
    }
}

/// The fragments of `packet`, a whole packet as [`IpHeader::write`] writes it, so that each has at most
/// `mtu` bytes.
///
/// # Panics
///
/// When `mtu` has no room for a header and 8 bytes.
pub(crate) fn fragments(
    packet: &[u8],
    mtu: usize,
    id: u32,
) -> impl Iterator<Item = Vec<u8>> + use<'_> {
    let is_v4 = packet[0] >> 4 == 4;
    let (header, payload) = packet.split_at(if is_v4 { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN });
    let header_len = header.len() + if is_v4 { 0 } else { IPV6_FRAGMENT_LEN };
    let len = (mtu - header_len) & !7;
    let count = payload.len().div_ceil(len);
    payload.chunks(len).enumerate().map(move |(n, part)| {
        let more = u16::from(n + 1 < count);
        let mut fragment = header.to_vec();
        if is_v4 {
            fragment[2..4].copy_from_slice(&((header_len + part.len()) as u16).to_be_bytes());
            fragment[4..6].copy_from_slice(&(id as u16).to_be_bytes());
            let place = (n * len / 8) as u16 | more << 13;
            fragment[6..8].copy_from_slice(&place.to_be_bytes());
            fragment[10..12].fill(0);
            let sum = checksum(&fragment);
            fragment[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            let payload_len = (IPV6_FRAGMENT_LEN + part.len()) as u16;
            fragment[4..6].copy_from_slice(&payload_len.to_be_bytes());
            let protocol = core::mem::replace(&mut fragment[6], IPV6_FRAGMENT);
            fragment.extend_from_slice(&[protocol, 0]);
            fragment.extend_from_slice(&((n * len) as u16 | more).to_be_bytes());
            fragment.extend_from_slice(&id.to_be_bytes());
        }
        fragment.extend_from_slice(part);
        fragment
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(v6: bool) -> IpHeader {
        let address = |n| match v6 {
            false => IpAddr::from([10, 0, 2, n]),
            true => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)]),
        };
        IpHeader { source: address(2), destination: address(15), protocol: UDP, hop_limit: 64 }
    }

    fn packet(v6: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        header(v6).write(3, &mut bytes);
        bytes.extend_from_slice(b"abc");
        bytes
    }

    fn parse(v6: bool, bytes: &[u8]) -> Result<IpPacket, ParseError> {
        if v6 { IpPacket::parse_v6(bytes) } else { IpPacket::parse_v4(bytes) }
    }

    #[test]
    fn header_round_trip_without_padding() {
        for v6 in [false, true] {
            let mut bytes = packet(v6);
            let len = header(v6).header_len();
            bytes.extend_from_slice(b"padding");
            let expected = IpPacket { header: header(v6), payload: len..len + 3, fragment: None };
            assert_eq!(parse(v6, &bytes), Ok(expected));
            assert_eq!(parse(v6, &bytes[..len + 2]), Err(ParseError::Truncated));
        }
    }

    #[test]
    fn parse_v4_changed_byte_is_checksum_error() {
        let mut bytes = packet(false);
        bytes[8] ^= 1;
        assert_eq!(parse(false, &bytes), Err(ParseError::Checksum));
    }

    #[test]
    fn parse_v6_fragment_has_its_place() {
        let mut bytes = Vec::new();
        IpHeader { protocol: IPV6_FRAGMENT, ..header(true) }.write(16, &mut bytes);
        bytes.extend_from_slice(&[UDP, 0, 0, 8 | 1, 0, 0, 0, 7]);
        bytes.extend_from_slice(b"8 bytes!");
        let packet = parse(true, &bytes).unwrap();
        assert_eq!(packet.fragment, Some(Fragment { id: 7, offset: 8, more: true }));
        assert_eq!((&bytes[packet.payload], packet.header.protocol), (&b"8 bytes!"[..], UDP));
    }

    /// Parses an IPv6 packet with these extension headers, and a payload of 8 bytes.
    fn parse_extended(first: u8, extensions: &[[u8; 8]]) -> Result<IpPacket, ParseError> {
        let mut bytes = Vec::new();
        IpHeader { protocol: first, ..header(true) }.write(8 * extensions.len() + 8, &mut bytes);
        bytes.extend_from_slice(extensions.as_flattened());
        bytes.extend_from_slice(&[0; 8]);
        parse(true, &bytes)
    }

    #[test]
    fn parse_v6_options_are_skipped() {
        // Padding in each form, and the router alert.
        let hop_by_hop = [DESTINATION_OPTIONS, 0, 5, 2, 0, 0, 1, 0];
        let destination = [UDP, 0, 1, 1, 0, 0, 0, 0];
        let packet = parse_extended(HOP_BY_HOP_OPTIONS, &[hop_by_hop, destination]).unwrap();
        assert_eq!((packet.header.protocol, packet.payload), (UDP, 56..64));
        let chain = |len| {
            let mut chain = alloc::vec![[DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0]; len];
            chain[len - 1][0] = UDP;
            parse_extended(DESTINATION_OPTIONS, &chain)
        };
        assert_eq!(chain(OPTION_HEADERS).map(|packet| packet.header.protocol), Ok(UDP));
        assert_eq!(chain(OPTION_HEADERS + 1), Err(ParseError::Unsupported));
    }

    #[test]
    fn parse_v6_hidden_transport_is_an_error() {
        let pad = |next| [next, 0, 1, 4, 0, 0, 0, 0];
        let cases: [(u8, &[[u8; 8]], _); 11] = [
            // Hop-by-hop options that are not first; a jumbogram; an unknown option.
            (60, &[pad(0), pad(UDP)], ParseError::Unsupported),
            (0, &[[UDP, 0, 0xc2, 4, 0, 1, 0, 0]], ParseError::Unsupported),
            (60, &[[UDP, 0, 0x80, 4, 0, 0, 0, 0]], ParseError::Unsupported),
            // Headers after the fragment header.
            (44, &[[60, 0, 0, 1, 0, 0, 0, 7], pad(UDP)], ParseError::Unsupported),
            (44, &[[44, 0, 0, 1, 0, 0, 0, 7], [UDP, 0, 0, 1, 0, 0, 0, 7]], ParseError::Unsupported),
            (44, &[[43, 0, 0, 0, 0, 0, 0, 7], pad(UDP)], ParseError::Unsupported),
            // Routing, authentication, encryption.
            (43, &[[UDP, 0, 0, 1, 0, 0, 0, 0]], ParseError::Unsupported),
            (51, &[pad(UDP)], ParseError::Unsupported),
            (50, &[pad(UDP)], ParseError::Unsupported),
            // Lengths beyond the header, and beyond the packet.
            (60, &[[UDP, 0, 1, 5, 0, 0, 0, 0]], ParseError::Malformed),
            (60, &[[UDP, 2, 1, 4, 0, 0, 0, 0]], ParseError::Truncated),
        ];
        for (n, (first, extensions, error)) in cases.into_iter().enumerate() {
            assert_eq!(parse_extended(first, extensions), Err(error), "{n}");
        }
    }

    #[test]
    fn fragments_of_a_packet_fit_the_mtu() {
        for (v6, mtu) in [(false, 68), (false, 576), (true, 1280)] {
            let mut whole = Vec::new();
            header(v6).write(5001, &mut whole);
            whole.extend((0..5001).map(|n| n as u8));
            let (mut bytes, mut more) = (Vec::new(), true);
            for fragment in fragments(&whole, mtu, 7) {
                assert!(fragment.len() <= mtu);
                let packet = parse(v6, &fragment).unwrap();
                assert_eq!(packet.header, header(v6));
                let place = packet.fragment.unwrap();
                assert_eq!((place.id, place.offset), (7, bytes.len()));
                bytes.extend_from_slice(&fragment[packet.payload]);
                more = place.more;
            }
            assert!(!more);
            assert_eq!(bytes, whole[header(v6).header_len()..]);
        }
    }

    #[test]
    fn fragment_end_beyond_64_kib_is_malformed() {
        assert_eq!(fragment(1, 0xfff8, false, 8), Err(ParseError::Malformed));
        assert_eq!(fragment(1, 8, true, 7), Err(ParseError::Malformed));
        assert!(fragment(1, 8, false, 7).unwrap().is_some());
    }

    proptest! {
        #[test]
        fn parse_any_bytes_payload_is_within(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            for v6 in [false, true] {
                if let Ok(packet) = parse(v6, &bytes) {
                    prop_assert!(packet.payload.start <= packet.payload.end);
                    prop_assert!(packet.payload.end <= bytes.len());
                }
            }
        }
    }
}
