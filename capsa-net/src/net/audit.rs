//! [`AuditQueue`]: the events of a network until the driver takes them.
//!
//! The queue is bounded: while it is full, new events are counted and dropped.

use alloc::collections::VecDeque;

use capsa_proto::policy::NetworkEvent;

use super::Net;

/// Events that wait for the driver, at most.
const EVENTS: usize = 1024;

/// Events that wait for the driver.
#[derive(Debug, Default)]
pub(super) struct AuditQueue {
    events: VecDeque<NetworkEvent>,
    next_seq: u64,
    dropped: u64,
}

impl AuditQueue {
    /// Adds an event, whose number is set here.
    #[expect(dead_code, reason = "the policy reports events in a following change")]
    pub(super) fn push(&mut self, mut event: NetworkEvent) {
        event.seq = self.next_seq;
        self.next_seq += 1;
        match self.events.len() < EVENTS {
            true => self.events.push_back(event),
            false => self.dropped += 1,
        }
    }
}

impl Net {
    /// The next event, for a log or the owner of the VM.
    pub fn poll_event(&mut self) -> Option<NetworkEvent> {
        self.events.events.pop_front()
    }

    /// Events that were dropped because the queue was full.
    pub fn dropped_events(&self) -> u64 {
        self.events.dropped
    }
}
