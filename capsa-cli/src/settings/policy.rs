//! The settings of a network with a policy: their rows of the table, and the policy that they describe.

use capsa::NetworkMode;
use capsa::backend::Violation;
use capsa::internal::{options_beside_policy, policy_rules};
use capsa::network::{
    AllowRule, NetworkPolicy, PolicyLimits, PolicyRules, ResolveMode, StreamCheck,
};

use super::Settings;
use super::network::GuestNetwork;
use super::setting::{Setting, ValueKind};
use super::table::ROW;
use crate::values::{self, Bounds};

/// The word after `--network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NetworkChoice {
    None,
    Nat,
    Policy,
    Record,
}

impl GuestNetwork {
    /// The mode of the network. A rule that allows something makes it a policy, unless the mode is set.
    pub(super) fn mode(&self) -> NetworkMode {
        match (self.mode, self.policy()) {
            (Some(NetworkChoice::None), _) => NetworkMode::None,
            (_, Some(policy)) => NetworkMode::Policy(policy),
            _ => NetworkMode::Nat,
        }
    }

    /// The policy; `None` if the network has none.
    pub(crate) fn policy(&self) -> Option<NetworkPolicy> {
        let is_record = match self.mode {
            Some(NetworkChoice::None | NetworkChoice::Nat) => return None,
            None if self.allow.is_empty() => return None,
            mode => mode == Some(NetworkChoice::Record),
        };
        let policy = if is_record { NetworkPolicy::new().record() } else { NetworkPolicy::new() };
        let rules = self.allow.iter().map(|(_, rule)| rule.clone());
        let policy = rules.fold(policy, NetworkPolicy::allow_rule);
        let policy = self.deny.iter().fold(policy, NetworkPolicy::deny);
        Some(policy.limits(self.limits.clone()))
    }

    /// The rules of the policy; `None` if the network has none.
    ///
    /// # Errors
    ///
    /// With every mistake of the policy, and each option of the network that a policy excludes.
    pub(crate) fn policy_rules(&self) -> Result<Option<PolicyRules>, Vec<Violation>> {
        let Some(policy) = self.policy() else { return Ok(None) };
        let has_host_ports = !self.host_ports.is_empty();
        let mut found: Vec<_> = options_beside_policy(self.allow_private, has_host_ports).collect();
        let rules = policy_rules(&policy).map_err(|mistakes| found.extend(mistakes)).ok();
        if found.is_empty() { Ok(rules) } else { Err(found) }
    }

    /// The settings of a policy that a network without one has: the field of each.
    pub(crate) fn unused_rules(&self) -> Vec<&'static str> {
        let fields = [
            ("network.allow[0]", !self.allow.is_empty()),
            ("network.deny[0]", !self.deny.is_empty()),
            ("network.limits", self.limits != PolicyLimits::default()),
        ];
        let is_unused = self.policy().is_none();
        fields
            .into_iter()
            .filter(|(_, is_set)| is_unused && *is_set)
            .map(|(field, _)| field)
            .collect()
    }
}

impl Settings {
    pub(super) fn begin_allow(&mut self, origin: String) {
        self.network.allow.push((Some(origin), AllowRule::new("")));
    }

    fn last_rule(&mut self) -> &mut AllowRule {
        &mut self.network.allow.last_mut().expect("begin_allow adds one").1
    }
}

