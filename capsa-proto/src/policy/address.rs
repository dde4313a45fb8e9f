//! [`AddressClass`]: which addresses are public, private, or special.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::target::IpNetwork;

/// What an address is, by the registries of IANA for special addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressClass {
    /// An address of the internet.
    Public,
    /// An address of a private network.
    Private,
    /// Any other address, and the metadata services of clouds wherever they are.
    Special,
}

impl AddressClass {
    /// The class of an address. An address that contains an IPv4 address (NAT64) has the class of that.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => Self::of_v6(v6),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let is_in = |ranges: &[(Ipv4Addr, u8)]| {
            ranges.iter().any(|(network, prefix)| is_within_v4(address, *network, *prefix))
        };
        if is_in(SPECIAL_V4) {
            Self::Special
        } else if is_in(PRIVATE_V4) {
            Self::Private
        } else {
            Self::Public
        }
    }

    /// Only the space for global unicast can be public, so an unknown range is closed.
    fn of_v6(address: Ipv6Addr) -> Self {
        let is_in = |ranges: &[(Ipv6Addr, u8)]| {
            ranges.iter().any(|(network, prefix)| is_within_v6(address, *network, *prefix))
        };
        if let Some(v4) = behind_nat64(address) {
            // The translator sends to the address inside, so that is what counts.
            Self::of_v4(v4)
        } else if is_in(SPECIAL_V6) {
            Self::Special
        } else if is_in(PRIVATE_V6) {
            Self::Private
        } else if is_within_v6(address, GLOBAL_UNICAST.0, GLOBAL_UNICAST.1) {
            Self::Public
        } else {
            Self::Special
        }
    }
}

/// Whether all addresses of a network are in one range of special addresses.
pub(super) fn is_special_range(network: &IpNetwork) -> bool {
    let is_within = |start: IpAddr, prefix| IpNetwork::masked(start, prefix).covers(network);
    SPECIAL_V4.iter().any(|(start, prefix)| is_within((*start).into(), *prefix))
        || SPECIAL_V6.iter().any(|(start, prefix)| is_within((*start).into(), *prefix))
}

/// Whether private networks are among other addresses of a network.
pub(super) fn has_private_range(network: &IpNetwork) -> bool {
    let is_wider = |start: IpAddr, prefix| {
        let range = IpNetwork::masked(start, prefix);
        network.covers(&range) && *network != range
    };
    PRIVATE_V4.iter().any(|(start, prefix)| is_wider((*start).into(), *prefix))
        || PRIVATE_V6.iter().any(|(start, prefix)| is_wider((*start).into(), *prefix))
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> (Ipv4Addr, u8) {
    (Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(start: [u16; 4], end: u16, prefix: u8) -> (Ipv6Addr, u8) {
    let [a, b, c, d] = start;
    (Ipv6Addr::new(a, b, c, d, 0, 0, 0, end), prefix)
}

const PRIVATE_V4: &[(Ipv4Addr, u8)] = &[
    v4(10, 0, 0, 0, 8),
    // Shared address space: providers, tailnets.
    v4(100, 64, 0, 0, 10),
    v4(172, 16, 0, 0, 12),
    v4(192, 168, 0, 0, 16),
];

const SPECIAL_V4: &[(Ipv4Addr, u8)] = &[
    // This host on this network.
    v4(0, 0, 0, 0, 8),
    // Metadata of Alibaba Cloud.
    v4(100, 100, 100, 200, 32),
    // Loopback.
    v4(127, 0, 0, 0, 8),
    // Metadata of Azure.
    v4(168, 63, 129, 16, 32),
    // Link-local, with the metadata of most clouds.
    v4(169, 254, 0, 0, 16),
    // Protocol assignments, with the metadata of Oracle Cloud.
    v4(192, 0, 0, 0, 24),
    // Documentation.
    v4(192, 0, 2, 0, 24),
    // Relays of 6to4, which is withdrawn.
    v4(192, 88, 99, 0, 24),
    // Benchmarks.
    v4(198, 18, 0, 0, 15),
    // Documentation.
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    // Multicast.
    v4(224, 0, 0, 0, 4),
    // Reserved, and broadcast.
    v4(240, 0, 0, 0, 4),
];

const GLOBAL_UNICAST: (Ipv6Addr, u8) = v6([0x2000, 0, 0, 0], 0, 3);

const PRIVATE_V6: &[(Ipv6Addr, u8)] = &[
    v6([0xfc00, 0, 0, 0], 0, 7),
    // Site-local, withdrawn.
    v6([0xfec0, 0, 0, 0], 0, 10),
];

/// Within global unicast and private networks: everything else is special.
const SPECIAL_V6: &[(Ipv6Addr, u8)] = &[
    // Protocol assignments, with Teredo, which contains an IPv4 address.
    v6([0x2001, 0, 0, 0], 0, 23),
    // Documentation.
    v6([0x2001, 0xdb8, 0, 0], 0, 32),
    // 6to4, which contains an IPv4 address.
    v6([0x2002, 0, 0, 0], 0, 16),
    // Documentation.
    v6([0x3fff, 0, 0, 0], 0, 20),
    // Metadata of AWS.
    v6([0xfd00, 0xec2, 0, 0], 0, 32),
    // Metadata of Google Cloud.
    v6([0xfd20, 0xce, 0, 0], 0x254, 128),
];

/// The IPv4 address in an address of 64:ff9b::/96 (RFC 6052).
pub fn behind_nat64(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let (network, prefix) = v6([0x64, 0xff9b, 0, 0], 0, 96);
    is_within_v6(address, network, prefix).then(|| Ipv4Addr::from(u128::from(address) as u32))
}

/// Whether the first `prefix` bits are those of the network.
pub fn is_within_v4(address: Ipv4Addr, network: Ipv4Addr, prefix: u8) -> bool {
    let differing = u32::from(address) ^ u32::from(network);
    differing.leading_zeros() >= u32::from(prefix)
}

/// Whether the first `prefix` bits are those of the network.
pub fn is_within_v6(address: Ipv6Addr, network: Ipv6Addr, prefix: u8) -> bool {
    let differing = u128::from(address) ^ u128::from(network);
    differing.leading_zeros() >= u32::from(prefix)
}
