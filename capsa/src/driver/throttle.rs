//! [`Throttle`]: lets output accumulate while a VM writes without a pause.
//!
//! QEMU writes each byte of a serial port by itself. A driver that is woken for each few bytes spends
//! its time with waking and sleeping, and so does QEMU. It does not delay the first output after a
//! silence, and no work of a handle: an owner that writes and waits in turn also wakes the driver
//! often.

use std::time::Duration;

/// A wait shorter than this shows that the VM writes without a pause.
const SHORT: Duration = Duration::from_millis(1);

/// How many short waits in a row make a flood.
const FLOOD: u32 = 16;

/// How long output accumulates. A socket holds 278 messages of one byte, which QEMU writes in 300 µs.
const PAUSE: Duration = Duration::from_micros(200);

/// Counts the short waits of a driver.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    short_waits: u32,
}

impl Throttle {
    /// The driver was woken for new events after this time; `is_output` unless a handle or a deadline
    /// did it. Returns how long it sleeps before it handles them.
    pub(super) fn pause_after(&mut self, waited: Duration, is_output: bool) -> Option<Duration> {
        let is_short = waited < SHORT && is_output;
        self.short_waits = if is_short { self.short_waits.saturating_add(1) } else { 0 };
        (self.short_waits >= FLOOD).then_some(PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttle_pauses_in_a_flood_only() {
        let mut throttle = Throttle::default();
        let (short, long) = (Duration::from_micros(500), Duration::from_millis(2));
        let pauses: Vec<_> = (0..20).map(|_| throttle.pause_after(short, true)).collect();
        assert_eq!(pauses.iter().position(Option::is_some), Some(15));
        assert!(pauses[15..].iter().all(Option::is_some));
        assert_eq!(throttle.pause_after(long, true), None, "the first output after a silence");
        assert_eq!(throttle.pause_after(short, true), None);
        assert!((0..20).all(|_| throttle.pause_after(short, false).is_none()), "work of handles");
    }
}
