//! [`GuestTcp`]: one connection of the model guest, a small TCP with its own logic.
//!
//! It keeps no bytes: both streams are known functions of the position, and each byte that arrives is
//! compared, repeated ones included.

use alloc::vec::Vec;
use core::ops::Range;
use core::time::Duration;

use capsa_proto::time::Instant;

use super::random::ScheduleRandom;
use crate::wire::tcp::{Flags, TcpHeader};

/// Attempts without an answer after which the guest gives up.
const TRIES: u32 = 16;

/// The byte at a position of a stream.
pub(super) fn byte_at(stream: u64, position: u64) -> u8 {
    let mixed = position.wrapping_mul(0x9e37_79b1).wrapping_add(stream.wrapping_mul(0x85eb_ca77));
    (mixed >> 11) as u8 ^ position as u8
}

/// The positions of both directions: the guest's stream has an even number, the other an odd one.
pub(super) fn upload_of(connection: usize) -> u64 {
    2 * connection as u64
}

pub(super) fn download_of(connection: usize) -> u64 {
    2 * connection as u64 + 1
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TcpPhase {
    SynSent,
    SynReceived,
    Open,
}

/// How a connection of the guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GuestTcpEnd {
    /// The other side reset it, or an ICMP error reported that there is no way.
    Reset,
    /// The program aborted it.
    Aborted,
    /// No answer came.
    GaveUp,
}

/// A law that the network broke towards the guest.
pub(super) type BrokenLaw = &'static str;

/// A connection of the model guest.
#[derive(Debug)]
pub(super) struct GuestTcp {
    connection: usize,
    phase: TcpPhase,
    pub(super) end: Option<GuestTcpEnd>,
    /// The number of our first byte, and of the other side's.
    our_start: u32,
    their_start: u32,
    mss: u16,
    link_mss: u16,
    our_scale: Option<u8>,
    their_scale: u8,

    /// The bytes that the program has written, and whether it has closed.
    pub(super) written: u64,
    pub(super) is_closed: bool,
    acknowledged: u64,
    next: u64,
    sent: u64,
    window_end: u64,
    window_from: (i64, u64),
    repeated: u32,
    timer: Option<Instant>,
    backoff: u32,
    tries: u32,

    /// The bytes that have arrived in order, and those that the program has read.
    pub(super) received: u64,
    pub(super) read: u64,
    ranges: Vec<Range<u64>>,
    capacity: u64,
    fin: Option<u64>,
    announced: u64,
    ack_at: Option<Instant>,
    delays_acks: bool,
    /// The number of a reset that is due: an acknowledgement belongs to another connection.
    reset_at: Option<u32>,
}

impl GuestTcp {
    /// A connection that the guest opens.
    pub(super) fn connect(
        connection: usize,
        link_mss: u16,
        now: Instant,
        random: &mut ScheduleRandom,
    ) -> Self {
        let our_scale: Option<u8> = random.one_of(&[None, Some(0), Some(3), Some(10)]);
        // A window that is smaller than the unit in which it is announced would stay closed.
        let least = 2 << our_scale.unwrap_or(0);
        Self {
            connection,
            phase: TcpPhase::SynSent,
            end: None,
            our_start: random.next() as u32,
            their_start: 0,
            mss: 536,
            link_mss: link_mss.min(random.one_of(&[100, 536, 1460, 9000, u16::MAX])),
            our_scale,
            their_scale: 0,
            written: 0,
            is_closed: false,
            acknowledged: 0,
            next: 0,
            sent: 0,
            window_end: 0,
            window_from: (0, 0),
            repeated: 0,
            timer: Some(now),
            backoff: 0,
            tries: 0,
            received: 0,
            read: 0,
            ranges: Vec::new(),
            capacity: random.skewed(120_000).max(least),
            fin: None,
            announced: 0,
            ack_at: None,
            delays_acks: random.chance(50),
            reset_at: None,
        }
    }

