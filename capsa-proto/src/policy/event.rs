//! [`NetworkEvent`]: what the network of a VM reports, one line of the log each.

use alloc::string::String;
use core::net::IpAddr;
use core::time::Duration;

use serde::Serialize;

use super::target::PolicyProtocol;
use super::verdict::{PolicyDestination, PolicyVerdict, VerdictReason};
use crate::time::Instant;

/// Something that happened in the network of a VM.
///
/// A name is what the guest sent, so it may have any character that a DNS name can have: escape it before
/// a terminal shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkEvent {
    /// The number of the event. A gap means that events were dropped.
    pub seq: u64,
    /// When, in the time of the driver.
    pub at: Instant,
    /// What happened.
    pub kind: NetworkEventKind,
    /// Whether it is allowed. In a policy that records, a refusal that was not carried out.
    pub is_allowed: bool,
    /// The rule that decided, as it is written in the policy.
    pub rule: Option<String>,
    /// Why.
    pub reason: VerdictReason,
    /// TCP, UDP or ICMP; `None` for events without a flow.
    pub protocol: Option<PolicyProtocol>,
    /// The name that the guest connects to, or asks for.
    pub name: Option<String>,
    /// The server name or host that the bytes of the connection had, if it is another.
    pub stated_name: Option<String>,
    /// The address on the host's side.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: Option<u16>,
    /// The number of the flow, the same in all its events.
    pub flow: Option<u64>,
    /// What the flow carried, when it has closed.
    pub totals: Option<FlowTotals>,
    /// How many further events of this kind and reason were left out in the last second.
    pub repeated: u32,
}

impl NetworkEvent {
    /// An event with a verdict, and nothing else. The queue of the network sets its number.
    pub fn new(at: Instant, kind: NetworkEventKind, verdict: PolicyVerdict) -> Self {
        let PolicyVerdict { is_allowed, rule, reason } = verdict;
        Self {
            seq: 0,
            at,
            kind,
            is_allowed,
            rule,
            reason,
            protocol: None,
            name: None,
            stated_name: None,
            address: None,
            port: None,
            flow: None,
            totals: None,
            repeated: 0,
        }
    }

    /// What the guest asked for, in the form that [`PolicyRules::explain`](super::PolicyRules::explain) takes.
    pub fn destination(&self) -> Option<PolicyDestination> {
        let is_query =
            matches!(self.kind, NetworkEventKind::DnsAnswered | NetworkEventKind::DnsRefused);
        let (name, address, port) = (self.name.clone(), self.address, self.port.unwrap_or(0));
        Some(match (name, address, self.protocol) {
            (Some(name), _, _) if is_query => PolicyDestination::Query { name },
            (Some(name), Some(address), Some(protocol)) => {
                PolicyDestination::Resolved { protocol, name, address, port }
            }
            (Some(name), None, Some(protocol)) => PolicyDestination::Name { protocol, name, port },
            (None, Some(address), Some(protocol)) => {
                PolicyDestination::Address { protocol, address, port }
            }
            (None, None, Some(protocol)) => PolicyDestination::Host { protocol, port },
            _ => return None,
        })
    }

    /// A line of the log, as JSON without a line feed. `time` is in the form of RFC 3339.
    ///
    /// The names of the fields are stable; a field without a value is left out. Control characters of names
    /// are escaped.
    pub fn to_json(&self, time: &str, vm: &str) -> String {
        let line = EventLine {
            time,
            vm,
            seq: self.seq,
            event: self.kind,
            verdict: if self.is_allowed { "allowed" } else { "refused" },
            rule: self.rule.as_deref(),
            reason: self.reason,
            protocol: self.protocol,
            name: self.name.as_deref(),
            stated_name: self.stated_name.as_deref(),
            address: self.address,
            port: self.port,
            destination: self.destination(),
            flow: self.flow,
            bytes_up: self.totals.map(|totals| totals.bytes_up),
            bytes_down: self.totals.map(|totals| totals.bytes_down),
            duration_ms: self.totals.map(|totals| totals.duration.as_millis() as u64),
            repeated: self.repeated,
        };
        // Only a key that is no text can fail, and there is none.
        serde_json::to_string(&line).unwrap_or_default()
    }
}

/// The fields of a line, in their order.
#[derive(Serialize)]
struct EventLine<'a> {
    time: &'a str,
    vm: &'a str,
    seq: u64,
    event: NetworkEventKind,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    reason: VerdictReason,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<PolicyProtocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stated_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<PolicyDestination>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_up: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_down: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    #[serde(skip_serializing_if = "is_zero")]
    repeated: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What a flow carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FlowTotals {
    /// Bytes of payload from the guest.
    pub bytes_up: u64,
    /// Bytes of payload to the guest.
    pub bytes_down: u64,
    /// How long it was open.
    pub duration: Duration,
}

impl FlowTotals {
    /// Totals of a flow that has closed.
    pub const fn new(bytes_up: u64, bytes_down: u64, duration: Duration) -> Self {
        Self { bytes_up, bytes_down, duration }
    }
}

/// What a [`NetworkEvent`] reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NetworkEventKind {
    /// The guest opened a flow.
    FlowOpened,
    /// A flow ended.
    FlowClosed,
    /// A flow was refused, or ended by the policy.
    FlowRefused,
    /// The first bytes of a flow do not pass their check, in a policy that records: the flow goes on.
    FlowCheckFailed,
    /// A DNS query was answered.
    DnsAnswered,
    /// A DNS query was refused.
    DnsRefused,
    /// A limit was reached.
    Limit,
    /// A client connected to a forward.
    ForwardAccepted,
    /// The policy was replaced.
    PolicyChanged,
}
