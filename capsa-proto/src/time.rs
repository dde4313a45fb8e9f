//! Time as a number that the driver passes in.
//!
//! This module has no clock. The driver chooses an origin, usually its creation, and passes microseconds
//! since then. A deadline contains its reason, so that a log line explains why a VM wakes up.

use core::fmt;
use core::ops::Add;
use core::time::Duration;

/// A point in time, in microseconds since the driver's origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Instant {
    micros: u64,
}

impl Instant {
    /// The driver's origin.
    pub const ZERO: Self = Self { micros: 0 };

    /// The point in time `micros` microseconds after the origin.
    pub const fn from_micros(micros: u64) -> Self {
        Self { micros }
    }

    /// Microseconds since the origin.
    pub const fn as_micros(self) -> u64 {
        self.micros
    }

    /// Time from `earlier` to `self`; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.micros.saturating_sub(earlier.micros))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Saturates: a deadline beyond the range is never reached.
    fn add(self, d: Duration) -> Self {
        let micros = u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        Self { micros: self.micros.saturating_add(micros) }
    }
}

/// The point in time at which a state machine must be called again, and the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// The point in time.
    pub at: Instant,
    /// The reason, for logs: a few lower-case words.
    pub why: &'static str,
}

impl Deadline {
    /// The earlier of two deadlines that may be absent.
    pub fn earliest(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(a), Some(b)) => Some(if b.at < a.at { b } else { a }),
            (a, b) => a.or(b),
        }
    }
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} µs", self.why, self.at.as_micros())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instant_add_saturates() {
        assert_eq!((Instant::ZERO + Duration::MAX).as_micros(), u64::MAX);
    }

    #[test]
    fn deadline_earliest_keeps_reason() {
        let a = Deadline { at: Instant::from_micros(5), why: "a" };
        let b = Deadline { at: Instant::from_micros(3), why: "b" };
        assert_eq!(Deadline::earliest(Some(a), Some(b)), Some(b));
        assert_eq!(Deadline::earliest(None, Some(a)), Some(a));
    }
}