    /// A connection that the other side opens with `syn`.
    pub(super) fn accept(
        connection: usize,
        syn: &TcpHeader,
        link_mss: u16,
        now: Instant,
        random: &mut ScheduleRandom,
    ) -> Self {
        let mut tcp = Self::connect(connection, link_mss, now, random);
        tcp.phase = TcpPhase::SynReceived;
        tcp.handle_syn(syn);
        tcp
    }

    /// The number that the next connection with these ports may start with.
    pub(super) fn restart_after(&mut self, old: &Self) {
        self.our_start = old.our_start.wrapping_add(old.sent as u32).wrapping_add(100_000);
    }

    /// Whether both directions are complete.
    pub(super) fn is_complete(&self) -> bool {
        self.is_fin_acknowledged() && self.is_fin_received()
    }

    /// Whether the SYN of the other side is the one of this connection.
    pub(super) fn is_opened_by(&self, syn: &TcpHeader) -> bool {
        syn.sequence.wrapping_add(1) == self.their_start
    }

    /// A window so large that a stream of `len` bytes takes at most some hundred segments.
    pub(super) fn grow_for(&mut self, len: u64) {
        self.capacity = self.capacity.max(len / 300);
    }

    /// Whether the programs have nothing left to do. The network forgets a closed connection after 10
    /// seconds, so the guest may get a reset if all acknowledgements until then were lost.
    pub(super) fn is_whole(&self) -> bool {
        let is_over = self.is_fin_acknowledged() || self.end == Some(GuestTcpEnd::Reset);
        self.is_closed && self.is_fin_received() && is_over
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == TcpPhase::Open && self.end.is_none()
    }

    /// Whether the whole stream of the other side has arrived.
    pub(super) fn is_fin_received(&self) -> bool {
        self.fin == Some(self.received)
    }

    fn is_fin_acknowledged(&self) -> bool {
        self.is_closed && self.acknowledged == self.written + 1
    }

    /// The window has room again after the program has read.
    pub(super) fn read(&mut self, count: u64, now: Instant) {
        let before = self.window();
        self.read += count;
        // As RFC 9293 asks: announce only steps that matter.
        if self.window() >= before + u64::from(self.mss).min(self.capacity / 2).max(1)
            || before == 0
        {
            self.ack_at = Some(now);
        }
    }

    /// Aborts the connection. The reset is sent by the caller.
    pub(super) fn abort(&mut self) -> TcpHeader {
        self.end = Some(GuestTcpEnd::Aborted);
        let flags = Flags { rst: true, ..Flags::default() };
        self.header(self.our_start.wrapping_add(self.sent as u32), flags)
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        if self.end.is_some() {
            return None;
        }
        let timer = self.timer.filter(|_| !self.is_complete());
        [timer, self.ack_at].into_iter().flatten().min()
    }

    /// A segment of the other side.
    pub(super) fn handle(
        &mut self,
        header: &TcpHeader,
        data: &[u8],
        now: Instant,
    ) -> Result<(), BrokenLaw> {
        let flags = header.flags;
        match self.phase {
            TcpPhase::SynSent => {
                let is_ours = flags.ack && header.acknowledgement == self.our_start;
                if is_ours && flags.rst {
                    self.end = Some(GuestTcpEnd::Reset);
                } else if is_ours && flags.syn {
                    self.handle_syn(header);
                    self.open(u64::from(header.window));
                    self.ack_at = Some(now);
                } else if flags.ack && !is_ours && !flags.rst {
                    self.reset_at = Some(header.acknowledgement);
                }
                return Ok(());
            }
            TcpPhase::SynReceived => {
                if flags.rst {
                    if header.sequence == self.their_start {
                        self.end = Some(GuestTcpEnd::Reset);
                    }
                    return Ok(());
                }
                if flags.syn {
                    self.timer = Some(now);
                }
                if flags.syn || !flags.ack || header.acknowledgement != self.our_start {
                    return Ok(());
                }
                self.open(u64::from(header.window) << self.their_scale);
            }
            TcpPhase::Open => {}
        }
        self.tries = 0;
        let position = position(header.sequence, self.their_start, self.expected());
        if flags.rst {
            if self.is_complete() {
                // The programs are gone, and a reset changes nothing.
            } else if position == self.expected() as i64 {
                self.end = Some(GuestTcpEnd::Reset);
            } else if position > self.expected() as i64 {
                self.ack_at = Some(now);
            }
            return Ok(());
        }
        // As Linux does: a segment beyond the window is ignored, with its acknowledgement.
        if flags.syn || !flags.ack || position > (self.expected() + self.window()) as i64 {
            self.ack_at = Some(now);
            return Ok(());
        }
        self.acknowledge(header, position, data.is_empty() && !flags.fin, now);
        self.receive(position, data, flags.fin, now)
    }

