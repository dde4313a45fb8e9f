//! The console of one VM: its bytes, readers and waits.
//!
//! The guest's output is read as it comes, with or without readers, into a bounded scrollback. Each
//! reader has a position in it. A wait or script is polled when bytes arrive, its deadline passes
//! or the console closes; its result is kept until it is taken. A cancelled wait resets its reader
//! to the position where the wait began, so output that was not handed out is not lost.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

use capsa_proto::console::{
    CommandOutput, ConsoleCrash, CrashDetector, Cursor, Expect, InputKind, Outcome, Overflow,
    Script, ScriptAction, ScriptError, Scrollback,
};
use capsa_proto::time::{Deadline, Instant};

use crate::input_log::{InputLogs, InputRecord};
use crate::stream::{ByteStream, ReadResult};
use crate::sys::{Poll, PollSource};

/// The largest number of bytes read from the guest in one `on_ready` call.
pub const READ_BUDGET: usize = 256 * 1024;
/// The largest number of bytes queued for the guest.
pub const WRITE_QUEUE: usize = 256 * 1024;

/// The largest number of bytes that a paused console keeps beyond its capacity after its VM has
/// ended.
pub const DRAIN_LIMIT: usize = 1 << 20;

/// How long waits on a closed console are kept pending, so that their results can include how the
/// VM ended. A console usually closes when its hypervisor exits, and the exit is known milliseconds
/// later.
const CLOSE_DELAY: Duration = Duration::from_millis(500);

/// A reader of the console: a position in the scrollback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReaderId(u64);

/// A wait or script that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaitId(u64);

/// What a wait does with the console's output.
pub enum WaitKind {
    /// Waits for a pattern.
    Expect(Box<Expect>),
    /// Runs a script.
    Script(Box<dyn Script + Send>),
}

/// The result of a wait.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// The result of a wait for a pattern.
    Expect(Outcome),
    /// The result of a script.
    Script(Result<CommandOutput, ScriptError>),
}

/// What changed on the console in one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ConsoleActivity {
    pub(crate) data: bool,
    pub(crate) writable: bool,
    pub(crate) closed: bool,
    pub(crate) panic: bool,
    /// The read budget was exhausted: there may be more output.
    pub(crate) more: bool,
}

struct PendingWait {
    reader: ReaderId,
    /// The reader's position when output was last handed out; a cancel returns to it.
    began: Cursor,
    kind: WaitKind,
    ended: Option<Ended>,
}

/// The console of one VM.
pub struct Console {
    stream: Option<PollSource<ByteStream>>,
    scrollback: Scrollback,
    closed: bool,
    /// The console is closed; waits end at this time at the latest.
    close_at: Option<Instant>,
    outgoing: VecDeque<u8>,
    /// A write was not accepted in full; the writer must be notified when there is room.
    write_blocked: bool,
    readers: BTreeMap<ReaderId, Cursor>,
    waits: BTreeMap<WaitId, PendingWait>,
    next_id: u64,
    /// There has been a reader. Before that, no output is dropped for lack of one.
    had_reader: bool,
    crash_detector: CrashDetector,
    input_logs: InputLogs,
}

impl Console {
    pub(crate) fn new(capacity: usize, overflow: Overflow) -> Self {
        Self {
            stream: None,
            scrollback: Scrollback::with_overflow(capacity, overflow),
            closed: false,
            close_at: None,
            outgoing: VecDeque::new(),
            write_blocked: false,
            readers: BTreeMap::new(),
            waits: BTreeMap::new(),
            next_id: 0,
            had_reader: false,
            crash_detector: CrashDetector::default(),
            input_logs: InputLogs::default(),
        }
    }

    /// The console of a VM that was built without one.
    pub(crate) fn none() -> Self {
        Self { closed: true, ..Self::new(1, Overflow::DropOldest) }
    }

    /// The kept output.
    pub fn scrollback(&self) -> &Scrollback {
        &self.scrollback
    }

    /// No more output will come: the hypervisor closed the console, or the VM has ended.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Adds a reader at the oldest kept byte.
    pub fn add_reader(&mut self) -> ReaderId {
        let id = ReaderId(self.fresh_id());
        self.readers.insert(id, Cursor::at(self.scrollback.start()));
        self.had_reader = true;
        id
    }

    /// Adds an observer at the oldest kept byte: a reader that exerts no back-pressure.
    pub fn add_observer(&mut self) -> ReaderId {
        let id = ReaderId(self.fresh_id());
        self.readers.insert(id, Cursor::at(self.scrollback.start()));
        id
    }

