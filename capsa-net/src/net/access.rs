//! Where a flow of the guest may go.
//!
//! The internet is open. Closed are the host, private networks, and every address that is not an ordinary
//! one of the internet. A [`NetworkConfig`] opens ports of the host's loopback, services, and private
//! networks; nothing opens link-local addresses and the metadata services of clouds.
//!
//! This module sees addresses only. Which further addresses belong to the host, the driver asks the
//! kernel at each connect ([`ConnectError::Prohibited`](super::ConnectError::Prohibited)).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Counters, Destination, Net, NetworkConfig};
use crate::flow_table::FlowProtocol;

/// Why a flow is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It goes to the host, or to another address of the guest's own network.
    Host,
    /// It goes to a private network.
    Private,
    /// It goes to an address that no ordinary host of the internet has, or to a metadata service.
    Special,
}

impl Refusal {
    /// Counts the refused flow.
    pub(super) fn count(self, counters: &mut Counters) {
        *match self {
            Self::Host => &mut counters.refused_host,
            Self::Private => &mut counters.refused_private,
            Self::Special => &mut counters.refused_special,
        } += 1;
    }
}

impl Net {
    /// Where a flow to `remote` goes.
    pub(super) fn destination(
        &self,
        protocol: FlowProtocol,
        remote: SocketAddr,
    ) -> Result<Destination, Refusal> {
        let port = remote.port();
        if self.is_gateway(remote.ip()) {
            let is_open = self.config.host_ports.contains(&port);
            return if is_open { Ok(Destination::Host(port)) } else { Err(Refusal::Host) };
        }
        if protocol == FlowProtocol::Tcp
            && let Some(index) = self.services.service_at(remote)
        {
            return Ok(Destination::Service(index));
        }
        self.check_remote(remote.ip())?;
        Ok(Destination::Remote(remote))
    }

    /// Checks that the guest may send to an address beyond its own network.
    pub(super) fn check_remote(&self, address: IpAddr) -> Result<(), Refusal> {
        if is_own_network(&self.config, address) {
            return Err(Refusal::Host);
        }
        match AddressClass::of(address) {
            AddressClass::Public => Ok(()),
            AddressClass::Private if self.config.allow_private => Ok(()),
            AddressClass::Private => Err(Refusal::Private),
            AddressClass::Special => Err(Refusal::Special),
        }
    }

    /// Whether the address stands for the host.
    fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4 == self.config.gateway,
            IpAddr::V6(v6) => self.config.ipv6.is_some_and(|ipv6| ipv6.gateway == v6),
        }
    }
}

/// Whether the address is in the guest's own network, directly or behind NAT64.
fn is_own_network(config: &NetworkConfig, address: IpAddr) -> bool {
    let is_own_v4 = |v4| is_within_v4(v4, config.gateway, config.prefix);
    match address {
        IpAddr::V4(v4) => is_own_v4(v4),
        IpAddr::V6(v6) => {
            behind_nat64(v6).is_some_and(is_own_v4)
                || config.ipv6.is_some_and(|ipv6| is_within_v6(v6, ipv6.gateway, 64))
        }
    }
}

/// What an address is, by the registries of IANA for special addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AddressClass {
    /// An address of the internet.
    Public,
    /// An address of a private network: `allow_private` opens these.
    Private,
    /// Any other address, and the metadata services of clouds wherever they are.
    Special,
}