    fn handle_syn(&mut self, syn: &TcpHeader) {
        self.their_start = syn.sequence.wrapping_add(1);
        self.mss = syn.mss.unwrap_or(536).min(self.link_mss);
        match syn.window_scale {
            Some(scale) if self.our_scale.is_some() => self.their_scale = scale,
            _ => self.our_scale = None,
        }
    }

    fn open(&mut self, window: u64) {
        self.phase = TcpPhase::Open;
        self.window_end = window;
        (self.timer, self.backoff) = (None, 0);
    }

    fn acknowledge(&mut self, header: &TcpHeader, position: i64, is_bare: bool, now: Instant) {
        let number = super::guest_tcp::position(header.acknowledgement, self.our_start, self.sent);
        let Ok(number) = u64::try_from(number) else { return };
        if number > self.sent {
            self.ack_at = Some(now);
            return;
        }
        let window_end = number + (u64::from(header.window) << self.their_scale);
        if number > self.acknowledged {
            self.acknowledged = number;
            self.next = self.next.max(number);
            (self.backoff, self.repeated) = (0, 0);
            self.timer = (number < self.sent).then(|| now + Duration::from_millis(200));
        } else if number == self.acknowledged
            && is_bare
            && window_end == self.window_end
            && number < self.sent
        {
            self.repeated += 1;
            if self.repeated == 3 {
                self.next = number;
            }
        }
        if (position, number) >= self.window_from {
            self.window_from = (position, number);
            self.window_end = window_end;
        }
    }

    fn receive(
        &mut self,
        position: i64,
        data: &[u8],
        fin: bool,
        now: Instant,
    ) -> Result<(), BrokenLaw> {
        let end = position + data.len() as i64;
        let Ok(start) = u64::try_from(position) else {
            // A probe before the first byte.
            self.ack_at = Some(now);
            return Ok(());
        };
        let end = end as u64;
        let stream = download_of(self.connection);
        if !data.iter().zip(start..).all(|(byte, at)| *byte == byte_at(stream, at)) {
            return Err("a byte for the guest is wrong");
        }
        if end > self.announced + 1 {
            return Err("the network sends beyond the guest's window");
        }
        if fin {
            if self.fin.is_some_and(|known| known != end) {
                return Err("the stream to the guest has two ends");
            }
            self.fin = Some(end);
        }
        let is_next = start == self.received && !data.is_empty();
        let limit = self.read + self.capacity;
        if start < end.min(limit) && end.min(limit) > self.received {
            self.store(start.max(self.received)..end.min(limit));
        }
        if !data.is_empty() || fin || start < self.expected() {
            let is_lazy = self.delays_acks && is_next && !fin && self.ack_at.is_none();
            let delay = if is_lazy { 40_000 } else { 0 };
            self.ack_at = Some(now + Duration::from_micros(delay));
        }
        Ok(())
    }

    fn store(&mut self, new: Range<u64>) {
        self.ranges.push(new);
        self.ranges.sort_by_key(|range| range.start);
        self.ranges.retain(|range| {
            if range.start <= self.received {
                self.received = self.received.max(range.end);
            }
            range.start > self.received
        });
    }

