//! Neighbor discovery (RFC 4861): solicitations of the guest, and the answers to them, with the option for
//! name servers (RFC 8106).

use super::ethernet::MacAddress;
use super::icmp;
use super::ip::{ICMPV6, IpHeader};
use super::{ParseError, bytes_at};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv6Addr};

/// All nodes of the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Messages with another hop limit are not from the link (RFC 4861, 11.2).
const HOP_LIMIT: u8 = 255;

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;

/// Types of options.
mod option {
    pub(super) const SOURCE_MAC: u8 = 1;
    pub(super) const TARGET_MAC: u8 = 2;
    pub(super) const PREFIX: u8 = 3;
    pub(super) const MTU: u8 = 5;
    pub(super) const NAME_SERVER: u8 = 25;
}

/// A question of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Solicitation {
    /// Asks for router advertisements.
    Router,
    /// Asks for the hardware address of the target.
    Neighbor {
        /// The target.
        target: Ipv6Addr,
    },
}

impl Solicitation {
    /// Parses the payload of a packet with the header `ip`.
    ///
    /// # Errors
    ///
    /// [`ParseError::Unsupported`] for other messages.
    pub fn parse(ip: &IpHeader, bytes: &[u8]) -> Result<Self, ParseError> {
        let [kind, code] = bytes_at(bytes, 0)?;
        let (solicitation, options) = match kind {
            ROUTER_SOLICITATION => (Self::Router, 8),
            NEIGHBOR_SOLICITATION => {
                (Self::Neighbor { target: bytes_at::<16>(bytes, 8)?.into() }, 24)
            }
            _ => return Err(ParseError::Unsupported),
        };
        if !icmp::sum_of(ip, bytes.len()).add(bytes).is_valid() {
            return Err(ParseError::Checksum);
        }
        if ip.hop_limit != HOP_LIMIT || code != 0 {
            return Err(ParseError::Malformed);
        }
        let mut options = bytes.get(options..).ok_or(ParseError::Truncated)?;
        while let [_, len, ..] = options {
            // A length of 0 is malformed, and would not end.
            let len = usize::from(*len) * 8;
            options = options.get(len..).filter(|_| len > 0).ok_or(ParseError::Malformed)?;
        }
        Ok(solicitation)
    }
}

/// The answer to a solicitation for a neighbor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighborAdvertisement {
    /// The address that was asked for.
    pub target: Ipv6Addr,
    /// Its hardware address.
    pub mac: MacAddress,
    /// Whether the target is a router.
    pub is_router: bool,
}

impl NeighborAdvertisement {
    /// Appends the packet to `frame`. It is the answer to a probe for duplicate addresses if `to` is
    /// [`ALL_NODES`].
    pub fn write(&self, to: Ipv6Addr, frame: &mut Vec<u8>) {
        let flags = u8::from(self.is_router) << 7 | u8::from(to != ALL_NODES) << 6 | 1 << 5;
        let mut options = [0; 8];
        options[..2].copy_from_slice(&[option::TARGET_MAC, 1]);
        options[2..].copy_from_slice(&self.mac.0);
        let header = [NEIGHBOR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
        let target = self.target.octets();
        icmp::write(&ip_header(self.target, to), header, &[&target, &options], frame);
    }
}

/// What a router offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterAdvertisement {
    /// The address of the router on the link.
    pub source: Ipv6Addr,
    /// The hardware address of the router.
    pub mac: MacAddress,
    /// How long the router is a default router, in seconds; 0 if it is none.
    pub router_lifetime: u16,
    /// The prefix, of 64 bits, in which nodes choose their addresses.
    pub prefix: Ipv6Addr,
    /// The name server.
    pub dns: Ipv6Addr,
    /// How long the prefix and the name server are valid, in seconds.
    pub lifetime: u32,
    /// The MTU of the link.
    pub mtu: u16,
}

impl RouterAdvertisement {
    /// Appends the packet, which is for all nodes, to `frame`.
    pub fn write(&self, frame: &mut Vec<u8>) {
        let lifetime = self.lifetime.to_be_bytes();
        let mut options = Vec::new();
        options.extend_from_slice(&[option::SOURCE_MAC, 1]);
        options.extend_from_slice(&self.mac.0);
        options.extend_from_slice(&[option::MTU, 1, 0, 0]);
        options.extend_from_slice(&u32::from(self.mtu).to_be_bytes());
        // On the link, and for autonomous configuration.
        options.extend_from_slice(&[option::PREFIX, 4, 64, 0xc0]);
        options.extend_from_slice(&[lifetime, lifetime, [0; 4]].concat());
        options.extend_from_slice(&self.prefix.octets());
        options.extend_from_slice(&[option::NAME_SERVER, 3, 0, 0]);
        options.extend_from_slice(&lifetime);
        options.extend_from_slice(&self.dns.octets());
        // The hop limit for the guest, and no flags: addresses do not come by DHCPv6.
        let [a, b] = self.router_lifetime.to_be_bytes();
        let header = [ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0, a, b];
        // The times for reachability are not specified.
        icmp::write(&ip_header(self.source, ALL_NODES), header, &[&[0; 8], &options], frame);
    }
}

