//! [`NetworkLimits`]: the limits of a policy on rates and on bytes.
//!
//! A limit of bytes in a second slows the link: frames to the guest wait, and the driver takes no frames
//! from the guest. The limit of all bytes counts payload that passes between the guest and sockets, to the
//! byte.

use core::time::Duration;

use capsa_proto::policy::{
    NetworkEvent, NetworkEventKind, PolicyLimits, PolicyVerdict, VerdictReason,
};
use capsa_proto::time::Instant;

use super::Net;
use crate::rate_limit::RateLimit;

/// How long a link may send at full speed after it was idle.
const BURST: Duration = Duration::from_millis(100);

/// The limits of a network with a policy.
#[derive(Debug)]
pub(super) struct NetworkLimits {
    flows: RateLimit,
    queries: RateLimit,
    /// Bytes of new names.
    names: RateLimit,
    pub(super) to_guest: Option<ByteRate>,
    pub(super) from_guest: Option<ByteRate>,
    /// Bytes of payload that may still pass.
    left: Option<u64>,
    /// The last of these bytes are in a datagram for a socket: all flows end once the driver has it.
    ends_at: Option<Instant>,
}

impl NetworkLimits {
    pub(super) fn new(limits: &PolicyLimits) -> Self {
        let second = Duration::from_secs(1);
        let rate = |count: u32, burst: u32| {
            RateLimit::new(second / count.max(1), count.saturating_mul(burst).max(1))
        };
        let names = limits.name_bytes_per_minute.max(1);
        Self {
            flows: rate(limits.flows_per_second, 2),
            queries: rate(limits.queries_per_second, 3),
            names: RateLimit::new(Duration::from_secs(60) / names, names),
            to_guest: limits.bytes_per_second.map(ByteRate::new),
            from_guest: limits.bytes_per_second.map(ByteRate::new),
            left: limits.total_bytes,
            ends_at: None,
        }
    }

    /// New limits. Bytes that have passed stay counted.
    pub(super) fn replace(&mut self, before: &PolicyLimits, limits: &PolicyLimits) {
        let passed = before.total_bytes.zip(self.left).map_or(0, |(total, left)| total - left);
        let ends_at = self.ends_at;
        *self = Self::new(limits);
        self.left = self.left.map(|total| total.saturating_sub(passed));
        self.ends_at = ends_at.filter(|_| self.is_used_up());
    }

    /// Whether a new flow is within the rate. If so, it is counted.
    pub(super) fn allow_flow(&mut self, now: Instant) -> bool {
        self.flows.allow(now)
    }

    /// The same for a DNS query.
    pub(super) fn allow_query(&mut self, now: Instant) -> bool {
        self.queries.allow(now)
    }

    /// The same for a name that was not asked before.
    pub(super) fn allow_name(&mut self, name: &str, now: Instant) -> bool {
        self.names.allow_many(name.len() as u32, now)
    }

    /// How many of `len` bytes of payload may pass.
    pub(super) fn payload(&self, len: usize) -> usize {
        let left = self.left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        len.min(left)
    }

    /// Bytes of payload have passed.
    pub(super) fn count_payload(&mut self, len: usize) {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(len as u64);
        }
    }

    /// Whether no further byte of payload may pass.
    pub(super) fn is_used_up(&self) -> bool {
        self.left == Some(0)
    }
}

/// Bytes in a second, in one direction of a link.
#[derive(Debug)]
pub(super) struct ByteRate {
    per_second: u64,
    /// Bytes that may pass. Negative after a frame that was longer.
    credit: i64,
    counted_at: Instant,
}

impl ByteRate {
    fn new(per_second: u64) -> Self {
        let mut rate = Self { per_second, credit: 0, counted_at: Instant::ZERO };
        rate.credit = rate.burst();
        rate
    }

