//! Where a flow of the guest may go.
//!
//! The internet is open. Closed are the host, private networks, and every address that is not an ordinary
//! one of the internet. A [`NetworkConfig`] opens ports of the host's loopback, services, and private
//! networks; nothing opens link-local addresses and the metadata services of clouds.
//!
//! Under a policy, its rules decide in place of that. [`Net::judge`] gives the one verdict on a new flow.
//!
//! This module sees addresses only. Which further addresses belong to the host, the driver asks the
//! kernel at each connect ([`ConnectError::Prohibited`](super::ConnectError::Prohibited)).

use alloc::sync::Arc;
use core::net::{IpAddr, SocketAddr};

use capsa_proto::policy::{
    AddressClass, PolicyMode, PolicyProtocol, PolicyRules, PolicyVerdict, VerdictReason,
    behind_nat64, is_within_v4, is_within_v6,
};
use capsa_proto::time::Instant;

use super::names::{self, NameIndex};
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

    /// The counter of a reason.
    pub(super) fn of(reason: VerdictReason) -> Self {
        match reason {
            VerdictReason::HostAddress => Self::Host,
            VerdictReason::PrivateAddress => Self::Private,
            VerdictReason::SpecialAddress => Self::Special,
            _ => Self::Policy,
        }
    }

    fn reason(self) -> VerdictReason {
        match self {
            Self::Host => VerdictReason::HostAddress,
            Self::Private => VerdictReason::PrivateAddress,
            Self::Special => VerdictReason::SpecialAddress,
            Self::Policy => VerdictReason::NoRule,
        }
    }
}

/// The verdict on a new flow, and where it goes.
#[derive(Debug)]
pub(super) struct FlowVerdict {
    pub(super) verdict: PolicyVerdict,
    /// The name that its address stands for.
    pub(super) name: Option<Arc<str>>,
    /// Where it goes. In a policy that records, a flow that is not allowed may have one.
    pub(super) route: Option<FlowRoute>,
}

/// Where a new flow goes.
#[derive(Debug)]
pub(super) enum FlowRoute {
    To(Destination),
    /// To the addresses of its name, which have to be resolved.
    Name(NameIndex),
}

impl FlowVerdict {
    /// The verdict on a flow that goes to `destination` if it is allowed.
    fn of(verdict: PolicyVerdict, destination: Destination) -> Self {
        let route = verdict.is_allowed.then_some(FlowRoute::To(destination));
        Self { verdict, name: None, route }
    }

    fn refused(reason: VerdictReason) -> Self {
        Self { verdict: PolicyVerdict::without_rule(false, reason), name: None, route: None }
    }
}

impl Net {
    /// The one verdict on a flow to `remote`.
    pub(super) fn judge(
        &self,
        protocol: FlowProtocol,
        remote: SocketAddr,
        now: Instant,
    ) -> FlowVerdict {
        let Some(policy) = &self.config.policy else {
            return match self.destination(protocol, remote) {
                Ok(destination) => {
                    let reason = match destination {
                        Destination::Service(_) => VerdictReason::OwnNetwork,
                        _ => VerdictReason::Allowed,
                    };
                    FlowVerdict::of(PolicyVerdict::without_rule(true, reason), destination)
                }
                Err(refusal) => FlowVerdict::refused(refusal.reason()),
            };
        };
        let (address, port) = (remote.ip(), remote.port());
        let kind = policy_protocol(protocol);
        if self.is_gateway(address) {
            return FlowVerdict::of(policy.host(kind, port), Destination::Host(port));
        }
        if protocol == FlowProtocol::Tcp
            && let Some(index) = self.services.service_at(remote)
        {
            let verdict = PolicyVerdict::without_rule(true, VerdictReason::OwnNetwork);
            return FlowVerdict::of(verdict, Destination::Service(index));
        }
        if is_own_network(&self.config, address) {
            return FlowVerdict::refused(VerdictReason::HostAddress);
        }
        if names::is_synthetic(address) {
            let Some((index, name)) = self.names.name(address) else {
                return FlowVerdict::refused(VerdictReason::UnknownAddress);
            };
            let verdict = policy.name(kind, name, port);
            let is_carried = verdict.is_allowed || policy.mode() == PolicyMode::Record;
            let route = is_carried.then_some(FlowRoute::Name(index));
            return FlowVerdict { verdict, name: Some(name.clone()), route };
        }
        let mut by_name = None;
        for name in self.pinned.names(address, now) {
            let verdict = policy.resolved(kind, name, address, port);
            let is_allowed = verdict.is_allowed;
            if is_allowed || by_name.is_none() {
                by_name = Some((verdict, name.clone()));
            }
            if is_allowed {
                break;
            }
        }
        let by_address = policy.address(kind, address, port);
        let (verdict, name) = match by_name {
            Some((verdict, name)) if verdict.is_allowed || !by_address.is_allowed => {
                (verdict, Some(name))
            }
            _ => (by_address, None),
        };
        let is_carried = verdict.is_allowed || is_recorded(policy, address);
        let route = is_carried.then_some(FlowRoute::To(Destination::Remote(remote)));
        FlowVerdict { verdict, name, route }
    }

    /// The verdict on an address that the resolver gave for the name of a flow, and whether the flow may
    /// go to it.
    pub(super) fn judge_resolved(
        &self,
        protocol: FlowProtocol,
        name: &str,
        address: SocketAddr,
    ) -> (PolicyVerdict, bool) {
        let refused = |reason| (PolicyVerdict::without_rule(false, reason), false);
        let Some(policy) = &self.config.policy else {
            return refused(VerdictReason::NoRule);
        };
        if is_own_network(&self.config, address.ip()) {
            return refused(VerdictReason::HostAddress);
        }
        let kind = policy_protocol(protocol);
        let verdict = policy.resolved(kind, name, address.ip(), address.port());
        let is_carried = verdict.is_allowed || is_recorded(policy, address.ip());
        (verdict, is_carried)
    }

    /// Where a flow to `remote` goes, in a network without a policy.
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
    pub(super) fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4 == self.config.gateway,
            IpAddr::V6(v6) => self.config.ipv6.is_some_and(|ipv6| ipv6.gateway == v6),
        }
    }
}

/// Whether a policy that records carries a flow to the address although no rule allows it.
fn is_recorded(policy: &PolicyRules, address: IpAddr) -> bool {
    policy.mode() == PolicyMode::Record && AddressClass::of(address) != AddressClass::Special
}

pub(super) fn policy_protocol(protocol: FlowProtocol) -> PolicyProtocol {
    match protocol {
        FlowProtocol::Tcp => PolicyProtocol::Tcp,
        FlowProtocol::Udp => PolicyProtocol::Udp,
        FlowProtocol::Echo => PolicyProtocol::Icmp,
    }
}

/// Whether the address is in the guest's own network, directly or behind NAT64.
pub(super) fn is_own_network(config: &NetworkConfig, address: IpAddr) -> bool {
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