impl AddressClass {
    fn of(address: IpAddr) -> Self {
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
fn behind_nat64(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let (network, prefix) = v6([0x64, 0xff9b, 0, 0], 0, 96);
    is_within_v6(address, network, prefix).then(|| Ipv4Addr::from(u128::from(address) as u32))
}

fn is_within_v4(address: Ipv4Addr, network: Ipv4Addr, prefix: u8) -> bool {
    let differing = u32::from(address) ^ u32::from(network);
    differing.leading_zeros() >= u32::from(prefix)
}

fn is_within_v6(address: Ipv6Addr, network: Ipv6Addr, prefix: u8) -> bool {
    let differing = u128::from(address) ^ u128::from(network);
    differing.leading_zeros() >= u32::from(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ethernet::MacAddress;
    use alloc::collections::BTreeSet;
    use alloc::string::String;
    use alloc::vec;

    use super::super::{Ipv6Network, ServiceName};

    fn net(allow_private: bool) -> Net {
        let service = |port| ServiceName { name: String::from("llm.capsa.internal"), port };
        let config = NetworkConfig {
            allow_private,
            host_ports: BTreeSet::from([8080]),
            services: vec![service(80), service(443)],
            ..NetworkConfig::new(MacAddress::GUEST, 1500)
        };
        Net::new(config, [7; 16])
    }

    fn judge(net: &Net, remote: &str) -> Result<Destination, Refusal> {
        let remote = remote.parse().unwrap_or_else(|e| panic!("{remote}: {e}"));
        net.destination(FlowProtocol::Tcp, remote)
    }

    #[test]
    fn special_address_is_closed_with_any_option() {
        let addresses = include_str!("access/special.txt");
        for line in addresses.lines() {
            let address: IpAddr = line.parse().unwrap_or_else(|e| panic!("{line}: {e}"));
            for net in [net(false), net(true)] {
                let refused = net.destination(FlowProtocol::Tcp, SocketAddr::new(address, 80));
                assert_eq!(refused, Err(Refusal::Special), "{address}");
            }
        }
        assert!(addresses.lines().count() >= 60);
    }

    #[test]
    fn private_address_is_open_on_request() {
        let addresses = [
            "10.0.0.1",
            "10.0.3.1",
            "10.255.255.255",
            "100.64.0.0",
            "100.100.100.199",
            "100.127.255.255",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "192.168.255.255",
            "fc00::1",
            "fd12:3456::1",
            "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "fec0::1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::192.168.1.1",
        ];
        for address in addresses {
            let remote = SocketAddr::new(address.parse().unwrap(), 80);
            let judge = |net: Net| net.destination(FlowProtocol::Udp, remote);
            assert_eq!(judge(net(false)), Err(Refusal::Private), "{address}");
            assert_eq!(judge(net(true)), Ok(Destination::Remote(remote)), "{address}");
        }
    }

    #[test]
    fn public_address_beside_closed_range_is_open() {
        let addresses = [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "168.63.129.15",
            "168.63.129.17",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "191.255.255.255",
            "192.0.1.0",
            "192.0.3.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "64:ff9b::1.1.1.1",
            "2000::",
            "2001:200::",
            "2001:4860:4860::8888",
            "2003::1",
            "2606:4700:4700::1111",
            "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ];
        for address in addresses {
            let remote = SocketAddr::new(address.parse().unwrap(), 443);
            let judged = net(false).destination(FlowProtocol::Tcp, remote);
            assert_eq!(judged, Ok(Destination::Remote(remote)), "{address}");
        }
    }

    #[test]
    fn own_network_opens_named_ports_only() {
        for net in [net(false), net(true)] {
            assert_eq!(judge(&net, "10.0.2.2:8080"), Ok(Destination::Host(8080)));
            assert_eq!(judge(&net, "10.0.2.32:80"), Ok(Destination::Service(0)));
            assert_eq!(judge(&net, "10.0.2.32:443"), Ok(Destination::Service(1)));
            let udp = "10.0.2.32:80".parse().unwrap();
            assert_eq!(net.destination(FlowProtocol::Udp, udp), Err(Refusal::Host));
            for port in (0..=u16::MAX).filter(|port| *port != 8080) {
                let remote = SocketAddr::new([10, 0, 2, 2].into(), port);
                assert_eq!(net.destination(FlowProtocol::Tcp, remote), Err(Refusal::Host));
            }
            for closed in ["10.0.2.32:81", "10.0.2.3:8080", "10.0.2.33:80", "10.0.2.255:8080"] {
                assert_eq!(judge(&net, closed), Err(Refusal::Host), "{closed}");
            }
            let gateway = Ipv6Network::DEFAULT.gateway;
            let host = judge(&net, &alloc::format!("[{gateway}]:8080"));
            assert_eq!(host, Ok(Destination::Host(8080)));
            for closed in
                ["[fd00:ca95:a:2::2]:80", "[fd00:ca95:a:2::3]:80", "[fd00:ca95:a:2:1::]:8080"]
            {
                assert_eq!(judge(&net, closed), Err(Refusal::Host), "{closed}");
            }
            for closed in ["[64:ff9b::10.0.2.2]:8080", "[64:ff9b::10.0.2.32]:80"] {
                assert_eq!(judge(&net, closed), Err(Refusal::Host), "{closed}");
            }
        }
    }
}
