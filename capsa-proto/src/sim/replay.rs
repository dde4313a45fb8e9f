//! [`Replay`]: a recorded guest, which does it all again.
//!
//! ```text
//! output ─► said, at its time or at once
//! input  ─► waited for; what comes instead ends the machine with an error that shows both
//! ```
//!
//! An input that is waited for holds up the output behind it, so the answer never comes before the
//! question, however fast the replay goes. The marks of a command go by a number that differs from
//! run to run; [`GuestSim::nonce`] tells the one that the recording has.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use memchr::memmem;

use super::{GuestSim, INPUT_MAX, SimAction, shell_input};
use crate::backend::GuestEvent;
use crate::codec::MAX_BACKLOG;
use crate::codec::asciicast::{AsciicastError, Decoder, End, Event, What};
use crate::lifecycle::Exit;
use crate::time::{Deadline, Instant};

/// What a login presses to see whether anybody is there. It depends on how long the guest was
/// silent, so it is neither recorded nor missed.
const NUDGE: u8 = b'\r';

/// The longest excerpt of an input in an error.
const SHOWN: usize = 120;

/// Bytes of a recording that is replayed, at most: 64 MiB.
const MAX_RECORDING: usize = 64 << 20;

/// How fast a recording is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReplaySpeed {
    /// As fast as it goes: output comes at once, up to the next input.
    #[default]
    Fast,
    /// As it was recorded. What follows an input comes as long after it as it did then.
    Original,
}

/// What is done with what is typed during a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReplayInput {
    /// It must be what was recorded, byte for byte, however it is cut. A password, which no
    /// recording has, may be any line. Where nothing was recorded nothing is checked.
    #[default]
    Checked,
    /// It may be anything: a line for a line.
    Ignored,
}

/// A recording, to be played.
#[derive(Debug, Clone)]
pub struct Replay {
    events: Arc<[Event]>,
    /// Where in the output the marks of commands begin, and their numbers.
    marks: Arc<[(u64, u64)]>,
    has_input: bool,
    speed: ReplaySpeed,
    input: ReplayInput,
}

/// Why a recording cannot be replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// It is no recording.
    #[error(transparent)]
    Malformed(#[from] AsciicastError),
    /// It is longer than a test should hold in memory.
    #[error("recording is longer than {max} bytes")]
    TooLong {
        /// Bytes allowed.
        max: usize,
    },
}

impl Replay {
    /// The recording in this file's bytes.
    ///
    /// # Errors
    ///
    /// When it is no asciicast v2 file, or longer than 64 MiB.
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
        let is_input = |event: &Event| matches!(event.what, What::Input(_) | What::Secret);
        Ok(Self {
            marks: marks(&events).into(),
            has_input: events.iter().any(is_input),
            events: events.into(),
            speed: ReplaySpeed::default(),
            input: ReplayInput::default(),
        })
    }

    /// How fast it goes; [`ReplaySpeed::Fast`] unless said.
    #[must_use]
    pub fn speed(mut self, speed: ReplaySpeed) -> Self {
        self.speed = speed;
        self
    }

    /// What is done with what is typed; [`ReplayInput::Checked`] unless said.
    #[must_use]
    pub fn input(mut self, input: ReplayInput) -> Self {
        self.input = input;
        self
    }

    /// A play of it.
    pub fn simulate(&self) -> Box<dyn GuestSim> {
        Box::new(ReplaySim {
            recording: self.clone(),
            at: 0,
            within: 0,
            anchor: (Instant::ZERO, Duration::ZERO),
            typed: VecDeque::new(),
            off: false,
            over: false,
            pressed: false,
            deaf: false,
        })
    }
}

