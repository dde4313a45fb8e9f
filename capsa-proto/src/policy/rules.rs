//! [`PolicyRules`]: the check of a policy, and its verdicts.
//!
//! A verdict costs a number of look-ups that does not depend on the number of rules: one for each label of a
//! name, or one for each length of a prefix that the policy uses.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::IpAddr;

use super::address::behind_nat64;
use super::check::{self, CheckedTargets, PolicyMistake};
use super::target::{IpNetwork, NamePattern, PolicyProtocol, PolicyTarget, TargetHost, TargetPort};
use super::verdict::{PolicyDestination, PolicyVerdict, VerdictReason as Reason};
use super::{AddressClass, NetworkPolicy, PolicyLimits, PolicyMode, ResolveMode, StreamCheck};

/// A policy whose rules were parsed and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRules {
    mode: PolicyMode,
    limits: PolicyLimits,
    allow: RuleIndex,
    deny: RuleIndex,
}

/// A rule of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IndexedRule {
    /// As it is written in the policy.
    pub(super) text: String,
    pub(super) target: PolicyTarget,
    resolve: ResolveMode,
    check: Option<StreamCheck>,
}

/// Rules by what they match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RuleIndex {
    rules: Vec<IndexedRule>,
    exact: BTreeMap<String, Vec<usize>>,
    /// `*.` by what follows.
    one_label: BTreeMap<String, Vec<usize>>,
    /// `**.` by what follows.
    any_depth: BTreeMap<String, Vec<usize>>,
    /// By the length of the prefix.
    networks: BTreeMap<u8, BTreeMap<IpNetwork, Vec<usize>>>,
    internet: Vec<usize>,
    private: Vec<usize>,
    host: Vec<usize>,
}

impl PolicyRules {
    /// Checks a policy.
    ///
    /// # Errors
    ///
    /// With every mistake of the policy.
    pub fn new(policy: &NetworkPolicy) -> Result<Self, Vec<PolicyMistake>> {
        let CheckedTargets { allow, deny } = check::targets(policy)?;
        let mut all: Vec<_> = policy.allow.iter().zip(allow).collect();
        // The first rule that covers a flow decides what is checked, so the order is not that of the policy.
        all.sort_by_key(|(rule, target)| {
            (
                target.port == TargetPort::Any,
                rule.check.is_none(),
                rule.check == Some(StreamCheck::None),
            )
        });
        let mut allow = RuleIndex::default();
        for (rule, target) in all {
            allow.insert(&rule.to, target, rule.resolve, rule.check);
        }
        Ok(Self { mode: policy.mode, limits: policy.limits.clone(), allow, deny })
    }

    /// Whether refusals are carried out.
    pub fn mode(&self) -> PolicyMode {
        self.mode
    }

    /// The limits.
    pub fn limits(&self) -> &PolicyLimits {
        &self.limits
    }

    /// The verdict on a destination, as the network stack decides.
    pub fn explain(&self, destination: &PolicyDestination) -> PolicyVerdict {
        match destination {
            PolicyDestination::Name { protocol, name, port } => self.name(*protocol, name, *port),
            PolicyDestination::Address { protocol, address, port } => {
                self.address(*protocol, *address, *port)
            }
            PolicyDestination::Resolved { protocol, name, address, port } => {
                self.resolved(*protocol, name, *address, *port)
            }
            PolicyDestination::Host { protocol, port } => self.host(*protocol, *port),
            PolicyDestination::Query { name } => self.query(name),
        }
    }

    /// A DNS query for the addresses of a name: allowed if any rule allows a flow to the name.
    pub fn query(&self, name: &str) -> PolicyVerdict {
        // An exception for some ports or one protocol leaves the others.
        let mut denied_by = None;
        for rule in self.allow.name_rules(name).chain(self.allow.groups()) {
            match self.deny.name_rules(name).find(|deny| deny.closes(rule)) {
                Some(deny) => denied_by = denied_by.or(Some(deny)),
                None => return allowed(rule),
            }
        }
        let is_whole = |deny: &&IndexedRule| deny.target.port == TargetPort::Any;
        match denied_by.or_else(|| self.deny.name_rules(name).find(is_whole)) {
            Some(deny) => refused(Some(deny), Reason::Denied),
            None => refused(None, Reason::NoRule),
        }
    }

