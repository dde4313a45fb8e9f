//! [`Scrollback`]: the last bytes a guest has written, addressed by how many came before them.
//!
//! It does not know who reads it: a reader's place is a [`Cursor`](super::Cursor), outside, so any
//! number of readers share one log. An offset never changes its meaning, however much is dropped.

use alloc::vec::Vec;
use core::fmt;

/// How many bytes a [`Scrollback`] keeps unless told otherwise: 1 MiB.
pub const DEFAULT_CAPACITY: usize = 1 << 20;

/// What gives way when the log is full: old bytes, or the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// The oldest bytes are dropped and counted; the guest never waits. The default.
    #[default]
    DropOldest,
    /// The driver stops reading until the slowest reader has caught up, so the guest blocks in its
    /// `write` and nothing is lost: neither what was said before there was a reader nor, up to
    /// 1 MiB, what the system still held when the hypervisor ended. A reader that never reads, or
    /// none at all, stops the guest for good: a choice for logs that must be complete, not for
    /// untrusted guests.
    Pause,
}

/// A bounded log of bytes in one contiguous slice.
///
/// Memory grows with what is pushed, up to twice the capacity: the slack in front lets old bytes
/// go without moving the others each time, so a pushed byte costs amortised constant time. `Debug`
/// gives the offsets, not the bytes.
///
/// ```
/// use capsa_proto::console::Scrollback;
///
/// let mut log = Scrollback::new(8);
/// log.push(b"Booting Linux");
/// assert_eq!(log.since(0), b"ng Linux");
/// assert_eq!((log.start(), log.end(), log.dropped()), (5, 13, 5));
/// assert_eq!(log.since(8), b"Linux");
/// ```
#[derive(Clone)]
pub struct Scrollback {
    /// Dropped bytes not yet moved out, then the live ones.
    buf: Vec<u8>,
    /// Where the live bytes begin in `buf`.
    head: usize,
    /// The offset of the oldest live byte, which is also the number of bytes dropped.
    start: u64,
    capacity: usize,
    overflow: Overflow,
}

impl Scrollback {
    /// An empty log that keeps the last `capacity` bytes (at least one) and drops older ones.
    pub fn new(capacity: usize) -> Self {
        Self::with_overflow(capacity, Overflow::DropOldest)
    }

    /// An empty log with a named choice for when it is full.
    pub fn with_overflow(capacity: usize, overflow: Overflow) -> Self {
        // Half of the address space can never be reached, and keeps the doubling below in range.
        let capacity = capacity.clamp(1, usize::MAX / 2);
        Self { buf: Vec::new(), head: 0, start: 0, capacity, overflow }
    }

    /// Appends what the guest wrote.
    ///
    /// What exceeds the capacity is dropped from the old end, under either policy: with
    /// [`Overflow::Pause`] it is the driver who reads no more than [`room`](Self::room).
    pub fn push(&mut self, bytes: &[u8]) {
        let live = self.buf.len() - self.head;
        let excess = (live + bytes.len()).saturating_sub(self.capacity);
        let old = excess.min(live);
        let bytes = &bytes[excess - old..];
        self.head += old;
        self.start += excess as u64;

        if self.buf.len() + bytes.len() > 2 * self.capacity {
            // More than `capacity` bytes have been dropped since the last time we came here, and at
            // most that many move.
            self.buf.drain(..self.head);
            self.head = 0;
        }
        let needed = self.buf.len() + bytes.len();
        if needed > self.buf.capacity() {
            // `Vec` would double past our bound.
            let target = needed.saturating_mul(2).min(2 * self.capacity);
            self.buf.reserve_exact(target - self.buf.len());
        }
        self.buf.extend_from_slice(bytes);
    }

    /// Keeps `more` bytes more from now on.
    pub fn grow(&mut self, more: usize) {
        self.capacity = self.capacity.saturating_add(more).min(usize::MAX / 2);
    }

    /// The offset of the oldest byte still here.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The offset one past the newest byte: how many bytes were ever pushed.
    pub fn end(&self) -> u64 {
        self.start + self.live().len() as u64
    }

    /// How many bytes were dropped so far, whether or not a reader had seen them.
    pub fn dropped(&self) -> u64 {
        self.start
    }

    /// How many bytes the log keeps.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What happens when the log is full.
    pub fn overflow(&self) -> Overflow {
        self.overflow
    }

