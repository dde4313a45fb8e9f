//! [`Replay`]: a simulated guest that repeats a recording.
//!
//! ```text
//! recorded output ─► is written to the console, at its recorded time or immediately
//! recorded input  ─► is expected; other input ends the VM with an error that shows both
//! ```
//!
//! The output after a recorded input waits for that input, so a reply never comes before its
//! command, at any speed. The marks of a command contain a nonce that differs from run to run;
//! [`GuestSim::nonce`] returns the recorded one.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use memchr::memmem;

use super::line_discipline::INTERRUPT;
use super::{GuestSim, INPUT_MAX, SimAction, shell_input};
use crate::backend::GuestEvent;
use crate::codec::MAX_BACKLOG;
use crate::codec::asciicast::{AsciicastError, CastEvent, CastEventKind, Decoder, RecordedEnd};
use crate::lifecycle::Exit;
use crate::time::{Deadline, Instant};

/// The Enter that a login script sends to a silent guest. It depends on timing, so recordings omit it
/// and a replay ignores it.
const NUDGE: u8 = b'\r';

/// Most bytes of input that an error shows.
const SHOWN_MAX: usize = 120;

/// Most bytes of a recording: 64 MiB.
const MAX_RECORDING: usize = 64 << 20;

/// How fast a recording is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ReplaySpeed {
    /// As fast as possible: output comes immediately, up to the next input. The default.
    #[default]
    Fast,
    /// At the recorded speed. Output after an input has its recorded delay from that input.
    Original,
}

/// How a replay treats input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ReplayInput {
    /// Input must equal the recorded input, byte for byte, in any chunks. A password, which recordings
    /// omit, may be any line. A recording without input accepts any input. The default.
    #[default]
    Checked,
    /// Any input is accepted, one line for each recorded line.
    Ignored,
}

/// A simulated guest that repeats a recording.
#[derive(Debug, Clone)]
pub struct Replay {
    events: Arc<[CastEvent]>,
    /// The offsets of the begin marks of commands in the output, and their nonces.
    marks: Arc<[(u64, u64)]>,
    has_input: bool,
    speed: ReplaySpeed,
    input: ReplayInput,
}

/// Why a recording cannot be replayed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The file is not a valid recording.
    #[error(transparent)]
    Malformed(#[from] AsciicastError),
    /// The recording is too long to be held in memory.
    #[error("recording is longer than {max} bytes")]
    TooLong {
        /// Bytes allowed.
        max: usize,
    },
    /// The recording is incomplete: the program that made it ended before its VM.
    #[error(
        "recording is incomplete: it has no end record after {events} events, so the guest's end is \
         unknown; record it again, or add the line [{at:?}, \"end\", \"cut\"] for a guest that \
         prints nothing after that"
    )]
    NoEnd {
        /// The number of events.
        events: usize,
        /// The time of the last event, in seconds.
        at: f64,
    },
}

impl Replay {
    /// Parses the content of a recording.
    ///
    /// # Errors
    ///
    /// When it is not an asciicast v2 file, is longer than 64 MiB, or has no end record.
    pub fn parse(file: &[u8]) -> Result<Self, ReplayError> {
        if file.len() > MAX_RECORDING {
            return Err(ReplayError::TooLong { max: MAX_RECORDING });
        }
        let mut decoder = Decoder::new();
        let mut events = Vec::new();
        for piece in file.chunks(MAX_BACKLOG / 4) {
            decoder.handle_bytes(piece)?;
            while let Some(event) = decoder.poll_event()? {
                events.push(event);
            }
        }
        decoder.handle_eof()?;
        while let Some(event) = decoder.poll_event()? {
            events.push(event);
        }
        if !events.iter().any(|event| matches!(event.kind, CastEventKind::End(_))) {
            let at = events.last().map_or(0.0, |event| event.at.as_secs_f64());
            return Err(ReplayError::NoEnd { events: events.len(), at });
        }
        let is_input = |event: &CastEvent| {
            matches!(event.kind, CastEventKind::Input(_) | CastEventKind::Secret)
        };
        Ok(Self {
            marks: marks(&events).into(),
            has_input: events.iter().any(is_input),
            events: events.into(),
            speed: ReplaySpeed::default(),
            input: ReplayInput::default(),
        })
    }

    /// Sets the speed. Default: [`ReplaySpeed::Fast`].
    #[must_use]
    pub fn speed(mut self, speed: ReplaySpeed) -> Self {
        self.speed = speed;
        self
    }

    /// Sets how input is treated. Default: [`ReplayInput::Checked`].
    #[must_use]
    pub fn input(mut self, input: ReplayInput) -> Self {
        self.input = input;
        self
    }

    /// A new simulation of this recording.
    pub fn simulate(&self) -> Box<dyn GuestSim> {
        Box::new(ReplaySim {
            recording: self.clone(),
            next: 0,
            matched: 0,
            anchor: (Instant::ZERO, Duration::ZERO),
            input: VecDeque::new(),
            is_off: false,
            has_ended: false,
            button_pressed: false,
            ignores_power_button: false,
        })
    }
}

