//! A TCP connection of the guest that is mirrored onto one socket of the host.
//!
//! The kernels of the guest and of the host do the real TCP. A connection moves bytes between them, in
//! both directions independently, under two rules:
//!
//! - A window that the guest learns is space that is reserved. No byte within it is ever dropped, so a
//!   slow socket slows the guest down, and never makes it retransmit.
//! - A byte of the socket is kept until the guest has acknowledged it, and no more is read than can be
//!   kept.
//!
//! The guest's SYN is answered after the socket has connected, so the guest sees a refusal as a refusal.
//!
//! # Positions
//!
//! Inside, a byte has a position in its stream, a `u64` from 0. Sequence numbers exist only in headers:
//! the FIN of a stream of `n` bytes has the number of position `n`, and the SYN that of position -1.

mod download;
mod upload;

use self::download::{Download, RETRANSMIT_FIRST};
use self::upload::{ReceivedData, Upload};
use crate::buffer::{Budget, Parts};
use crate::wire::tcp::{Flags, TcpHeader};
use capsa_proto::time::{Deadline, Instant};
use core::ops::Range;
use core::time::Duration;

/// The shift of the windows that the guest learns: 1 MiB fits, less the space that is kept back for
/// rounding.
const WINDOW_SCALE: u8 = 4;

/// The largest payload of a peer that does not state one (RFC 9293, MUST-15).
const MSS_DEFAULT: u16 = 536;
/// Smaller values would let a guest multiply the work for each byte (CVE-2019-11479).
const MSS_MIN: u16 = 88;

/// How often the answer to a SYN is sent before the guest counts as absent.
const SYN_ATTEMPTS: u32 = 6;

/// How often a SYN is sent before the guest counts as absent: once a second, because a guest may still boot.
const SYN_TO_GUEST_ATTEMPTS: u32 = 30;

/// A connection without a byte in either direction ends after 2 hours.
const IDLE: Duration = Duration::from_secs(2 * 60 * 60);

/// How long a closed connection answers a repeated FIN.
const LINGER: Duration = Duration::from_secs(10);

/// What the driver does with the socket of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketAction {
    /// The guest sends no more: shut down the writing half.
    ShutDown,
    /// Both directions are complete: close the socket.
    Close,
    /// The guest aborted: close the socket so that its peer sees a reset (`SO_LINGER` of 0).
    Reset,
}

/// What a connection waits for on its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interest {
    /// There is room for bytes of the socket.
    pub readable: bool,
    /// Bytes wait for the socket.
    pub writable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The guest sent a SYN; the socket is connecting.
    Connecting,
    /// A SYN, or the answer to the guest's SYN, is sent until the guest acknowledges it.
    Opening { attempts: u32, is_due: bool, again_at: Instant },
    /// Data flows.
    Open,
    /// A reset for the guest is due.
    Resetting,
    /// Both directions are complete; repeated segments are still acknowledged.
    Lingering { until: Instant },
    /// The connection can be forgotten.
    Gone,
}

/// A TCP connection between the guest and a socket.
#[derive(Debug)]
pub(crate) struct Connection {
    state: State,
    /// Whether the guest opened it.
    is_from_guest: bool,
    upload: Upload,
    download: Download,
    /// The sequence number of the guest's first byte.
    guest_start: u32,
    /// The sequence number of our first byte.
    our_start: u32,
    /// The shift of the guest's windows, if the guest offered to scale windows.
    guest_scale: Option<u8>,
    guest_mss: u16,
    link_mss: u16,
    is_ack_due: bool,
    is_shut_down: bool,
    action: Option<SocketAction>,
    /// The last time that a byte arrived.
    active_at: Instant,
}

/// The data of a segment that is next for the socket: offer it, then call [`Connection::taken`].
pub(crate) type Offer = Range<usize>;

impl Connection {
    /// A connection that the guest opens with `syn`. `sequence` is the initial sequence number.
    pub(crate) fn from_guest(syn: &TcpHeader, sequence: u32, link_mss: u16, now: Instant) -> Self {
        let mut connection = Self::new(State::Connecting, sequence, link_mss, now);
        connection.is_from_guest = true;
        connection.handle_syn(syn);
        connection
    }

