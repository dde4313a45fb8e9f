//! The mistakes of a policy, all at once, and what deserves a warning.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use super::address::{behind_nat64, has_private_range, is_special_range};
use super::rules::{RuleIndex, reserved_port};
use super::target::{IpNetwork, NamePattern, PolicyProtocol, PolicyTarget, TargetHost, TargetPort};
use super::{
    AddressClass, AllowRule, NetworkPolicy, PolicyLimits, PolicyMode, ResolveMode, StreamCheck,
};

/// A part of a policy that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PolicyMistake {
    /// Where, as in a file: `allow[2]`, `deny[0]`.
    pub place: String,
    /// What is wrong.
    pub reason: String,
    /// What to write in place.
    pub remedy: String,
}

/// A part of a policy that allows more than it may seem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PolicyWarning {
    /// Where, as in a file: `allow[2]`.
    pub place: String,
    /// What it allows.
    pub reason: String,
}

/// The rules of a policy without mistakes: the targets in the order of its list, and the exceptions.
pub(super) struct CheckedTargets {
    pub(super) allow: Vec<PolicyTarget>,
    pub(super) deny: RuleIndex,
}

/// Domains in which every customer can have a name, or whose servers serve other names too.
const SHARED_HOSTING: &[&str] = &[
    "akamaiedge.net",
    "amazonaws.com",
    "appspot.com",
    "azureedge.net",
    "azurewebsites.net",
    "blob.core.windows.net",
    "cloudflare.com",
    "cloudfront.net",
    "fastly.net",
    "firebaseapp.com",
    "github.io",
    "githubusercontent.com",
    "googleapis.com",
    "herokuapp.com",
    "netlify.app",
    "ngrok.io",
    "onrender.com",
    "pages.dev",
    "r2.dev",
    "trycloudflare.com",
    "vercel.app",
    "workers.dev",
];

/// Names of public resolvers that answer DNS over HTTPS.
const DNS_OVER_HTTPS: &[&str] = &[
    "1dot1dot1dot1.cloudflare-dns.com",
    "cloudflare-dns.com",
    "dns.adguard-dns.com",
    "dns.google",
    "dns.nextdns.io",
    "dns.quad9.net",
    "doh.opendns.com",
    "mozilla.cloudflare-dns.com",
    "one.one.one.one",
];

/// Names of the guest's own network.
const OWN_DOMAIN: &str = "capsa.internal";