    /// Bytes that may pass at once.
    fn burst(&self) -> i64 {
        let burst = u128::from(self.per_second) * BURST.as_micros() / 1_000_000;
        i64::try_from(burst).unwrap_or(i64::MAX).max(1)
    }

    /// A frame has passed.
    pub(super) fn count(&mut self, len: usize, now: Instant) {
        self.refill(now);
        self.credit = self.credit.saturating_sub(len as i64);
    }

    /// Until when no frame may pass; `None`: a frame may pass now.
    pub(super) fn paused_until(&self, now: Instant) -> Option<Instant> {
        let credit = self.credit.saturating_add(self.gained(now));
        if credit > 0 {
            return None;
        }
        let missing = u128::from(credit.unsigned_abs()) + 1;
        let micros = (missing * 1_000_000).div_ceil(u128::from(self.per_second.max(1)));
        Some(now + Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)))
    }

    fn refill(&mut self, now: Instant) {
        let gained = self.gained(now);
        if gained > 0 {
            self.credit = self.credit.saturating_add(gained).min(self.burst());
            self.counted_at = now;
        }
    }

    fn gained(&self, now: Instant) -> i64 {
        let elapsed = now.since(self.counted_at).as_micros();
        let gained = elapsed.saturating_mul(self.per_second.into()) / 1_000_000;
        i64::try_from(gained).unwrap_or(i64::MAX)
    }
}

impl Net {
    /// Until when the driver takes no frame from the guest, because the limit of bytes in a second is
    /// reached. [`poll_timeout`](Self::poll_timeout) has this time too.
    pub fn paused_from_guest(&self, now: Instant) -> Option<Instant> {
        self.limits.as_ref()?.from_guest.as_ref()?.paused_until(now)
    }

    /// Why no further flow may be opened now. A flow that may is counted.
    pub(super) fn limit_of_new_flow(&mut self, now: Instant) -> Option<VerdictReason> {
        let limits = self.limits.as_deref_mut()?;
        if limits.is_used_up() {
            return Some(VerdictReason::TotalBytes);
        }
        (!limits.allow_flow(now)).then_some(VerdictReason::FlowRate)
    }

    /// Whether no further byte of payload may pass.
    pub(super) fn is_used_up(&self) -> bool {
        self.limits.as_ref().is_some_and(|limits| limits.is_used_up())
    }

    /// How many of `len` bytes of payload may pass.
    pub(super) fn limited_payload(&self, len: usize) -> usize {
        self.limits.as_ref().map_or(len, |limits| limits.payload(len))
    }

    /// Whether a datagram with this payload may pass. Otherwise the limit is reached.
    pub(super) fn may_pass(&mut self, len: usize, now: Instant) -> bool {
        let allowed = self.limited_payload(len);
        if allowed < len {
            self.count_payload(allowed, now);
        }
        allowed == len
    }

    /// A datagram with this payload is on its way to its socket. If it is the last one, the flows end at the
    /// next call of the driver that has a time: its flow has to exist until it is sent.
    pub(super) fn count_delivery(&mut self, len: usize, now: Instant) {
        let Some(limits) = self.limits.as_deref_mut().filter(|_| len > 0) else { return };
        limits.count_payload(len);
        limits.ends_at = limits.is_used_up().then_some(now);
    }

    /// Bytes of payload have passed. With the last one that may, all flows end.
    pub(super) fn count_payload(&mut self, len: usize, now: Instant) {
        let Some(limits) = self.limits.as_deref_mut().filter(|_| len > 0) else { return };
        limits.count_payload(len);
        if limits.is_used_up() {
            self.end_flows_at_limit(now);
        }
    }

    /// Ends all flows if a datagram was the last one that may pass.
    pub(super) fn end_flows_after_delivery(&mut self, now: Instant) {
        if self.limits.as_mut().is_some_and(|limits| limits.ends_at.take().is_some()) {
            self.end_flows_at_limit(now);
        }
    }

