//! Time as the core sees it: a number that the driver hands in.
//!
//! There is no clock here. The driver picks an origin (usually its own creation) and passes
//! microseconds since then. A deadline carries the reason it exists, so that "why does this VM wake
//! up in 3 ms" has an answer in a log line.

use core::fmt;
use core::ops::Add;
use core::time::Duration;

/// A moment, in microseconds since an origin that the driver chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Instant {
    micros: u64,
}

impl Instant {
    /// The driver's origin.
    pub const ZERO: Self = Self { micros: 0 };

    /// The moment `micros` microseconds after the origin.
    pub const fn from_micros(micros: u64) -> Self {
        Self { micros }
    }

    /// Microseconds since the origin.
    pub const fn as_micros(self) -> u64 {
        self.micros
    }

    /// Time from `earlier` to `self`; zero when `earlier` is in fact later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.micros.saturating_sub(earlier.micros))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Saturates: a deadline too far away to be written down is never reached.
    fn add(self, d: Duration) -> Self {
        let micros = u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        Self { micros: self.micros.saturating_add(micros) }
    }
}

/// A moment at which a machine wants to be called again, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// When.
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
    fn adding_forever_saturates() {
        assert_eq!((Instant::ZERO + Duration::MAX).as_micros(), u64::MAX);
    }

    #[test]
    fn earliest_keeps_its_reason() {
        let a = Deadline { at: Instant::from_micros(5), why: "a" };
        let b = Deadline { at: Instant::from_micros(3), why: "b" };
        assert_eq!(Deadline::earliest(Some(a), Some(b)), Some(b));
        assert_eq!(Deadline::earliest(None, Some(a)), Some(a));
    }
}
