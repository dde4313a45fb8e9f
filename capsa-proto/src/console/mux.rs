//! [`ConsoleMux`]: the console of one VM, without its stream: output, input, readers and waits.
//!
//! Output is pushed into a bounded [`Scrollback`] as it arrives, whether or not a reader exists.
//! Readers have places in it. A wait is polled whenever output, time or the end of the console can
//! make a difference, and its result is kept until it is taken. A cancelled wait puts its reader
//! back to where it began, so output that was not handed out can be read again.
//!
//! It does no I/O: the driver moves bytes between it and a stream.

mod shell;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Bound;
use core::time::Duration;

use self::shell::AbandonedCommand;
use super::fault_check::CrashCheck;
use super::input_log::{InputLogs, InputRecord};
use super::serial_port::SerialPort;
use super::wait::{BlockingReader, Ended, PendingWait, ReaderId, WaitId, WaitKind};
use super::{ConsoleCrash, Cursor, InputKind, Overflow, ScriptAction, ScriptPoll, Scrollback};
use crate::text::partial_character_len;
use crate::time::{Deadline, Instant};
use crate::vm::{EventQueue, VmEvent};

/// Bytes that may wait to be written to the guest: 256 KiB.
pub const WRITE_QUEUE: usize = 256 * 1024;

/// Bytes that a paused console takes beyond its capacity once its VM ends: 1 MiB.
pub(crate) const DRAIN_LIMIT: usize = 1 << 20;

/// How long after the end of the stream a wait still goes on. A stream ends with its VMM, whose exit
/// is known milliseconds later and explains more; a stream that ends alone is rare.
const CLOSE_DELAY: Duration = Duration::from_millis(500);

/// A write to a console that is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the console is closed")]
pub struct ConsoleClosed;

/// The console of one VM.
///
/// # Driving
///
/// 1. When the stream is connected, call `handle_connected`.
/// 2. After every call, and whenever the stream can take more, write from
///    `outgoing` and remove what the stream took. When the stream is
///    reported as writable, call `handle_writable` after that.
/// 3. Read at most `window` bytes and hand them to
///    [`handle_bytes`](ConsoleMux::handle_bytes). A window of zero means back-pressure: leave the
///    bytes in the system until a reader has caught up.
/// 4. When [`poll_timeout`](ConsoleMux::poll_timeout) has passed, call
///    `handle_timeout`.
/// 5. At the end of the stream call `handle_eof`, and when the VM has ended
///    [`close`](ConsoleMux::close).
pub struct ConsoleMux {
    scrollback: Scrollback,
    connected: bool,
    closed: bool,
    /// The stream has ended; waits are notified at this time at the latest.
    close_at: Option<Instant>,
    outgoing: VecDeque<u8>,
    /// A write was not taken whole, and its writer waits for room.
    write_blocked: bool,
    readers: BTreeMap<ReaderId, Cursor>,
    names: BTreeMap<ReaderId, String>,
    waits: BTreeMap<WaitId, PendingWait>,
    /// Ends a command that was given up, which still occupies the shell.
    abandoned: Option<AbandonedCommand>,
    next_id: u64,
    /// Before the first reader exists, output is kept as if one stood at the oldest byte.
    had_reader: bool,
    crash_check: CrashCheck,
    /// The serial port beside a virtio console.
    serial_port: Option<SerialPort>,
    input_logs: InputLogs,
}

impl ConsoleMux {
    /// A console that keeps `capacity` bytes of output, and at that limit does what `overflow` says.
    pub fn new(capacity: usize, overflow: Overflow) -> Self {
        Self {
            scrollback: Scrollback::with_overflow(capacity, overflow),
            connected: false,
            closed: false,
            close_at: None,
            outgoing: VecDeque::new(),
            write_blocked: false,
            readers: BTreeMap::new(),
            names: BTreeMap::new(),
            waits: BTreeMap::new(),
            abandoned: None,
            next_id: 0,
            had_reader: false,
            crash_check: CrashCheck::default(),
            serial_port: None,
            input_logs: InputLogs::default(),
        }
    }

    /// The console of a VM that was built without one: it is closed.
    pub fn disabled() -> Self {
        Self { closed: true, ..Self::new(1, Overflow::DropOldest) }
    }

    /// The console is a virtio console with a serial port beside it, whose output comes through
    /// [`handle_serial_bytes`](Self::handle_serial_bytes).
    #[must_use]
    pub(crate) fn with_serial_port(mut self) -> Self {
        self.serial_port = Some(SerialPort::new());
        self
    }

