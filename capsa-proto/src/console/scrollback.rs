//! [`Scrollback`]: the bounded buffer of console output, addressed by absolute offsets.
//!
//! The scrollback does not know its readers. A reader's position is a separate
//! [`Cursor`](super::Cursor), so any number of readers share one scrollback. An offset keeps its
//! meaning when old bytes are dropped.
//!
//! Guest faults are recognised here, where all output passes once; see
//! [`FaultDetector`](super::fault::FaultDetector).

use super::fault::FaultDetector;
use alloc::vec::Vec;
use core::fmt;

/// The default capacity of a [`Scrollback`]: 1 MiB.
pub const DEFAULT_CAPACITY: usize = 1 << 20;

/// What happens when the scrollback is full: old bytes are dropped, or the guest is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Overflow {
    /// The oldest bytes are dropped and counted; the guest is never paused. The default.
    #[default]
    DropOldest,
    /// The driver stops reading the console until the slowest reader has caught up, so the guest
    /// blocks in `write` and no output is lost. This includes output before the first reader and, up
    /// to 1 MiB, output that the host still buffered when the hypervisor exited. Without a reader, or
    /// with one that never reads, the guest is paused forever. Use it where output must be complete,
    /// not with untrusted guests.
    Pause,
}

/// A bounded buffer of console output in one contiguous slice.
///
/// Memory grows with the output, up to twice the capacity: the slack at the front avoids moving all
/// bytes at each drop, so a pushed byte costs amortised constant time. `Debug` shows the offsets, not
/// the bytes.
///
/// ```
/// # use capsa_proto::console::Scrollback;
/// let mut log = Scrollback::new(8);
/// log.push(b"Booting Linux");
/// assert_eq!(log.since(0), b"ng Linux");
/// assert_eq!((log.start(), log.end(), log.dropped()), (5, 13, 5));
/// assert_eq!(log.since(8), b"Linux");
/// ```
#[derive(Clone)]
pub struct Scrollback {
    /// Dropped bytes that were not removed yet, then the live bytes.
    buf: Vec<u8>,
    /// The index in `buf` of the first live byte.
    head: usize,
    /// The offset of the oldest live byte, which is also the number of bytes dropped.
    start: u64,
    capacity: usize,
    overflow: Overflow,
    faults: FaultDetector,
    /// Bytes that were copied in, and bytes that were moved to make room.
    #[cfg(test)]
    copied: (u64, u64),
}

impl Scrollback {
    /// An empty scrollback that keeps the last `capacity` bytes (at least one) and drops older ones.
    pub fn new(capacity: usize) -> Self {
        Self::with_overflow(capacity, Overflow::DropOldest)
    }

    /// An empty scrollback with this overflow policy.
    pub fn with_overflow(capacity: usize, overflow: Overflow) -> Self {
        // The limit avoids an overflow in the doubling below.
        let capacity = capacity.clamp(1, usize::MAX / 2);
        Self {
            buf: Vec::new(),
            head: 0,
            start: 0,
            capacity,
            overflow,
            faults: FaultDetector::new(),
            #[cfg(test)]
            copied: (0, 0),
        }
    }

    /// Appends guest output.
    ///
    /// Bytes beyond the capacity are dropped from the old end, under either policy: with
    /// [`Overflow::Pause`] the driver must not read more than [`room`](Self::room).
    pub fn push(&mut self, bytes: &[u8]) {
        let live = self.buf.len() - self.head;
        let excess = (live + bytes.len()).saturating_sub(self.capacity);
        let old = excess.min(live);
        let bytes = &bytes[excess - old..];
        self.head += old;
        self.start += excess as u64;

        if self.buf.len() + bytes.len() > 2 * self.capacity {
            // More than `capacity` bytes were dropped since the last `drain`, and at most that many
            // move.
            self.count_copies(0, self.buf.len() - self.head);
            self.buf.drain(..self.head);
            self.head = 0;
        }
        let needed = self.buf.len() + bytes.len();
        if needed > self.buf.capacity() {
            // `Vec` would double beyond the bound.
            let target = needed.saturating_mul(2).min(2 * self.capacity);
            self.count_copies(0, self.buf.len());
            self.buf.reserve_exact(target - self.buf.len());
        }
        self.count_copies(bytes.len(), 0);
        self.buf.extend_from_slice(bytes);
        self.faults.scan(&self.buf[self.head..], self.start);
    }