fn ip_header(source: Ipv6Addr, destination: Ipv6Addr) -> IpHeader {
    let (source, destination) = (IpAddr::V6(source), IpAddr::V6(destination));
    IpHeader { source, destination, protocol: ICMPV6, hop_limit: HOP_LIMIT }
}

/// Whether an ICMPv6 message is of neighbor discovery.
pub(crate) fn is_ndp(message: &[u8]) -> bool {
    // Solicitations, advertisements, redirects.
    matches!(message.first(), Some(ROUTER_SOLICITATION..=137))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::IpPacket;
    use smoltcp::wire::{Icmpv6Packet, Icmpv6Repr, NdiscRepr};

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
    const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
    const GUEST: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 15);

    fn solicitation(kind: u8, hop_limit: u8, rest: &[u8]) -> (IpHeader, Vec<u8>) {
        let mut bytes = Vec::new();
        let ip = IpHeader { hop_limit, ..ip_header(GUEST, ROUTER) };
        icmp::write(&ip, [kind, 0, 0, 0, 0, 0, 0, 0], &[rest], &mut bytes);
        (ip, bytes.split_off(40))
    }

    fn parse(kind: u8, hop_limit: u8, rest: &[u8]) -> Result<Solicitation, ParseError> {
        let (ip, bytes) = solicitation(kind, hop_limit, rest);
        Solicitation::parse(&ip, &bytes)
    }

    #[test]
    fn parse_solicitations() {
        let target = ROUTER.octets();
        let option = [1, 1, 2, 0, 0, 0, 0, 1];
        let neighbor = Ok(Solicitation::Neighbor { target: ROUTER });
        assert_eq!(parse(135, 255, &target), neighbor);
        assert_eq!(parse(135, 255, &[&target[..], &option].concat()), neighbor);
        assert_eq!(parse(133, 255, &option), Ok(Solicitation::Router));
        // From beyond the link; options without length; advertisements and redirects.
        assert_eq!(parse(135, 254, &target), Err(ParseError::Malformed));
        assert_eq!(parse(133, 255, &[1, 0, 0, 0]), Err(ParseError::Malformed));
        assert_eq!(parse(133, 255, &[1, 2, 0, 0]), Err(ParseError::Malformed));
        assert_eq!(parse(135, 255, &target[..8]), Err(ParseError::Truncated));
        for kind in [134, 136, 137] {
            assert_eq!(parse(kind, 255, &target), Err(ParseError::Unsupported));
        }
        let (ip, mut bytes) = solicitation(135, 255, &target);
        bytes[9] ^= 1;
        assert_eq!(Solicitation::parse(&ip, &bytes), Err(ParseError::Checksum));
    }

    /// What another implementation reads in a packet.
    fn read<R>(packet: &[u8], read: impl FnOnce(NdiscRepr<'_>) -> R) -> R {
        let ip = IpPacket::parse_v6(packet).unwrap();
        assert_eq!((ip.header.hop_limit, ip.header.protocol), (255, ICMPV6));
        let (IpAddr::V6(from), IpAddr::V6(to)) = (ip.header.source, ip.header.destination) else {
            unreachable!()
        };
        let message = Icmpv6Packet::new_checked(&packet[ip.payload]).unwrap();
        let checksums = smoltcp::phy::ChecksumCapabilities::default();
        match Icmpv6Repr::parse(&from, &to, &message, &checksums).unwrap() {
            Icmpv6Repr::Ndisc(repr) => read(repr),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn advertisements_are_read_by_another_parser() {
        let advertisement = NeighborAdvertisement { target: ROUTER, mac: MAC, is_router: true };
        let mut packet = Vec::new();
        advertisement.write(GUEST, &mut packet);
        read(&packet, |repr| match repr {
            NdiscRepr::NeighborAdvert { flags, target_addr, lladdr } => {
                assert_eq!((flags.bits(), target_addr), (0xe0, ROUTER));
                assert_eq!(lladdr.unwrap().as_bytes(), MAC.0);
            }
            other => panic!("{other:?}"),
        });
        let prefix = Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 0);
        let advertisement = RouterAdvertisement {
            source: ROUTER,
            mac: MAC,
            router_lifetime: 1800,
            prefix,
            dns: prefix,
            lifetime: 86400,
            mtu: 1500,
        };
        let mut packet = Vec::new();
        advertisement.write(&mut packet);
        read(&packet, |repr| match repr {
            NdiscRepr::RouterAdvert { router_lifetime, lladdr, mtu, prefix_info, .. } => {
                assert_eq!((router_lifetime.secs(), mtu), (1800, Some(1500)));
                assert_eq!(lladdr.unwrap().as_bytes(), MAC.0);
                let info = prefix_info.unwrap();
                assert_eq!((info.prefix, info.prefix_len, info.flags.bits()), (prefix, 64, 0xc0));
                assert_eq!(
                    (info.valid_lifetime.secs(), info.preferred_lifetime.secs()),
                    (86400, 86400)
                );
            }
            other => panic!("{other:?}"),
        });
        // The last option is the name server.
        let option = packet.len() - 24;
        assert_eq!(packet[option..option + 8], [25, 3, 0, 0, 0, 1, 0x51, 0x80]);
        assert_eq!(packet[option + 8..], prefix.octets());
    }
}
