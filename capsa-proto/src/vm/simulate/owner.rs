//! [`SimOwner`]: the owner of the VM: readers, input, and requests.
//!
//! A reader has one wait at a time, and is not read while it has one, as in the public API.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::time::Duration;

use super::trace::{Digest, Step};
use super::waits::{SimWait, WaitState};
use super::world::{Simulation, law};
use crate::console::{Overflow, ReaderId, WRITE_QUEUE};
use crate::lifecycle::{PauseRequest, Phase};
use crate::vm::{Channel, VmEvent};

/// How many readers an owner has at most.
const MAX_READERS: usize = 4;

/// How many waits an owner begins at most.
const MAX_WAITS: usize = 24;

/// More events than can wait for an owner without waits.
const MAX_EVENTS: usize = 64 + 16;

/// A reader, and what it must read next.
#[derive(Debug)]
pub(super) struct SimReader {
    pub(super) id: ReaderId,
    pub(super) at: u64,
    pub(super) lost: u64,
    /// Up to here a script has read that failed or was cancelled: what was dropped since is missed.
    pub(super) scripted: u64,
    /// The index of its wait.
    pub(super) wait: Option<usize>,
}

/// The owner of the VM.
#[derive(Debug)]
pub(super) struct SimOwner {
    pub(super) readers: Vec<Option<SimReader>>,
    had_reader: bool,
    pub(super) waits: Vec<SimWait>,
    pub(super) keeps_results: bool,
    pub(super) nonce: u64,
    /// Output was passed, and not reported yet.
    pub(super) expects_data: bool,
    /// A write was not taken whole.
    is_blocked: bool,
    expects_room: bool,
    pub(super) met: u32,
    pub(super) failed: u32,
    pub(super) cancelled: u32,
}

impl SimOwner {
    pub(super) fn new(keeps_results: bool) -> Self {
        Self {
            readers: Vec::new(),
            had_reader: false,
            waits: Vec::new(),
            keeps_results,
            nonce: 1,
            expects_data: false,
            is_blocked: false,
            expects_room: false,
            met: 0,
            failed: 0,
            cancelled: 0,
        }
    }

    pub(super) fn digest(&self, digest: &mut Digest) {
        for wait in &self.waits {
            let _ = write!(digest, "{:?} {:?}", wait.state, wait.result);
        }
        for reader in self.readers.iter().flatten() {
            let _ = write!(digest, "{} {}", reader.at, reader.lost);
        }
    }
}

