//! [`Upload`]: the bytes from the guest to a socket of the host.
//!
//! It receives segments in any order, and knows what the guest may send: the window is the space that is
//! reserved for this stream, so each byte within it can be stored, whatever the socket does.
//!
//! ```text
//!   taken ......... received ......... window end
//!   |   stored      |  ranges stored   |
//!   |   in order    |  out of order    |
//! ```

use crate::buffer::{Budget, CHUNK, Parts, StreamBuffer};
use alloc::vec::Vec;
use core::ops::Range;

/// Parts of the stream that arrived out of order, at most; further ones are dropped and sent again.
const RANGES: usize = 32;

/// The window at the start of a connection: 64 KiB.
const WINDOW_MIN: u64 = 64 << 10;
/// The largest window: 1 MiB.
const WINDOW_MAX: u64 = 1 << 20;

/// The part of the reserved space that the guest learns of only when the window is rounded up: a 64th.
const ROUNDING: u64 = 64;

/// What to do with the data of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReceivedData {
    /// Nothing: it was stored, or received before, or is outside of the window.
    Stored,
    /// This part of it is next for the socket, and nothing waits before it: offer it to the socket, then
    /// call [`Upload::taken`].
    Offer(Range<usize>),
}

/// The receiving side of a connection with the guest.
#[derive(Debug, Default)]
pub(super) struct Upload {
    buffer: StreamBuffer,
    /// The bytes before this position are received.
    received: u64,
    /// ReceivedData parts after `received`, in order, that do not touch.
    ranges: Vec<Range<u64>>,
    /// The end of the window that the guest knows.
    announced: u64,
    /// The size of the window that this connection tries to have.
    window: u64,
    /// The position of the end of the stream, once its FIN has arrived.
    end: Option<u64>,
}

impl Upload {
    pub(super) fn new() -> Self {
        Self { window: WINDOW_MIN, ..Self::default() }
    }

    /// The next byte that the guest has to send; after the end of the stream, the number after its FIN.
    pub(super) fn acknowledgement(&self) -> u64 {
        self.received + u64::from(self.is_received())
    }

    /// How many bytes the guest has sent in order.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Whether the whole stream is received.
    pub(super) fn is_received(&self) -> bool {
        self.end == Some(self.received)
    }

    /// Whether the whole stream was taken by the socket.
    pub(super) fn is_finished(&self) -> bool {
        self.end == Some(self.buffer.start())
    }

    /// The size of the window: none once the memory is returned.
    pub(super) fn window(&self) -> u64 {
        self.buffer.reserved().saturating_sub(self.received)
    }

    /// Whether the window has grown enough for a segment that announces it: by two segments, or by a
    /// chunk. Smaller steps make a guest send small segments (RFC 9293, 3.8.6.2.2).
    pub(super) fn has_window_update(&self, mss: u64, shift: u8) -> bool {
        let largest = self.received + (u64::from(u16::MAX) << shift);
        let growth = self.limit().min(largest).saturating_sub(self.announced.max(self.received));
        self.end.is_none() && growth >= (2 * mss).min(CHUNK as u64)
    }

    /// The window for a header, in units of `1 << shift` bytes; the guest is about to learn it.
    ///
    /// The end of the window must not move back (RFC 7323, 2.4): a guest may then take data that it has
    /// sent for data that it may not send, and never repeat it. So the window is rounded up if that keeps
    /// its end, as Linux does. If there is no space for that, the end moves back by less than a unit.
    pub(super) fn announce(&mut self, shift: u8) -> u16 {
        let reserved = self.buffer.reserved();
        let end = self.limit().max(self.announced).min(reserved);
        let down = end.saturating_sub(self.received) >> shift;
        let up = self.announced.saturating_sub(self.received).div_ceil(1 << shift);
        let has_space = self.received + (up << shift) <= reserved;
        let window = if has_space { down.max(up) } else { down };
        let window = u16::try_from(window).unwrap_or(u16::MAX);
        self.announced = self.announced.max(self.received + (u64::from(window) << shift));
        window
    }

    /// The end of the window, as far as the guest learns of it without rounding.
    fn limit(&self) -> u64 {
        let (start, end) = (self.buffer.start(), self.buffer.reserved());
        end - (end - start) / ROUNDING
    }

    /// Reserves space for the window.
    pub(super) fn open_window(&mut self, budget: &mut Budget) {
        if self.end.is_none() {
            self.buffer.reserve(self.buffer.start() + self.window, budget);
        }
    }

    /// The end of the stream arrived: its FIN is after the byte before `end`.
    pub(super) fn finish(&mut self, end: u64) {
        let received = self.ranges.last().map_or(self.received, |range| range.end);
        if self.end.is_none() && (received..=self.buffer.reserved()).contains(&end) {
            self.end = Some(end);
        }
    }

    /// Data arrived at `position`.
    pub(super) fn receive(
        &mut self,
        position: i64,
        data: &[u8],
        budget: &mut Budget,
    ) -> ReceivedData {
        let limit = self.end.unwrap_or(self.buffer.reserved()) as i64;
        let (start, end) =
            (position.max(self.received as i64), (position + data.len() as i64).min(limit));
        if start >= end {
            return ReceivedData::Stored;
        }
        let part = (start - position) as usize..(end - position) as usize;
        let range = start as u64..end as u64;
        if range.start > self.received {
            self.store_ahead(range, &data[part], budget);
            return ReceivedData::Stored;
        }
        // The guest fills its window: let it grow.
        if range.end + self.window / 4 > self.buffer.reserved() {
            self.window = (self.window * 2).min(WINDOW_MAX);
        }
        if !self.is_waiting() {
            return ReceivedData::Offer(part);
        }
        self.buffer.store(range.start, &data[part], budget);
        self.advance(range.end);
        ReceivedData::Stored
    }

