//! [`AuditQueue`]: the events of a network until the driver takes them.
//!
//! The queue is bounded: while it is full, new events are counted and dropped. Of refusals with the same
//! reason and destination, the first is reported at once, and the further ones of each second as one event
//! with their number.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use core::net::IpAddr;
use core::time::Duration;

use capsa_proto::policy::{NetworkEvent, NetworkEventKind, PolicyProtocol, VerdictReason};
use capsa_proto::time::Instant;

use super::Net;

/// Events that wait for the driver, at most.
const EVENTS: usize = 1024;
/// Destinations whose refusals are counted, at most. Further ones are counted by their reason only.
const DESTINATIONS: usize = 256;
/// Equal refusals are reported once in this time.
const INTERVAL: Duration = Duration::from_secs(1);

/// Events that wait for the driver.
#[derive(Debug, Default)]
pub(super) struct AuditQueue {
    events: VecDeque<NetworkEvent>,
    next_seq: u64,
    dropped: u64,
    recent: BTreeMap<RefusalKey, RecentRefusal>,
    /// When the interval of each recent refusal ends, in order.
    ends: VecDeque<(Instant, RefusalKey)>,
    /// How many recent refusals were repeated.
    repeating: usize,
}

/// What refusals have in common that are reported as one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct RefusalKey {
    kind: NetworkEventKind,
    reason: VerdictReason,
    destination: Option<RefusedDestination>,
}

type RefusedDestination = (Option<PolicyProtocol>, Option<String>, Option<IpAddr>, Option<u16>);

/// A refusal within its interval.
#[derive(Debug, Default)]
struct RecentRefusal {
    /// The last one that is not reported.
    last: Option<NetworkEvent>,
    /// How many are not reported.
    count: u32,
}

impl AuditQueue {
    /// Adds an event, whose number is set here. A refusal may be reported later, with equal ones.
    pub(super) fn push(&mut self, event: NetworkEvent) {
        self.handle_timeout(event.at);
        let is_refusal = matches!(
            event.kind,
            NetworkEventKind::FlowRefused
                | NetworkEventKind::FlowCheckFailed
                | NetworkEventKind::DnsRefused
                | NetworkEventKind::Limit
        );
        if !is_refusal || event.totals.is_some() {
            return self.report(event);
        }
        let destination = (event.protocol, event.name.clone(), event.address, event.port);
        let (kind, reason) = (event.kind, event.reason);
        let mut key = RefusalKey { kind, reason, destination: Some(destination) };
        if self.recent.len() >= DESTINATIONS && !self.recent.contains_key(&key) {
            key.destination = None;
        }
        match self.recent.get_mut(&key) {
            Some(recent) => {
                self.repeating += usize::from(recent.count == 0);
                recent.count = recent.count.saturating_add(1);
                recent.last = Some(event);
            }
            None => {
                self.ends.push_back((event.at + INTERVAL, key.clone()));
                self.recent.insert(key, RecentRefusal::default());
                self.report(event);
            }
        }
    }

    /// When refusals are to be reported that were repeated.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.ends.front().filter(|_| self.repeating > 0).map(|(at, _)| *at)
    }

    /// Reports the refusals whose interval has ended.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while let Some((_, key)) = self.ends.pop_front_if(|(at, _)| *at <= now) {
            let Some(recent) = self.recent.get_mut(&key) else { continue };
            let RecentRefusal { last, count } = core::mem::take(recent);
            let Some(mut event) = last else {
                self.recent.remove(&key);
                continue;
            };
            self.repeating -= 1;
            self.ends.push_back((now + INTERVAL, key));
            event.repeated = count - 1;
            self.report(event);
        }
    }

    fn report(&mut self, mut event: NetworkEvent) {
        event.seq = self.next_seq;
        self.next_seq += 1;
        match self.events.len() < EVENTS {
            true => self.events.push_back(event),
            false => self.dropped += 1,
        }
    }
}

impl Net {
    /// The next event, for a log or the owner of the VM. There are none without a policy, unless
    /// [`NetworkConfig::audit`](super::NetworkConfig::audit) is set.
    pub fn poll_event(&mut self) -> Option<NetworkEvent> {
        self.events.events.pop_front()
    }

    /// Events that were dropped because the queue was full.
    pub fn dropped_events(&self) -> u64 {
        self.events.dropped
    }

    /// Whether events are reported.
    pub(super) fn is_audited(&self) -> bool {
        self.config.audit || self.config.policy.is_some()
    }

    /// Reports an event, if events are reported.
    pub(super) fn report(&mut self, event: NetworkEvent) {
        if self.is_audited() {
            self.events.push(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use capsa_proto::policy::PolicyVerdict;

    fn refusal(n: u16, at: Instant) -> NetworkEvent {
        let verdict = PolicyVerdict::without_rule(false, VerdictReason::NoRule);
        let mut event = NetworkEvent::new(at, NetworkEventKind::FlowRefused, verdict);
        event.port = Some(n);
        event
    }

    #[test]
    fn audit_equal_refusals_are_reported_once_a_second() {
        let mut queue = AuditQueue::default();
        let mut now = Instant::ZERO;
        for _ in 0..2500 {
            now = now + Duration::from_millis(1);
            queue.push(refusal(1, now));
        }
        let repeated: Vec<u32> = queue.events.iter().map(|event| event.repeated).collect();
        assert_eq!(repeated, [0, 998, 999]);
        assert!(queue.events.iter().enumerate().all(|(n, event)| event.seq == n as u64));
        // The rest, and then nothing is left.
        while let Some(at) = queue.poll_timeout() {
            now = at;
            queue.handle_timeout(now);
        }
        let total: u32 = queue.events.iter().map(|event| event.repeated + 1).sum();
        assert_eq!((total, queue.events.len()), (2500, 4));
        queue.handle_timeout(now + INTERVAL);
        assert!(queue.recent.is_empty() && queue.ends.is_empty());
    }

    #[test]
    fn audit_flood_of_destinations_is_bounded() {
        let mut queue = AuditQueue::default();
        let mut taken = 0;
        for n in 0..u16::MAX {
            queue.push(refusal(n, Instant::from_micros(n.into())));
            assert!(queue.recent.len() <= DESTINATIONS + 1 && queue.ends.len() <= DESTINATIONS + 1);
            taken += queue.events.drain(..).count();
        }
        assert_eq!(taken, DESTINATIONS + 1);
        queue.handle_timeout(Instant::from_micros(2_000_000));
        let rest: u32 = queue.events.iter().map(|event| event.repeated + 1).sum();
        assert_eq!(taken + rest as usize, usize::from(u16::MAX));
        // Events that the driver does not take are dropped and counted.
        for n in 0..2 * EVENTS as u16 {
            queue.report(refusal(n, Instant::ZERO));
        }
        assert_eq!(queue.events.len(), EVENTS);
        assert_eq!(queue.dropped as usize, EVENTS + 1);
    }
}