impl Simulation<'_> {
    /// The owner uses the console.
    pub(super) fn act_as_owner(&mut self) {
        match self.choose.below(16) {
            0 | 1 => self.add_reader(),
            2 if self.choose.below(3) == 0 => self.remove_reader(),
            2..=4 => self.read(),
            5..=9 => self.begin_wait(),
            10 => self.cancel_wait(),
            11 | 12 => self.take_streamed(),
            13 => self.write_input(),
            14 => self.use_input_log(),
            _ => self.poll_events(),
        }
    }

    // Requests.

    /// The owner starts the VM.
    pub(super) fn start(&mut self) {
        self.add_step(Step::Started);
        let started = self.core.start(self.now).is_ok();
        law!(self, started != self.laws.started, "start returned {started}");
        self.laws.started = true;
    }

    /// The owner kills the VM.
    pub(super) fn kill(&mut self) {
        self.add_step(Step::Killed);
        self.laws.note_kill(self.core.phase());
        let accepted = self.core.kill(self.now).is_ok();
        law!(self, accepted == self.laws.started, "kill returned {accepted}");
    }

    fn stop(&mut self) {
        let grace = self.choose.one_of(&[0, 50, 1000, 30_000]);
        self.add_step(Step::Stopped(grace));
        self.laws.note_stop(self.core.phase());
        let accepted = self.core.stop(self.now, Duration::from_millis(grace)).is_ok();
        law!(self, accepted == self.laws.started, "stop returned {accepted}");
    }

    /// The owner requests something of the VM, in any order.
    pub(super) fn request(&mut self) {
        match self.choose.below(8) {
            0 => self.start(),
            1 => self.kill(),
            2..=5 if self.core.phase() >= Phase::Running => self.stop(),
            2 => self.stop(),
            6 => self.pause(PauseRequest::Pause),
            7 => self.pause(PauseRequest::Resume),
            _ => {}
        }
    }

    fn pause(&mut self, request: PauseRequest) {
        self.add_step(Step::PauseRequested(request == PauseRequest::Pause));
        let runs = matches!(self.core.phase(), Phase::Running | Phase::Paused);
        let accepted = match request {
            PauseRequest::Pause => self.core.pause(self.now),
            PauseRequest::Resume => self.core.resume(self.now),
        };
        law!(self, accepted.is_ok() == runs, "{request:?} returned {accepted:?}");
        self.laws.pauses += u32::from(runs);
    }

    // Readers.

    fn add_reader(&mut self) {
        let readers = self.owner.readers.iter().flatten().count();
        if readers >= MAX_READERS {
            return;
        }
        let place = self.some_reader();
        let choice = self.choose.below(8);
        let id = self.core.with_console(|console, _| match (choice, place) {
            (0, _) => (console.add_observer(), false),
            (1, Some((_, id))) => (console.clone_reader(id), false),
            _ => (console.add_reader(), true),
        });
        let (id, is_reader) = id;
        self.owner.had_reader |= is_reader;
        let console = self.core.console();
        let (at, lost) = (console.offset(id), console.lost(id));
        // The reader that was cloned may have a script.
        let scripted = if is_reader { 0 } else { console.scrollback().end() };
        let reader = SimReader { id, at, lost, scripted, wait: None };
        self.add_step(Step::ReaderAdded(self.owner.readers.len()));
        self.owner.readers.push(Some(reader));
    }

    fn remove_reader(&mut self) {
        let Some((place, id)) = self.some_reader() else { return };
        self.add_step(Step::ReaderRemoved(place));
        let now = self.now;
        self.core.with_console(|console, _| console.remove_reader(now, id));
        let reader = self.owner.readers[place].take();
        if let Some(wait) = reader.and_then(|reader| reader.wait) {
            self.owner.waits[wait].state = WaitState::Removed;
            self.owner.cancelled += 1;
        }
    }

    /// A reader and its place, with or without a wait.
    pub(super) fn some_reader(&mut self) -> Option<(usize, ReaderId)> {
        let places: Vec<(usize, ReaderId)> = self
            .owner
            .readers
            .iter()
            .enumerate()
            .filter_map(|(place, reader)| Some((place, reader.as_ref()?.id)))
            .collect();
        if places.is_empty() {
            return None;
        }
        Some(places[self.choose.below(places.len())])
    }

    /// A reader without a wait.
    pub(super) fn some_idle_reader(&mut self) -> Option<(usize, ReaderId)> {
        let (place, id) = self.some_reader()?;
        let is_idle = self.owner.readers[place].as_ref().is_some_and(|r| r.wait.is_none());
        is_idle.then_some((place, id))
    }

    fn read(&mut self) {
        let Some((place, id)) = self.some_idle_reader() else { return };
        let room = self.choose.one_of(&[1, 7, 100, 5000]);
        let choice = self.choose.below(3);
        let bytes = self.core.with_console(|console, _| match choice {
            0 => console.take(id),
            1 => console.take_text(id),
            _ => {
                let mut bytes = vec![0; room];
                let n = console.read(id, &mut bytes);
                bytes.truncate(n);
                bytes
            }
        });
        self.add_step(Step::ReaderRead(place, bytes.len()));
        self.check_read(place, &bytes);
        let console = self.core.console();
        let left = console.scrollback().end() - console.offset(id);
        let is_short = match choice {
            0 => left > 0,
            1 => left > 3,
            _ => left > 0 && bytes.len() < room,
        };
        law!(self, !is_short, "{left} bytes are left unread");
    }

    /// These bytes are what the guest wrote at the place of the reader, except what was dropped.
    pub(super) fn check_read(&mut self, place: usize, bytes: &[u8]) {
        let Some(reader) = &self.owner.readers[place] else { return };
        let console = self.core.console();
        let (at, lost) = (console.offset(reader.id), console.lost(reader.id));
        let from = at.checked_sub(bytes.len() as u64);
        let from = from.filter(|from| *from >= reader.at);
        law!(self, from.is_some(), "{} bytes up to {at}, read from {}", bytes.len(), reader.at);
        let from = from.unwrap_or_default();
        let missed = from - reader.at;
        law!(self, lost - reader.lost == missed, "{missed} bytes are missed, {lost} are lost");
        let start = console.scrollback().start();
        law!(self, missed == 0 || from <= start, "{missed} bytes are missed, kept from {start}");
        let pauses = console.scrollback().overflow() == Overflow::Pause;
        let is_missed = pauses && from > reader.at.max(reader.scripted);
        law!(self, !is_missed, "{missed} bytes are missed under back-pressure");
        let written = self.passed.get(from as usize..at as usize);
        law!(self, written == Some(bytes), "bytes {from} to {at} are not what the guest wrote");
        if let Some(reader) = &mut self.owner.readers[place] {
            (reader.at, reader.lost) = (at, lost);
        }
    }

    // Input.

    fn write_input(&mut self) {
        let choice = self.choose.below(32);
        let large = if choice == 0 { vec![b'z'; WRITE_QUEUE + 1000] } else { Vec::new() };
        let bytes: &[u8] = match choice {
            0 => &large,
            1 => b"\x03",
            2 => b"junk",
            3 => b"root\r",
            4 => b"poweroff\n",
            5..=10 => b"\r",
            _ => b"ok\n",
        };
        let waiting = self.core.outgoing(Channel::Console).map_or(0, |bytes| bytes.len());
        let closed = self.core.console().is_closed();
        let now = self.now;
        let taken = self.core.with_console(|console, _| console.write(now, bytes));
        law!(self, taken.is_err() == closed, "a write returned {taken:?}, closed is {closed}");
        let Ok(taken) = taken else { return };
        self.add_step(Step::Typed(taken));
        let room = WRITE_QUEUE.saturating_sub(waiting);
        law!(self, taken == room.min(bytes.len()), "{taken} bytes taken, the room is {room}");
        self.owner.is_blocked |= taken < bytes.len();
    }

    /// The stream has taken bytes.
    pub(super) fn note_room(&mut self) {
        let waiting = self.core.outgoing(Channel::Console).map_or(0, |bytes| bytes.len());
        if self.owner.is_blocked && waiting < WRITE_QUEUE {
            self.owner.is_blocked = false;
            self.owner.expects_room = true;
        }
    }

    fn use_input_log(&mut self) {
        let Some((_, id)) = self.some_reader() else { return };
        self.core.with_console(|console, _| {
            console.log_input(id);
            console.take_input_log(id);
        });
    }

    // Events and laws.

    /// The owner takes all events.
    pub(super) fn poll_events(&mut self) {
        let (mut saw_data, mut saw_room) = (false, false);
        let limit = MAX_EVENTS + self.owner.waits.len() + 3 * self.laws.pauses as usize;
        for taken in 0.. {
            let Some(event) = self.core.poll_event() else { break };
            law!(self, taken < limit, "more than {limit} events wait for the owner");
            self.check_event(&event);
            match event {
                VmEvent::ConsoleData => saw_data = true,
                VmEvent::ConsoleWritable => saw_room = true,
                VmEvent::Ended(id) => self.handle_ended(id),
                _ => {}
            }
        }
        law!(self, saw_data || !self.owner.expects_data, "new output was not reported");
        law!(self, saw_room || !self.owner.expects_room, "room for input was not reported");
        self.owner.expects_data = false;
        self.owner.expects_room = false;
    }

    /// The window, computed from the readers.
    pub(super) fn check_window(&mut self) {
        let console = self.core.console();
        let scrollback = console.scrollback();
        let (start, end) = (scrollback.start(), scrollback.end());
        let offsets = self.owner.readers.iter().flatten().map(|reader| console.offset(reader.id));
        let slowest = match self.owner.had_reader {
            true => offsets.min().unwrap_or(end),
            false => start,
        };
        let capacity = scrollback.capacity();
        let expected = match scrollback.overflow() {
            Overflow::DropOldest => capacity,
            Overflow::Pause => capacity - (end - slowest.clamp(start, end)) as usize,
        };
        let window = self.core.window(Channel::Console);
        law!(self, window == expected, "a window of {window} bytes: expected {expected}");
    }

    /// After the end: every wait has ended, and every reader gets what was not dropped.
    pub(super) fn end_owner(&mut self) {
        self.check_window();
        for (n, wait) in self.owner.waits.iter().enumerate() {
            law!(self, wait.state != WaitState::Open, "wait {n} has not ended: {wait:?}");
        }
        for place in 0..self.owner.readers.len() {
            let Some(reader) = &self.owner.readers[place] else { continue };
            if reader.wait.is_some() {
                continue;
            }
            let id = reader.id;
            let bytes = self.core.with_console(|console, _| console.take(id));
            self.check_read(place, &bytes);
            let (at, end) = (self.core.console().offset(id), self.passed.len() as u64);
            law!(self, at == end, "a reader ends at {at} of {end}");
        }
    }

    pub(super) fn may_begin(&self) -> bool {
        self.owner.waits.len() < MAX_WAITS
    }
}
