//! Where a flow of the guest may go.
//!
//! The internet is open. Closed are the host, private networks, and every address that is not an ordinary
//! one of the internet. A [`NetworkConfig`] opens ports of the host's loopback, services, and private
//! networks; nothing opens link-local addresses and the metadata services of clouds.
//!
//! This module sees addresses only. Which further addresses belong to the host, the driver asks the
//! kernel at each connect ([`ConnectError::Prohibited`](super::ConnectError::Prohibited)).

use core::net::{IpAddr, SocketAddr};

use capsa_proto::policy::{AddressClass, PolicyProtocol, behind_nat64, is_within_v4, is_within_v6};

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
    /// The policy does not allow it.
    Policy,
}

impl Refusal {
    /// Counts the refused flow.
    pub(super) fn count(self, counters: &mut Counters) {
        *match self {
            Self::Host => &mut counters.refused_host,
            Self::Private => &mut counters.refused_private,
            Self::Special => &mut counters.refused_special,
            Self::Policy => &mut counters.refused_policy,
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
        let policy = self.config.policy.as_ref();
        if self.is_gateway(remote.ip()) {
            let is_open = match policy {
                Some(policy) => policy.host(policy_protocol(protocol), port).is_allowed,
                None => self.config.host_ports.contains(&port),
            };
            return if is_open { Ok(Destination::Host(port)) } else { Err(Refusal::Host) };
        }
        if protocol == FlowProtocol::Tcp
            && let Some(index) = self.services.service_at(remote)
        {
            return Ok(Destination::Service(index));
        }
        match policy {
            Some(_) if is_own_network(&self.config, remote.ip()) => return Err(Refusal::Host),
            Some(policy) => {
                let protocol = policy_protocol(protocol);
                if !policy.address(protocol, remote.ip(), port).is_allowed {
                    return Err(Refusal::Policy);
                }
            }
            None => self.check_remote(remote.ip())?,
        }
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

fn policy_protocol(protocol: FlowProtocol) -> PolicyProtocol {
    match protocol {
        FlowProtocol::Tcp => PolicyProtocol::Tcp,
        FlowProtocol::Udp => PolicyProtocol::Udp,
        FlowProtocol::Echo => PolicyProtocol::Icmp,
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
