//! What a guest may reach: a [`NetworkPolicy`], and the verdicts that follow from it.
//!
//! A policy is a list of targets that are allowed, and a list of exceptions that are denied. Everything
//! else is denied. An exception always wins, so the order of rules does not matter. A
//! [`PolicyRules`] is a policy whose rules were parsed and checked; it decides without I/O, so that
//! `capsa network explain` and the network stack give the same [`PolicyVerdict`].
//!
//! | file | contents |
//! | --- | --- |
//! | `target` | [`PolicyTarget`]: the grammar of rules |
//! | `check` | mistakes of a policy, and what deserves a warning |
//! | `describe` | a policy as text, as it is understood |
//! | `rules` | [`PolicyRules`]: the verdicts |
//! | `verdict` | [`PolicyVerdict`], [`VerdictReason`], [`PolicyDestination`] |
//! | `address` | [`AddressClass`]: public, private and special addresses |
//! | `event` | [`NetworkEvent`]: what the network reports |
//! | `suggest` | the smallest policy for what was seen |
//!
//! This module resolves no name, and does not know which addresses belong to the host: the driver asks the
//! kernel.

mod address;
mod check;
mod describe;
mod event;
mod punycode;
mod rules;
mod suggest;
mod target;
mod verdict;

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

pub use address::{AddressClass, behind_nat64, is_within_v4, is_within_v6};
pub use check::{PolicyMistake, PolicyWarning};
pub use event::{FlowTotals, NetworkEvent, NetworkEventKind};
pub use rules::PolicyRules;
pub use suggest::suggest;
pub use target::{
    IpNetwork, NamePattern, PolicyProtocol, PolicyTarget, TargetError, TargetHost, TargetPort,
};
pub use verdict::{DestinationError, PolicyDestination, PolicyVerdict, VerdictReason};

/// What a guest may reach. Everything that no rule allows is denied.
///
/// The rules are text, as in a file or after `--allow`; [`PolicyRules::new`] checks all of them at once.
///
/// ```
/// use capsa_proto::policy::{NetworkPolicy, PolicyRules};
///
/// let policy = NetworkPolicy::new().allow("pypi.org:443").allow("*.pythonhosted.org:443");
/// let rules = PolicyRules::new(&policy).unwrap();
/// assert!(rules.explain(&"files.pythonhosted.org:443".parse().unwrap()).is_allowed);
/// assert!(!rules.explain(&"pypi.org:80".parse().unwrap()).is_allowed);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct NetworkPolicy {
    /// Whether refusals are carried out.
    pub mode: PolicyMode,
    /// What is allowed.
    pub allow: Vec<AllowRule>,
    /// Exceptions, which always win: targets as in [`AllowRule::to`].
    pub deny: Vec<String>,
    /// Limits of rate and number.
    pub limits: PolicyLimits,
}

impl NetworkPolicy {
    /// A policy that allows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Allows a target: `pypi.org:443`, `*.pythonhosted.org:443`, `10.1.2.0/24:5432`, `internet:443`,
    /// `host:8080`, `udp://time.example.org:123`, `icmp://1.1.1.1`.
    #[must_use]
    pub fn allow(self, to: impl Into<String>) -> Self {
        self.allow_rule(AllowRule::new(to))
    }

    /// Allows a target with options.
    #[must_use]
    pub fn allow_rule(mut self, rule: AllowRule) -> Self {
        self.allow.push(rule);
        self
    }

    /// Denies a target, whatever else allows it.
    #[must_use]
    pub fn deny(mut self, target: impl Into<String>) -> Self {
        self.deny.push(target.into());
        self
    }

    /// Sets the limits.
    #[must_use]
    pub fn limits(mut self, limits: PolicyLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Carries out no refusal except those of special addresses: see [`PolicyMode::Record`].
    #[must_use]
    pub fn record(mut self) -> Self {
        self.mode = PolicyMode::Record;
        self
    }
}

/// Whether refusals are carried out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PolicyMode {
    /// What no rule allows is refused.
    #[default]
    Enforce,
    /// Everything is allowed except the host and special addresses, and an event says what would be
    /// refused. This is no protection: it finds out what a program needs.
    Record,
}

/// A target that a policy allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct AllowRule {
    /// The target, in the form of [`PolicyTarget`].
    pub to: String,
    /// Why, for people.
    #[serde(default)]
    pub because: Option<String>,
    /// Which addresses the guest sees for a name of this rule.
    #[serde(default)]
    pub resolve: ResolveMode,
    /// What is checked in the bytes of a connection to a name. `None`: [`StreamCheck::Tls`] at port 443,
    /// [`StreamCheck::Http`] at port 80, otherwise nothing.
    #[serde(default)]
    pub check: Option<StreamCheck>,
}

