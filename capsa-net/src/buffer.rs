//! [`StreamBuffer`]: a part of a byte stream, in chunks that a [`Budget`] limits.
//!
//! A stream has positions: the number of bytes before a byte. A buffer holds bytes at any positions from
//! its start, holes included, so data that arrives out of order is stored where it belongs. Chunks are
//! allocated when bytes arrive, and freed when the start moves past them; an idle stream has none.
//!
//! The rule that keeps a window honest: a stream *reserves* space before it promises it to a peer, and
//! storing into reserved space cannot fail. The budget counts reservations, so the memory of all streams
//! stays below its limit whatever the peers send.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::Range;

/// The size of a chunk: 8 KiB.
pub(crate) const CHUNK: usize = 8 << 10;

/// Chunks that a stream may always reserve: the space of one chunk, at any position within it.
pub(crate) const GUARANTEED: usize = 2;

/// Free chunks that are kept for the next stream: 256 KiB.
const SPARE: usize = 32;

type Chunk = Box<[u8; CHUNK]>;

/// The memory of all streams of one network.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Chunks that are reserved beyond the guaranteed ones of each stream.
    shared: usize,
    limit: usize,
    spare: Vec<Chunk>,
}

impl Budget {
    /// A budget of `bytes` beyond the guaranteed chunks of each stream.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { shared: 0, limit: bytes / CHUNK, spare: Vec::new() }
    }

    /// Bytes that are reserved beyond the guaranteed ones.
    pub(crate) fn reserved(&self) -> usize {
        self.shared * CHUNK
    }

    /// The memory of free chunks, in bytes.
    #[cfg(test)]
    pub(crate) fn spare(&self) -> usize {
        self.spare.len() * CHUNK
    }

    fn chunk(&mut self) -> Chunk {
        self.spare.pop().unwrap_or_else(|| Box::new([0; CHUNK]))
    }

    fn free(&mut self, chunk: Chunk) {
        if self.spare.len() < SPARE {
            self.spare.push(chunk);
        }
    }
}

/// Bytes of a stream, from a position on.
#[derive(Debug, Default)]
pub(crate) struct StreamBuffer {
    /// The first position that is kept.
    start: u64,
    /// The position up to which space is reserved.
    reserved: u64,
    /// The chunks from the one of `start` on; absent where no byte has arrived.
    chunks: VecDeque<Option<Chunk>>,
}

/// The number of the chunk with `position`.
const fn index(position: u64) -> u64 {
    position / CHUNK as u64
}