    /// The absolute offset of the next byte that this reader reads.
    pub fn offset(&self, reader: ReaderId) -> u64 {
        self.cursor(reader).offset()
    }

    /// Starts an input log for this reader.
    pub fn log_input(&mut self, reader: ReaderId) {
        self.input_logs.add(reader);
    }

    /// Takes the input records since the last call.
    pub fn take_input_log(&mut self, reader: ReaderId) -> VecDeque<InputRecord> {
        self.input_logs.take(reader)
    }

    /// Records that the guest is asked to power off.
    pub(crate) fn power_button(&mut self) {
        self.input_logs.power_button(self.scrollback.end());
    }

    /// Adds a reader at the same position.
    pub fn clone_reader(&mut self, reader: ReaderId) -> ReaderId {
        let id = ReaderId(self.fresh_id());
        let cursor = self.cursor(reader);
        self.readers.insert(id, cursor);
        id
    }

    /// Removes a reader and cancels its waits.
    pub fn remove_reader(&mut self, reader: ReaderId) {
        self.waits.retain(|_, wait| wait.reader != reader);
        self.readers.remove(&reader);
        self.input_logs.remove(reader);
        self.adjust_interest();
    }

    /// Reads unread output without waiting. Returns 0 when there is none.
    pub fn read(&mut self, reader: ReaderId, into: &mut [u8]) -> usize {
        let Some(cursor) = self.readers.get_mut(&reader) else { return 0 };
        let n = cursor.read(&self.scrollback, into);
        self.adjust_interest();
        n
    }

    /// Takes all unread output.
    pub fn take(&mut self, reader: ReaderId) -> Vec<u8> {
        let Some(cursor) = self.readers.get_mut(&reader) else { return Vec::new() };
        let bytes = cursor.take(&self.scrollback);
        self.adjust_interest();
        bytes
    }

    /// Takes all unread output except an incomplete UTF-8 character at its end.
    pub fn take_text(&mut self, reader: ReaderId) -> Vec<u8> {
        let Some(cursor) = self.readers.get_mut(&reader) else { return Vec::new() };
        let unread = cursor.peek(&self.scrollback);
        let half = if self.closed { 0 } else { partial_character_len(unread) };
        let bytes = cursor.take_to(&self.scrollback, self.scrollback.end() - half as u64);
        self.adjust_interest();
        bytes
    }

    /// The number of bytes that were dropped before this reader read them.
    pub fn lost(&self, reader: ReaderId) -> u64 {
        self.cursor(reader).lost()
    }

