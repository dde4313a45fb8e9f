//! [`PolicyPlan`]: the policies of a schedule, what the guest tries, and what the host's resolver knows.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;

use capsa_proto::policy::{
    AllowRule, NetworkPolicy, PolicyLimits, PolicyRules, ResolveMode, StreamCheck,
};
use capsa_proto::time::Instant;

use super::guest::{GATEWAY, REMOTE};
use super::plan::ConnectionPlan;
use super::random::ScheduleRandom;
use crate::wire::dns::record_type;

/// The names of a schedule. The guest connects to those before [`TARGETS`], and asks for all.
pub(super) const NAMES: [&str; 7] = [
    "a.example",
    "b.a.example",
    "c.b.a.example",
    "d.test",
    "e.test",
    "secret.evil.test",
    "use-application-dns.net",
];
const TARGETS: u64 = 5;

/// What rules are for.
const HOSTS: [&str; 16] = [
    "a.example",
    "b.a.example",
    "d.test",
    "e.test",
    "*.a.example",
    "**.a.example",
    "**.example.net",
    "93.184.216.34",
    "93.184.216.0/24",
    "1.1.1.1",
    "192.168.0.0/16",
    "10.9.9.9",
    "169.254.169.254",
    "internet",
    "private",
    "host",
];

const ADDRESSES: [Ipv4Addr; 9] = [
    REMOTE,
    REMOTE,
    Ipv4Addr::new(93, 184, 216, 35),
    Ipv4Addr::new(1, 1, 1, 1),
    Ipv4Addr::new(192, 168, 1, 1),
    Ipv4Addr::new(10, 9, 9, 9),
    Ipv4Addr::new(169, 254, 169, 254),
    // An address of the guest's network, and one that stands for no name.
    Ipv4Addr::new(10, 0, 2, 20),
    Ipv4Addr::new(198, 19, 255, 1),
];

/// Further addresses in answers of the resolver.
const ADDRESSES_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::LOCALHOST,
];

/// What the guest connects or sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GuestTarget {
    Address(Ipv4Addr),
    /// By its place in [`NAMES`].
    Name(usize),
}

/// What the host's resolver does with a name.
#[derive(Debug, Clone)]
pub(super) struct ResolverPlan {
    /// `None`: it never answers.
    pub(super) delay: Option<Duration>,
    /// No addresses: there is no such name.
    pub(super) addresses: Vec<IpAddr>,
    /// From this time on, it has other ones.
    pub(super) later: Option<(Instant, Vec<IpAddr>)>,
}

/// A schedule under a policy.
#[derive(Debug, Clone)]
pub(super) struct PolicyPlan {
    /// The policies, each from its time on. The first one is that of the start.
    pub(super) policies: Vec<(Instant, PolicyRules)>,
    /// No limit is reached, except that of flows.
    pub(super) has_default_limits: bool,
    /// By their place in [`NAMES`].
    pub(super) resolver: Vec<ResolverPlan>,
    /// By the slot of a connection.
    pub(super) tcp: Vec<GuestTarget>,
    /// By the socket.
    pub(super) udp: Vec<GuestTarget>,
    pub(super) echoes: Vec<(Instant, GuestTarget)>,
    /// Queries beside those for the targets: the name, the record type, and the server.
    pub(super) queries: Vec<(Instant, usize, u16, Ipv4Addr)>,
}

impl PolicyPlan {
    pub(super) fn choose(
        connections: &[ConnectionPlan],
        flows: usize,
        random: &mut ScheduleRandom,
    ) -> Self {
        let has_default_limits = random.chance(60);
        let mut policies = Vec::new();
        let mut from = Instant::ZERO;
        for _ in 0..random.one_of(&[1, 1, 1, 2, 3]) {
            policies.push((from, rules(flows, has_default_limits, random)));
            from = from + Duration::from_micros(1 + random.skewed(3_000_000));
        }
        // A forward has the ports of a connection to the gateway.
        let has_forwards = connections.iter().any(|connection| !connection.is_from_guest);
        let resolver = NAMES.map(|_| resolver(random)).into();
        let time = |random: &mut ScheduleRandom| Instant::from_micros(random.skewed(6_000_000));
        let server = Ipv4Addr::new(10, 0, 2, 3);
        let types = [record_type::A, record_type::AAAA, 16, 12, 65, 255];
        Self {
            policies,
            has_default_limits,
            resolver,
            tcp: connections.iter().map(|_| target(!has_forwards, random)).collect(),
            udp: (0..4).map(|_| target(true, random)).collect(),
            echoes: (0..random.between(0, 3))
                .map(|_| (time(random), target(false, random)))
                .collect(),
            queries: (0..random.between(0, 8))
                .map(|_| {
                    let name = random.between(0, NAMES.len() as u64 - 1) as usize;
                    let record_type = random.one_of(&types);
                    (time(random), name, record_type, random.one_of(&[server, REMOTE]))
                })
                .collect(),
        }
    }
}