    /// Increases the capacity by `more` bytes.
    pub fn grow(&mut self, more: usize) {
        self.capacity = self.capacity.saturating_add(more).min(usize::MAX / 2);
    }

    /// The offset of the oldest byte that is still available.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The offset one past the newest byte, which is the number of bytes ever pushed.
    pub fn end(&self) -> u64 {
        self.start + self.live().len() as u64
    }

    /// How many bytes were dropped so far, read or unread.
    pub fn dropped(&self) -> u64 {
        self.start
    }

    /// How many bytes are kept.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The overflow policy.
    pub fn overflow(&self) -> Overflow {
        self.overflow
    }

    /// The bytes from `offset` to the end.
    ///
    /// If bytes after `offset` were dropped, the result starts at the oldest available byte. It is
    /// empty if `offset` is beyond the end.
    pub fn since(&self, offset: u64) -> &[u8] {
        let live = self.live();
        let skip = offset.saturating_sub(self.start).min(live.len() as u64);
        &live[skip as usize..]
    }

    /// The last `n` bytes, or all if there are fewer.
    pub fn tail(&self, n: usize) -> &[u8] {
        let live = self.live();
        &live[live.len().saturating_sub(n)..]
    }

    /// How many bytes the driver may read from the console now, given the offset of the slowest
    /// reader.
    ///
    /// With [`Overflow::DropOldest`] this is always the capacity. With [`Overflow::Pause`] it is what
    /// fits without dropping a byte that this reader has not read. At zero, stop polling the
    /// console's descriptor until a reader has moved. Pass [`start`](Self::start) if there was no
    /// reader yet, and [`end`](Self::end) if the last reader was dropped.
    ///
    /// ```
    /// # use capsa_proto::console::{Overflow, Scrollback};
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

    /// The VM has ended, and not by a panic.
    pub(super) fn handle_end_without_panic(&mut self) {
        self.faults.handle_end_without_panic();
    }

    /// The guest faults that were recognised in all output so far.
    pub(super) fn faults(&self) -> &FaultDetector {
        &self.faults
    }

    fn count_copies(&mut self, _pushed: usize, _moved: usize) {
        #[cfg(test)]
        {
            self.copied.0 += _pushed as u64;
            self.copied.1 += _moved as u64;
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
    fn since_out_of_range_offset_is_clamped() {
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
    fn scrollback_empty_allocates_nothing() {
        let log = Scrollback::default();
        assert_eq!(log.buf.capacity(), 0);
        assert_eq!(log.capacity(), DEFAULT_CAPACITY);
    }

    #[test]
    fn scrollback_capacity_zero_keeps_one_byte() {
        let mut log = Scrollback::new(0);
        log.push(b"ab");
        assert_eq!(log.since(0), b"b");
    }

    #[test]
    fn scrollback_copies_each_byte_once() {
        for capacity in [4096, 1 << 20] {
            let mut log = Scrollback::new(capacity);
            (0..10_000).for_each(|_| log.push(&[b'x'; 50]));
            let (pushed, moved) = log.copied;
            assert_eq!(pushed, 500_000, "into {capacity}");
            // The growth of the buffer, or the removal of dropped bytes.
            assert!(moved <= 2 * pushed, "{moved} moved in {capacity}");
        }
    }

    #[test]
    fn scrollback_after_grow_keeps_more() {
        let mut log = Scrollback::new(2);
        log.push(b"ab");
        log.grow(1);
        log.push(b"c");
        assert_eq!(log.since(0), b"abc");
        log.grow(usize::MAX);
        assert_eq!(log.capacity(), usize::MAX / 2);
    }

    #[test]
    fn room_when_pausing_excludes_unread_bytes() {
        let mut log = Scrollback::with_overflow(4, Overflow::Pause);
        assert_eq!(log.room(0), 4);
        log.push(b"abc");
        assert_eq!(log.room(0), 1);
        assert_eq!(log.room(3), 4);
        log.push(b"defgh");
        assert_eq!(log.room(0), 0, "no room and no underflow after a push beyond it");
    }

    proptest! {
        #[test]
        fn scrollback_holds_the_last_bytes_pushed(
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
