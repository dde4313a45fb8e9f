//! [`Login`]: logs in and waits for a shell prompt, from any state of the console.
//!
//! ```text
//!            login:            assword:              # $ >
//! (waiting) ───────► username ─────────► password ─────────► done
//!     │                  └───────────────────────────────────►│
//!     └─────── automatic login, or an open shell ────────────►│
//! ```
//!
//! A prompt is the text at the end of the output, without escape sequences and kernel messages, that
//! **has not changed for [`SETTLE_TIME`]**. Only silence shows whether `login: ` is a prompt or the
//! start of `login: root (automatic login)`, and it makes the result independent of the chunking.
//!
//! Other programs may write to the console, more often than that. A line of theirs after a prompt for
//! a name or password does not make it less of a prompt: it counts when that line is complete and is
//! not the prompt's own continuation. A shell prompt that was followed by output before it settled may
//! be anything: the script sends Enter, and the prompt that answers needs to stay for
//! [`ANSWER_SETTLE_TIME`] only.
//!
//! In a longer silence, or in longer noise, the script sends Enter a few times, with growing pauses, so
//! that an open shell, or one whose prompt was lost between kernel messages, prints its prompt again.
//! It does not send Enter while the guest may ask for a password, because Enter would be the answer.
//!
//! A kernel panic or an emergency shell ends the login with an error, once the console is silent after
//! its message: the prompt of an emergency shell does not count as a shell prompt.

use super::screen::{PIECE, PromptKind, Screen};
use super::{
    CommandOutput, InputKind, Script, ScriptAction, ScriptContext, ScriptError, ScriptPoll,
    ShellUse, hint,
};
use crate::console::fault_check::FaultCheck;
use crate::console::{Cursor, GuestFault, Scrollback};
use crate::time::{Deadline, Instant};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

/// How long a prompt must stay unchanged at the end of the output.
const SETTLE_TIME: Duration = Duration::from_millis(100);

/// How long a prompt must stay unchanged after an Enter that was sent because of other output.
const ANSWER_SETTLE_TIME: Duration = Duration::from_millis(30);

/// The silence before the first Enter; doubled each time. In noise it is twice as long.
const NUDGE_AFTER: Duration = Duration::from_secs(5);

/// How often Enter is sent in one step without a prompt.
const NUDGES: u32 = 3;

/// How much earlier Enter is sent if output has just come.
const NUDGE_EARLY: Duration = Duration::from_millis(500);

/// The pause before Enter after a prompt that other output followed, and how often it is sent.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const RETRIES: u32 = 20;

/// How often a guest may ask for the user name before the login counts as refused. An Enter sent
/// earlier makes it ask once more than needed.
const NAME_TRIES: u32 = 3;

/// The byte that the Enter key of a terminal sends. From it getty learns to map it to a newline.
const ENTER: &str = "\r";

/// A login.
///
/// It succeeds when the guest shows a shell prompt, even if the guest asked for no user name or
/// password. The result's output is the end of the console output.
///
/// ```
/// use capsa_proto::console::{Cursor, Login, ScriptAction, Scrollback, Script};
/// use capsa_proto::time::Instant;
/// use core::time::Duration;
///
/// let mut now = Instant::ZERO;
/// let (mut log, mut cursor) = (Scrollback::default(), Cursor::at(0));
/// let mut script = Login::new("root", None, now, None)?;
///
/// log.push(b"Welcome\r\nguest login: ");
/// assert_eq!(script.poll_output(now, &log, &mut cursor, false), ScriptAction::Wait);
/// now = now + Duration::from_millis(100); // the prompt has settled
/// let typed = ScriptAction::Write(b"root\r".to_vec());
/// assert_eq!(script.poll_output(now, &log, &mut cursor, false), typed);
///
/// log.push(b"root\r\n# ");
/// assert_eq!(script.poll_output(now, &log, &mut cursor, false), ScriptAction::Wait);
/// now = script.poll_timeout().unwrap().at;
/// assert!(matches!(script.poll_output(now, &log, &mut cursor, false), ScriptAction::Done(Ok(_))));
/// # Ok::<(), capsa_proto::console::ScriptError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Login {
    context: ScriptContext,
    username: String,
    password: Option<Secret>,
    step: LoginStep,
    input_kind: InputKind,
    screen: Screen,
    prompt: Option<Prompt>,
    /// The time of the last output or input; `None` before the first poll.
    active: Option<Instant>,
    /// The time of the last input, or of the first poll.
    written: Option<Instant>,
    nudges: u32,
    /// When output followed a prompt that does not count for that reason.
    interrupted: Option<Instant>,
    retries: u32,
    name_tries: u32,
    /// Whether a command occupies the shell and will be ended.
    is_held: bool,
}

