//! The one clock: monotonic, counted from its own creation.

use std::time::{Duration, Instant as Monotonic};

use capsa_proto::time::{Deadline, Instant};

/// A monotonic clock whose origin is its creation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    origin: Monotonic,
}

impl Clock {
    /// A clock that starts at zero now.
    pub(crate) fn new() -> Self {
        Self { origin: Monotonic::now() }
    }

    /// Now.
    pub(crate) fn now(&self) -> Instant {
        let micros = self.origin.elapsed().as_micros();
        Instant::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    /// How long it is until `deadline`, rounded up to a microsecond; zero when it has passed.
    pub(crate) fn until(&self, deadline: Deadline) -> Duration {
        deadline.at.since(self.now())
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