    /// Ends all flows: no further byte may pass.
    pub(super) fn end_flows_at_limit(&mut self, now: Instant) {
        let verdict = PolicyVerdict::without_rule(false, VerdictReason::TotalBytes);
        self.report(NetworkEvent::new(now, NetworkEventKind::Limit, verdict.clone()));
        let flows = self.flows.ids().map(|id| (id, verdict.clone())).collect();
        self.refuse_flows(flows, now);
    }

    pub(super) fn is_paused_to_guest(&self, now: Instant) -> bool {
        let rate = self.limits.as_ref().and_then(|limits| limits.to_guest.as_ref());
        rate.is_some_and(|rate| rate.paused_until(now).is_some())
    }

    pub(super) fn count_frame_to_guest(&mut self, len: usize, now: Instant) {
        if let Some(rate) = self.limits.as_mut().and_then(|limits| limits.to_guest.as_mut()) {
            rate.count(len, now);
        }
    }

    pub(super) fn count_frame_from_guest(&mut self, len: usize, now: Instant) {
        if let Some(rate) = self.limits.as_mut().and_then(|limits| limits.from_guest.as_mut()) {
            rate.count(len, now);
        }
    }

    /// When frames may pass again in a direction that is paused, or all flows end.
    pub(super) fn limits_poll_timeout(&self) -> Option<Instant> {
        let limits = self.limits.as_ref()?;
        let rates = [&limits.to_guest, &limits.from_guest].into_iter().flatten();
        let resumes = rates.filter_map(|rate| rate.paused_until(self.last_call));
        resumes.chain(limits.ends_at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(100) + Duration::from_millis(millis)
    }

    #[test]
    fn rate_of_bytes_is_kept_over_seconds() {
        for per_second in [10_000_u64, 1_000_000, 1 << 33] {
            let mut rate = ByteRate::new(per_second);
            let (mut now, mut passed) = (after(0), 0_u64);
            for _ in 0..10_000 {
                if let Some(at) = rate.paused_until(now) {
                    assert!(at > now);
                    now = at;
                    assert_eq!(rate.paused_until(now), None);
                }
                rate.count(1514, now);
                passed += 1514;
            }
            let elapsed = now.since(after(0)).as_secs_f64() + BURST.as_secs_f64();
            let measured = passed as f64 / elapsed;
            assert!(measured <= per_second as f64 * 1.02 + 20_000.0, "{per_second}: {measured}");
            assert!(measured >= per_second as f64 * 0.90 || per_second > 1 << 30, "{measured}");
        }
    }

    #[test]
    fn limits_have_their_defaults() {
        let mut limits = NetworkLimits::new(&PolicyLimits::default());
        let flows = (0..1000).filter(|_| limits.allow_flow(after(0))).count();
        let queries = (0..1000).filter(|_| limits.allow_query(after(0))).count();
        let names = (0..1000).filter(|_| limits.allow_name(&"x".repeat(60), after(0))).count();
        assert_eq!((flows, queries, names), (400, 60, 4096 / 60));
        assert_eq!((limits.payload(usize::MAX), limits.is_used_up()), (usize::MAX, false));
        assert!(limits.to_guest.is_none() && limits.from_guest.is_none());
    }

    #[test]
    fn total_of_bytes_survives_new_limits() {
        let limits = |total_bytes| {
            let mut limits = PolicyLimits::default();
            limits.total_bytes = total_bytes;
            limits
        };
        let mut state = NetworkLimits::new(&limits(Some(1000)));
        assert_eq!(state.payload(1500), 1000);
        state.count_payload(400);
        assert_eq!(state.payload(1500), 600);
        state.replace(&limits(Some(1000)), &limits(Some(500)));
        assert_eq!(state.payload(1500), 100);
        state.count_payload(100);
        assert!(state.is_used_up());
        state.replace(&limits(Some(500)), &limits(None));
        assert!(!state.is_used_up());
    }
}
