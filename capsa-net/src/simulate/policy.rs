//! [`PolicyWorld`]: what a schedule under a policy has beside connections, with its laws: the resolvers of
//! the guest and of the host, and what the network may do for the guest.
//!
//! The laws compare what leaves the network with [`PolicyRules::explain`], the pure verdict. They know
//! what the resolver has answered, and nothing of the tables of the network.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::time::Duration;

use capsa_proto::policy::{
    AddressClass, NetworkEvent, NetworkEventKind, PolicyDestination, PolicyMode, PolicyProtocol,
    PolicyRules, ResolveMode, StreamCheck, VerdictReason, is_within_v4,
};
use capsa_proto::time::Instant;

use super::guest::{self, GATEWAY, REMOTE_PORT};
use super::policy_plan::{GuestTarget, NAMES, PolicyPlan};
use super::random::ScheduleRandom;
use super::trace::NetTrace;
use crate::FlowId;
use crate::net::{Destination, Net, QueryId, QueryType, ResolveError};
use crate::wire::dns::{self, DnsName, DnsQuestion, record_type};

/// The first port of the guest's queries for targets, and of its other queries.
const NAME_PORT: u16 = 30_000;
const QUERY_PORT: u16 = 31_000;

/// How often the guest asks for a name.
const TRIES: u32 = 12;

const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// A name that the guest needs.
#[derive(Debug, Default)]
struct GuestName {
    asks_at: Option<Instant>,
    tries: u32,
    address: Option<Ipv4Addr>,
}

/// What a flow of the guest is for.
#[derive(Debug)]
enum FlowPurpose {
    One(PolicyDestination),
    /// The address itself, or each name that has it.
    Address(PolicyProtocol, SocketAddr),
}

/// A schedule under a policy.
#[derive(Debug)]
pub(super) struct PolicyWorld {
    pub(super) plan: PolicyPlan,
    /// The place of the policy that is in force.
    current: usize,
    names: Vec<GuestName>,
    /// What the resolver was asked for, by the time of its answer.
    resolving: BTreeMap<(Instant, QueryId), usize>,
    /// What the resolver has answered, by the place of the name.
    given: Vec<BTreeSet<IpAddr>>,
    /// What each open flow of the guest is for.
    flows: BTreeMap<FlowId, FlowPurpose>,
    next_echo: usize,
    next_query: usize,
    pub(super) refusals: u64,
}

impl PolicyWorld {
    pub(super) fn new(mut plan: PolicyPlan) -> Self {
        plan.echoes.sort_unstable_by_key(|(at, _)| *at);
        plan.queries.sort_unstable_by_key(|(at, ..)| *at);
        let mut names: Vec<GuestName> = NAMES.iter().map(|_| GuestName::default()).collect();
        let echoes = plan.echoes.iter().map(|(_, target)| target);
        for target in plan.tcp.iter().chain(&plan.udp).chain(echoes) {
            if let GuestTarget::Name(index) = target {
                names[*index].asks_at = Some(Instant::from_micros(1000 * *index as u64));
            }
        }
        let given = NAMES.iter().map(|_| BTreeSet::new()).collect();
        Self {
            plan,
            current: 0,
            names,
            resolving: BTreeMap::new(),
            given,
            flows: BTreeMap::new(),
            next_echo: 0,
            next_query: 0,
            refusals: 0,
        }
    }

    pub(super) fn rules(&self) -> &PolicyRules {
        &self.plan.policies[self.current].1
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        let asks = self.names.iter().filter_map(|name| name.asks_at).min();
        let resolves = self.resolving.keys().next().map(|(at, _)| *at);
        let echo = self.plan.echoes.get(self.next_echo).map(|(at, _)| *at);
        let query = self.plan.queries.get(self.next_query).map(|(at, ..)| *at);
        let policy = self.plan.policies.get(self.current + 1).map(|(at, _)| *at);
        [asks, resolves, echo, query, policy].into_iter().flatten().min()
    }

    /// The address of a target, if the guest knows it.
    pub(super) fn address(&self, target: GuestTarget) -> Option<Ipv4Addr> {
        match target {
            GuestTarget::Address(address) => Some(address),
            GuestTarget::Name(index) => self.names[index].address,
        }
    }

    // The guest.

