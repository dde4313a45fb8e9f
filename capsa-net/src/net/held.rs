//! Connections to names whose first bytes are held until they were inspected.
//!
//! The bytes wait in the buffer of the connection, and no socket gets any before they have passed. What the
//! server sends first is not held: it comes from a host that the policy allows.

use core::time::Duration;

use alloc::vec::Vec;

use capsa_proto::policy::{
    NetworkEventKind, PolicyMode, PolicyVerdict, StreamCheck, VerdictReason,
};
use capsa_proto::time::Instant;

use super::Net;
use super::flows::{Flow, Transport};
use crate::flow_table::FlowId;
use crate::inspect::{self, Inspection, InspectionError};

/// The first bytes must be complete in this time after the first of them.
const HELD_TIME: Duration = Duration::from_secs(5);

/// The state of a connection whose first bytes are held.
#[derive(Debug)]
pub(super) struct HeldStream {
    check: StreamCheck,
    /// Fewer bytes are not inspected.
    needed: usize,
    /// Set at the first byte.
    ends_at: Option<Instant>,
}

impl HeldStream {
    /// For a new connection; `None` if nothing is checked.
    pub(super) fn new(check: StreamCheck) -> Option<Self> {
        (check != StreamCheck::None).then_some(Self { check, needed: 1, ends_at: None })
    }
}

impl Net {
    /// Whether the bytes of a connection must not reach its socket yet.
    pub(super) fn is_held(&self, id: FlowId) -> bool {
        self.flows.get(id).is_some_and(|(_, flow)| flow.is_held())
    }

    /// Holds the first bytes of a new connection to a name, if they are to be inspected.
    pub(super) fn hold(&mut self, id: FlowId) {
        let Some(policy) = &self.config.policy else { return };
        let Some((addresses, Flow { transport: Transport::Tcp(_), record: Some(record), .. })) =
            self.flows.get_mut(id)
        else {
            return;
        };
        if let Some(name) = &record.name {
            let check = policy.stream_check(name, addresses.remote.port());
            record.held = HeldStream::new(check);
        }
    }

    /// Inspects the bytes of a held connection, after more have arrived.
    pub(super) fn inspect_held(&mut self, id: FlowId, now: Instant) {
        let Some((addresses, Flow { transport: Transport::Tcp(connection), record, .. })) =
            self.flows.get_mut(id)
        else {
            return;
        };
        let Some(record) = record.as_deref_mut() else { return };
        let Some(held) = &mut record.held else { return };
        let len: usize = connection.waiting().map(<[u8]>::len).sum();
        if len == 0 {
            return;
        }
        if held.ends_at.is_none() {
            held.ends_at = Some(now + HELD_TIME);
            self.held_ends.insert((now + HELD_TIME, id));
        }
        if len < held.needed {
            return;
        }
        let bytes = connection.waiting().fold(Vec::with_capacity(len), |mut bytes, part| {
            bytes.extend_from_slice(part);
            bytes
        });
        let name = record.name.clone();
        let remote = addresses.remote;
        let pinned = &self.pinned;
        let is_expected = |stated: &str| {
            name.as_deref() == Some(stated)
                || pinned.names(remote.ip(), now).any(|name| **name == *stated)
        };
        match inspect::inspect(held.check, &bytes, remote.port(), &is_expected) {
            Inspection::Incomplete { needed } => held.needed = needed,
            Inspection::Passed => self.release(id),
            Inspection::Refused(InspectionError { reason, stated_name }) => {
                record.stated_name = stated_name;
                self.refuse_held(id, reason, now);
            }
        }
    }

    /// When [`held_timeout`](Self::held_timeout) is due.
    pub(super) fn held_poll_timeout(&self) -> Option<Instant> {
        self.held_ends.first().map(|(at, _)| *at)
    }

    /// Refuses the connections whose first bytes are not complete in time.
    pub(super) fn held_timeout(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.held_ends.first()
            && at <= now
        {
            self.held_ends.pop_first();
            if self.is_held(id) {
                self.refuse_held(id, VerdictReason::Incomplete, now);
            }
        }
    }

    /// The bytes may go to the socket.
    fn release(&mut self, id: FlowId) {
        self.forget_held(id);
        self.update(id);
    }

    fn refuse_held(&mut self, id: FlowId, reason: VerdictReason, now: Instant) {
        self.forget_held(id);
        let is_recording =
            self.config.policy.as_ref().is_some_and(|policy| policy.mode() == PolicyMode::Record);
        let rule = self.record_mut(id).and_then(|record| record.verdict.rule.clone());
        let mut verdict = PolicyVerdict::without_rule(false, reason);
        verdict.rule = rule;
        match is_recording {
            true => {
                let kind = NetworkEventKind::FlowCheckFailed;
                if let Some(event) = self.recorded_event(id, kind, Some(verdict), now) {
                    self.report(event);
                }
                self.update(id);
            }
            false => self.refuse_flow(id, verdict, now),
        }
    }

    /// The connection is not held any more, or has ended.
    pub(super) fn forget_held(&mut self, id: FlowId) {
        let held = self.record_mut(id).and_then(|record| record.held.take());
        if let Some(at) = held.and_then(|held| held.ends_at) {
            self.held_ends.remove(&(at, id));
        }
    }
}

impl Flow {
    /// Whether its first bytes are held.
    pub(super) fn is_held(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.held.is_some())
    }
}