    /// A flow to a name, before the name is resolved.
    pub fn name(&self, protocol: PolicyProtocol, name: &str, port: u16) -> PolicyVerdict {
        if let Some(verdict) = reserved_port(protocol, port) {
            return verdict;
        }
        if let Some(rule) = self.deny.name_rules(name).find(|rule| rule.covers(protocol, port)) {
            return refused(Some(rule), Reason::Denied);
        }
        match self.name_rule(protocol, name, port) {
            Ok(rule) => allowed(rule),
            Err(verdict) => verdict,
        }
    }

    /// A flow to an address that the host's resolver gave for a name.
    pub fn resolved(
        &self,
        protocol: PolicyProtocol,
        name: &str,
        address: IpAddr,
        port: u16,
    ) -> PolicyVerdict {
        let class = AddressClass::of(address);
        if self.mode == PolicyMode::Record && class == AddressClass::Special {
            // The one refusal that is carried out, whatever the rules.
            return refused(None, Reason::SpecialAddress);
        }
        let by_name = self.name(protocol, name, port);
        if !by_name.is_allowed {
            return by_name;
        }
        let covers = |rule: &&IndexedRule| rule.covers(protocol, port);
        if let Some(rule) = self.denied_address(protocol, address, port) {
            return refused(Some(rule), Reason::Denied);
        }
        match class {
            AddressClass::Special => refused(None, Reason::SpecialAddress),
            AddressClass::Private => match self.allow.address_rules(address).find(covers) {
                Some(rule) => allowed(rule),
                None => refused(None, Reason::PrivateAddress),
            },
            AddressClass::Public => {
                // `private` does not open a public address.
                let mut by_name = self.allow.name_rules(name);
                let rule = by_name.find(covers).or_else(|| self.allow.internet().find(covers));
                rule.map_or_else(|| refused(None, Reason::NoRule), allowed)
            }
        }
    }

    /// The exception that matches an address, or the IPv4 address behind NAT64 in it.
    fn denied_address(
        &self,
        protocol: PolicyProtocol,
        address: IpAddr,
        port: u16,
    ) -> Option<&IndexedRule> {
        self.denying_rules(address).find(|rule| rule.covers(protocol, port))
    }

    /// The exceptions for an address, whatever their ports.
    fn denying_rules(&self, address: IpAddr) -> impl Iterator<Item = &IndexedRule> {
        let embedded = match address {
            IpAddr::V6(v6) => behind_nat64(v6).map(IpAddr::V4),
            IpAddr::V4(_) => None,
        };
        let spellings = core::iter::once(address).chain(embedded);
        spellings.flat_map(|address| self.deny.address_rules(address))
    }

    /// An address in the answer to a query for an allowed name: allowed if a rule may allow a flow to it.
    pub fn answer(&self, name: &str, address: IpAddr) -> PolicyVerdict {
        let by_name = || self.allow.name_rules(name).chain(self.allow.groups());
        let denied =
            |rule: &IndexedRule| self.denying_rules(address).find(|deny| deny.closes(rule));
        // The exceptions must leave a flow that a rule for the name allows.
        if let Some(deny) = by_name().next().and_then(denied)
            && by_name().all(|rule| denied(rule).is_some())
        {
            return refused(Some(deny), Reason::Denied);
        }
        match AddressClass::of(address) {
            AddressClass::Special => refused(None, Reason::SpecialAddress),
            AddressClass::Private => match self.allow.address_rules(address).next() {
                Some(rule) => allowed(rule),
                None => refused(None, Reason::PrivateAddress),
            },
            AddressClass::Public => self.query(name),
        }
    }