    /// The next frame of the guest's resolver, and of its echo requests.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Vec<u8>> {
        for (index, name) in self.names.iter_mut().enumerate() {
            if name.asks_at.is_some_and(|at| at <= now) {
                name.tries += 1;
                name.asks_at = (name.tries < TRIES).then(|| now + Duration::from_millis(1500));
                let port = NAME_PORT + index as u16;
                return Some(query(NAME_SERVER, port, NAMES[index], record_type::A));
            }
        }
        if let Some(&(at, name, record_type, server)) = self.plan.queries.get(self.next_query)
            && at <= now
        {
            let port = QUERY_PORT + self.next_query as u16;
            self.next_query += 1;
            return Some(query(server, port, NAMES[name], record_type));
        }
        while let Some(&(at, target)) = self.plan.echoes.get(self.next_echo)
            && at <= now
        {
            self.next_echo += 1;
            if let Some(address) = self.address(target) {
                return Some(guest::echo_frame(address, self.next_echo as u16));
            }
        }
        None
    }

    /// A frame for the guest. Returns whether it is for its resolver.
    pub(super) fn handle_frame(&mut self, frame: &[u8], trace: &NetTrace) -> bool {
        let Some((server, port, answer)) = guest::dns_answer(frame) else { return false };
        let Some(index) = usize::from(port).checked_sub(NAME_PORT.into()) else { return false };
        let Some(name) = self.names.get_mut(index) else { return true };
        let name_text = DnsName::from_text(NAMES[index]);
        let Some(name_text) = name_text.filter(|_| server == NAME_SERVER) else { return true };
        let question = DnsQuestion { name: name_text, record_type: record_type::A };
        let Ok(answer) = dns::parse_answer(answer, &question) else { return true };
        let Some([a, b, c, d]) = answer.records.first().map(|record| &record.data[..]) else {
            return true;
        };
        let address = Ipv4Addr::new(*a, *b, *c, *d);
        let is_allowed = |rules: &PolicyRules| {
            rules.mode() == PolicyMode::Record || rules.query(NAMES[index]).is_allowed
        };
        if !self.plan.policies[..=self.current].iter().any(|(_, rules)| is_allowed(rules)) {
            trace.fail(format_args!("{} is denied, and answered with {address}", NAMES[index]));
        }
        if !is_within_v4(address, Ipv4Addr::new(198, 18, 0, 0), 15)
            && !self.given[index].contains(&address.into())
        {
            trace.fail(format_args!("{} is answered with {address}", NAMES[index]));
        }
        (name.asks_at, name.address) = (None, Some(name.address.unwrap_or(address)));
        true
    }

    // The host.

    /// The network asks the resolver.
    pub(super) fn resolve(
        &mut self,
        query: QueryId,
        name: &str,
        query_type: QueryType,
        now: Instant,
        trace: &NetTrace,
    ) {
        let is_recording = self.rules().mode() == PolicyMode::Record;
        let is_allowed = self.rules().query(name).is_allowed;
        let is_blocked = name == "use-application-dns.net";
        if (!is_allowed && !is_recording) || is_blocked {
            trace.fail(format_args!("a query for {name}, which is denied, leaves the host"));
        }
        if query_type != QueryType::Addresses && !is_recording {
            trace.fail(format_args!("a query for records of {name} leaves the host"));
        }
        let Some(index) = NAMES.iter().position(|own| *own == name) else {
            trace.fail(format_args!("a query for {name}, which the guest has not asked for"));
        };
        if let Some(delay) = self.plan.resolver[index].delay {
            self.resolving.insert((now + delay, query), index);
        }
    }

    /// Replaces the policy, and answers for the resolver. Returns whether something happened.
    pub(super) fn act(&mut self, net: &mut Net, now: Instant) -> bool {
        let mut moved = false;
        while let Some(entry) = self.resolving.first_entry()
            && entry.key().0 <= now
        {
            moved = true;
            let ((_, query), index) = entry.remove_entry();
            let plan = &self.plan.resolver[index];
            let addresses = match &plan.later {
                Some((at, later)) if *at <= now => later,
                _ => &plan.addresses,
            };
            self.given[index].extend(addresses);
            let answer = match addresses.is_empty() {
                true => Err(ResolveError::NoName),
                false => Ok(&addresses[..]),
            };
            net.handle_addresses(query, answer, now);
            net.handle_records(query, Err(ResolveError::NoName), now);
        }
        moved
    }

    /// The next policy, if it is its time.
    pub(super) fn replace(&mut self, now: Instant) -> Option<PolicyRules> {
        let (_, rules) = self.plan.policies.get(self.current + 1).filter(|(at, _)| *at <= now)?;
        let rules = rules.clone();
        self.current += 1;
        // From now on, whatever the plan was.
        self.plan.policies[self.current].0 = now;
        Some(rules)
    }

    /// The network opens a socket. Returns the address that it connects to, for a flow to a name.
    pub(super) fn open(
        &mut self,
        flow: FlowId,
        protocol: PolicyProtocol,
        destination: &Destination,
        random: &mut ScheduleRandom,
        trace: &NetTrace,
    ) -> Option<IpAddr> {
        let (purpose, chosen) = match destination {
            Destination::Host(port) => {
                (FlowPurpose::One(PolicyDestination::Host { protocol, port: *port }), None)
            }
            Destination::Remote(remote) => (FlowPurpose::Address(protocol, *remote), None),
            Destination::Name(all) if !all.is_empty() => {
                let name = self.name_of(protocol, all[0].port(), trace);
                for remote in all {
                    self.check_open(&FlowPurpose::One(named(protocol, name, *remote)), trace);
                }
                let chosen = all[random.between(0, all.len() as u64 - 1) as usize];
                (FlowPurpose::One(named(protocol, name, chosen)), Some(chosen.ip()))
            }
            other => trace.fail(format_args!("a socket to {other:?}")),
        };
        self.check_open(&purpose, trace);
        self.flows.insert(flow, purpose);
        chosen
    }

    /// A socket was closed.
    pub(super) fn close(&mut self, flow: FlowId) {
        self.flows.remove(&flow);
    }

    /// After each call of the network, and its actions: what is open is allowed.
    pub(super) fn check_flows(&self, trace: &NetTrace) {
        for purpose in self.flows.values() {
            self.check_open(purpose, trace);
        }
    }

    fn check_open(&self, purpose: &FlowPurpose, trace: &NetTrace) {
        let is_carried = match purpose {
            FlowPurpose::One(destination) => self.is_carried(destination),
            FlowPurpose::Address(protocol, remote) => {
                self.meanings(*protocol, *remote).iter().any(|meaning| self.is_carried(meaning))
            }
        };
        if !is_carried {
            trace.fail(format_args!("a socket for what is denied: {purpose:?}, {:?}", self.plan));
        }
    }

    /// What a flow to an address can be: to this address, or to a name that has it.
    fn meanings(&self, protocol: PolicyProtocol, remote: SocketAddr) -> Vec<PolicyDestination> {
        let (address, port) = (remote.ip(), remote.port());
        let by_name = (0..NAMES.len()).filter(|index| self.given[*index].contains(&address));
        let by_name = by_name.map(|index| named(protocol, NAMES[index], remote));
        let by_address = PolicyDestination::Address { protocol, address, port };
        core::iter::once(by_address).chain(by_name).collect()
    }

    /// The name that the guest connects to at a port, by the place of its target.
    fn name_of(&self, protocol: PolicyProtocol, port: u16, trace: &NetTrace) -> &'static str {
        let place = usize::from(port.wrapping_sub(REMOTE_PORT));
        let target = match protocol {
            PolicyProtocol::Tcp => self.plan.tcp.get(place),
            _ => self.plan.udp.get(place),
        };
        match target {
            Some(GuestTarget::Name(index)) => NAMES[*index],
            other => trace.fail(format_args!("a socket to a name, for {other:?}")),
        }
    }

    /// Whether the policy in force allows a flow, or records only.
    fn is_carried(&self, destination: &PolicyDestination) -> bool {
        let address = match destination {
            PolicyDestination::Address { address, .. }
            | PolicyDestination::Resolved { address, .. } => Some(*address),
            _ => None,
        };
        if address.is_some_and(is_own) {
            return false;
        }
        let may_record = address.is_some_and(|it| AddressClass::of(it) != AddressClass::Special);
        let is_recording = self.rules().mode() == PolicyMode::Record;
        self.rules().explain(destination).is_allowed || (is_recording && may_record)
    }

    // Events.

    /// An event has the rule and the reason of the pure verdict.
    pub(super) fn check_event(&mut self, event: &NetworkEvent, trace: &NetTrace) {
        let is_refusal =
            matches!(event.kind, NetworkEventKind::FlowRefused | NetworkEventKind::DnsRefused);
        self.refusals += u64::from(is_refusal);
        let is_flow_opened = event.kind == NetworkEventKind::FlowOpened;
        if !(is_refusal || is_flow_opened) || !is_of_rules(event) {
            return;
        }
        let Some(destination) = event.destination() else {
            trace.fail(format_args!("an event without a destination: {event:?}"));
        };
        let is_explained = |rules: &PolicyRules| {
            let verdict = match (event.kind, &event.name, event.address) {
                // The address of an answer.
                (NetworkEventKind::DnsRefused, Some(name), Some(address)) => {
                    rules.answer(name, address)
                }
                _ => rules.explain(&destination),
            };
            (verdict.is_allowed, &verdict.rule, verdict.reason)
                == (event.is_allowed, &event.rule, event.reason)
        };
        if !self.rules_at(event.at).any(is_explained) {
            trace.fail(format_args!("{destination} is explained in another way than {event:?}"));
        }
    }

    /// The policies in force at a time: two at the time of a replacement.
    fn rules_at(&self, at: Instant) -> impl Iterator<Item = &PolicyRules> {
        let policies = &self.plan.policies[..=self.current];
        policies.iter().enumerate().filter_map(move |(index, (from, rules))| {
            let until = policies.get(index + 1).map(|(until, _)| *until);
            (*from <= at && until.is_none_or(|until| at <= until)).then_some(rules)
        })
    }

    // The end.

    /// Whether the connections of a slot must be whole, as far as the policy is concerned.
    pub(super) fn is_surely_open(&self, slot: usize) -> bool {
        let [(_, rules)] = &self.plan.policies[..] else { return false };
        let (protocol, port) = (PolicyProtocol::Tcp, REMOTE_PORT + slot as u16);
        if !self.plan.has_default_limits {
            return false;
        }
        match self.plan.tcp[slot] {
            GuestTarget::Address(GATEWAY) => rules.host(protocol, port).is_allowed,
            GuestTarget::Address(address) => {
                let address = address.into();
                self.is_carried(&PolicyDestination::Address { protocol, address, port })
            }
            GuestTarget::Name(index) => {
                let (name, resolver) = (NAMES[index], &self.plan.resolver[index]);
                let is_recording = rules.mode() == PolicyMode::Record;
                let is_name_open = is_recording
                    || rules.query(name).is_allowed && rules.name(protocol, name, port).is_allowed;
                is_name_open
                    && resolver.later.is_none()
                    && resolver.delay.is_some()
                    && rules.resolve_mode(name) == ResolveMode::Synthetic
                    && rules.stream_check(name, port) == StreamCheck::None
                    && resolver.addresses.iter().any(|address| {
                        self.is_carried(&named(protocol, name, (*address, port).into()))
                    })
            }
        }
    }

    /// Whether no byte of a connection may reach the host: the guest sends neither TLS nor HTTP.
    pub(super) fn is_surely_held(&self, slot: usize) -> bool {
        let GuestTarget::Name(index) = self.plan.tcp[slot] else { return false };
        let (name, port) = (NAMES[index], REMOTE_PORT + slot as u16);
        self.plan.policies.iter().all(|(_, rules)| {
            rules.mode() == PolicyMode::Enforce
                && rules.resolve_mode(name) == ResolveMode::Synthetic
                && rules.name(PolicyProtocol::Tcp, name, port).is_allowed
                && rules.stream_check(name, port) != StreamCheck::None
        })
    }

    /// The limit of all bytes, if there is one policy.
    pub(super) fn total_bytes(&self) -> Option<u64> {
        let [(_, rules)] = &self.plan.policies[..] else { return None };
        rules.limits().total_bytes
    }
}

