//! [`NetworkEvent`]: what the network of a VM reports, one line of the log each.

use alloc::string::String;
use core::net::IpAddr;
use core::time::Duration;

use serde::Serialize;

use super::target::PolicyProtocol;
use super::verdict::VerdictReason;
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