    // What the driver does.

    /// The stream is connected.
    pub(crate) fn handle_connected(&mut self) {
        self.connected = true;
    }

    /// The stream is lost or given up; no wait is notified.
    pub(crate) fn disconnect(&mut self) {
        self.connected = false;
    }

    /// The bytes that wait to be written to the guest. The driver removes from the front what the
    /// stream took, or all where the stream has failed: its end is seen by reading.
    pub(crate) fn outgoing(&mut self) -> &mut VecDeque<u8> {
        &mut self.outgoing
    }

    /// Whether the driver should watch the stream for writing.
    pub(crate) fn wants_write(&self) -> bool {
        !self.outgoing.is_empty() || self.write_blocked
    }

    /// Reports room for input to a writer that waits for it.
    pub(crate) fn handle_writable(&mut self, events: &mut EventQueue) {
        if self.write_blocked && self.outgoing.len() < WRITE_QUEUE {
            self.write_blocked = false;
            events.push(VmEvent::ConsoleWritable);
        }
    }

    /// How many bytes the console takes now; zero under back-pressure.
    pub(crate) fn window(&self) -> usize {
        let slowest = if self.had_reader {
            self.readers.values().map(Cursor::offset).min().unwrap_or(self.scrollback.end())
        } else {
            self.scrollback.start()
        };
        self.scrollback.room(slowest).min(self.scrollback.capacity())
    }

    /// Takes output, at most `window` bytes. `true` when a line of it is that of a kernel panic,
    /// `false` when the kernel restarts or powers off after that, or boots.
    pub fn handle_bytes(
        &mut self,
        now: Instant,
        bytes: &[u8],
        events: &mut EventQueue,
    ) -> Option<bool> {
        self.scrollback.push(bytes);
        events.push(VmEvent::ConsoleData);
        if let Some(port) = &mut self.serial_port {
            port.handle_console_output();
        }
        let panicked = self.crash_check.observe(now, &self.scrollback);
        self.poll_waits(now, events);
        panicked
    }

    /// The guest was started. A wait ends if the guest does not open a virtio console within
    /// [`OPEN_LIMIT`](super::OPEN_LIMIT).
    pub(crate) fn handle_started(&mut self, now: Instant) {
        if let Some(port) = &mut self.serial_port {
            port.handle_started(now);
        }
    }

    /// The guest's driver has opened the virtio console.
    pub(crate) fn handle_opened(&mut self) {
        if let Some(port) = &mut self.serial_port {
            port.handle_opened();
        }
    }

    /// Takes output of the serial port beside a virtio console. The result is that of
    /// [`handle_bytes`](Self::handle_bytes).
    pub(crate) fn handle_serial_bytes(&mut self, now: Instant, bytes: &[u8]) -> Option<bool> {
        self.serial_port.as_mut().and_then(|port| port.handle_bytes(now, bytes))
    }

    /// Takes output that was still in the system when the VM ended, beyond the capacity. The driver
    /// reads it before [`close`](Self::close), where the overflow policy is [`Overflow::Pause`], up to
    /// [`DRAIN_LIMIT`]: a slow reader kept it there.
    pub(crate) fn handle_rest(&mut self, bytes: &[u8]) {
        self.scrollback.grow(bytes.len());
        self.scrollback.push(bytes);
    }

    /// The stream has ended. Waits are notified by [`close`](Self::close), or after half a second.
    pub(crate) fn handle_eof(&mut self, now: Instant, events: &mut EventQueue) {
        if !self.closed {
            self.close_at = Some(now + CLOSE_DELAY);
        }
        self.mark_closed(now, events);
    }

    /// The VM has ended, and not by a panic: the text of one is a hint and not the error of a wait. Called
    /// before [`close`](Self::close).
    pub(crate) fn handle_end_without_panic(&mut self) {
        self.scrollback.handle_end_without_panic();
    }

    /// The VM has ended: no output follows, and every wait ends.
    pub fn close(&mut self, now: Instant, events: &mut EventQueue) {
        self.close_at = None;
        self.mark_closed(now, events);
    }

    /// The VM is being stopped, so back-pressure ends too: macOS lets no process exit before all that
    /// it wrote to a terminal was read. A paused scrollback keeps `DRAIN_LIMIT` bytes more.
    pub fn release_back_pressure(&mut self) {
        if self.scrollback.overflow() == Overflow::Pause {
            self.scrollback.grow(DRAIN_LIMIT);
        }
    }