/// Whether the rules alone decided, not the limits, the resolver, the first bytes or the addresses of the host.
fn is_of_rules(event: &NetworkEvent) -> bool {
    use VerdictReason as Reason;
    match event.reason {
        Reason::Allowed | Reason::Denied | Reason::NoRule | Reason::Port => true,
        Reason::SpecialAddress | Reason::PrivateAddress => true,
        // With a flow, the driver refused the address.
        Reason::HostAddress => event.address.is_none() && event.flow.is_none(),
        Reason::Protocol => event.kind == NetworkEventKind::FlowRefused,
        _ => false,
    }
}

fn named(protocol: PolicyProtocol, name: &str, remote: SocketAddr) -> PolicyDestination {
    let (name, address, port): (String, _, _) = (name.to_string(), remote.ip(), remote.port());
    PolicyDestination::Resolved { protocol, name, address, port }
}

/// Whether the address is one of the guest's network.
fn is_own(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if is_within_v4(v4, GATEWAY, 24))
}

fn query(server: Ipv4Addr, port: u16, name: &str, record_type: u16) -> Vec<u8> {
    let name = DnsName::from_text(name).unwrap_or_else(|| panic!("{name} is too long"));
    let message = dns::write_query(port, &DnsQuestion { name, record_type });
    guest::udp_frame((port, dns::PORT), server, &message)
}