    /// A connection to a port of the guest.
    pub(crate) fn to_guest(sequence: u32, link_mss: u16, now: Instant) -> Self {
        let state = State::Opening { attempts: 0, is_due: true, again_at: now };
        Self::new(state, sequence, link_mss, now)
    }

    fn new(state: State, sequence: u32, link_mss: u16, now: Instant) -> Self {
        Self {
            state,
            is_from_guest: false,
            upload: Upload::new(),
            download: Download::default(),
            guest_start: 0,
            our_start: sequence.wrapping_add(1),
            guest_scale: None,
            guest_mss: MSS_DEFAULT,
            link_mss,
            is_ack_due: false,
            is_shut_down: false,
            action: None,
            active_at: now,
        }
    }

    // What the socket does.

    /// The socket is connected: answers the guest's SYN.
    pub(crate) fn handle_connected(&mut self, now: Instant, budget: &mut Budget) {
        if self.state == State::Connecting {
            self.upload.open_window(budget);
            self.state = State::Opening { attempts: 0, is_due: true, again_at: now };
        }
    }

    /// The socket failed: the guest gets a reset.
    pub(crate) fn handle_error(&mut self, budget: &mut Budget) {
        match self.state {
            State::Lingering { .. } | State::Gone | State::Resetting => {}
            _ => self.reset(SocketAction::Close, budget),
        }
    }

    /// Space for at most `len` bytes of the socket, in parts; none when nothing can be read now.
    pub(crate) fn spaces(
        &mut self,
        len: usize,
        budget: &mut Budget,
    ) -> impl Iterator<Item = &mut [u8]> {
        let download = (self.state == State::Open).then_some(&mut self.download);
        download.map(|download| download.spaces(len, budget)).into_iter().flatten()
    }

    /// The socket gave `count` bytes into [`spaces`](Self::spaces), or none.
    pub(crate) fn filled(&mut self, count: usize, now: Instant, budget: &mut Budget) {
        if count > 0 {
            self.active_at = now;
        }
        // A policy may have ended the connection since the driver learned that the socket is readable.
        if self.state == State::Open {
            self.download.filled(count, budget);
        }
    }

    /// The socket has no more bytes.
    pub(crate) fn handle_eof(&mut self) {
        self.download.finish();
    }