    /// The socket took the first `count` bytes of `data`, which was offered to it.
    pub(super) fn taken(&mut self, data: &[u8], count: usize, budget: &mut Budget) {
        let start = self.received;
        let end = start + data.len() as u64;
        // A range that arrived before has the same bytes; the first ones are kept.
        self.buffer.release(start + count as u64, budget);
        if count < data.len() {
            self.buffer.store(start + count as u64, &data[count..], budget);
        }
        self.advance(end);
        if !self.is_waiting() && self.ranges.is_empty() {
            self.buffer.shrink(self.received, budget);
        }
        self.open_window(budget);
    }

    /// The bytes that wait for the socket. None after [`clear`](Self::clear).
    pub(super) fn waiting(&self) -> Parts<'_> {
        let start = self.buffer.start();
        self.buffer.parts(start..if self.buffer.has_chunks() { self.received } else { start })
    }

    /// Whether bytes wait for the socket.
    pub(super) fn is_waiting(&self) -> bool {
        self.buffer.start() < self.received
    }

    /// The socket took the first `count` of the waiting bytes.
    pub(super) fn drained(&mut self, count: usize, budget: &mut Budget) {
        self.buffer.release(self.buffer.start() + count as u64, budget);
        if !self.is_waiting() && self.ranges.is_empty() {
            self.buffer.shrink(self.received, budget);
        }
        self.open_window(budget);
    }

    /// Returns the memory.
    pub(super) fn clear(&mut self, budget: &mut Budget) {
        self.buffer.clear(budget);
        self.ranges.clear();
    }

    /// Stores a part that arrived before the parts in front of it.
    fn store_ahead(&mut self, new: Range<u64>, data: &[u8], budget: &mut Budget) {
        let first = self.ranges.partition_point(|range| range.end < new.start);
        let after = self.ranges.partition_point(|range| range.start <= new.end);
        let mut merged = new.clone();
        if let [low, .., high] | [low @ high] = &self.ranges[first..after] {
            merged = low.start.min(new.start)..high.end.max(new.end);
        } else if self.ranges.len() == RANGES {
            return;
        }
        // Bytes that arrived twice may differ: the first ones are kept.
        let mut at = new.start;
        let mut store = |at: u64, end: u64| {
            if at < end {
                let part = (at - new.start) as usize..(end - new.start) as usize;
                self.buffer.store(at, &data[part], budget);
            }
        };
        for range in &self.ranges[first..after] {
            store(at, range.start);
            at = range.end;
        }
        store(at, new.end);
        self.ranges.splice(first..after, [merged]);
    }

    /// The bytes before `end` are received; takes over the parts that follow.
    fn advance(&mut self, end: u64) {
        self.received = self.received.max(end);
        while let Some(range) = self.ranges.first()
            && range.start <= self.received
        {
            self.received = self.received.max(range.end);
            self.ranges.remove(0);
        }
        if self.ranges.is_empty() && self.ranges.capacity() > 0 {
            // An idle connection has no list.
            self.ranges = Vec::new();
        }
    }

    /// The memory that the stream has allocated, in bytes.
    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        self.buffer.allocated() + self.ranges.capacity() * size_of::<Range<u64>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn byte_at(position: u64) -> u8 {
        ((position * 7) >> 2) as u8
    }

    proptest! {
        /// Parts of a stream in any order, repeated and overlapping, and a socket that takes what it
        /// likes: it gets each byte once, in order, and the window's promise is kept.
        #[test]
        fn upload_any_segments_is_the_stream(
            steps in proptest::collection::vec((0..30_000u64, 0..9_000u64, 0..9_000usize), 1..200),
            memory in 0..200_000usize,
        ) {
            let (mut upload, mut budget) = (Upload::new(), Budget::new(memory));
            let mut taken = 0;
            upload.open_window(&mut budget);
            for (ahead, len, room) in steps {
                let promised = upload.buffer.reserved();
                let start = (upload.received + ahead).saturating_sub(10_000);
                let data: Vec<u8> = (start..start + len).map(byte_at).collect();
                if let ReceivedData::Offer(part) = upload.receive(start as i64, &data, &mut budget) {
                    let part = &data[part];
                    let count = part.len().min(room);
                    prop_assert!((taken..).zip(&part[..count]).all(|(at, b)| *b == byte_at(at)));
                    taken += count as u64;
                    upload.taken(part, count, &mut budget);
                }
                let waiting = upload.waiting().collect::<Vec<_>>().concat();
                let count = waiting.len().min(room);
                prop_assert!((taken..).zip(&waiting).all(|(at, byte)| *byte == byte_at(at)));
                taken += count as u64;
                upload.drained(count, &mut budget);
                prop_assert_eq!(upload.buffer.start(), taken);
                prop_assert!(upload.buffer.reserved() >= promised, "the window shrank");
                prop_assert!(budget.reserved() <= memory);
                // A part within the window that is next is never dropped.
                if start <= upload.received && start + len <= promised {
                    prop_assert!(upload.received >= start + len);
                }
            }
        }
    }
}
