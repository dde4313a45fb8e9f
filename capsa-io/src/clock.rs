//! The one clock: monotonic, counted from its own creation.

use std::time::{Duration, Instant as Monotonic};

use capsa_proto::time::{Deadline, Instant};

/// A monotonic clock whose origin is its creation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MonotonicClock {
    origin: Monotonic,
    skipped: Duration,
}

impl MonotonicClock {
    /// A clock that starts at zero now.
    pub(crate) fn new() -> Self {
        Self { origin: Monotonic::now(), skipped: Duration::ZERO }
    }

    /// Now.
    pub(crate) fn now(&self) -> Instant {
        let micros = (self.origin.elapsed() + self.skipped).as_micros();
        Instant::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    /// From here on it is later by this much. Only where nobody but a test lives by it.
    pub(crate) fn skip(&mut self, time: Duration) {
        self.skipped += time;
    }

    /// How long it is until `deadline`, rounded up to a microsecond; zero when it has passed.
    pub(crate) fn until(&self, deadline: Deadline) -> Duration {
        deadline.at.since(self.now())
    }
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}
