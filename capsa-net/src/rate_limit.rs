//! [`RateLimit`]: a token bucket.

use core::time::Duration;

use capsa_proto::time::Instant;

/// Allows `burst` events at once, and after them one for each `interval`.
#[derive(Debug, Clone)]
pub(crate) struct RateLimit {
    interval: Duration,
    burst: u32,
    /// When the bucket is full again.
    full_at: Instant,
}

impl RateLimit {
    pub(crate) const fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst, full_at: Instant::ZERO }
    }

    /// Whether an event is within the limit. If so, it is counted.
    pub(crate) fn allow(&mut self, now: Instant) -> bool {
        self.allow_many(1, now)
    }

    /// Whether `count` events are within the limit together. If so, they are counted.
    pub(crate) fn allow_many(&mut self, count: u32, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + self.interval * count;
        let is_allowed = full_at.since(now) <= self.interval * self.burst;
        if is_allowed {
            self.full_at = full_at;
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_allows_a_burst_and_then_the_rate() {
        let mut limit = RateLimit::new(Duration::from_millis(100), 20);
        let mut allowed = |now: Instant| (0..1000).filter(|_| limit.allow(now)).count();
        let start = Instant::ZERO + Duration::from_secs(1);
        assert_eq!(allowed(start), 20);
        assert_eq!(allowed(start + Duration::from_millis(99)), 0);
        assert_eq!(allowed(start + Duration::from_secs(1)), 10);
        assert_eq!(allowed(start + Duration::from_secs(1000)), 20);
    }
}
