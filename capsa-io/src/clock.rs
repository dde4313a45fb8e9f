//! The monotonic clock of a VM.

use std::time::{Duration, Instant as Monotonic};

use capsa_proto::time::{Deadline, Instant};

/// A monotonic clock whose origin is its creation.
#[derive(Debug, Clone, Copy)]
pub struct MonotonicClock {
    origin: Monotonic,
    skipped: Duration,
}

impl MonotonicClock {
    /// A clock that is zero now.
    pub fn new() -> Self {
        Self { origin: Monotonic::now(), skipped: Duration::ZERO }
    }

    /// The current time.
    pub fn now(&self) -> Instant {
        let micros = (self.origin.elapsed() + self.skipped).as_micros();
        Instant::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    /// Advances the clock. Only for simulated guests.
    pub fn skip(&mut self, time: Duration) {
        self.skipped += time;
    }

    /// The time until `deadline`, rounded up to a microsecond; zero when it has passed.
    pub fn until(&self, deadline: Deadline) -> Duration {
        deadline.at.since(self.now())
    }
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}