    /// The guest was reset and boots again.
    pub(crate) fn handle_reboot(&mut self, now: Instant, events: &mut EventQueue) {
        let scripts = self.waits.values_mut().filter_map(|wait| match &mut wait.kind {
            WaitKind::Script(script) => Some(script),
            WaitKind::Expect(_) => None,
        });
        let abandoned = self.abandoned.iter_mut().map(|command| &mut command.script);
        scripts.chain(abandoned).for_each(|script| script.handle_reboot());
        self.poll_waits(now, events);
    }

    /// The power button is pressed, for the input logs.
    pub(crate) fn handle_power_button(&mut self, now: Instant) {
        self.input_logs.power_button(now, self.scrollback.end());
    }

    /// When time makes a difference to a wait, or to the crash check.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let open = || self.waits.values().filter(|wait| wait.ended.is_none());
        let waits = open().map(|wait| match &wait.kind {
            WaitKind::Expect(expect) => expect.poll_timeout(),
            WaitKind::Script(script) => script.poll_timeout(),
        });
        // Without a wait nothing has to be notified.
        let close = self
            .close_at
            .filter(|_| open().next().is_some())
            .map(|at| Deadline { at, why: "the console closed, how the VM ended is unknown" });
        let is_running = !self.is_paused();
        let crash = self.crash_check.poll_timeout(self.reads_command()).filter(|_| is_running);
        let serial = self.serial_port.as_ref().filter(|_| is_running);
        let serial = serial.and_then(|port| port.poll_timeout(open().next().is_some()));
        let abandoned = self.abandoned.as_ref().filter(|_| is_running);
        let abandoned = abandoned.and_then(|command| command.script.poll_timeout());
        waits.chain([close, crash, serial, abandoned]).fold(None, Deadline::earliest)
    }

    /// Time has passed. Gives what the kernel's last console lines say about the guest's end, once,
    /// when no other line has followed them. A paused guest has more to print.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        events: &mut EventQueue,
    ) -> Option<ConsoleCrash> {
        if self.close_at.is_some_and(|at| at <= now) {
            self.close_at = None;
        }
        let is_running = !self.is_paused();
        let serial = self.serial_port.as_mut().filter(|_| is_running);
        let serial = serial.and_then(|port| port.poll(now));
        self.poll_waits(now, events);
        let in_command = self.reads_command();
        let log = &self.scrollback;
        let crash = is_running.then(|| self.crash_check.poll_crash(now, log, in_command));
        crash.flatten().or(serial)
    }

    // What the owner does.

    /// The output that is kept.
    pub fn scrollback(&self) -> &Scrollback {
        &self.scrollback
    }

    /// Whether no more output follows: the stream ended, or the VM.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether a stream is connected.
    pub(crate) fn is_connected(&self) -> bool {
        self.connected
    }

    /// A new reader, at the oldest byte that is kept. It exerts back-pressure where the overflow
    /// policy is [`Overflow::Pause`].
    pub fn add_reader(&mut self) -> ReaderId {
        self.had_reader = true;
        self.add_observer()
    }

    /// A new observer, at the oldest byte that is kept. Before a reader exists it does not make the
    /// console keep less.
    pub fn add_observer(&mut self) -> ReaderId {
        self.add_at(Cursor::at(self.scrollback.start()))
    }

    /// Another reader at the place of `reader`.
    pub fn clone_reader(&mut self, reader: ReaderId) -> ReaderId {
        self.add_at(self.cursor(reader))
    }

    /// Removes a reader, and cancels its waits.
    pub fn remove_reader(&mut self, now: Instant, reader: ReaderId) {
        let waits = self.waits.iter().filter(|(_, wait)| wait.reader == reader);
        for id in waits.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.cancel(now, id);
        }
        self.readers.remove(&reader);
        self.names.remove(&reader);
        self.input_logs.remove(reader);
    }

    /// How many bytes of output precede the next byte of this reader.
    pub fn offset(&self, reader: ReaderId) -> u64 {
        self.cursor(reader).offset()
    }

    /// Bytes that this reader missed, because they were dropped before it read them.
    pub fn lost(&self, reader: ReaderId) -> u64 {
        self.cursor(reader).lost()
    }

    /// Reads unread output, without waiting. Zero when there is none.
    pub fn read(&mut self, reader: ReaderId, into: &mut [u8]) -> usize {
        let Some(cursor) = self.readers.get_mut(&reader) else { return 0 };
        cursor.read(&self.scrollback, into)
    }

    /// Takes all unread output.
    pub fn take(&mut self, reader: ReaderId) -> Vec<u8> {
        let Some(cursor) = self.readers.get_mut(&reader) else { return Vec::new() };
        cursor.take(&self.scrollback)
    }

    /// Takes all unread output, except a UTF-8 character at its end that has not arrived whole.
    pub fn take_text(&mut self, reader: ReaderId) -> Vec<u8> {
        let Some(cursor) = self.readers.get_mut(&reader) else { return Vec::new() };
        let unread = cursor.peek(&self.scrollback);
        let partial = if self.closed { 0 } else { partial_character_len(unread) };
        cursor.take_to(&self.scrollback, self.scrollback.end() - partial as u64)
    }

    /// The reader, other than `waiting`, whose unread output pauses the guest. `None` unless the
    /// overflow policy is [`Overflow::Pause`] and there is no room left before that reader.
    pub fn blocking_reader(&self, waiting: ReaderId) -> Option<BlockingReader> {
        let others = self.readers.iter().filter(|(id, _)| **id != waiting);
        let (id, cursor) = others.min_by_key(|(_, cursor)| cursor.offset())?;
        let blocks = self.connected && self.scrollback.room(cursor.offset()) == 0;
        let unread = self.scrollback.end() - cursor.offset();
        let name = self.names.get(id).cloned();
        blocks.then_some(BlockingReader { reader: *id, name, unread })
    }

    /// Names a reader, for [`blocking_reader`](Self::blocking_reader).
    pub fn name_reader(&mut self, reader: ReaderId, name: &str) {
        if self.readers.contains_key(&reader) {
            self.names.insert(reader, name.into());
        }
    }

    /// Queues bytes for the guest and returns how many were taken: fewer than given when the queue
    /// holds [`WRITE_QUEUE`] bytes; [`VmEvent::ConsoleWritable`] reports room.
    ///
    /// # Errors
    ///
    /// When the console is closed.
    pub fn write(&mut self, now: Instant, bytes: &[u8]) -> Result<usize, ConsoleClosed> {
        if self.closed {
            return Err(ConsoleClosed);
        }
        let taken = bytes.len().min(WRITE_QUEUE.saturating_sub(self.outgoing.len()));
        self.send(now, InputKind::Plain, &bytes[..taken]);
        self.write_blocked |= taken < bytes.len();
        Ok(taken)
    }

    /// From now on what is written is kept for this reader, until it takes it.
    pub fn log_input(&mut self, reader: ReaderId) {
        self.input_logs.add(reader);
    }

    /// Takes what was written since the last call.
    pub fn take_input_log(&mut self, reader: ReaderId) -> VecDeque<InputRecord> {
        self.input_logs.take(reader)
    }

    /// Begins a wait at the reader's place. It may end at once, as for a reader that was removed.
    pub fn begin(
        &mut self,
        now: Instant,
        reader: ReaderId,
        kind: WaitKind,
        events: &mut EventQueue,
    ) -> WaitId {
        let id = WaitId(self.fresh_id());
        let began = self.cursor(reader);
        self.waits.insert(id, PendingWait { reader, began, kind, ended: None });
        self.poll_wait(now, id, events);
        id
    }

    /// Takes the result of a wait that has ended. After that the id is unknown.
    pub fn take_ended(&mut self, id: WaitId) -> Option<Ended> {
        self.waits.get(&id)?.ended.as_ref()?;
        self.waits.remove(&id)?.ended
    }

    /// Takes what a streaming script has read since the last call, and lets it read on: all that the
    /// scrollback has, because only new output is reported by an event.
    pub fn take_output(&mut self, now: Instant, id: WaitId, events: &mut EventQueue) -> Vec<u8> {
        let mut bytes = self.take_streamed(id);
        let goes_on = self.waits.get(&id).is_some_and(|wait| wait.ended.is_none());
        if goes_on && !bytes.is_empty() {
            self.poll_wait(now, id, events);
            bytes.extend(self.take_streamed(id));
            // A command may wait for the end of this one.
            self.poll_waits(now, events);
        }
        bytes
    }

    /// Cancels a wait. Output that it read and did not hand out is unread again. A command that runs
    /// is interrupted.
    pub fn cancel(&mut self, now: Instant, id: WaitId) {
        let Some(mut wait) = self.waits.remove(&id) else { return };
        let Some(cursor) = self.readers.get_mut(&wait.reader) else { return };
        let place = core::mem::replace(cursor, wait.began);
        if wait.ended.is_none()
            && !self.closed
            && let WaitKind::Script(script) = &mut wait.kind
            && let Some((script, cursor)) = script.abandon(now, &place)
        {
            self.abandoned = Some(AbandonedCommand { script, cursor });
            self.poll_abandoned(now);
        }
    }

    fn add_at(&mut self, cursor: Cursor) -> ReaderId {
        let id = ReaderId(self.fresh_id());
        self.readers.insert(id, cursor);
        id
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn cursor(&self, reader: ReaderId) -> Cursor {
        self.readers.get(&reader).copied().unwrap_or(Cursor::at(self.scrollback.end()))
    }

    /// Whether output stays in the system for want of room.
    fn is_paused(&self) -> bool {
        self.connected && self.window() == 0
    }

    fn send(&mut self, now: Instant, kind: InputKind, bytes: &[u8]) {
        self.input_logs.written(now, self.scrollback.end(), kind, bytes);
        self.outgoing.extend(bytes);
    }

    fn mark_closed(&mut self, now: Instant, events: &mut EventQueue) {
        if !self.closed {
            events.push(VmEvent::ConsoleClosed);
        }
        self.connected = false;
        self.closed = true;
        self.outgoing.clear();
        self.poll_waits(now, events);
    }

    /// Takes what a script has streamed. From there on nothing returns by a cancel.
    fn take_streamed(&mut self, id: WaitId) -> Vec<u8> {
        let Some(wait) = self.waits.get_mut(&id) else { return Vec::new() };
        let WaitKind::Script(script) = &mut wait.kind else { return Vec::new() };
        let bytes = script.take_output();
        if let Some(cursor) = self.readers.get(&wait.reader)
            && !bytes.is_empty()
        {
            wait.began = *cursor;
        }
        bytes
    }

    fn poll_waits(&mut self, now: Instant, events: &mut EventQueue) {
        self.poll_abandoned(now);
        let mut after = Bound::Unbounded;
        while let Some((&id, wait)) = self.waits.range((after, Bound::Unbounded)).next() {
            if wait.ended.is_none() {
                self.poll_wait(now, id, events);
            }
            after = Bound::Excluded(id);
        }
    }

    /// Polls one wait until it needs more output or time, or has ended.
    fn poll_wait(&mut self, now: Instant, id: WaitId, events: &mut EventQueue) {
        let shell = self.shell_use(id);
        let Some(wait) = self.waits.get_mut(&id) else { return };
        let log = &self.scrollback;
        // A wait that begins after the end of the VM has nothing to wait for, nor has one whose
        // reader does not exist.
        let lost = self.serial_port.as_ref().filter(|port| port.is_lost(now));
        let over = (self.closed && self.close_at.is_none_or(|at| at <= now)) || lost.is_some();
        let mut at_end = Cursor::at(log.end());
        let (cursor, closed) = match self.readers.get_mut(&wait.reader) {
            Some(cursor) => (cursor, over),
            None => (&mut at_end, true),
        };
        wait.ended = match &mut wait.kind {
            WaitKind::Expect(expect) => expect.poll(now, log, cursor, closed).map(Ended::Expect),
            WaitKind::Script(script) => loop {
                let (cursor, shell) = (&mut *cursor, shell.clone());
                match script.poll(ScriptPoll { now, log, cursor, closed, shell }) {
                    // Nothing takes it. The script ends with `closed`, half a second after the end.
                    ScriptAction::Write(_) if self.closed => {}
                    ScriptAction::Write(bytes) => {
                        self.input_logs.written(now, log.end(), script.input_kind(), &bytes);
                        self.outgoing.extend(&bytes);
                    }
                    ScriptAction::Wait => break None,
                    ScriptAction::Done(result) => {
                        if script.frees_shell() && result.is_ok() {
                            self.abandoned = None;
                        }
                        if let Some((script, cursor)) = script.abandon(now, cursor) {
                            self.abandoned = Some(AbandonedCommand { script, cursor });
                        }
                        break Some(Ended::Script(result));
                    }
                }
            },
        };
        if let Some(ended) = &mut wait.ended {
            if let Some(port) = &self.serial_port {
                ended.explain(port);
            }
            events.push(VmEvent::Ended(id));
            self.poll_abandoned(now);
        }
    }
}

impl fmt::Debug for ConsoleMux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleMux")
            .field("end", &self.scrollback.end())
            .field("closed", &self.closed)
            .field("readers", &self.readers.len())
            .field("waits", &self.waits.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