/// The last prompt of the guest.
#[derive(Debug, Clone, Copy)]
struct Prompt {
    kind: PromptKind,
    /// Since when it is there.
    since: Instant,
    /// The visible bytes up to its end.
    end: u64,
    /// Whether no output followed it, or a complete line of another program.
    counts: bool,
}

/// What the login wrote last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoginStep {
    Nothing,
    Name,
    Password,
}

/// Text that `Debug` does not show.
#[derive(Clone)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Login {
    /// A login that starts `now`.
    ///
    /// # Errors
    /// When the user name or the password has a control byte, which the terminal would interpret.
    pub fn new(
        username: &str,
        password: Option<&str>,
        now: Instant,
        timeout: Option<Duration>,
    ) -> Result<Self, ScriptError> {
        typeable("username", username)?;
        typeable("password", password.unwrap_or_default())?;
        Ok(Self {
            context: ScriptContext::new(now, timeout),
            username: username.into(),
            password: password.map(|p| Secret(p.into())),
            step: LoginStep::Nothing,
            input_kind: InputKind::Plain,
            screen: Screen::default(),
            prompt: None,
            active: None,
            written: None,
            nudges: 0,
            interrupted: None,
            retries: 0,
            name_tries: 0,
            is_held: false,
        })
    }

    /// Reads the new output. Returns `true` if the guest refused the login.
    fn read(&mut self, now: Instant, log: &Scrollback, cursor: &mut Cursor) -> bool {
        let shown = self.screen.shown();
        // Output that came with the prompt is not that of another program.
        let mut before = self.prompt.filter(|prompt| prompt.since < now);
        while !cursor.peek(log).is_empty() {
            let from = cursor.offset().max(log.start());
            self.screen.push(cursor.before(log, from + PIECE as u64));
            if self.step != LoginStep::Nothing && self.screen.has_login_incorrect() {
                return true;
            }
            // Before the screen drops the line of the prompt, however much output comes at once.
            if self.screen.shown() != shown {
                before = before.and_then(|prompt| self.after_prompt(prompt, now));
            }
        }
        if self.screen.shown() != shown {
            self.active = Some(now);
            self.prompt = match self.screen.prompt_kind() {
                Some(kind) => {
                    Some(Prompt { kind, since: now, end: self.screen.shown(), counts: true })
                }
                None => before,
            };
        }
        false
    }

    /// The prompt, if it still is one after further output.
    fn after_prompt(&mut self, prompt: Prompt, now: Instant) -> Option<Prompt> {
        let (rest, is_complete) = self.screen.line_from(prompt.end)?;
        // A name is one word. A password is not echoed, and this script types it.
        let is_foreign = match prompt.kind {
            PromptKind::Login => rest.contains(&b' ') && !rest.ends_with(b"(automatic login)"),
            PromptKind::Password => true,
            PromptKind::Shell => false,
        };
        if prompt.kind != PromptKind::Shell && (is_foreign || !is_complete) {
            return Some(Prompt { counts: is_foreign && is_complete, ..prompt });
        }
        let is_safe = match prompt.kind {
            PromptKind::Shell => true,
            PromptKind::Login => self.step == LoginStep::Nothing,
            PromptKind::Password => false,
        };
        self.interrupted = is_safe.then_some(now);
        None
    }

    fn answer(
        &mut self,
        prompt: PromptKind,
        now: Instant,
        log: &Scrollback,
        cursor: &mut Cursor,
    ) -> Option<ScriptAction> {
        match (prompt, self.step) {
            (PromptKind::Shell, _) => Some(self.succeed(log)),
            (PromptKind::Login, LoginStep::Nothing | LoginStep::Name)
                if self.name_tries < NAME_TRIES =>
            {
                self.name_tries += 1;
                self.context.faults = Some(FaultCheck::for_all(log, log.end()));
                let name = self.username.clone();
                Some(self.write(LoginStep::Name, &name, now))
            }
            (PromptKind::Password, LoginStep::Name) => match self.password.clone() {
                Some(Secret(password)) => Some(self.write(LoginStep::Password, &password, now)),
                None => {
                    let username = self.username.clone();
                    Some(self.context.fail(ScriptError::PasswordNeeded { username }, cursor))
                }
            },
            // The prompt of an earlier login attempt. Enter ends it.
            (PromptKind::Password, LoginStep::Nothing) => None,
            (PromptKind::Login | PromptKind::Password, _) => Some(self.refused(cursor)),
        }
    }

    fn write(&mut self, step: LoginStep, text: &str, now: Instant) -> ScriptAction {
        if step != self.step {
            (self.nudges, self.retries) = (0, 0);
        }
        self.interrupted = None;
        self.step = step;
        self.input_kind = match (step, text) {
            (_, "") => InputKind::Nudge,
            (LoginStep::Password, _) => InputKind::Secret,
            _ => InputKind::Plain,
        };
        self.screen.clear();
        self.prompt = None;
        (self.active, self.written) = (Some(now), Some(now));
        let mut line = Vec::with_capacity(text.len() + ENTER.len());
        line.extend_from_slice(text.as_bytes());
        line.extend_from_slice(ENTER.as_bytes());
        ScriptAction::Write(line)
    }

    fn succeed(&mut self, log: &Scrollback) -> ScriptAction {
        let output = self.context.tail(log);
        let begin = self.context.origin();
        let truncated = (output.len() as u64) < log.end() - begin.min(log.end());
        self.context.succeed(CommandOutput { output, status: None, truncated })
    }

    fn refused(&mut self, cursor: &mut Cursor) -> ScriptAction {
        let username = self.username.clone();
        self.context.fail(ScriptError::LoginIncorrect { username }, cursor)
    }

    /// The error if a guest fault ends the login.
    fn fault(&self, now: Instant, log: &Scrollback, closed: bool) -> Option<ScriptError> {
        if self.is_at_login_prompt() && !closed {
            return None;
        }
        let report = self.context.fault(now, log, closed)?;
        let expected = self.expected().into();
        match report.fault {
            GuestFault::KernelPanic => Some(self.context.panicked(log, expected, report)),
            GuestFault::EmergencyShell => Some(self.context.in_emergency(log, expected, report)),
            // `screen` recognises the refusal of this login; an earlier one does not matter.
            GuestFault::LoginIncorrect => None,
        }
    }

    /// A login prompt shows that the guest runs, despite earlier messages.
    fn is_at_login_prompt(&self) -> bool {
        self.prompt.is_some_and(|prompt| prompt.kind == PromptKind::Login)
    }

    /// Whether a shell prompt would be that of an emergency shell.
    fn may_be_emergency_shell(&self) -> bool {
        matches!(
            self.context.fault_candidate(),
            Some(GuestFault::KernelPanic | GuestFault::EmergencyShell)
        )
    }

    fn settles_at(&self) -> Option<Deadline> {
        let Prompt { kind, since, .. } = self.prompt.filter(|prompt| prompt.counts)?;
        // `answer` and `fault` ignore these.
        let ignored = (kind, self.step) == (PromptKind::Password, LoginStep::Nothing)
            || kind == PromptKind::Shell && self.may_be_emergency_shell();
        let time = if self.retries == 0 { SETTLE_TIME } else { ANSWER_SETTLE_TIME };
        (!ignored).then_some(Deadline { at: since + time, why: "a prompt may be complete" })
    }

    fn nudge_at(&self) -> Option<Deadline> {
        if self.may_be_emergency_shell() || self.settles_at().is_some() {
            return None;
        }
        if let Some(at) = self.interrupted.filter(|_| self.retries < RETRIES) {
            return Some(Deadline { at: at + RETRY_AFTER, why: "output followed a prompt" });
        }
        if self.step == LoginStep::Name || self.nudges == NUDGES {
            return None;
        }
        let pause = NUDGE_AFTER * 2u32.pow(self.nudges);
        let at = (self.active? + pause).min(self.written? + 2 * pause);
        Some(Deadline { at, why: "there is no prompt, send Enter" })
    }

    fn not_met(
        &mut self,
        now: Instant,
        log: &Scrollback,
        cursor: &mut Cursor,
        closed: bool,
    ) -> ScriptAction {
        let near_match = hint::for_no_prompt(log, self.context.origin(), self.nudges);
        let error = self.context.not_met(now, log, closed, self.expected().into(), near_match);
        self.context.fail(error, cursor)
    }

    fn expected(&self) -> &'static str {
        match self.step {
            LoginStep::Nothing => "a login prompt or a shell prompt",
            LoginStep::Name => "a password prompt or a shell prompt",
            LoginStep::Password => "a shell prompt",
        }
    }
}

