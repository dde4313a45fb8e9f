//! The console of one machine: its bytes, who reads them, who waits for what.
//!
//! The guest's output is drained as it comes, whether or not anybody reads, into a bounded log.
//! Readers have places in it. A wait or a script is polled whenever bytes, time or the end make a
//! difference; its outcome is kept until it is taken. One that is cancelled puts its reader back
//! where it began: nothing that was not handed out is lost.

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

/// Bytes read from the guest in one `on_ready`, at most.
pub const READ_BUDGET: usize = 256 * 1024;
/// Bytes that may wait to be written to the guest.
pub const WRITE_QUEUE: usize = 256 * 1024;

/// Bytes taken at most, beside what the log holds, from a paused console whose machine is over.
pub const DRAIN_LIMIT: usize = 1 << 20;

/// How long whoever waits is not told of a closed console, so that they can be told how the machine
/// ended. A console closes with its hypervisor, whose exit is known milliseconds later; one that
/// closes alone is rare.
const CLOSE_DELAY: Duration = Duration::from_millis(500);

/// A reader of the console: its place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReaderId(u64);

/// A wait or script that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaitId(u64);

/// Something that reads the console until it has what it wants.
pub enum WaitKind {
    /// Wait for a pattern.
    Expect(Box<Expect>),
    /// Hold a conversation.
    Script(Box<dyn Script + Send>),
}

/// How a [`WaitKind`] ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// A wait for a pattern.
    Expect(Outcome),
    /// A script.
    Script(Result<CommandOutput, ScriptError>),
}

/// What happened on the console.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ConsoleActivity {
    pub(crate) data: bool,
    pub(crate) writable: bool,
    pub(crate) closed: bool,
    pub(crate) panic: bool,
    /// The read budget was spent: there may be more.
    pub(crate) more: bool,
}

struct PendingWait {
    reader: ReaderId,
    /// Where the reader was when it had last been given something, for a cancel.
    began: Cursor,
    kind: WaitKind,
    ended: Option<Ended>,
}

/// The console of one machine.
pub struct Console {
    stream: Option<PollSource<ByteStream>>,
    scrollback: Scrollback,
    closed: bool,
    /// Closed, and who waits is told at this time at the latest.
    close_at: Option<Instant>,
    outgoing: VecDeque<u8>,
    /// A writer was told that not all of it was taken, and waits to be told that there is room.
    write_blocked: bool,
    readers: BTreeMap<ReaderId, Cursor>,
    waits: BTreeMap<WaitId, PendingWait>,
    next_id: u64,
    /// Nothing is dropped for want of a reader before there was one.
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

    /// The console of a machine that has none.
    pub(crate) fn none() -> Self {
        Self { closed: true, ..Self::new(1, Overflow::DropOldest) }
    }

    /// Everything the guest said that is still kept.
    pub fn scrollback(&self) -> &Scrollback {
        &self.scrollback
    }

    /// No more output will come: the hypervisor closed it, or the machine is over.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// A new reader, at the oldest byte that is kept.
    pub fn add_reader(&mut self) -> ReaderId {
        let id = ReaderId(self.fresh_id());
        self.readers.insert(id, Cursor::at(self.scrollback.start()));
        self.had_reader = true;
        id
    }

    /// A reader that looks on: what is kept for want of a reader is not kept any less for it.
    pub fn add_observer(&mut self) -> ReaderId {
        let id = ReaderId(self.fresh_id());
        self.readers.insert(id, Cursor::at(self.scrollback.start()));
        id
    }

    /// Where this reader is in the output: how many bytes came before what it reads next.
    pub fn offset(&self, reader: ReaderId) -> u64 {
        self.cursor(reader).offset()
    }

    /// From now on what is typed is kept for this reader, until it takes it.
    pub fn log_input(&mut self, reader: ReaderId) {
        self.input_logs.add(reader);
    }

    /// Takes what was typed since this was called last.
    pub fn take_input_log(&mut self, reader: ReaderId) -> VecDeque<InputRecord> {
        self.input_logs.take(reader)
    }

    /// The guest is asked to power off.
    pub(crate) fn power_button(&mut self) {
        self.input_logs.power_button(self.scrollback.end());
    }

    /// Another reader at the same place.
    pub fn clone_reader(&mut self, reader: ReaderId) -> ReaderId {
        let id = ReaderId(self.fresh_id());
        let cursor = self.cursor(reader);
        self.readers.insert(id, cursor);
        id
    }

    /// Takes a reader away. Its waits are cancelled.
    pub fn remove_reader(&mut self, reader: ReaderId) {
        self.waits.retain(|_, wait| wait.reader != reader);
        self.readers.remove(&reader);
        self.input_logs.remove(reader);
        self.adjust_interest();
    }

    /// Reads what is there, without waiting. Zero when nothing is.
    pub fn read(&mut self, reader: ReaderId, into: &mut [u8]) -> usize {
        let Some(cursor) = self.readers.get_mut(&reader) else { return 0 };
        let n = cursor.read(&self.scrollback, into);
        self.adjust_interest();
        n
    }

    /// Takes all that is there.
    pub fn take(&mut self, reader: ReaderId) -> Vec<u8> {
        let Some(cursor) = self.readers.get_mut(&reader) else { return Vec::new() };
        let bytes = cursor.take(&self.scrollback);
        self.adjust_interest();
        bytes
    }