impl AllowRule {
    /// A rule without options.
    pub fn new(to: impl Into<String>) -> Self {
        Self { to: to.into(), because: None, resolve: ResolveMode::default(), check: None }
    }

    /// Sets the reason, for people.
    #[must_use]
    pub fn because(mut self, because: impl Into<String>) -> Self {
        self.because = Some(because.into());
        self
    }

    /// Sets which addresses the guest sees.
    #[must_use]
    pub const fn resolve(mut self, resolve: ResolveMode) -> Self {
        self.resolve = resolve;
        self
    }

    /// Sets what is checked in the bytes of a connection.
    #[must_use]
    pub const fn check(mut self, check: StreamCheck) -> Self {
        self.check = Some(check);
        self
    }
}

/// Which addresses the guest sees for a name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ResolveMode {
    /// One address of the guest's network that stands for the name. The host resolves the name when the
    /// guest connects.
    #[default]
    Synthetic,
    /// The addresses that the host's resolver gives: for programs that pass addresses on. The guest may
    /// connect to these addresses only.
    Real,
}

/// What is checked in the first bytes of a connection to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StreamCheck {
    /// The server name of the TLS handshake is the connection's name.
    Tls,
    /// The `Host` of the first HTTP request is the connection's name.
    Http,
    /// Nothing.
    None,
}

impl StreamCheck {
    /// What a rule without [`AllowRule::check`] checks at a port.
    pub(crate) const fn of_port(port: u16) -> Self {
        match port {
            443 => Self::Tls,
            80 => Self::Http,
            _ => Self::None,
        }
    }
}

/// Limits of rate and number in a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PolicyLimits {
    /// TCP connections, UDP flows and flows of echo requests at one time.
    pub flows: usize,
    /// New flows in a second; twice as many may come at once.
    pub flows_per_second: u32,
    /// Connections that wait for the remote host.
    pub connecting: usize,
    /// Bytes in a second, in each direction. `None`: no limit.
    pub bytes_per_second: Option<u64>,
    /// Bytes of payload in both directions together. When they are used, all flows end. `None`: no limit.
    pub total_bytes: Option<u64>,
    /// DNS queries in a second; three times as many may come at once.
    pub queries_per_second: u32,
    /// Bytes of names under wildcards and groups that were not asked before, in a minute.
    pub name_bytes_per_minute: u32,
}

impl Default for PolicyLimits {
    fn default() -> Self {
        Self {
            flows: 1024,
            flows_per_second: 200,
            connecting: 64,
            bytes_per_second: None,
            total_bytes: None,
            queries_per_second: 20,
            name_bytes_per_minute: 4096,
        }
    }
}

/// For how long the guest may keep a synthetic address.
pub const SYNTHETIC_TTL: Duration = Duration::from_secs(30);

/// The body of a fuzz target: lines are rules, `!` before exceptions, `?` before destinations. No text
/// panics, what is printed parses to the same, and an exception covers what it names.
#[cfg(feature = "fuzz")]
pub fn fuzz(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    let (mut policy, mut destinations) = (NetworkPolicy::new(), Vec::new());
    for line in text.lines().take(64) {
        if let Some(destination) = line.strip_prefix('?') {
            destinations.extend(destination.parse::<PolicyDestination>());
        } else if let Some(target) = line.strip_prefix('!') {
            policy = policy.deny(target);
        } else {
            policy = policy.allow(line);
        }
    }
    for rule in &policy.allow {
        if let Ok(target) = rule.to.parse::<PolicyTarget>() {
            assert_eq!(alloc::format!("{target}").parse(), Ok(target));
        }
    }
    let _ = policy.warnings();
    let Ok(rules) = PolicyRules::new(&policy) else { return };
    for destination in destinations {
        assert_eq!(alloc::format!("{destination}").parse(), Ok(destination.clone()));
        let verdict = rules.explain(&destination);
        assert_eq!(verdict.is_allowed, verdict.reason.is_allowed(), "{destination}");
        let suggested = suggest([destination.clone()]);
        // What the grammar has no rule for cannot be suggested.
        if verdict.is_allowed
            && let Ok(rules) = PolicyRules::new(&suggested)
            && !matches!(destination, PolicyDestination::Query { .. })
        {
            assert!(rules.explain(&destination).is_allowed, "{destination}");
        }
    }
}

#[cfg(test)]
mod tests;