impl Script for Login {
    fn begin(&mut self, cursor: &Cursor) -> Option<ScriptError> {
        self.context.begin(cursor)
    }

    fn advance(&mut self, poll: ScriptPoll<'_>) -> ScriptAction {
        let ScriptPoll { now, log, cursor, closed, shell } = poll;
        self.active.get_or_insert(now);
        self.written.get_or_insert(now);
        if self.read(now, log, cursor) {
            return self.refused(cursor);
        }
        self.context.observe(now, log);
        if let Some(error) = self.fault(now, log, closed) {
            return self.context.fail(error, cursor);
        }
        if closed {
            return self.not_met(now, log, cursor, closed);
        }
        let over = self.context.time_limit.is_over(now);
        self.is_held = shell == ShellUse::Busy && self.step == LoginStep::Nothing;
        if self.is_held && !over {
            return ScriptAction::Wait;
        }
        // After the timeout a shell prompt still counts, but nothing more is written.
        if let (Some(prompt), Some(settles)) = (self.prompt, self.settles_at())
            && (if over { prompt.kind == PromptKind::Shell } else { now >= settles.at })
            && let Some(output) = self.answer(prompt.kind, now, log, cursor)
        {
            return output;
        }
        if over {
            return self.not_met(now, log, cursor, closed);
        }
        // After a line of another program there is time until the next one.
        let early = if self.active == Some(now) { NUDGE_EARLY } else { Duration::ZERO };
        if self.nudge_at().is_some_and(|nudge| now + early >= nudge.at) {
            *(if self.interrupted.is_some() { &mut self.retries } else { &mut self.nudges }) += 1;
            return self.write(self.step, "", now);
        }
        ScriptAction::Wait
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        if self.context.ended.is_some() {
            return None;
        }
        let confirmed = self
            .context
            .fault_confirmed_at()
            .filter(|_| self.may_be_emergency_shell() && !self.is_at_login_prompt());
        let soon = Deadline::earliest(self.settles_at().or(self.nudge_at()), confirmed);
        let soon = soon.filter(|_| !self.is_held);
        Deadline::earliest(self.context.deadline("login timed out"), soon)
    }

    /// Starts again with the next prompt.
    fn handle_reboot(&mut self) {
        self.step = LoginStep::Nothing;
        self.screen.clear();
        (self.prompt, self.interrupted) = (None, None);
        (self.nudges, self.retries, self.name_tries) = (0, 0, 0);
    }

    fn frees_shell(&self) -> bool {
        true
    }

    fn input_kind(&self) -> InputKind {
        self.input_kind
    }
}

fn typeable(what: &'static str, text: &str) -> Result<(), ScriptError> {
    match text.bytes().find(u8::is_ascii_control) {
        Some(byte) => Err(ScriptError::Untypeable { what, byte }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