    /// Takes all that is there but a character that has only half arrived.
    pub fn take_text(&mut self, reader: ReaderId) -> Vec<u8> {
        let Some(cursor) = self.readers.get_mut(&reader) else { return Vec::new() };
        let unread = cursor.peek(&self.scrollback);
        let half = if self.closed { 0 } else { partial_character_len(unread) };
        let bytes = cursor.take_to(&self.scrollback, self.scrollback.end() - half as u64);
        self.adjust_interest();
        bytes
    }

    /// Bytes this reader missed, because they were dropped before it read them.
    pub fn lost(&self, reader: ReaderId) -> u64 {
        self.cursor(reader).lost()
    }

    /// Queues bytes for the guest and says how many were taken: fewer than given when the queue is
    /// full, until the guest has read.
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

    /// Begins a conversation at the reader's place. `true` when it is over at once, as for a reader
    /// that is not there.
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

    /// Takes the outcome of a conversation that is over. After that the id is unknown.
    pub fn take_ended(&mut self, id: WaitId) -> Option<Ended> {
        self.waits.get(&id)?.ended.as_ref()?;
        self.waits.remove(&id)?.ended
    }

    /// Takes what a conversation that streams brought since this was called last. That may let it go
    /// on: `true` when it is over because of it. Nothing that the log has is left for another call,
    /// for only what the guest says is news to anybody.
    pub(crate) fn take_output(&mut self, now: Instant, id: WaitId) -> (Vec<u8>, bool) {
        let mut bytes = self.take_streamed(id);
        let goes_on = self.waits.get(&id).is_some_and(|wait| wait.ended.is_none());
        let over = goes_on && !bytes.is_empty() && self.poll_wait(now, id);
        bytes.extend(self.take_streamed(id));
        (bytes, over)
    }

    /// Takes what was streamed, and notes that it was handed out.
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

    /// Gives a conversation up. What it read and did not hand out is unread again. A command that
    /// runs is interrupted.
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

    /// When time makes a difference: to a conversation, or to the guest's last words.
    pub(crate) fn poll_timeout(&self) -> Option<Deadline> {
        let open = self.waits.values().filter(|wait| wait.ended.is_none());
        open.map(|wait| match &wait.kind {
            WaitKind::Expect(expect) => expect.poll_timeout(),
            WaitKind::Script(script) => script.poll_timeout(),
        })
        .chain(self.close_at.map(|at| {
            // Nobody to tell: nothing to wake up for.
            let waits = self.waits.values().any(|wait| wait.ended.is_none());
            waits.then_some(Deadline {
                at,
                why: "the console closed, how the machine ended is unknown",
            })
        }))
        .chain([self.crash_detector.poll_timeout().filter(|_| !self.is_paused())])
        .fold(None, Deadline::earliest)
    }

    /// The last words of the guest's kernel, once, when they have turned out to be that.
    /// A guest that is held back has more to say.
    pub(crate) fn last_word(&mut self, now: Instant) -> Option<ConsoleCrash> {
        if self.is_paused() { None } else { self.crash_detector.poll_crash(now, &self.scrollback) }
    }

    /// Lets time pass for the conversations. Gives those that are over because of it.
    pub(crate) fn on_time(&mut self, now: Instant, ended: &mut Vec<WaitId>) {
        if self.close_at.is_some_and(|at| at <= now) {
            self.close_at = None;
        }
        self.poll_waits(now, ended);
    }

    /// Moves bytes both ways, `budget` of them at most coming in.
    pub(crate) fn on_ready(
        &mut self,
        now: Instant,
        budget: &mut usize,
        ended: &mut Vec<WaitId>,
    ) -> ConsoleActivity {
        let mut activity = ConsoleActivity::default();
        self.flush();
        // Whoever emptied the queue: it is here that it is said.
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

    /// The guest was reset and boots again. Gives the conversations that are over because of it.
    pub(crate) fn rebooted(&mut self, now: Instant, ended: &mut Vec<WaitId>) {
        for wait in self.waits.values_mut() {
            if let WaitKind::Script(script) = &mut wait.kind {
                script.handle_reboot();
            }
        }
        self.poll_waits(now, ended);
    }

    /// The machine is over: no more output will come, and whoever waits is told. `true` when the
    /// former is news.
    pub(crate) fn close(&mut self, now: Instant, ended: &mut Vec<WaitId>) -> bool {
        self.close_at = None;
        self.mark_closed(now, ended)
    }

    /// What is on its way out is held back no longer, for its machine is told to end: macOS lets no
    /// process exit before all that it wrote to a terminal was read. Of a log that is paused, 1 MiB
    /// more is kept.
    pub(crate) fn release_back_pressure(&mut self) {
        if self.scrollback.overflow() == Overflow::Pause {
            self.scrollback.grow(DRAIN_LIMIT);
            self.adjust_interest();
        }
    }

    /// Leaves, without a word to anybody: nobody reads any more, and nobody may wait for that.
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

    /// Takes what was said before the end and waits in the system, where a reader that is behind
    /// has kept it waiting. That is little: what a socket or a pty holds.
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

    /// Whether what the guest says is left unread, for want of room.
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

    /// Polls one conversation until it waits or is over. `true` when it is over now.
    fn poll_wait(&mut self, now: Instant, id: WaitId) -> bool {
        let Some(wait) = self.waits.get_mut(&id) else { return false };
        let log = &self.scrollback;
        // A wait that begins when the machine has long been over has nothing to wait for, nor has one
        // of a reader that is not there.
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

/// How many bytes at the end are the beginning of a UTF-8 character, and no more than that.
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