/// The offset and nonce of each command's begin mark in the output.
fn marks(events: &[CastEvent]) -> Vec<(u64, u64)> {
    let output: Vec<u8> = events
        .iter()
        .filter_map(|event| match &event.kind {
            CastEventKind::Output(bytes) => Some(bytes.as_slice()),
            _ => None,
        })
        .flatten()
        .copied()
        .collect();
    let number = |at: usize| {
        let digits = core::str::from_utf8(output.get(at..at + 16)?).ok()?;
        u64::from_str_radix(digits, 16).ok()
    };
    let mut found: Vec<(u64, u64)> = ["capsa:begin:", "capsa:more:"]
        .iter()
        .flat_map(|mark| {
            let places = memmem::find_iter(&output, mark);
            places.filter_map(move |at| Some((at as u64, number(at + mark.len())?)))
        })
        .collect();
    found.sort_unstable();
    found
}

/// The state machine of a running [`Replay`].
#[derive(Debug)]
struct ReplaySim {
    recording: Replay,
    /// The index of the next event.
    next: usize,
    /// How much of that event's input has arrived.
    matched: usize,
    /// A time of the replay and the recorded time that corresponds to it.
    anchor: (Instant, Duration),
    input: VecDeque<u8>,
    /// The guest is off: the exit of the hypervisor comes next.
    is_off: bool,
    has_ended: bool,
    button_pressed: bool,
    /// The guest did not power off in the recording.
    ignores_power_button: bool,
}

/// The state of an expected input.
enum InputMatch {
    Complete,
    Incomplete,
    Mismatch { expected: String, got: String },
}

impl ReplaySim {
    fn due(&self, event: &CastEvent) -> Instant {
        match self.recording.speed {
            ReplaySpeed::Fast => Instant::ZERO,
            ReplaySpeed::Original => self.anchor.0 + event.at.saturating_sub(self.anchor.1),
        }
    }

    fn advance(&mut self) {
        self.next += 1;
        self.matched = 0;
    }

    fn match_input(&mut self, wanted: &[u8]) -> InputMatch {
        if self.recording.input == ReplayInput::Ignored {
            return self.match_any_line(wanted);
        }
        while let Some(wanted_byte) = wanted.get(self.matched) {
            if self.matched == 0 && !shell_input::is_repeatable(wanted) {
                self.skip_repeated();
            }
            match self.input.front() {
                None => return InputMatch::Incomplete,
                Some(byte) if byte == wanted_byte => self.matched += 1,
                Some(&NUDGE) if self.matched == 0 => {}
                Some(_) => {
                    let (same, rest) = wanted.split_at(self.matched);
                    let (input, _) = self.input.as_slices();
                    let got = [same, input].concat();
                    return match (shell_input::command(wanted), shell_input::command(&got)) {
                        (None, None) => {
                            InputMatch::Mismatch { expected: shown(rest), got: shown(input) }
                        }
                        (expected, got_command) => InputMatch::Mismatch {
                            expected: expected.unwrap_or_else(|| shown(wanted)),
                            got: got_command.unwrap_or_else(|| shown(&got)),
                        },
                    };
                }
            }
            self.input.pop_front();
        }
        InputMatch::Complete
    }

    /// Accepts one line for each recorded line or, if there is none, the recorded number of bytes.
    fn match_any_line(&mut self, wanted: &[u8]) -> InputMatch {
        let ends = wanted.iter().filter(|byte| is_line_end(**byte)).count();
        let enough = if ends == 0 { wanted.len() } else { ends };
        while self.matched < enough {
            let Some(byte) = self.input.pop_front() else { return InputMatch::Incomplete };
            self.matched += usize::from(ends == 0 || is_line_end(byte));
        }
        InputMatch::Complete
    }

    /// Accepts any line.
    fn match_secret(&mut self) -> InputMatch {
        match self.input.iter().position(|byte| is_line_end(*byte)) {
            Some(end) => {
                self.input.drain(..=end);
                InputMatch::Complete
            }
            None => InputMatch::Incomplete,
        }
    }

    fn mismatch(&mut self, expected: &str, got: &str) -> SimAction {
        self.has_ended = true;
        let stderr_tail = format!("the replay expected the input {expected} but got {got}");
        SimAction::Exit(Exit { stderr_tail, ..Exit::with_code(1) })
    }

    /// Drops repeated requests to end a command. They depend on timing, so recordings omit them.
    fn skip_repeated(&mut self) {
        loop {
            let end = self.input.iter().position(|byte| is_line_end(*byte) || *byte == INTERRUPT);
            let Some(end) = end else { return };
            let line: Vec<u8> = self.input.range(..=end).copied().collect();
            if !shell_input::is_repeatable(&line) {
                return;
            }
            self.input.drain(..=end);
        }
    }