pub(super) const ROWS: &[Setting] = &[
    Setting {
        flag: "--allow",
        repeats: true,
        field: "network.allow",
        kind: ValueKind::Text(|s, text| {
            s.network.allow.push((None, AllowRule::new(text)));
            Ok(())
        }),
        placeholder: "TARGET",
        help: "Let the guest reach this target, and nothing that no rule allows: pypi.org:443, \
               *.pythonhosted.org:443, 10.1.2.0/24:5432, internet:443, private:*, host:8080, \
               udp://time.example.org:123, icmp://1.1.1.1",
        ..ROW
    },
    Setting {
        key: "network.allow.to",
        required: true,
        kind: ValueKind::String(|s, text| s.last_rule().to = text),
        example: "\"pypi.org:443\"",
        help: "Target, as after --allow",
        ..ROW
    },
    Setting {
        key: "network.allow.because",
        kind: ValueKind::String(|s, text| s.last_rule().because = Some(text)),
        example: "\"the test database\"",
        help: "Why, for people",
        ..ROW
    },
    Setting {
        key: "network.allow.resolve",
        kind: ValueKind::Choice(&[
            ("synthetic", |s| s.last_rule().resolve = ResolveMode::Synthetic),
            ("real", |s| s.last_rule().resolve = ResolveMode::Real),
        ]),
        example: "\"real\"",
        help: "Which addresses the guest sees for the name; synthetic: one that stands for the name; real: \
               those of the host's resolver",
        default: "synthetic",
        ..ROW
    },
    Setting {
        key: "network.allow.check",
        kind: ValueKind::Choice(&[
            ("tls", |s| s.last_rule().check = Some(StreamCheck::Tls)),
            ("http", |s| s.last_rule().check = Some(StreamCheck::Http)),
            ("none", |s| s.last_rule().check = Some(StreamCheck::None)),
        ]),
        example: "\"tls\"",
        help: "What must name the host in the first bytes of a connection",
        default: "tls at port 443, http at port 80, else none",
        ..ROW
    },
    Setting {
        flag: "--deny",
        repeats: true,
        key: "network.deny",
        field: "network.deny",
        kind: ValueKind::List(|s, text| s.network.deny.push(text)),
        placeholder: "TARGET",
        example: "[\"internal.example.org:443\"]",
        help: "Exception of a policy: a target as after --allow, which always wins",
        ..ROW
    },
    limit(
        "network.limits.flows",
        ValueKind::Number(Bounds(1, 65_536), |s, n| s.network.limits.flows = n as usize),
        "Flows at one time",
        "1024",
    ),
    limit(
        "network.limits.flows-per-second",
        ValueKind::Number(Bounds(1, u32::MAX), |s, n| s.network.limits.flows_per_second = n),
        "New flows in a second; twice as many may come at once",
        "200",
    ),
    limit(
        "network.limits.connecting",
        ValueKind::Number(Bounds(1, u32::MAX), |s, n| s.network.limits.connecting = n as usize),
        "Connections that wait for the remote host",
        "64",
    ),
    Setting {
        example: "\"20MB\"",
        ..limit(
            "network.limits.bytes-per-second",
            ValueKind::Text(|s, text| {
                values::byte_count(text).map(|n| s.network.limits.bytes_per_second = Some(n))
            }),
            "Bytes in a second, in each direction",
            "no limit",
        )
    },
    Setting {
        example: "\"2GB\"",
        ..limit(
            "network.limits.total-bytes",
            ValueKind::Text(|s, text| {
                values::byte_count(text).map(|n| s.network.limits.total_bytes = Some(n))
            }),
            "Bytes in both directions together; then all flows end",
            "no limit",
        )
    },
    limit(
        "network.limits.queries-per-second",
        ValueKind::Number(Bounds(1, u32::MAX), |s, n| s.network.limits.queries_per_second = n),
        "DNS queries in a second; three times as many may come at once",
        "20",
    ),
    limit(
        "network.limits.name-bytes-per-minute",
        ValueKind::Number(Bounds(1, u32::MAX), |s, n| s.network.limits.name_bytes_per_minute = n),
        "Bytes of names under wildcards and groups that were not asked before, in a minute",
        "4096",
    ),
];

/// A limit, whose example is its default.
const fn limit(
    key: &'static str,
    kind: ValueKind,
    help: &'static str,
    default: &'static str,
) -> Setting {
    Setting { key, kind, example: default, help, default, ..ROW }
}
