//! [`Download`]: the bytes from a socket of the host to the guest.
//!
//! It keeps each byte until the guest has acknowledged it. There is no congestion control: the link ends
//! in the guest's memory, and its only limit is the guest's window. A lost segment is sent again, with
//! all that follow, after three repeated acknowledgements or a timeout.

use crate::buffer::{Budget, Parts, StreamBuffer};
use capsa_proto::time::Instant;
use core::ops::Range;
use core::time::Duration;

/// The most that is kept for the guest: 1 MiB.
const CAPACITY: u64 = 1 << 20;

/// The first timeout of a retransmission; each further one is twice as long.
pub(super) const RETRANSMIT_FIRST: Duration = Duration::from_secs(1);
const RETRANSMIT_MAX: Duration = Duration::from_secs(60);
/// Timeouts in a row without an answer, after which the guest counts as lost.
const ATTEMPTS: u32 = 10;

/// What to send next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Next {
    /// The bytes.
    pub(super) range: Range<u64>,
    /// Whether the end of the stream follows them.
    pub(super) fin: bool,
}

/// The sending side of a connection with the guest.
#[derive(Debug, Default)]
pub(super) struct Download {
    /// Starts with the first byte that is not acknowledged.
    buffer: StreamBuffer,
    /// The position after the bytes that the socket gave.
    end: u64,
    /// The socket has no more.
    is_ended: bool,
    /// The next position to send: moves back to send again.
    next: u64,
    /// The highest position that was sent; one more than `end` after the FIN.
    sent: u64,
    /// The guest acknowledged the FIN.
    is_acknowledged: bool,
    /// The end of the guest's window.
    window_end: u64,
    /// Where the last window came from: sequence and acknowledgement of its segment.
    window_from: (i64, u64),
    repeated: u32,
    /// Repeated acknowledgements below this position belong to a loss that is being repaired.
    recovery: u64,
    /// Timeouts in a row without progress.
    attempts: u32,
    /// Of these, the ones that the guest did not answer.
    unanswered: u32,
    /// When to send again, or to probe a closed window.
    retransmit_at: Option<Instant>,
    is_probe_due: bool,
}

/// An acknowledgement that the guest cannot have sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NeverSent;

