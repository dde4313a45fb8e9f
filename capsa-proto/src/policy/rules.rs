//! [`PolicyRules`]: the check of a policy, and its verdicts.
//!
//! A verdict costs a number of look-ups that does not depend on the number of rules: one for each label of a
//! name, or one for each length of a prefix that the policy uses.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use serde::Serialize;

use super::target::{IpNetwork, NamePattern, PolicyProtocol, PolicyTarget, TargetHost, TargetPort};
use super::verdict::{PolicyDestination, PolicyVerdict, VerdictReason as Reason};
use super::{AddressClass, NetworkPolicy, PolicyLimits, PolicyMode, ResolveMode, StreamCheck};

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
struct IndexedRule {
    /// As it is written in the policy.
    text: String,
    target: PolicyTarget,
    resolve: ResolveMode,
    check: Option<StreamCheck>,
}

/// Rules by what they match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct RuleIndex {
    rules: Vec<IndexedRule>,
    names: BTreeMap<NamePattern, Vec<usize>>,
    /// By the length of the prefix, longest first where it matters to nobody.
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
        let mut mistakes = Vec::new();
        let mut rules = Self {
            mode: policy.mode,
            limits: policy.limits.clone(),
            allow: RuleIndex::default(),
            deny: RuleIndex::default(),
        };
        for (n, text) in policy.deny.iter().enumerate() {
            match text.parse() {
                Ok(target) => rules.deny.insert(text, target, ResolveMode::default(), None),
                Err(error) => mistakes.push(mistake("deny", n, text, &error)),
            }
        }
        for (n, rule) in policy.allow.iter().enumerate() {
            match rule.to.parse() {
                Ok(target) => rules.allow.insert(&rule.to, target, rule.resolve, rule.check),
                Err(error) => mistakes.push(mistake("allow", n, &rule.to, &error)),
            }
        }
        if mistakes.is_empty() { Ok(rules) } else { Err(mistakes) }
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
        // An exception for some ports leaves the others.
        if let Some(rule) =
            self.deny.name_rules(name).find(|rule| rule.target.port == TargetPort::Any)
        {
            return refused(Some(rule), Reason::Denied);
        }
        match self.allow.name_rules(name).chain(self.allow.groups()).next() {
            Some(rule) => allowed(rule),
            None => refused(None, Reason::NoRule),
        }
    }

    /// A flow to a name, before the name is resolved.
    pub fn name(&self, protocol: PolicyProtocol, name: &str, port: u16) -> PolicyVerdict {
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
        let by_name = self.name(protocol, name, port);
        if !by_name.is_allowed {
            return by_name;
        }
        let covers = |rule: &&IndexedRule| rule.covers(protocol, port);
        if let Some(rule) = self.deny.address_rules(address).find(covers) {
            return refused(Some(rule), Reason::Denied);
        }
        match AddressClass::of(address) {
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

    /// A flow to an address that the guest knows.
    pub fn address(&self, protocol: PolicyProtocol, address: IpAddr, port: u16) -> PolicyVerdict {
        let covers = |rule: &&IndexedRule| rule.covers(protocol, port);
        if let Some(rule) = self.deny.address_rules(address).find(covers) {
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
        rule.and_then(|rule| rule.check).unwrap_or(match port {
            443 => StreamCheck::Tls,
            80 => StreamCheck::Http,
            _ => StreamCheck::None,
        })
    }

    /// Whether names that this rule allows are without limit: those of wildcards and groups.
    pub fn is_open_ended(&self, name: &str) -> bool {
        !self.allow.names.contains_key(&NamePattern::Exact(name.into()))
    }

    fn name_rule(
        &self,
        protocol: PolicyProtocol,
        name: &str,
        port: u16,
    ) -> Result<&IndexedRule, PolicyVerdict> {
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
    fn insert(
        &mut self,
        text: &str,
        target: PolicyTarget,
        resolve: ResolveMode,
        check: Option<StreamCheck>,
    ) {
        let index = self.rules.len();
        match &target.host {
            TargetHost::Name(pattern) => self.names.entry(pattern.clone()).or_default().push(index),
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

    fn at<'a>(&'a self, indexes: &'a [usize]) -> impl Iterator<Item = &'a IndexedRule> {
        indexes.iter().filter_map(|index| self.rules.get(*index))
    }

    /// The rules that match a name, whatever their ports.
    fn name_rules(&self, name: &str) -> impl Iterator<Item = &IndexedRule> {
        let exact = NamePattern::Exact(name.into());
        let parents = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        let patterns = parents.enumerate().flat_map(|(n, parent)| {
            let one = (n == 0).then(|| NamePattern::OneLabel(parent.into()));
            one.into_iter().chain([NamePattern::AnyDepth(parent.into())])
        });
        let patterns: Vec<NamePattern> = core::iter::once(exact).chain(patterns).collect();
        patterns
            .into_iter()
            .filter_map(|pattern| self.names.get(&pattern))
            .flat_map(|indexes| self.at(indexes))
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
}

fn allowed(rule: &IndexedRule) -> PolicyVerdict {
    PolicyVerdict { is_allowed: true, rule: Some(rule.text.clone()), reason: Reason::Allowed }
}

fn refused(rule: Option<&IndexedRule>, reason: Reason) -> PolicyVerdict {
    PolicyVerdict { is_allowed: false, rule: rule.map(|rule| rule.text.clone()), reason }
}

fn mistake(list: &str, n: usize, text: &str, error: &super::TargetError) -> PolicyMistake {
    PolicyMistake {
        place: alloc::format!("{list}[{n}]"),
        reason: alloc::format!("{text:?}: {error}"),
        remedy: error.remedy(),
    }
}