    /// A flow to an address that the guest knows.
    pub fn address(&self, protocol: PolicyProtocol, address: IpAddr, port: u16) -> PolicyVerdict {
        if let Some(verdict) = reserved_port(protocol, port) {
            return verdict;
        }
        let covers = |rule: &&IndexedRule| rule.covers(protocol, port);
        if let Some(rule) = self.denied_address(protocol, address, port) {
            return refused(Some(rule), Reason::Denied);
        }
        if AddressClass::of(address) == AddressClass::Special {
            // Only a rule for this one address opens it.
            let exact = |rule: &&IndexedRule| match rule.target.host {
                TargetHost::Network(network) => network.is_host() && rule.covers(protocol, port),
                _ => false,
            };
            let rule = self.allow.address_rules(address).find(exact);
            return rule.map_or_else(|| refused(None, Reason::SpecialAddress), allowed);
        }
        if let Some(rule) = self.allow.address_rules(address).find(covers) {
            return allowed(rule);
        }
        match self.allow.address_rules(address).next() {
            Some(rule) => refused(Some(rule), Reason::Port),
            None if AddressClass::of(address) == AddressClass::Private => {
                refused(None, Reason::PrivateAddress)
            }
            None => refused(None, Reason::NoRule),
        }
    }

    /// A flow to a port of the host's loopback.
    pub fn host(&self, protocol: PolicyProtocol, port: u16) -> PolicyVerdict {
        let covers = |rule: &&IndexedRule| rule.covers(protocol, port);
        if let Some(rule) = self.deny.host().find(covers) {
            return refused(Some(rule), Reason::Denied);
        }
        match (self.allow.host().find(covers), self.allow.host().next()) {
            (Some(rule), _) => allowed(rule),
            (None, Some(rule)) => refused(Some(rule), Reason::Port),
            (None, None) => refused(None, Reason::HostAddress),
        }
    }

    /// Which addresses the guest sees for a name that is allowed.
    pub fn resolve_mode(&self, name: &str) -> ResolveMode {
        let rules = self.allow.name_rules(name).chain(self.allow.groups());
        match rules.into_iter().any(|rule| rule.resolve == ResolveMode::Real) {
            true => ResolveMode::Real,
            false => ResolveMode::Synthetic,
        }
    }

    /// What is checked in the bytes of an allowed connection to a name.
    pub fn stream_check(&self, name: &str, port: u16) -> StreamCheck {
        let rule = self.name_rule(PolicyProtocol::Tcp, name, port).ok();
        rule.and_then(|rule| rule.check).unwrap_or(StreamCheck::of_port(port))
    }

    /// Whether names that this rule allows are without limit: those of wildcards and groups.
    pub fn is_open_ended(&self, name: &str) -> bool {
        !self.allow.exact.contains_key(name)
    }

    fn name_rule<'a>(
        &'a self,
        protocol: PolicyProtocol,
        name: &'a str,
        port: u16,
    ) -> Result<&'a IndexedRule, PolicyVerdict> {
        let rules = || self.allow.name_rules(name).chain(self.allow.groups());
        if let Some(rule) = rules().find(|rule| rule.covers(protocol, port)) {
            return Ok(rule);
        }
        Err(match rules().next() {
            Some(rule) => refused(Some(rule), Reason::Port),
            None => refused(None, Reason::NoRule),
        })
    }
}

impl RuleIndex {
    pub(super) fn insert(
        &mut self,
        text: &str,
        target: PolicyTarget,
        resolve: ResolveMode,
        check: Option<StreamCheck>,
    ) {
        let index = self.rules.len();
        match &target.host {
            TargetHost::Name(pattern) => {
                let (names, name) = match pattern {
                    NamePattern::Exact(name) => (&mut self.exact, name),
                    NamePattern::OneLabel(suffix) => (&mut self.one_label, suffix),
                    NamePattern::AnyDepth(suffix) => (&mut self.any_depth, suffix),
                };
                names.entry(name.clone()).or_default().push(index);
            }
            TargetHost::Network(network) => {
                let networks = self.networks.entry(network.prefix()).or_default();
                networks.entry(*network).or_default().push(index);
            }
            TargetHost::Internet => self.internet.push(index),
            TargetHost::Private => self.private.push(index),
            TargetHost::Host => self.host.push(index),
        }
        self.rules.push(IndexedRule { text: text.into(), target, resolve, check });
    }