/// Where each command's first mark is in the output.
fn marks(events: &[Event]) -> Vec<(u64, u64)> {
    let output: Vec<u8> = events
        .iter()
        .filter_map(|event| match &event.what {
            What::Output(bytes) => Some(bytes.as_slice()),
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

/// A recording that is being played.
#[derive(Debug)]
struct ReplaySim {
    recording: Replay,
    /// The next event.
    at: usize,
    /// How much of it was typed already, where it is an input.
    within: usize,
    /// The moment of the replay that this moment of the recording is.
    anchor: (Instant, Duration),
    typed: VecDeque<u8>,
    /// The guest is off: the hypervisor's end comes next.
    off: bool,
    over: bool,
    pressed: bool,
    /// It did not power off when this was recorded.
    deaf: bool,
}

/// What came of waiting for an input.
enum InputMatch {
    All,
    NotYet,
    Other { expected: String },
}

impl ReplaySim {
    fn due(&self, event: &Event) -> Instant {
        match self.recording.speed {
            ReplaySpeed::Fast => Instant::ZERO,
            ReplaySpeed::Original => self.anchor.0 + event.at.saturating_sub(self.anchor.1),
        }
    }

    fn advance(&mut self) {
        self.at += 1;
        self.within = 0;
    }

    fn hear(&mut self, wanted: &[u8]) -> InputMatch {
        if self.recording.input == ReplayInput::Ignored {
            return self.hear_anything(wanted);
        }
        while let Some(wanted_byte) = wanted.get(self.within) {
            match self.typed.front() {
                None => return InputMatch::NotYet,
                Some(byte) if byte == wanted_byte => self.within += 1,
                Some(&NUDGE) if self.within == 0 => {}
                Some(_) => return InputMatch::Other { expected: shown(&wanted[self.within..]) },
            }
            self.typed.pop_front();
        }
        InputMatch::All
    }

    /// A line for a line; where it has no end, as many bytes.
    fn hear_anything(&mut self, wanted: &[u8]) -> InputMatch {
        let ends = wanted.iter().filter(|byte| is_line_end(**byte)).count();
        let enough = if ends == 0 { wanted.len() } else { ends };
        while self.within < enough {
            let Some(byte) = self.typed.pop_front() else { return InputMatch::NotYet };
            self.within += usize::from(ends == 0 || is_line_end(byte));
        }
        InputMatch::All
    }

    /// A line that is not told.
    fn hear_secret(&mut self) -> InputMatch {
        match self.typed.iter().position(|byte| is_line_end(*byte)) {
            Some(end) => {
                self.typed.drain(..=end);
                InputMatch::All
            }
            None => InputMatch::NotYet,
        }
    }

    fn mismatch(&mut self, expected: &str) -> SimAction {
        self.over = true;
        let (front, _) = self.typed.as_slices();
        let stderr_tail =
            format!("the replay expected {expected} to be typed here, and got {}", shown(front));
        SimAction::Exit(Exit { stderr_tail, ..Exit::with_code(1) })
    }

    /// ShellLine after everything: as little expected as anything else that was not recorded.
    fn after_all(&mut self) -> Option<SimAction> {
        while self.typed.front() == Some(&NUDGE) {
            self.typed.pop_front();
        }
        let checked = self.recording.has_input && self.recording.input == ReplayInput::Checked;
        if !checked {
            self.typed.clear();
        }
        if !self.typed.is_empty() {
            return Some(self.mismatch("nothing more"));
        }
        None
    }
}

impl GuestSim for ReplaySim {
    fn begin(&mut self, now: Instant) {
        self.anchor = (now, Duration::ZERO);
    }

    fn handle_input(&mut self, _: Instant, bytes: &[u8]) {
        let room = INPUT_MAX.saturating_sub(self.typed.len());
        if self.recording.has_input && !self.over && !self.pressed {
            self.typed.extend(&bytes[..bytes.len().min(room)]);
        }
    }

    /// Goes on behind the place where it was pressed when this was recorded, whatever was to be
    /// typed before. Where it was not, the guest just powers off.
    fn handle_power_button(&mut self, now: Instant) {
        if self.pressed || self.deaf {
            return;
        }
        self.pressed = true;
        self.typed.clear();
        let events = &self.recording.events;
        let rest = events.get(self.at..).unwrap_or_default();
        let press = rest.iter().position(|event| event.what == What::PowerButton);
        let moment = press.map(|n| rest[n].at);
        self.at = press.map_or(events.len(), |n| self.at + n + 1);
        self.within = 0;
        self.anchor = (now, moment.unwrap_or_default());
    }

    fn poll_action(&mut self, now: Instant) -> Option<SimAction> {
        let events = Arc::clone(&self.recording.events);
        if self.off && !self.over {
            self.over = true;
            return Some(SimAction::Exit(Exit::with_code(0)));
        }
        while !self.over {
            let Some(event) = events.get(self.at) else {
                if self.pressed && !self.deaf {
                    self.off = true;
                    return Some(SimAction::Event(GuestEvent::PoweredOff));
                }
                return self.after_all();
            };
            let heard = match &event.what {
                // Asked again, or typed on the way out, when this was recorded.
                What::Input(_) | What::Secret | What::PowerButton if self.pressed => {
                    self.advance();
                    continue;
                }
                What::Input(wanted) => self.hear(wanted),
                What::Secret => self.hear_secret(),
                What::PowerButton => InputMatch::NotYet,
                _ if now < self.due(event) => return None,
                What::Marker(_) => {
                    self.advance();
                    continue;
                }
                What::Output(bytes) => {
                    self.advance();
                    return Some(SimAction::Output(bytes.clone()));
                }
                What::End(end) => {
                    self.advance();
                    match end {
                        End::PoweredOff => {
                            self.off = true;
                            return Some(SimAction::Event(GuestEvent::PoweredOff));
                        }
                        End::Reset => {
                            self.over = true;
                            return Some(SimAction::Event(GuestEvent::Reset));
                        }
                        End::Panicked => {
                            self.over = true;
                            return Some(SimAction::Event(GuestEvent::Panicked));
                        }
                        // Whoever did that then has to do it again.
                        End::Cut => {
                            self.deaf = true;
                            continue;
                        }
                    }
                }
            };
            match heard {
                InputMatch::NotYet => return None,
                InputMatch::Other { expected } => return Some(self.mismatch(&expected)),
                InputMatch::All => {
                    self.anchor = (now, event.at);
                    self.advance();
                }
            }
        }
        None
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        let event = self.recording.events.get(self.at).filter(|_| !self.over && !self.off)?;
        match event.what {
            What::Input(_) | What::Secret | What::PowerButton if !self.pressed => None,
            _ => Some(Deadline { at: self.due(event), why: "the replay goes on" }),
        }
    }

    fn nonce(&self, from: u64) -> Option<u64> {
        // A Ctrl-C may be on its way that ended the command before.
        let typed =
            self.recording.events.iter().skip(self.at).find_map(|event| match &event.what {
                What::Input(bytes) => shell_input::nonce(&String::from_utf8_lossy(bytes)),
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

/// As it is shown in an error: quoted, escaped, and not too long.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]);
    let more = if bytes.len() > SHOWN { " …" } else { "" };
    format!("{text:?}{more}")
}