    /// Queues bytes for the guest and returns how many were accepted: fewer than given when the
    /// queue is full.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` when the console is closed.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.closed {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the console is closed"));
        }
        let taken = bytes.len().min(WRITE_QUEUE.saturating_sub(self.outgoing.len()));
        self.outgoing.extend(&bytes[..taken]);
        self.input_logs.written(self.scrollback.end(), InputKind::Plain, &bytes[..taken]);
        self.write_blocked |= taken < bytes.len();
        self.flush();
        Ok(taken)
    }

    /// Begins a wait at the reader's position. Returns `true` if it has ended at once, as for an
    /// unknown reader.
    pub(crate) fn begin(
        &mut self,
        now: Instant,
        reader: ReaderId,
        kind: WaitKind,
    ) -> (WaitId, bool) {
        let id = WaitId(self.fresh_id());
        let began = self.cursor(reader);
        self.waits.insert(id, PendingWait { reader, began, kind, ended: None });
        let over = self.poll_wait(now, id);
        (id, over)
    }

    /// Takes the result of a wait that has ended. The id is unknown afterwards.
    pub fn take_ended(&mut self, id: WaitId) -> Option<Ended> {
        self.waits.get(&id)?.ended.as_ref()?;
        self.waits.remove(&id)?.ended
    }

    /// Takes the output of a streaming wait since the last call. This may let the wait continue;
    /// returns `true` if it ends because of that. All output in the scrollback is processed now,
    /// because only new output triggers another poll.
    pub(crate) fn take_output(&mut self, now: Instant, id: WaitId) -> (Vec<u8>, bool) {
        let mut bytes = self.take_streamed(id);
        let goes_on = self.waits.get(&id).is_some_and(|wait| wait.ended.is_none());
        let over = goes_on && !bytes.is_empty() && self.poll_wait(now, id);
        bytes.extend(self.take_streamed(id));
        (bytes, over)
    }

    /// Takes the streamed output, and records the reader's position as handed out.
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

    /// Cancels a wait. Output that it read but did not hand out is unread again. A running command
    /// is interrupted.
    pub fn cancel(&mut self, id: WaitId) {
        let Some(mut wait) = self.waits.remove(&id) else { return };
        if let Some(cursor) = self.readers.get_mut(&wait.reader) {
            *cursor = wait.began;
        }
        if wait.ended.is_none()
            && !self.closed
            && let WaitKind::Script(script) = &mut wait.kind
            && let Some(bytes) = script.handle_cancel()
        {
            self.input_logs.written(self.scrollback.end(), script.input_kind(), &bytes);
            self.outgoing.extend(&bytes);
            self.flush();
        }
    }

    pub(crate) fn attach(&mut self, stream: ByteStream, poll: &Poll, key: usize) -> io::Result<()> {
        self.stream = Some(poll.add(stream, key)?);
        self.flush();
        self.adjust_interest();
        Ok(())
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.stream.is_some()
    }

    /// The earliest deadline of the waits and of the crash detector.
    pub(crate) fn poll_timeout(&self) -> Option<Deadline> {
        let open = self.waits.values().filter(|wait| wait.ended.is_none());
        open.map(|wait| match &wait.kind {
            WaitKind::Expect(expect) => expect.poll_timeout(),
            WaitKind::Script(script) => script.poll_timeout(),
        })
        .chain(self.close_at.map(|at| {
            // Without a pending wait there is nothing to do at that time.
            let waits = self.waits.values().any(|wait| wait.ended.is_none());
            waits.then_some(Deadline { at, why: "console closed, waiting for the end of the VM" })
        }))
        .chain([self.crash_detector.poll_timeout().filter(|_| !self.is_paused())])
        .fold(None, Deadline::earliest)
    }

    /// The crash that the console shows, once, when it is confirmed. A paused guest may have more
    /// output, so nothing is confirmed then.
    pub(crate) fn last_word(&mut self, now: Instant) -> Option<ConsoleCrash> {
        if self.is_paused() { None } else { self.crash_detector.poll_crash(now, &self.scrollback) }
    }

    /// Handles the passing of time. Adds the waits that end because of it to `ended`.
    pub(crate) fn on_time(&mut self, now: Instant, ended: &mut Vec<WaitId>) {
        if self.close_at.is_some_and(|at| at <= now) {
            self.close_at = None;
        }
        self.poll_waits(now, ended);
    }

    /// Moves bytes in both directions; reads at most `budget` bytes.
    pub(crate) fn on_ready(
        &mut self,
        now: Instant,
        budget: &mut usize,
        ended: &mut Vec<WaitId>,
    ) -> ConsoleActivity {
        let mut activity = ConsoleActivity::default();
        self.flush();
        // The queue may have been emptied by any call; the notification is sent from here.
        if self.write_blocked && self.outgoing.len() < WRITE_QUEUE {
            self.write_blocked = false;
            activity.writable = true;
        }
        let mut chunk = [0; 8192];
        while self.stream.is_some() {
            let room = self.room().min(chunk.len());
            if room == 0 {
                break;
            }
            let room = room.min(*budget);
            if room == 0 {
                activity.more = true;
                break;
            }
            let Some(stream) = &mut self.stream else { break };
            match stream.io().read(&mut chunk[..room]) {
                ReadResult::NothingYet => break,
                ReadResult::Bytes(n) => {
                    *budget -= n;
                    activity.data = true;
                    self.scrollback.push(&chunk[..n]);
                    activity.panic |= self.crash_detector.scan(now, &self.scrollback);
                    self.poll_waits(now, ended);
                }
                ReadResult::Closed => {
                    self.stream = None;
                    self.close_at = Some(now + CLOSE_DELAY);
                    activity.closed |= self.mark_closed(now, ended);
                }
            }
        }
        self.adjust_interest();
        activity
    }

    /// The guest was reset and boots again. Adds the waits that end because of it to `ended`.
    pub(crate) fn rebooted(&mut self, now: Instant, ended: &mut Vec<WaitId>) {
        for wait in self.waits.values_mut() {
            if let WaitKind::Script(script) = &mut wait.kind {
                script.handle_reboot();
            }
        }
        self.poll_waits(now, ended);
    }

    /// The VM has ended: no more output will come, and pending waits end. Returns `true` if the
    /// console was open before.
    pub(crate) fn close(&mut self, now: Instant, ended: &mut Vec<WaitId>) -> bool {
        self.close_at = None;
        self.mark_closed(now, ended)
    }

    /// Ends back-pressure, because the VM's processes are ending: on macOS a process cannot
    /// exit before its terminal output is read. A paused scrollback keeps 1 MiB more.
    pub(crate) fn release_back_pressure(&mut self) {
        if self.scrollback.overflow() == Overflow::Pause {
            self.scrollback.grow(DRAIN_LIMIT);
            self.adjust_interest();
        }
    }

    /// Closes the console without notifying waits.
    pub(crate) fn detach(&mut self) {
        self.stream = None;
    }

    fn mark_closed(&mut self, now: Instant, ended: &mut Vec<WaitId>) -> bool {
        let activity = !self.closed;
        self.drain_after_close();
        self.stream = None;
        self.closed = true;
        self.outgoing.clear();
        self.poll_waits(now, ended);
        activity
    }

    /// Reads output from before the end that is still in the system's buffers because the console
    /// was paused. It is at most what a socket or pty holds.
    fn drain_after_close(&mut self) {
        let mut chunk = [0; 8192];
        let mut left = if self.scrollback.overflow() == Overflow::Pause { DRAIN_LIMIT } else { 0 };
        while let Some(stream) = &mut self.stream
            && left > 0
            && let room = left.min(chunk.len())
            && let ReadResult::Bytes(n) = stream.io().read(&mut chunk[..room])
        {
            left -= n;
            self.scrollback.grow(n);
            self.scrollback.push(&chunk[..n]);
        }
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn cursor(&self, reader: ReaderId) -> Cursor {
        self.readers.get(&reader).copied().unwrap_or(Cursor::at(self.scrollback.end()))
    }

    fn room(&self) -> usize {
        let slowest = if self.had_reader {
            self.readers.values().map(Cursor::offset).min().unwrap_or(self.scrollback.end())
        } else {
            self.scrollback.start()
        };
        self.scrollback.room(slowest).min(self.scrollback.capacity())
    }

    /// Whether output is left unread because the scrollback has no room.
    fn is_paused(&self) -> bool {
        self.stream.is_some() && self.room() == 0
    }

    fn poll_waits(&mut self, now: Instant, ended: &mut Vec<WaitId>) {
        if self.waits.is_empty() {
            return;
        }
        let open: Vec<WaitId> =
            self.waits.iter().filter(|(_, w)| w.ended.is_none()).map(|(id, _)| *id).collect();
        ended.extend(open.into_iter().filter(|id| self.poll_wait(now, *id)));
    }

    /// Polls one wait until it is pending or has ended. Returns `true` if it has ended now.
    fn poll_wait(&mut self, now: Instant, id: WaitId) -> bool {
        let Some(wait) = self.waits.get_mut(&id) else { return false };
        let log = &self.scrollback;
        // A wait that begins after the end of the VM, or that has an unknown reader, ends at once.
        let over = self.closed && self.close_at.is_none_or(|at| at <= now);
        let mut at_end = Cursor::at(log.end());
        let (cursor, closed) = match self.readers.get_mut(&wait.reader) {
            Some(cursor) => (cursor, over),
            None => (&mut at_end, true),
        };
        wait.ended = match &mut wait.kind {
            WaitKind::Expect(expect) => expect.poll(now, log, cursor, closed).map(Ended::Expect),
            WaitKind::Script(script) => loop {
                match script.poll_output(now, log, cursor, closed) {
                    ScriptAction::Write(bytes) => {
                        self.input_logs.written(log.end(), script.input_kind(), &bytes);
                        self.outgoing.extend(&bytes);
                    }
                    ScriptAction::Wait => break None,
                    ScriptAction::Done(result) => break Some(Ended::Script(result)),
                }
            },
        };
        let over = wait.ended.is_some();
        self.flush();
        over
    }

    fn flush(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        stream.io().write_from(&mut self.outgoing);
        self.adjust_interest();
    }

    fn adjust_interest(&mut self) {
        let readable = self.room() > 0;
        let writable = !self.outgoing.is_empty() || self.write_blocked;
        if let Some(stream) = &mut self.stream
            && let Err(error) = stream.set_interest(readable, writable)
        {
            tracing::warn!("cannot watch the console: {error}");
            self.stream = None;
        }
    }
}

/// The length of an incomplete UTF-8 character at the end.
fn partial_character_len(bytes: &[u8]) -> usize {
    (1..=3.min(bytes.len()))
        .find(|n| {
            let end = &bytes[bytes.len() - n..];
            std::str::from_utf8(end).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
        })
        .unwrap_or(0)
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console")
            .field("end", &self.scrollback.end())
            .field("closed", &self.closed)
            .field("readers", &self.readers.len())
            .field("waits", &self.waits.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