    /// The rules that may cover a target, and all that do.
    pub(super) fn rules_around(&self, target: &PolicyTarget) -> Vec<&IndexedRule> {
        match &target.host {
            TargetHost::Name(NamePattern::Exact(name)) => self.name_rules(name).collect(),
            // A wildcard is covered by what matches it as a label.
            TargetHost::Name(pattern) => self.name_rules(&pattern.to_string()).collect(),
            TargetHost::Network(network) => self.address_rules(network.address()).collect(),
            TargetHost::Internet => self.internet().collect(),
            TargetHost::Private => self.at(&self.private).collect(),
            TargetHost::Host => self.host().collect(),
        }
    }

    fn at<'a>(&'a self, indexes: &'a [usize]) -> impl Iterator<Item = &'a IndexedRule> {
        indexes.iter().filter_map(|index| self.rules.get(*index))
    }

    /// The rules that match a name, whatever their ports.
    fn name_rules<'a, 'n>(
        &'a self,
        name: &'n str,
    ) -> impl Iterator<Item = &'a IndexedRule> + use<'a, 'n> {
        let parents = move || name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        let one_label = parents().take(1).filter_map(|parent| self.one_label.get(parent));
        let any_depth = parents().filter_map(|parent| self.any_depth.get(parent));
        let found = self.exact.get(name).into_iter().chain(one_label).chain(any_depth);
        found.flat_map(|indexes| self.at(indexes))
    }

    /// The rules that match an address, whatever their ports: networks, and the group of the address.
    fn address_rules(&self, address: IpAddr) -> impl Iterator<Item = &IndexedRule> {
        let networks = self.networks.iter().rev().filter_map(move |(prefix, networks)| {
            networks.get(&IpNetwork::masked(address, *prefix))
        });
        let group = match AddressClass::of(address) {
            AddressClass::Public => &self.internet[..],
            AddressClass::Private => &self.private,
            AddressClass::Special => &[],
        };
        networks.flat_map(|indexes| self.at(indexes)).chain(self.at(group))
    }

    fn internet(&self) -> impl Iterator<Item = &IndexedRule> {
        self.at(&self.internet)
    }

    fn groups(&self) -> impl Iterator<Item = &IndexedRule> {
        self.at(&self.internet).chain(self.at(&self.private))
    }

    fn host(&self) -> impl Iterator<Item = &IndexedRule> {
        self.at(&self.host)
    }
}

impl IndexedRule {
    fn covers(&self, protocol: PolicyProtocol, port: u16) -> bool {
        self.target.protocol == protocol && self.target.port.contains(port)
    }

    /// Whether this exception leaves no port of a rule, for the hosts that both match.
    fn closes(&self, rule: &Self) -> bool {
        let (own, other) = (&self.target, &rule.target);
        own.protocol == other.protocol && (own.port == TargetPort::Any || own.port == other.port)
    }
}

fn allowed(rule: &IndexedRule) -> PolicyVerdict {
    PolicyVerdict { is_allowed: true, rule: Some(rule.text.clone()), reason: Reason::Allowed }
}

fn refused(rule: Option<&IndexedRule>, reason: Reason) -> PolicyVerdict {
    PolicyVerdict { is_allowed: false, rule: rule.map(|rule| rule.text.clone()), reason }
}

/// Ports that no rule opens: the network's own name server answers at port 53, and other ways to
/// resolve names would leave it out.
pub(super) fn reserved_port(protocol: PolicyProtocol, port: u16) -> Option<PolicyVerdict> {
    use PolicyProtocol::{Tcp, Udp};
    match (protocol, port) {
        (Tcp | Udp, 53) => {
            Some(PolicyVerdict { is_allowed: true, rule: None, reason: Reason::OwnNetwork })
        }
        // DNS over TLS or QUIC, LLMNR, multicast DNS, NetBIOS.
        (Tcp | Udp, 853 | 5355) | (Udp, 5353 | 137) => Some(refused(None, Reason::Protocol)),
        _ => None,
    }
}