    /// The bytes from `offset` to the end.
    ///
    /// An offset that was dropped gives everything that is left; one in the future gives nothing.
    pub fn since(&self, offset: u64) -> &[u8] {
        let live = self.live();
        let skip = offset.saturating_sub(self.start).min(live.len() as u64);
        &live[skip as usize..]
    }

    /// The last `n` bytes, or all when there are fewer.
    pub fn tail(&self, n: usize) -> &[u8] {
        let live = self.live();
        &live[live.len().saturating_sub(n)..]
    }

    /// How many bytes the driver may read from the guest now, when the reader furthest behind is at
    /// `slowest_reader`.
    ///
    /// With [`Overflow::DropOldest`] always the capacity. With [`Overflow::Pause`] what fits
    /// without dropping a byte that this reader has not seen: at zero, stop watching the console's
    /// descriptor until a reader has moved. Pass [`start`](Self::start) where there was no reader
    /// yet, [`end`](Self::end) where the last has gone.
    ///
    /// ```
    /// use capsa_proto::console::{Overflow, Scrollback};
    ///
    /// let mut log = Scrollback::with_overflow(8, Overflow::Pause);
    /// log.push(b"12345678");
    /// assert_eq!(log.room(0), 0);
    /// assert_eq!(log.room(3), 3);
    /// ```
    pub fn room(&self, slowest_reader: u64) -> usize {
        match self.overflow {
            Overflow::DropOldest => self.capacity,
            Overflow::Pause => self.capacity - self.since(slowest_reader).len(),
        }
    }

    fn live(&self) -> &[u8] {
        &self.buf[self.head..]
    }
}

impl Default for Scrollback {
    fn default() -> Self {
        Self::new(DEFAULT_CAPACITY)
    }
}

impl fmt::Debug for Scrollback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrollback")
            .field("start", &self.start)
            .field("end", &self.end())
            .field("capacity", &self.capacity)
            .field("overflow", &self.overflow)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn since_is_clamped_on_both_sides() {
        let mut log = Scrollback::new(4);
        log.push(b"abcdef");
        assert_eq!(log.since(0), b"cdef");
        assert_eq!(log.since(5), b"f");
        assert_eq!(log.since(6), b"");
        assert_eq!(log.since(u64::MAX), b"");
        assert_eq!(log.tail(2), b"ef");
        assert_eq!(log.tail(9), b"cdef");
    }

    #[test]
    fn nothing_is_allocated_before_the_first_byte() {
        let log = Scrollback::default();
        assert_eq!(log.buf.capacity(), 0);
        assert_eq!(log.capacity(), DEFAULT_CAPACITY);
    }

    #[test]
    fn a_capacity_of_zero_still_keeps_a_byte() {
        let mut log = Scrollback::new(0);
        log.push(b"ab");
        assert_eq!(log.since(0), b"b");
    }

    #[test]
    fn a_log_that_grew_keeps_more() {
        let mut log = Scrollback::new(2);
        log.push(b"ab");
        log.grow(1);
        log.push(b"c");
        assert_eq!(log.since(0), b"abc");
        log.grow(usize::MAX);
        assert_eq!(log.capacity(), usize::MAX / 2);
    }

    #[test]
    fn pausing_gives_room_only_for_what_was_read() {
        let mut log = Scrollback::with_overflow(4, Overflow::Pause);
        assert_eq!(log.room(0), 4);
        log.push(b"abc");
        assert_eq!(log.room(0), 1);
        assert_eq!(log.room(3), 4);
        log.push(b"defgh");
        assert_eq!(log.room(0), 0, "a driver that overshot gets no room, and no underflow");
    }

    proptest! {
        #[test]
        fn the_log_is_the_end_of_everything_pushed(
            capacity in 1usize..40,
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..40),
        ) {
            let mut log = Scrollback::new(capacity);
            let mut all = Vec::new();
            for chunk in &chunks {
                log.push(chunk);
                all.extend_from_slice(chunk);
                let kept = &all[all.len().saturating_sub(capacity)..];
                prop_assert_eq!(log.since(0), kept);
                prop_assert_eq!(log.end(), all.len() as u64);
                prop_assert_eq!(log.start(), (all.len() - kept.len()) as u64);
                prop_assert!(log.buf.capacity() <= 2 * capacity);
            }
        }
    }
}