fn target(may_be_gateway: bool, random: &mut ScheduleRandom) -> GuestTarget {
    match random.between(0, 9) {
        0..5 => GuestTarget::Name(random.between(0, TARGETS - 1) as usize),
        5 if may_be_gateway => GuestTarget::Address(GATEWAY),
        _ => GuestTarget::Address(random.one_of(&ADDRESSES)),
    }
}

fn resolver(random: &mut ScheduleRandom) -> ResolverPlan {
    let delay = Duration::from_micros(random.skewed(2_000_000));
    let addresses = addresses(random);
    let at = Instant::from_micros(random.skewed(40_000_000));
    let later = random.chance(20).then(|| (at, self::addresses(random)));
    ResolverPlan { delay: (!random.chance(5)).then_some(delay), addresses, later }
}

fn addresses(random: &mut ScheduleRandom) -> Vec<IpAddr> {
    let count = random.one_of(&[0, 1, 1, 1, 2, 4]);
    let one = |_| match random.chance(20) {
        true => random.one_of(&ADDRESSES_V6).into(),
        false => random.one_of(&ADDRESSES).into(),
    };
    (0..count).map(one).collect()
}

/// A policy without mistakes.
fn rules(flows: usize, has_default_limits: bool, random: &mut ScheduleRandom) -> PolicyRules {
    let mut limits = PolicyLimits::default();
    limits.flows = flows;
    if !has_default_limits {
        limits.flows_per_second = random.one_of(&[1, 5, 200]);
        limits.connecting = random.one_of(&[1, 64]);
        limits.total_bytes = random.one_of(&[None, None, Some(1), Some(1000), Some(100_000)]);
        limits.queries_per_second = random.one_of(&[1, 20]);
        limits.name_bytes_per_minute = random.one_of(&[1, 20, 4096]);
    }
    let mut policy = NetworkPolicy::new().limits(limits);
    if random.chance(15) {
        policy = policy.record();
    }
    if random.chance(40) {
        policy = policy.allow("internet:*").allow("udp://internet:*");
    }
    let mut checked = PolicyRules::new(&policy);
    for _ in 0..random.between(0, 8) {
        let target = rule(random);
        let next = match random.chance(25) {
            true => policy.clone().deny(target),
            false => policy.clone().allow_rule(options(AllowRule::new(target), random)),
        };
        // A rule that is a mistake, alone or with the others, is left out.
        if let Ok(rules) = PolicyRules::new(&next) {
            (policy, checked) = (next, Ok(rules));
        }
    }
    checked.unwrap_or_else(|mistakes| panic!("a policy without rules has mistakes: {mistakes:?}"))
}

fn rule(random: &mut ScheduleRandom) -> String {
    let host = random.one_of(&HOSTS);
    match random.between(0, 9) {
        0 => format!("icmp://{host}"),
        1..4 => format!("udp://{host}{}", port(random)),
        _ => format!("{host}{}", port(random)),
    }
}

fn port(random: &mut ScheduleRandom) -> &'static str {
    random.one_of(&[":*", ":*", ":1000", ":1001", ":1002", ":53", ":853"])
}

fn options(rule: AllowRule, random: &mut ScheduleRandom) -> AllowRule {
    match random.between(0, 19) {
        0..4 => rule.resolve(ResolveMode::Real),
        4 => rule.check(StreamCheck::Tls),
        5 => rule.check(StreamCheck::Http),
        _ => rule,
    }
}