impl StreamBuffer {
    /// The first position that is kept.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// The position up to which bytes can be stored.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved
    }

    /// How many chunks the reservation covers.
    fn reserved_chunks(&self) -> usize {
        match self.reserved > self.start {
            true => (index(self.reserved - 1) - index(self.start) + 1) as usize,
            false => 0,
        }
    }

    /// Reserves space up to `end`, or as far as the budget allows. A reservation never shrinks.
    /// Returns the position up to which space is reserved.
    pub(crate) fn reserve(&mut self, end: u64, budget: &mut Budget) -> u64 {
        let before = self.reserved_chunks();
        self.reserved = self.reservable(end, budget);
        budget.shared += shared(self.reserved_chunks()) - shared(before);
        self.reserved
    }

    /// What [`reserve`](Self::reserve) would return.
    pub(crate) fn reservable(&self, end: u64, budget: &Budget) -> u64 {
        if end <= self.reserved {
            return self.reserved;
        }
        let available = self.reserved_chunks().max(GUARANTEED) + (budget.limit - budget.shared);
        let last = (index(self.start) + available as u64) * CHUNK as u64;
        end.min(last).max(self.reserved)
    }

    /// Returns the reservation beyond `end` to the budget, where no bytes are stored. Only for space that
    /// was not promised to a peer.
    pub(crate) fn unreserve(&mut self, end: u64, budget: &mut Budget) {
        let before = self.reserved_chunks();
        self.reserved = end.max(self.start).min(self.reserved);
        let after = self.reserved_chunks();
        budget.shared -= shared(before) - shared(after);
        for chunk in self.chunks.drain(after.min(self.chunks.len())..).flatten() {
            budget.free(chunk);
        }
    }

    /// Stores `bytes` at `position`.
    ///
    /// # Panics
    ///
    /// When the bytes are not within the reserved space.
    pub(crate) fn store(&mut self, position: u64, bytes: &[u8], budget: &mut Budget) {
        let mut rest = bytes;
        let mut at = position;
        while !rest.is_empty() {
            let space = self.space(at, rest.len(), budget);
            let (now, later) = rest.split_at(space.len());
            space.copy_from_slice(now);
            at += now.len() as u64;
            rest = later;
        }
    }

    /// Space for at most `len` bytes at `position`: to the end of its chunk.
    ///
    /// # Panics
    ///
    /// When the space is not reserved.
    pub(crate) fn space(&mut self, position: u64, len: usize, budget: &mut Budget) -> &mut [u8] {
        self.spaces(position, len, budget).next().unwrap_or_default()
    }

    /// Space for `len` bytes at `position`, in parts.
    ///
    /// # Panics
    ///
    /// When the space is not reserved.
    pub(crate) fn spaces(
        &mut self,
        position: u64,
        len: usize,
        budget: &mut Budget,
    ) -> impl Iterator<Item = &mut [u8]> {
        let end = position + len as u64;
        assert!(
            position >= self.start && end <= self.reserved,
            "{len} bytes at {position} are outside of {}..{}",
            self.start,
            self.reserved
        );
        let first = (index(position) - index(self.start)) as usize;
        let count = if len == 0 { 0 } else { (index(end - 1) - index(position) + 1) as usize };
        if self.chunks.len() < first + count {
            self.chunks.resize_with(first + count, || None);
        }
        let begin = index(position) * CHUNK as u64;
        self.chunks.range_mut(first..first + count).zip(0_u64..).map(move |(chunk, n)| {
            let begin = begin + n * CHUNK as u64;
            let from = position.saturating_sub(begin) as usize;
            let to = (end - begin).min(CHUNK as u64) as usize;
            &mut chunk.get_or_insert_with(|| budget.chunk())[from..to]
        })
    }

    /// The stored bytes of `range`, in parts.
    ///
    /// # Panics
    ///
    /// When a byte of the range was not stored.
    pub(crate) fn parts(&self, range: Range<u64>) -> Parts<'_> {
        Parts { buffer: self, range }
    }

    /// Discards the bytes before `position`.
    pub(crate) fn release(&mut self, position: u64, budget: &mut Budget) {
        if position <= self.start {
            return;
        }
        let before = self.reserved_chunks();
        let gone = (index(position) - index(self.start)) as usize;
        for chunk in self.chunks.drain(..gone.min(self.chunks.len())).flatten() {
            budget.free(chunk);
        }
        self.start = position;
        // Bytes that were never stored here may be released: they went to the socket at once.
        self.reserved = self.reserved.max(position);
        let after = self.reserved_chunks();
        budget.shared = budget.shared + shared(after) - shared(before);
        if after == 0
            && let Some(chunk) = self.chunks.pop_front().flatten()
        {
            budget.free(chunk);
        }
    }

    /// Whether any byte can be stored.
    pub(crate) fn has_chunks(&self) -> bool {
        !self.chunks.is_empty()
    }

    /// Returns all chunks and the reservation to the budget.
    pub(crate) fn clear(&mut self, budget: &mut Budget) {
        budget.shared -= shared(self.reserved_chunks());
        for chunk in self.chunks.drain(..).flatten() {
            budget.free(chunk);
        }
        self.reserved = self.start;
    }

    /// Frees the chunk of the start if all stored bytes are released, and keeps the reservation.
    /// `end` is the position up to which bytes are stored.
    pub(crate) fn shrink(&mut self, end: u64, budget: &mut Budget) {
        if self.start == end {
            for chunk in self.chunks.drain(..).flatten() {
                budget.free(chunk);
            }
            // An idle stream keeps no list.
            self.chunks = VecDeque::new();
        }
    }

    /// The memory that the buffer has allocated, in bytes.
    #[cfg(test)]
    pub(crate) fn allocated(&self) -> usize {
        let list = self.chunks.capacity() * size_of::<Option<Chunk>>();
        self.chunks.iter().flatten().count() * CHUNK + list
    }
}