impl Download {
    /// The position after everything that was sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// How many bytes the guest has acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        self.buffer.start()
    }

    /// The position for segments without data: after everything that was sent, and within the window of
    /// the guest. A guest ignores a segment that is beyond it, with the acknowledgement that it has.
    pub(super) fn acceptable(&self) -> u64 {
        match self.is_acknowledged {
            true => self.sent,
            false => self.sent.min(self.window_end.max(self.buffer.start())),
        }
    }

    /// Whether the guest has received the whole stream.
    pub(super) fn is_finished(&self) -> bool {
        self.is_acknowledged
    }

    /// When to send again, or to probe a closed window.
    pub(super) fn retransmit_at(&self) -> Option<Instant> {
        self.retransmit_at
    }

    /// Whether bytes can be read from the socket now. Nothing is reserved before they are: an idle
    /// connection leaves the memory to the others.
    pub(super) fn has_room(&self, budget: &Budget) -> bool {
        let limit = self.buffer.start() + CAPACITY;
        !self.is_ended && self.buffer.reservable(limit, budget) > self.end
    }

    /// Space for at most `len` bytes of the socket, in parts. [`filled`](Self::filled) ends the use of it.
    pub(super) fn spaces(
        &mut self,
        len: usize,
        budget: &mut Budget,
    ) -> impl Iterator<Item = &mut [u8]> {
        let limit = self.buffer.start() + CAPACITY;
        let end = if self.is_ended { self.end } else { limit.min(self.end + len as u64) };
        let reserved = self.buffer.reserve(end, budget).min(end);
        self.buffer.spaces(self.end, (reserved - self.end) as usize, budget)
    }

    /// The socket gave `count` bytes, which are in the space.
    pub(super) fn filled(&mut self, count: usize, budget: &mut Budget) {
        self.end += count as u64;
        debug_assert!(self.end <= self.buffer.reserved());
        self.buffer.unreserve(self.end, budget);
    }

    /// The socket has no more bytes.
    pub(super) fn finish(&mut self) {
        self.is_ended = true;
    }

    /// Whether the guest's window is the one that a segment with this acknowledgement states.
    pub(super) fn window_is(&self, acknowledged: i64, window: u64) -> bool {
        self.window_end as i64 == acknowledged + window as i64
    }

    /// The window of the guest, from the segment with this sequence number.
    pub(super) fn set_window(&mut self, sequence: i64, acknowledged: i64, window: u64) {
        let Ok(acknowledged) = u64::try_from(acknowledged) else { return };
        // A segment that acknowledges more is newer, even if its number is lower: a guest that repeats what
        // was beyond our window goes back.
        if acknowledged > self.window_from.1 || (sequence, acknowledged) >= self.window_from {
            self.window_from = (sequence, acknowledged);
            self.window_end = acknowledged + window;
        }
    }

    /// The guest acknowledged the bytes before `position`. `is_repeated` states that the segment has
    /// nothing else to say: no data, no other window.
    pub(super) fn acknowledge(
        &mut self,
        position: i64,
        is_repeated: bool,
        now: Instant,
        budget: &mut Budget,
    ) -> Result<(), NeverSent> {
        let Ok(position) = u64::try_from(position) else { return Ok(()) };
        if position > self.sent {
            return Err(NeverSent);
        }
        let start = self.buffer.start();
        if position == start && self.window_end <= start {
            // The guest is alive and keeps its window closed.
            self.unanswered = 0;
        }
        if position > start {
            self.is_acknowledged = self.is_fin_sent() && position == self.sent;
            self.buffer.release(position.min(self.end), budget);
            self.next = self.next.max(position);
            self.repeated = 0;
            (self.attempts, self.unanswered) = (0, 0);
            self.retransmit_at = self.is_unacknowledged().then(|| now + RETRANSMIT_FIRST);
            self.buffer.shrink(self.end, budget);
        } else if position == start && is_repeated && self.is_unacknowledged() {
            self.repeated += 1;
            if self.repeated == 3 && position >= self.recovery {
                self.recovery = self.sent;
                self.next = position;
            }
        }
        Ok(())
    }

    /// The next segment, with at most `mss` bytes of data, or `limit` if that is more; it counts as sent.
    pub(super) fn next(&mut self, mss: u16, limit: usize, now: Instant) -> Option<Next> {
        let mss = u64::from(mss);
        let start = self.next.min(self.end);
        let open = self.window_end.saturating_sub(start);
        let available = self.end - start;
        let mut len = available.min(open).min(mss.max(limit as u64));
        // Segments are whole, except at the end of what there is.
        if len > mss && len < available {
            len -= len % mss;
        }
        // A part of a segment waits while more is on its way: the window opens with its acknowledgement.
        if len < available && len < mss && self.buffer.start() < start {
            len = 0;
        }
        if core::mem::take(&mut self.is_probe_due) {
            len = len.max(available.min(1));
        }
        let fin = self.is_ended && start + len == self.end && self.next <= self.end;
        if len == 0 && !fin {
            if available > 0 && self.retransmit_at.is_none() {
                // Nothing is on its way whose acknowledgement could open the window.
                self.retransmit_at = Some(now + RETRANSMIT_FIRST);
            }
            return None;
        }
        self.next = start + len + u64::from(fin);
        self.sent = self.sent.max(self.next);
        self.retransmit_at.get_or_insert(now + RETRANSMIT_FIRST);
        Some(Next { range: start..start + len, fin })
    }

    /// The deadline of [`retransmit_at`](Self::retransmit_at) has passed. Returns whether the guest still
    /// counts as alive.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        self.attempts += 1;
        self.unanswered += 1;
        let delay = RETRANSMIT_FIRST.saturating_mul(1 << self.attempts.min(6)).min(RETRANSMIT_MAX);
        self.retransmit_at = Some(now + delay);
        let is_closed = self.window_end <= self.buffer.start();
        self.next = self.buffer.start();
        self.is_probe_due = is_closed;
        self.recovery = self.sent;
        self.unanswered <= ATTEMPTS
    }

    /// The bytes of `range`, which [`next`](Self::next) returned.
    pub(super) fn parts(&self, range: Range<u64>) -> Parts<'_> {
        self.buffer.parts(range)
    }

    /// The guest has received the whole stream, although it did not acknowledge it.
    pub(super) fn complete(&mut self, budget: &mut Budget) {
        (self.is_acknowledged, self.next) = (true, self.sent);
        self.clear(budget);
    }

    /// The memory that the stream has allocated, in bytes.
    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        self.buffer.allocated()
    }

    /// Returns the memory.
    pub(super) fn clear(&mut self, budget: &mut Budget) {
        self.buffer.clear(budget);
        self.retransmit_at = None;
    }

    /// Whether the end of the stream was sent.
    pub(super) fn is_fin_sent(&self) -> bool {
        self.is_ended && self.sent > self.end
    }

    fn is_unacknowledged(&self) -> bool {
        self.buffer.start() < self.sent && !self.is_acknowledged
    }
}