    /// The bytes that wait for the socket, in parts.
    pub(crate) fn waiting(&self) -> Parts<'_> {
        self.upload.waiting()
    }

    /// The socket took the first `count` of the waiting bytes.
    pub(crate) fn drained(&mut self, count: usize, now: Instant, budget: &mut Budget) {
        self.upload.drained(count, budget);
        self.after_upload(now, budget);
    }

    /// The socket took the first `count` bytes of `data`, which was offered to it.
    pub(crate) fn taken(&mut self, data: &[u8], count: usize, now: Instant, budget: &mut Budget) {
        self.upload.taken(data, count, budget);
        self.after_upload(now, budget);
    }

    // What the guest does.

    /// A segment of the guest. An [`Offer`] must be followed by [`taken`](Self::taken) before any other
    /// call.
    pub(crate) fn handle_segment(
        &mut self,
        header: &TcpHeader,
        data: &[u8],
        now: Instant,
        budget: &mut Budget,
    ) -> Option<Offer> {
        match self.state {
            State::Connecting => {
                // A repeated SYN is ignored. The guest gives up with a reset.
                if header.flags.rst && header.sequence == self.guest_start {
                    self.abort(SocketAction::Close, budget);
                }
            }
            State::Opening { .. } => return self.while_opening(header, data, now, budget),
            State::Open => return self.while_open(header, data, now, budget),
            State::Lingering { .. } if header.flags.rst => self.state = State::Gone,
            State::Lingering { .. } => {
                self.is_ack_due |= header.flags.syn || header.flags.fin || !data.is_empty();
            }
            State::Resetting | State::Gone => {}
        }
        None
    }

    fn while_opening(
        &mut self,
        header: &TcpHeader,
        data: &[u8],
        now: Instant,
        budget: &mut Budget,
    ) -> Option<Offer> {
        let Flags { syn, ack, rst, .. } = header.flags;
        let is_acknowledged = ack && header.acknowledgement == self.our_start;
        let is_in_order = header.sequence == self.guest_start;
        match (self.is_from_guest, syn) {
            (true, _) if rst && is_in_order => self.abort(SocketAction::Reset, budget),
            (false, _) if rst && is_acknowledged => self.abort(SocketAction::Reset, budget),
            _ if rst => {}
            // The guest repeats its SYN: the answer is lost.
            (true, true) => {
                if let State::Opening { is_due, .. } = &mut self.state {
                    *is_due = true;
                }
            }
            (true, false) if is_acknowledged => {
                self.open(header, now);
                return self.while_open(header, data, now, budget);
            }
            (false, true) if is_acknowledged => {
                self.handle_syn(header);
                self.upload.open_window(budget);
                self.open(header, now);
                self.is_ack_due = true;
            }
            _ => {}
        }
        None
    }

    fn while_open(
        &mut self,
        header: &TcpHeader,
        data: &[u8],
        now: Instant,
        budget: &mut Budget,
    ) -> Option<Offer> {
        let position = self.guest_position(header.sequence);
        if header.flags.rst {
            // Only a reset that is exactly in order ends the connection (RFC 5961, 3.2).
            match position - self.upload.acknowledgement() as i64 {
                // The guest has closed its socket and forgotten it, so it has received everything: only our
                // FIN came again. What it sent before still goes to the socket.
                0 if self.upload.is_received() && self.download.is_fin_sent() => {
                    self.download.complete(budget);
                    self.after_upload(now, budget);
                }
                0 => self.abort(SocketAction::Reset, budget),
                n if (0..=self.upload.window() as i64).contains(&n) => self.is_ack_due = true,
                _ => {}
            }
            return None;
        }
        if header.flags.syn || !header.flags.ack {
            self.is_ack_due |= header.flags.syn;
            return None;
        }
        let window = u64::from(header.window) << self.guest_scale.unwrap_or(0);
        let acknowledged = self.our_position(header.acknowledgement);
        let is_repeated =
            data.is_empty() && !header.flags.fin && self.download.window_is(acknowledged, window);
        let before = (self.upload.acknowledgement(), self.download.acknowledged());
        if self.download.acknowledge(acknowledged, is_repeated, now, budget).is_err() {
            self.is_ack_due = true;
            return None;
        }
        self.download.set_window(position, acknowledged, window);

        // Everything that occupies a sequence number is acknowledged, and a keep-alive probe, which
        // repeats the last one.
        if !data.is_empty() || header.flags.fin || position < self.upload.acknowledgement() as i64 {
            self.is_ack_due = true;
        }
        if header.flags.fin
            && let Ok(end) = u64::try_from(position + data.len() as i64)
        {
            self.upload.finish(end);
        }
        let received = self.upload.receive(position, data, budget);
        // Only progress counts: a closed window is probed for ever.
        let after = (self.upload.acknowledgement(), self.download.acknowledged());
        if received != ReceivedData::Stored || after != before {
            self.active_at = now;
        }
        match received {
            ReceivedData::Offer(part) => Some(part),
            ReceivedData::Stored => {
                self.after_upload(now, budget);
                None
            }
        }
    }

    // What goes to the guest.

    /// The next segment for the guest: its header, and the positions of its data for
    /// [`parts`](Self::parts). The data is at most `limit` bytes, or the [`mss`](Self::mss) if that is more.
    pub(crate) fn poll_segment(
        &mut self,
        limit: usize,
        now: Instant,
    ) -> Option<(TcpHeader, Range<u64>)> {
        let mss = self.mss();
        match &mut self.state {
            State::Opening { attempts, is_due, again_at } => {
                if !core::mem::take(is_due) {
                    return None;
                }
                let doublings = if self.is_from_guest { (*attempts).min(5) } else { 0 };
                *again_at = now + RETRANSMIT_FIRST * (1 << doublings);
                *attempts += 1;
                Some((self.syn(), 0..0))
            }
            State::Open => match self.download.next(mss, limit, now) {
                Some(next) => {
                    let sequence = self.our_start.wrapping_add(next.range.start as u32);
                    let psh = !next.range.is_empty();
                    let flags = Flags { fin: next.fin, psh, ..Flags::default() };
                    Some((self.header(sequence, flags), next.range))
                }
                None => self.acknowledgement(),
            },
            State::Lingering { .. } => self.acknowledgement(),
            State::Resetting => {
                self.state = State::Gone;
                let sequence = self.our_start.wrapping_add(self.download.acceptable() as u32);
                Some((self.header(sequence, Flags { rst: true, ..Flags::default() }), 0..0))
            }
            State::Connecting | State::Gone => None,
        }
    }

    /// The bytes of a segment, in parts.
    pub(crate) fn parts(&self, range: Range<u64>) -> Parts<'_> {
        self.download.parts(range)
    }

    /// What to do with the socket.
    pub(crate) fn poll_action(&mut self) -> Option<SocketAction> {
        self.action.take()
    }

    /// What the connection waits for on its socket.
    pub(crate) fn interest(&mut self, budget: &mut Budget) -> Interest {
        match self.state {
            State::Open => Interest {
                readable: self.download.has_room(budget),
                writable: self.upload.is_waiting(),
            },
            _ => Interest::default(),
        }
    }

    /// Whether it is complete, and only answers repeated segments.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.state, State::Lingering { .. })
    }

    /// Whether the socket is connecting.
    pub(crate) fn is_connecting(&self) -> bool {
        self.state == State::Connecting
    }

    /// The sequence number of the guest's SYN.
    pub(crate) fn guest_sequence(&self) -> u32 {
        self.guest_start.wrapping_sub(1)
    }

    /// Whether the whole stream of the guest has arrived.
    pub(crate) fn is_received(&self) -> bool {
        self.upload.is_received()
    }

    /// The bytes of payload from the guest, and those that the guest has acknowledged.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.upload.received(), self.download.acknowledged())
    }

    /// Whether the connection can be forgotten.
    pub(crate) fn is_gone(&self) -> bool {
        self.state == State::Gone
    }

    /// Whether `syn` opens a new connection with the same addresses. It does when this one is complete,
    /// and the number is not an old one: a SYN that was repeated or delayed is not new (RFC 9293, 3.6.1).
    /// Returns the first number that the new connection may start with: it is beyond everything that was
    /// sent here.
    pub(crate) fn replaced_by(&self, syn: &TcpHeader) -> Option<u32> {
        let is_complete =
            matches!(self.state, State::Lingering { .. } | State::Resetting | State::Gone);
        let is_new = self.guest_position(syn.sequence) >= self.upload.acknowledgement() as i64;
        let sent = self.our_start.wrapping_add(self.download.sent() as u32);
        (is_complete && is_new).then(|| sent.wrapping_add(u32::from(u16::MAX)))
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub(crate) fn poll_timeout(&self) -> Option<Deadline> {
        let idle = Deadline { at: self.active_at + IDLE, why: "connection is idle" };
        match self.state {
            State::Opening { again_at, is_due: false, .. } => {
                Some(Deadline { at: again_at, why: "guest has not answered a SYN" })
            }
            State::Open => {
                let again = self.download.retransmit_at();
                let why = "guest has not acknowledged a segment";
                Deadline::earliest(again.map(|at| Deadline { at, why }), Some(idle))
            }
            State::Connecting => Some(idle),
            State::Lingering { until } => {
                Some(Deadline { at: until, why: "closed connection is forgotten" })
            }
            State::Opening { .. } | State::Resetting | State::Gone => None,
        }
    }

    /// The deadline has passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant, budget: &mut Budget) {
        match &mut self.state {
            State::Opening { attempts, is_due, again_at } if now >= *again_at => {
                let limit = if self.is_from_guest { SYN_ATTEMPTS } else { SYN_TO_GUEST_ATTEMPTS };
                if *attempts < limit {
                    *is_due = true;
                } else {
                    self.reset(SocketAction::Reset, budget);
                }
            }
            State::Open | State::Connecting if now >= self.active_at + IDLE => {
                self.reset(SocketAction::Reset, budget);
            }
            State::Open
                if self.download.retransmit_at().is_some_and(|at| now >= at)
                    && !self.download.handle_timeout(now) =>
            {
                self.reset(SocketAction::Reset, budget);
            }
            State::Lingering { until } if now >= *until => self.state = State::Gone,
            _ => {}
        }
    }

    /// Returns the memory to the budget.
    pub(crate) fn clear(&mut self, budget: &mut Budget) {
        self.upload.clear(budget);
        self.download.clear(budget);
    }

    fn handle_syn(&mut self, syn: &TcpHeader) {
        self.guest_start = syn.sequence.wrapping_add(1);
        self.guest_scale = syn.window_scale;
        self.guest_mss = syn.mss.unwrap_or(MSS_DEFAULT).max(MSS_MIN);
    }

    fn open(&mut self, header: &TcpHeader, now: Instant) {
        self.state = State::Open;
        self.active_at = now;
        // The window of a SYN is not scaled.
        let scale = if header.flags.syn { 0 } else { self.guest_scale.unwrap_or(0) };
        self.download.set_window(0, 0, u64::from(header.window) << scale);
    }

    /// After bytes went to the socket, or the end of one of the streams was reached.
    fn after_upload(&mut self, now: Instant, budget: &mut Budget) {
        if self.state != State::Open {
            return;
        }
        self.upload.open_window(budget);
        if self.upload.has_window_update(u64::from(self.mss()), self.window_shift()) {
            self.is_ack_due = true;
        }
        if self.upload.is_finished() && !self.is_shut_down {
            self.is_shut_down = true;
            self.action = Some(SocketAction::ShutDown);
        }
        if self.is_shut_down && self.download.is_finished() {
            self.action = Some(SocketAction::Close);
            self.state = State::Lingering { until: now + LINGER };
            self.clear(budget);
        }
    }

    /// Ends the connection with a reset to the guest.
    fn reset(&mut self, action: SocketAction, budget: &mut Budget) {
        self.abort(action, budget);
        self.state = State::Resetting;
    }

    /// Ends the connection at once.
    fn abort(&mut self, action: SocketAction, budget: &mut Budget) {
        self.state = State::Gone;
        self.action = Some(action);
        self.clear(budget);
    }

    /// The largest payload of a segment to the guest.
    pub(crate) fn mss(&self) -> u16 {
        self.guest_mss.min(self.link_mss)
    }

    fn acknowledgement(&mut self) -> Option<(TcpHeader, Range<u64>)> {
        if !self.is_ack_due {
            return None;
        }
        let sequence = self.our_start.wrapping_add(self.download.acceptable() as u32);
        Some((self.header(sequence, Flags::default()), 0..0))
    }

    /// A header with the current acknowledgement and window.
    fn header(&mut self, sequence: u32, flags: Flags) -> TcpHeader {
        self.is_ack_due = false;
        // The window of a SYN is not scaled.
        let window = self.upload.announce(if flags.syn { 0 } else { self.window_shift() });
        let acknowledged = self.upload.acknowledgement() as u32;
        TcpHeader {
            sequence,
            acknowledgement: self.guest_start.wrapping_add(acknowledged),
            flags: Flags { ack: true, ..flags },
            window,
            ..TcpHeader::default()
        }
    }

    /// The shift of the windows that this guest learns.
    fn window_shift(&self) -> u8 {
        if self.guest_scale.is_some() { WINDOW_SCALE } else { 0 }
    }

    fn syn(&mut self) -> TcpHeader {
        let sequence = self.our_start.wrapping_sub(1);
        // Nothing is reserved before the guest has answered our SYN, so its window is 0: a guest does not
        // send data with its answer.
        let header = self.header(sequence, Flags { syn: true, ..Flags::default() });
        // An answer scales windows only if the guest offered it.
        let scales = !self.is_from_guest || self.guest_scale.is_some();
        TcpHeader {
            flags: Flags { ack: self.is_from_guest, ..header.flags },
            mss: Some(self.link_mss),
            window_scale: scales.then_some(WINDOW_SCALE),
            ..header
        }
    }

    fn guest_position(&self, sequence: u32) -> i64 {
        position(sequence, self.guest_start, self.upload.acknowledgement())
    }

    fn our_position(&self, sequence: u32) -> i64 {
        position(sequence, self.our_start, self.download.sent())
    }
}

/// The position with the number `sequence` that is nearest to the position `near`, in a stream whose
/// position 0 has the number `start`.
fn position(sequence: u32, start: u32, near: u64) -> i64 {
    let distance = sequence.wrapping_sub(start.wrapping_add(near as u32)) as i32;
    near as i64 + i64::from(distance)
}

#[cfg(test)]
mod tests;