    /// Input after the last event is an error, like any other input that was not recorded.
    fn after_last_event(&mut self) -> Option<SimAction> {
        self.skip_repeated();
        while self.input.front() == Some(&NUDGE) {
            self.input.pop_front();
        }
        let checked = self.recording.has_input && self.recording.input == ReplayInput::Checked;
        if !checked {
            self.input.clear();
        }
        if !self.input.is_empty() {
            let (front, _) = self.input.as_slices();
            let got = shell_input::command(front).unwrap_or_else(|| shown(front));
            return Some(self.mismatch("to be empty", &got));
        }
        None
    }
}

impl GuestSim for ReplaySim {
    fn begin(&mut self, now: Instant) {
        self.anchor = (now, Duration::ZERO);
    }

    fn handle_input(&mut self, _: Instant, bytes: &[u8]) {
        let room = INPUT_MAX.saturating_sub(self.input.len());
        if self.recording.has_input && !self.has_ended && !self.button_pressed {
            self.input.extend(&bytes[..bytes.len().min(room)]);
        }
    }

    /// Continues after the recorded button press and skips the input before it. If the recording has
    /// none, the guest powers off.
    fn handle_power_button(&mut self, now: Instant) {
        if self.button_pressed || self.ignores_power_button {
            return;
        }
        self.button_pressed = true;
        self.input.clear();
        let events = &self.recording.events;
        let rest = events.get(self.next..).unwrap_or_default();
        let press = rest.iter().position(|event| event.kind == CastEventKind::PowerButton);
        let moment = press.map(|n| rest[n].at);
        self.next = press.map_or(events.len(), |n| self.next + n + 1);
        self.matched = 0;
        self.anchor = (now, moment.unwrap_or_default());
    }

    fn poll_action(&mut self, now: Instant) -> Option<SimAction> {
        let events = Arc::clone(&self.recording.events);
        if self.is_off && !self.has_ended {
            self.has_ended = true;
            return Some(SimAction::Exit(Exit::with_code(0)));
        }
        while !self.has_ended {
            let Some(event) = events.get(self.next) else {
                if self.button_pressed && !self.ignores_power_button {
                    self.is_off = true;
                    return Some(SimAction::Event(GuestEvent::PoweredOff));
                }
                return self.after_last_event();
            };
            let progress = match &event.kind {
                // Another press of the button, or input while the guest powered off.
                CastEventKind::Input(_) | CastEventKind::Secret | CastEventKind::PowerButton
                    if self.button_pressed =>
                {
                    self.advance();
                    continue;
                }
                CastEventKind::Input(wanted) => self.match_input(wanted),
                CastEventKind::Secret => self.match_secret(),
                CastEventKind::PowerButton => InputMatch::Incomplete,
                _ if now < self.due(event) => return None,
                CastEventKind::Marker(_) => {
                    self.advance();
                    continue;
                }
                CastEventKind::Output(bytes) => {
                    self.advance();
                    return Some(SimAction::Output(bytes.clone()));
                }
                CastEventKind::End(end) => {
                    self.advance();
                    match end {
                        RecordedEnd::PoweredOff => {
                            self.is_off = true;
                            return Some(SimAction::Event(GuestEvent::PoweredOff));
                        }
                        RecordedEnd::Reset => {
                            self.has_ended = true;
                            return Some(SimAction::Event(GuestEvent::Reset));
                        }
                        RecordedEnd::Panicked => {
                            self.has_ended = true;
                            return Some(SimAction::Event(GuestEvent::Panicked));
                        }
                        // The VM was killed in the recording: the caller has to kill it again.
                        RecordedEnd::Cut => {
                            self.ignores_power_button = true;
                            continue;
                        }
                    }
                }
            };
            match progress {
                InputMatch::Incomplete => return None,
                InputMatch::Mismatch { expected, got } => {
                    return Some(self.mismatch(&expected, &got));
                }
                InputMatch::Complete => {
                    self.anchor = (now, event.at);
                    self.advance();
                }
            }
        }
        None
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        let event =
            self.recording.events.get(self.next).filter(|_| !self.has_ended && !self.is_off)?;
        match event.kind {
            CastEventKind::Input(_) | CastEventKind::Secret | CastEventKind::PowerButton
                if !self.button_pressed =>
            {
                None
            }
            _ => Some(Deadline { at: self.due(event), why: "the replay continues" }),
        }
    }

    fn nonce(&self, from: u64) -> Option<u64> {
        // Other input, such as the Ctrl-C for the previous command, may come before it.
        let typed =
            self.recording.events.iter().skip(self.next).find_map(|event| match &event.kind {
                CastEventKind::Input(bytes) => shell_input::nonce(&String::from_utf8_lossy(bytes)),
                _ => None,
            });
        typed.or_else(|| {
            let (_, number) = self.recording.marks.iter().find(|(at, _)| *at >= from)?;
            Some(*number)
        })
    }
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// Quotes and escapes input for an error, and shortens it.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_MAX)]);
    let more = if bytes.len() > SHOWN_MAX { " …" } else { "" };
    format!("{text:?}{more}")
}
