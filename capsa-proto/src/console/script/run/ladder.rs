//! [`SignalLadder`]: the requests that end a command which was given up.
//!
//! ```text
//! begin mark    0    0.1  0.3  0.6   0.9   1.2   1.5   2.0 s
//!               INT  INT  INT  TERM  TERM  KILL  KILL  ok, stuck
//! ```
//!
//! Nothing is requested before the begin mark: a line editor could take it. A request is repeated
//! because dash loses a SIGINT that arrives while it forks. Without a begin mark the ladder is stuck
//! after [`BEGIN_LIMIT`]. While a flood that was in the pipe is printed, up to [`FLOOD_LIMIT`], the
//! end mark is only late.

use super::super::{CommandScope, InputKind, Script, ScriptContext, hint, line};
use super::{INTERRUPT, OutputBuffer, RunCommand, RunState};
use crate::console::{Cursor, Scrollback};
use crate::time::{Deadline, Instant};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

/// How long a shell may take to begin a command that was given up.
const BEGIN_LIMIT: Duration = Duration::from_secs(10);

/// How long output may go on after the last step, and the silence that ends it.
const FLOOD_LIMIT: Duration = Duration::from_secs(30);
const FLOOD_PAUSE: Duration = Duration::from_millis(500);

/// The pause after a begin mark that came late. The end mark may be right behind it.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// The requests, and the pause after each.
const STEPS: [(&str, Duration); 7] = [
    ("INT", Duration::from_millis(100)),
    ("INT", Duration::from_millis(200)),
    ("INT", Duration::from_millis(300)),
    ("TERM", Duration::from_millis(300)),
    ("TERM", Duration::from_millis(300)),
    ("KILL", Duration::from_millis(300)),
    ("KILL", Duration::from_millis(500)),
];

#[derive(Debug, Clone)]
pub(super) struct SignalLadder {
    /// The next step; `None` before the begin mark.
    step: Option<usize>,
    next: Option<Instant>,
    /// The time of the last step.
    stepped: Instant,
}

impl SignalLadder {
    fn new(now: Instant, has_begun: bool) -> Self {
        let (step, pause) = if has_begun { (Some(0), Duration::ZERO) } else { (None, BEGIN_LIMIT) };
        Self { step, next: Some(now + pause), stepped: now }
    }

    /// Whether all steps were in vain. The command may still end later.
    pub(super) fn is_stuck(&self) -> bool {
        self.next.is_none()
    }

    fn is_first_step(&self) -> bool {
        self.step == Some(1)
    }

    /// The request that is due.
    fn poll(
        &mut self,
        now: Instant,
        has_begun: bool,
        silent_since: Instant,
    ) -> Option<&'static str> {
        if has_begun && self.step.is_none() {
            (self.step, self.next) = (Some(0), Some(now + FIRST_PAUSE));
        }
        if self.next.is_none_or(|next| now < next) {
            return None;
        }
        match self.step {
            Some(step) if step < STEPS.len() => {
                let (request, pause) = STEPS[step];
                (self.step, self.next, self.stepped) = (Some(step + 1), Some(now + pause), now);
                Some(request)
            }
            Some(_) if now < silent_since + FLOOD_PAUSE && now < self.stepped + FLOOD_LIMIT => {
                self.next = Some(silent_since + FLOOD_PAUSE);
                None
            }
            step => {
                self.next = None;
                step.map(|_| "ok")
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        Some(Deadline { at: self.next?, why: "a command that was given up runs on" })
    }
}

impl RunCommand {
    /// The script that ends this command, and its place: see [`Script::abandon`](super::Script::abandon).
    pub(super) fn give_up(
        &mut self,
        now: Instant,
        at: &Cursor,
    ) -> Option<(Box<dyn Script + Send>, Cursor)> {
        let place = match self.context.ended {
            Some(_) => self.given_up_at.take()?,
            None => *at,
        };
        if matches!(self.state, RunState::Start | RunState::Prompt) || self.is_released() {
            return None;
        }
        let collected = core::mem::replace(&mut self.collected, OutputBuffer::new(0));
        let mut rest = self.clone();
        self.collected = collected;
        rest.context = ScriptContext::new(now, None);
        (rest.is_streamed, rest.is_paused, rest.prompt) = (false, false, None);
        rest.ladder = Some(SignalLadder::new(now, self.has_begun()));
        Some((Box::new(rest), place))
    }

    /// The input that ends a command which was given up.
    pub(super) fn poll_ladder(&mut self, now: Instant) -> Option<Vec<u8>> {
        let (has_begun, silent_since) = (self.has_begun(), self.context.silent_since());
        let ladder = self.ladder.as_mut()?;
        let request = ladder.poll(now, has_begun, silent_since.unwrap_or_default())?;
        if !ladder.is_first_step() {
            self.input_kind = InputKind::Nudge;
        }
        match (self.scope, self.has_listener()) {
            (_, true) => Some(line::request(self.nonce, request)),
            (_, false) if request == "ok" => None,
            // The shell abandons the rest of the line, which prints the end mark.
            (CommandScope::Shell, _) => {
                Some([&[INTERRUPT], line::end_of_interrupted(self.nonce).as_bytes()].concat())
            }
            (CommandScope::Process, _) => Some(vec![INTERRUPT]),
        }
    }

    fn has_begun(&self) -> bool {
        matches!(self.state, RunState::BeginLine | RunState::Output | RunState::EndLine)
    }

    /// Whether a prompt shows that no shell took the command that was given up.
    pub(super) fn is_not_taken(&self, log: &Scrollback) -> bool {
        self.ladder.is_some()
            && matches!(self.state, RunState::Begin)
            && hint::shows_prompt(log, self.since)
    }
}
