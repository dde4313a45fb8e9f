//! [`SignalLadder`]: the requests that end a command which was given up.
//!
//! ```text
//! begin mark    0    0.1  0.3  0.6   0.9   1.2   1.5   2.0   3.0 ...  10.0 s
//!               INT  INT  INT  TERM  TERM  KILL  KILL  KILL  KILL ... ok, stuck
//! ```
//!
//! Nothing is requested before the begin mark: a line editor could take it. A request is repeated
//! because dash loses a SIGINT that arrives while it forks. The end mark may only be late: in a guest
//! that gets little processor time the wrapper takes seconds for each request, so SIGKILL is repeated
//! [`KILLS`] times; while a flood that was in the pipe is printed, up to [`FLOOD_LIMIT`], the
//! ladder waits. A command that is ended by Ctrl-C only is stuck after 2 s.
//!
//! Without a begin mark the ladder is stuck after [`BEGIN_LIMIT`] without output: fish echoes the line
//! character by character, for many seconds in such a guest. A prompt after the echo shows earlier that
//! no shell took the line, after [`PROMPT_PAUSE`]: a line that was typed ahead is echoed before the
//! prompt too, and again after it. A prompt alone was there before the line.

use super::super::{CommandScope, InputKind, Script, ScriptContext, hint, line};
use super::{INTERRUPT, OutputBuffer, RunCommand, RunState};
use crate::console::{Cursor, Scrollback};
use crate::time::{Deadline, Instant};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

/// How long a shell that prints nothing may take to begin a command that was given up, and one that does.
const BEGIN_LIMIT: Duration = Duration::from_secs(10);
const ECHO_LIMIT: Duration = Duration::from_secs(60);

/// The silence after the echo and a prompt which shows that no shell took the command.
const PROMPT_PAUSE: Duration = Duration::from_secs(3);

/// How often SIGKILL is repeated after the last step.
const KILLS: usize = 8;
const KILL_PAUSE: Duration = Duration::from_secs(1);

/// How long output may go on after the last step, and the silence that ends it.
const FLOOD_LIMIT: Duration = Duration::from_secs(30);
const FLOOD_PAUSE: Duration = Duration::from_millis(500);

/// A poll that comes so much too late proves nothing.
const LATE: Duration = Duration::from_secs(1);

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
    /// The time of the last step, or of the give-up.
    stepped: Instant,
    /// The end of the output at the last search for a prompt.
    checked: Option<u64>,
}

impl SignalLadder {
    fn new(now: Instant, has_begun: bool) -> Self {
        let (step, pause) = if has_begun { (Some(0), Duration::ZERO) } else { (None, BEGIN_LIMIT) };
        Self { step, next: Some(now + pause), stepped: now, checked: None }
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
        has_listener: bool,
        silent_since: Instant,
    ) -> Option<&'static str> {
        if has_begun && self.step.is_none() {
            (self.step, self.next) = (Some(0), Some(now + FIRST_PAUSE));
        }
        let next = self.next.filter(|next| now >= *next)?;
        // A program or a host that was suspended has read nothing meanwhile: the wait begins again.
        if now > next + LATE && self.step.is_none_or(|step| step >= STEPS.len()) {
            let pause = if self.step.is_none() { BEGIN_LIMIT } else { KILL_PAUSE };
            (self.next, self.stepped) = (Some(now + pause), now);
            return None;
        }
        match self.step {
            None if now < silent_since + BEGIN_LIMIT && now < self.stepped + ECHO_LIMIT => {
                self.next = Some(silent_since + BEGIN_LIMIT);
                None
            }
            Some(step) if step < STEPS.len() => {
                let (request, pause) = STEPS[step];
                (self.step, self.next, self.stepped) = (Some(step + 1), Some(now + pause), now);
                Some(request)
            }
            Some(_) if now < silent_since + FLOOD_PAUSE && now < self.stepped + FLOOD_LIMIT => {
                self.next = Some(silent_since + FLOOD_PAUSE);
                None
            }
            Some(step) if has_listener && step < STEPS.len() + KILLS => {
                (self.step, self.next) = (Some(step + 1), Some(now + KILL_PAUSE));
                Some("KILL")
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
        let (has_begun, has_listener) = (self.has_begun(), self.has_listener());
        let silent_since = self.context.silent_since();
        let ladder = self.ladder.as_mut()?;
        let silent_since = silent_since.unwrap_or_default();
        let request = ladder.poll(now, has_begun, has_listener, silent_since)?;
        if !ladder.is_first_step() {
            self.input_kind = InputKind::Nudge;
        }
        match (self.scope, has_listener) {
            (_, true) => Some(line::request(self.nonce, request)),
            (_, false) if request == "ok" => None,
            // The shell abandons the rest of the line, which prints the end mark.
            (CommandScope::Shell, _) => {
                Some([&[INTERRUPT], line::end_of_interrupted(self.nonce).as_bytes()].concat())
            }
            (CommandScope::Process | CommandScope::Terminal, _) => Some(vec![INTERRUPT]),
        }
    }

    fn has_begun(&self) -> bool {
        matches!(self.state, RunState::BeginLine | RunState::Output | RunState::EndLine)
    }

    /// When to search for a prompt of a shell that did not take the command, if nothing more is printed.
    pub(super) fn not_taken_at(&self) -> Option<Deadline> {
        let ladder = self.ladder.as_ref()?;
        let is_checked = ladder.checked == Some(self.polled_end);
        if !matches!(self.state, RunState::Begin | RunState::ExpectMore(_))
            || (is_checked && ladder.is_stuck())
        {
            return None;
        }
        let silent_since = self.context.silent_since()?;
        let at = match ladder.next {
            Some(next) if is_checked => next.max(silent_since + BEGIN_LIMIT),
            _ => silent_since + PROMPT_PAUSE,
        };
        Some(Deadline { at, why: "a prompt may show that no shell took the command" })
    }

    /// Whether a prompt shows that no shell took the command that was given up.
    pub(super) fn is_not_taken(&mut self, now: Instant, log: &Scrollback) -> bool {
        let Some(due) = self.not_taken_at().filter(|due| now >= due.at) else { return false };
        if now > due.at + LATE {
            self.context.restart_silence();
            return false;
        }
        let Some(ladder) = &mut self.ladder else { return false };
        let is_checked = ladder.checked.replace(self.polled_end) == Some(self.polled_end);
        hint::shows_prompt(log, self.since)
            && (is_checked || ladder.is_stuck() || hint::shows_echo(log, self.since))
    }
}