    /// The next segment to send, with the positions of its data.
    pub(super) fn poll(&mut self, now: Instant) -> Option<(TcpHeader, Range<u64>)> {
        if self.end.is_some() {
            return None;
        }
        if let Some(sequence) = self.reset_at.take() {
            let flags = Flags { rst: true, ..Flags::default() };
            return Some((TcpHeader { sequence, flags, ..TcpHeader::default() }, 0..0));
        }
        if !self.is_complete() && self.timer.is_some_and(|at| at <= now) {
            self.tries += 1;
            if self.tries > TRIES {
                self.end = Some(GuestTcpEnd::GaveUp);
                return None;
            }
            self.backoff += 1;
            self.timer = Some(now + rto(self.backoff));
            if self.phase != TcpPhase::Open {
                return Some((self.syn(), 0..0));
            }
            self.next = self.acknowledged;
            if self.next >= self.window_end && self.next < self.written {
                // Probes a closed window.
                let range = self.next..self.next + 1;
                self.next += 1;
                return Some(self.segment(range, false));
            }
        }
        if self.phase != TcpPhase::Open {
            return None;
        }
        let start = self.next.min(self.written);
        let len = (self.written - start).min(self.window_end.saturating_sub(start));
        let len = len.min(u64::from(self.mss));
        let fin = self.is_closed && start + len == self.written && self.next <= self.written;
        if len > 0 || fin {
            self.next = start + len + u64::from(fin);
            self.timer.get_or_insert(now + rto(self.backoff));
            return Some(self.segment(start..start + len, fin));
        }
        if self.timer.is_none() && start < self.written {
            self.timer = Some(now + rto(self.backoff));
        }
        self.ack_at.is_some_and(|at| at <= now).then(|| self.segment(self.sent..self.sent, false))
    }

    fn segment(&mut self, range: Range<u64>, fin: bool) -> (TcpHeader, Range<u64>) {
        let sequence = self.our_start.wrapping_add(range.start as u32);
        let flags = Flags { ack: true, fin, ..Flags::default() };
        self.sent = self.sent.max(range.end + u64::from(fin));
        (self.header(sequence, flags), range)
    }

    fn header(&mut self, sequence: u32, flags: Flags) -> TcpHeader {
        self.ack_at = None;
        let shift = self.our_scale.unwrap_or(0);
        // Rounded down: less is announced than there is.
        let window = (self.window() >> shift).min(u64::from(u16::MAX));
        self.announced = self.announced.max(self.received + (window << shift));
        TcpHeader {
            sequence,
            acknowledgement: self.their_start.wrapping_add(self.expected() as u32),
            flags,
            window: window as u16,
            ..TcpHeader::default()
        }
    }

    fn syn(&mut self) -> TcpHeader {
        let ack = self.phase == TcpPhase::SynReceived;
        let flags = Flags { syn: true, ack, ..Flags::default() };
        let sequence = self.our_start.wrapping_sub(1);
        let window = self.window().min(u64::from(u16::MAX));
        self.announced = window;
        TcpHeader {
            sequence,
            acknowledgement: if ack { self.their_start } else { 0 },
            flags,
            window: window as u16,
            mss: Some(self.link_mss),
            window_scale: self.our_scale,
            ..TcpHeader::default()
        }
    }

    /// The number of the next byte that is expected.
    fn expected(&self) -> u64 {
        self.received + u64::from(self.is_fin_received())
    }

    fn window(&self) -> u64 {
        self.read + self.capacity - self.received
    }
}

fn rto(backoff: u32) -> Duration {
    (Duration::from_millis(200) * (1 << backoff.min(9))).min(Duration::from_secs(60))
}

/// The position with a number, nearest to the position `near`.
fn position(number: u32, start: u32, near: u64) -> i64 {
    near as i64 + i64::from(number.wrapping_sub(start.wrapping_add(near as u32)) as i32)
}