/// Of `chunks` reserved ones, those beyond the guaranteed ones.
const fn shared(chunks: usize) -> usize {
    chunks.saturating_sub(GUARANTEED)
}

/// Stored bytes, in parts; see [`StreamBuffer::parts`].
#[derive(Debug, Clone)]
pub(crate) struct Parts<'a> {
    buffer: &'a StreamBuffer,
    range: Range<u64>,
}

impl<'a> Iterator for Parts<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.range.is_empty() {
            return None;
        }
        let at = self.range.start;
        let end = self.range.end.min((index(at) + 1) * CHUNK as u64);
        self.range.start = end;
        let n = (index(at) - index(self.buffer.start)) as usize;
        let chunk = self.buffer.chunks[n].as_ref().expect("the bytes of the range are stored");
        let from = (at % CHUNK as u64) as usize;
        Some(&chunk[from..from + (end - at) as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    const KIB: u64 = 1 << 10;

    /// The memory of chunks in use, in bytes.
    fn allocated(buffer: &StreamBuffer) -> usize {
        buffer.chunks.iter().flatten().count() * CHUNK
    }

    fn read(buffer: &StreamBuffer, range: Range<u64>) -> Vec<u8> {
        buffer.parts(range).collect::<Vec<_>>().concat()
    }

    #[test]
    fn store_out_of_order_reads_in_order() {
        let (mut budget, mut buffer) = (Budget::new(1 << 20), StreamBuffer::default());
        buffer.reserve(64 * KIB, &mut budget);
        buffer.store(20_000, &[2; 10_000], &mut budget);
        buffer.store(0, &[1; 20_000], &mut budget);
        assert_eq!(read(&buffer, 0..30_000), [vec![1; 20_000], vec![2; 10_000]].concat());
    }

    #[test]
    fn reserve_beyond_budget_keeps_guaranteed_chunks() {
        let mut budget = Budget::new(2 * CHUNK);
        let mut buffers = [StreamBuffer::default(), StreamBuffer::default()];
        let reserved = buffers.each_mut().map(|b| b.reserve(1 << 20, &mut budget));
        assert_eq!(reserved, [4 * CHUNK as u64, 2 * CHUNK as u64]);
        // What one stream releases, the other may reserve.
        let [a, b] = &mut buffers;
        a.release(4 * CHUNK as u64, &mut budget);
        assert_eq!(b.reserve(1 << 20, &mut budget), 4 * CHUNK as u64);
        b.clear(&mut budget);
        assert_eq!((budget.reserved(), allocated(b)), (0, 0));
    }

    #[test]
    #[should_panic(expected = "outside of 0..10")]
    fn store_beyond_reservation_panics() {
        let (mut budget, mut buffer) = (Budget::new(1 << 20), StreamBuffer::default());
        buffer.reserve(10, &mut budget);
        buffer.store(5, b"123456", &mut budget);
    }

    proptest! {
        /// Against a plain vector: the same bytes, and the budget counts what the buffers reserve.
        #[test]
        fn buffer_equals_vector_within_budget(
            steps in proptest::collection::vec((0..4usize, 0..40_000u64), 1..60),
        ) {
            let mut budget = Budget::new(8 * CHUNK);
            let mut buffer = StreamBuffer::default();
            let mut model = Vec::new();
            for (step, n) in steps {
                let end = model.len() as u64;
                match step {
                    0 => _ = buffer.reserve(buffer.start() + n, &mut budget),
                    1 | 2 => {
                        let len = n.min(buffer.reserved().saturating_sub(end)) as usize;
                        let bytes: Vec<u8> = (0..len).map(|i| (end as usize + i) as u8).collect();
                        buffer.store(end, &bytes, &mut budget);
                        model.extend(bytes);
                    }
                    _ => buffer.release((buffer.start() + n).min(end), &mut budget),
                }
                let end = model.len() as u64;
                prop_assert!(buffer.reserved() >= end && end >= buffer.start());
                prop_assert!(allocated(&buffer) <= budget.reserved() + GUARANTEED * CHUNK);
                prop_assert_eq!(budget.shared, shared(buffer.reserved_chunks()));
                prop_assert!(budget.shared <= budget.limit);
                let kept = buffer.start()..end;
                prop_assert_eq!(read(&buffer, kept), &model[buffer.start() as usize..]);
            }
        }
    }
}