/// Networks that no rule opens, with what to write in place.
fn closed_networks() -> [(IpNetwork, &'static str); 12] {
    let v4 = |a, b, c, d, prefix| IpNetwork::masked(Ipv4Addr::new(a, b, c, d).into(), prefix);
    let v6 = |start: u16, prefix| {
        IpNetwork::masked(Ipv6Addr::new(start, 0, 0, 0, 0, 0, 0, 0).into(), prefix)
    };
    let (host, remove) = ("write host:PORT for a port of the host", "remove the rule");
    let own = "name a service, or write host:PORT for a port of the host";
    [
        (v4(0, 0, 0, 0, 8), remove),
        (v4(10, 0, 2, 0, 24), own),
        (v4(127, 0, 0, 0, 8), host),
        (v4(198, 18, 0, 0, 15), "write the name that the address stands for"),
        (v4(224, 0, 0, 0, 4), remove),
        (v4(255, 255, 255, 255, 32), remove),
        (IpNetwork::host(Ipv6Addr::UNSPECIFIED.into()), remove),
        (IpNetwork::host(Ipv6Addr::LOCALHOST.into()), host),
        (IpNetwork::masked(Ipv6Addr::new(0xfd00, 0xca95, 0xa, 2, 0, 0, 0, 0).into(), 64), own),
        // Exceptions for the IPv4 address do not match them.
        (
            IpNetwork::masked(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().into(), 96),
            "write the IPv4 address that it contains",
        ),
        (v6(0xff00, 8), remove),
        (v6(0xfe80, 10), "remove the rule: these addresses are valid on one link only"),
    ]
}

/// Parses and checks all rules.
pub(super) fn targets(policy: &NetworkPolicy) -> Result<CheckedTargets, Vec<PolicyMistake>> {
    let mut check = PolicyCheck { mistakes: Vec::new() };
    let mut deny = RuleIndex::default();
    for (n, text) in policy.deny.iter().enumerate() {
        if let Some(target) = check.parse(&format!("deny[{n}]"), text) {
            deny.insert(text, target, ResolveMode::default(), None);
        }
    }
    let mut allow = Vec::new();
    for (n, rule) in policy.allow.iter().enumerate() {
        let place = format!("allow[{n}]");
        let Some(target) = check.parse(&place, &rule.to) else { continue };
        check.rule(&place, rule, &target);
        let around = deny.rules_around(&target);
        if let Some(other) = around.into_iter().find(|other| covers(&other.target, &target)) {
            let n = policy.deny.iter().position(|text| *text == other.text).unwrap_or(0);
            let reason = format!("{:?} is denied by deny[{n}], {:?}", rule.to, other.text);
            check.reject(&place, reason, "remove one of the two: a denied target stays denied");
        }
        allow.push(target);
    }
    check.limits(&policy.limits);
    match check.mistakes.is_empty() {
        true => Ok(CheckedTargets { allow, deny }),
        false => Err(check.mistakes),
    }
}

struct PolicyCheck {
    mistakes: Vec<PolicyMistake>,
}

impl PolicyCheck {
    fn reject(&mut self, place: &str, reason: String, remedy: impl Into<String>) {
        let (place, remedy) = (place.into(), remedy.into());
        self.mistakes.push(PolicyMistake { place, reason, remedy });
    }

    fn parse(&mut self, place: &str, text: &str) -> Option<PolicyTarget> {
        match text.parse() {
            Ok(target) => Some(target),
            Err(error) => {
                let error: super::TargetError = error;
                self.reject(place, format!("{text:?}: {error}"), error.remedy());
                None
            }
        }
    }

    fn rule(&mut self, place: &str, rule: &AllowRule, target: &PolicyTarget) {
        let text = &rule.to;
        if let TargetPort::One(port) = target.port
            && let Some(verdict) = reserved_port(target.protocol, port)
        {
            let reason = match verdict.is_allowed {
                true => "DNS at port 53 is always answered by the network itself",
                false => "this protocol would resolve names without the policy",
            };
            self.reject(place, format!("{text:?}: {reason}"), "remove the rule");
        }
        match &target.host {
            TargetHost::Network(network) => self.network(place, text, *network),
            TargetHost::Name(pattern) => {
                let name = pattern.suffix();
                if name == OWN_DOMAIN || name.ends_with(".capsa.internal") {
                    let reason = format!("{text:?}: names of the guest's own network need no rule");
                    let remedy = "write host:PORT for a port of the host; a service is always open";
                    self.reject(place, reason, remedy);
                }
                if name == "localhost" || name.ends_with(".localhost") {
                    let reason = format!("{text:?}: in the guest this name is the guest itself");
                    self.reject(place, reason, "write host:PORT for a port of the host");
                }
            }
            _ => {}
        }
        let is_name =
            matches!(target.host, TargetHost::Name(_) | TargetHost::Internet | TargetHost::Private);
        if rule.resolve == ResolveMode::Real && !is_name {
            let reason = format!("{text:?} has no name that could be resolved");
            self.reject(place, reason, "remove resolve");
        }
        if rule.check.is_some() && (!is_name || target.protocol != PolicyProtocol::Tcp) {
            let reason = format!("{text:?} has no TCP connection to a name that could be checked");
            self.reject(place, reason, "remove check");
        }
    }

    fn network(&mut self, place: &str, text: &str, network: IpNetwork) {
        let embedded = match network.address() {
            IpAddr::V6(v6) if network.is_host() => {
                behind_nat64(v6).map(|v4| IpNetwork::host(v4.into()))
            }
            _ => None,
        };
        let is_closed = |closed: &IpNetwork| {
            closed.covers(&network) || embedded.is_some_and(|v4| closed.covers(&v4))
        };
        let closed = closed_networks().into_iter().find(|(closed, _)| is_closed(closed));
        if let Some((closed, remedy)) = closed {
            let reason = format!("{text:?}: no rule opens addresses of {closed}");
            return self.reject(place, reason, remedy);
        }
        if !network.is_host() && is_special_range(&network) {
            let reason = format!("{text:?}: special addresses are opened one by one only");
            self.reject(place, reason, "write a rule for each address that is needed");
        }
    }

    fn limits(&mut self, limits: &PolicyLimits) {
        let zero = [
            ("limits.flows", limits.flows == 0),
            ("limits.flows_per_second", limits.flows_per_second == 0),
            ("limits.connecting", limits.connecting == 0),
            ("limits.bytes_per_second", limits.bytes_per_second == Some(0)),
            ("limits.total_bytes", limits.total_bytes == Some(0)),
            ("limits.queries_per_second", limits.queries_per_second == 0),
            ("limits.name_bytes_per_minute", limits.name_bytes_per_minute == 0),
        ];
        for (place, _) in zero.into_iter().filter(|(_, is_zero)| *is_zero) {
            self.reject(place, "invalid limit 0".into(), "use at least 1, or no network");
        }
        if limits.flows > FLOWS_MAX {
            let reason = format!("invalid limit {}: at most {FLOWS_MAX}", limits.flows);
            self.reject("limits.flows", reason, "use a smaller limit");
        }
    }
}

/// Flows need memory and descriptors of the host.
const FLOWS_MAX: usize = 65_536;

/// Whether everything that `target` covers is covered by `wide` too.
fn covers(wide: &PolicyTarget, target: &PolicyTarget) -> bool {
    let is_port = wide.port == TargetPort::Any || wide.port == target.port;
    let is_host = match (&wide.host, &target.host) {
        (TargetHost::Name(wide), TargetHost::Name(names)) => wide.covers(names),
        (TargetHost::Network(wide), TargetHost::Network(network)) => wide.covers(network),
        (TargetHost::Internet, TargetHost::Network(network)) => {
            network.is_host() && AddressClass::of(network.address()) == AddressClass::Public
        }
        (TargetHost::Private, TargetHost::Network(network)) => {
            network.is_host() && AddressClass::of(network.address()) == AddressClass::Private
        }
        (wide, host) => wide == host,
    };
    wide.protocol == target.protocol && is_port && is_host
}

impl NetworkPolicy {
    /// What a policy allows that is easily overlooked. Rules that are mistakes are left out.
    pub fn warnings(&self) -> Vec<PolicyWarning> {
        let mut out = Vec::new();
        let mut warn = |place: &str, reason: &str| {
            out.push(PolicyWarning { place: place.into(), reason: reason.into() });
        };
        if self.mode == PolicyMode::Record {
            warn("mode", "a policy that records refuses only the host and special addresses");
        }
        let mut seen = BTreeSet::new();
        for (n, rule) in self.allow.iter().enumerate() {
            let place = format!("allow[{n}]");
            let Ok(target) = rule.to.parse::<PolicyTarget>() else { continue };
            for reason in target_warnings(rule, &target) {
                warn(&place, reason);
            }
            if !seen.insert(target.to_string()) {
                warn(&place, "an earlier rule has the same target");
            }
        }
        out
    }
}

fn target_warnings(rule: &AllowRule, target: &PolicyTarget) -> Vec<&'static str> {
    let mut out = Vec::new();
    let is_tls = target.protocol == PolicyProtocol::Tcp && target.port.contains(443);
    match &target.host {
        TargetHost::Name(pattern) => {
            let is_wildcard = !matches!(pattern, NamePattern::Exact(_));
            let is_under = |domain: &str| {
                let name = pattern.suffix();
                name == domain || name.ends_with(&format!(".{domain}"))
            };
            let is_shared = is_wildcard && SHARED_HOSTING.iter().any(|domain| is_under(domain));
            if is_shared {
                out.push("names and servers of this domain are available to every customer");
            }
            if is_shared || (is_wildcard && is_tls) {
                out.push(
                    "a server of a content network may be among these names: a client can ask such \
                     a server for another name inside TLS (domain fronting)",
                );
            }
            if is_tls && DNS_OVER_HTTPS.iter().any(|name| pattern.matches(name)) {
                out.push("a server of DNS over HTTPS is among these names: it resolves any name");
            }
        }
        TargetHost::Internet => {
            out.push("every public host is allowed at these ports, by name and by address");
        }
        TargetHost::Private => {
            out.push("every host of the private networks that this host reaches is allowed");
        }
        TargetHost::Network(network) if has_private_range(network) => {
            out.push("private networks are among these addresses; internet has public hosts only");
        }
        _ => {}
    }
    if rule.check == Some(StreamCheck::None) && (is_tls || target.port.contains(80)) {
        out.push("the server name of its connections is not checked");
    }
    if target.protocol == PolicyProtocol::Udp && target.port.contains(443) {
        out.push("the server name of QUIC is not checked");
    }
    out
}
