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
//! In a longer silence the script sends Enter a few times, with growing pauses, so that an open shell,
//! or one whose prompt was lost between kernel messages, prints its prompt again. It does not send
//! Enter while the guest may ask for a password, because Enter would be the answer.
//!
//! A kernel panic or an emergency shell ends the login with an error, once the console is silent after
//! its message: the prompt of an emergency shell does not count as a shell prompt.

use super::screen::{PIECE, PromptKind, Screen};
use super::{
    CommandOutput, InputKind, Script, ScriptAction, ScriptContext, ScriptError, ScriptPoll, hint,
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

/// The silence before the first Enter; doubled each time.
const NUDGE_AFTER: Duration = Duration::from_secs(5);

/// How often Enter is sent in one step without a prompt.
const NUDGES: u32 = 3;

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
    /// The prompt at the end of the output, and since when it is there.
    prompt: Option<(PromptKind, Instant)>,
    /// The time of the last output or input; `None` before the first poll.
    active: Option<Instant>,
    nudges: u32,
    name_tries: u32,
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
            nudges: 0,
            name_tries: 0,
        })
    }

    /// Reads the new output. Returns `true` if the guest refused the login.
    fn read(&mut self, now: Instant, log: &Scrollback, cursor: &mut Cursor) -> bool {
        let shown = self.screen.shown();
        while !cursor.peek(log).is_empty() {
            let from = cursor.offset().max(log.start());
            self.screen.push(cursor.before(log, from + PIECE as u64));
            if self.step != LoginStep::Nothing && self.screen.has_login_incorrect() {
                return true;
            }
        }
        if self.screen.shown() != shown {
            self.active = Some(now);
            self.prompt = self.screen.prompt_kind().map(|kind| (kind, now));
        }
        false
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
            self.nudges = 0;
        }
        self.step = step;
        self.input_kind = match (step, text) {
            (_, "") => InputKind::Nudge,
            (LoginStep::Password, _) => InputKind::Secret,
            _ => InputKind::Plain,
        };
        self.screen.clear();
        self.prompt = None;
        self.active = Some(now);
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
        // A login prompt shows that the guest runs, despite earlier messages.
        if matches!(self.prompt, Some((PromptKind::Login, _))) && !closed {
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

    /// Whether a shell prompt would be that of an emergency shell.
    fn may_be_emergency_shell(&self) -> bool {
        matches!(
            self.context.fault_candidate(),
            Some(GuestFault::KernelPanic | GuestFault::EmergencyShell)
        )
    }

    fn settles_at(&self) -> Option<Deadline> {
        let (prompt, since) = self.prompt?;
        // `answer` and `fault` ignore these.
        let ignored = (prompt, self.step) == (PromptKind::Password, LoginStep::Nothing)
            || prompt == PromptKind::Shell && self.may_be_emergency_shell();
        if ignored {
            None
        } else {
            Some(Deadline { at: since + SETTLE_TIME, why: "a prompt may be complete" })
        }
    }

    fn nudge_at(&self) -> Option<Deadline> {
        if self.may_be_emergency_shell()
            || self.step == LoginStep::Name
            || self.nudges == NUDGES
            || self.settles_at().is_some()
        {
            return None;
        }
        let pause = NUDGE_AFTER * 2u32.pow(self.nudges);
        Some(Deadline { at: self.active? + pause, why: "the console is silent, send Enter" })
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
        let ScriptPoll { now, log, cursor, closed } = poll;
        self.active.get_or_insert(now);
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
        // After the timeout a shell prompt still counts, but nothing more is written.
        if let (Some((prompt, _)), Some(settles)) = (self.prompt, self.settles_at())
            && (if over { prompt == PromptKind::Shell } else { now >= settles.at })
            && let Some(output) = self.answer(prompt, now, log, cursor)
        {
            return output;
        }
        if over {
            return self.not_met(now, log, cursor, closed);
        }
        if self.nudge_at().is_some_and(|nudge| now >= nudge.at) {
            self.nudges += 1;
            return self.write(self.step, "", now);
        }
        ScriptAction::Wait
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        if self.context.ended.is_some() {
            return None;
        }
        let confirmed =
            if self.may_be_emergency_shell() { self.context.fault_confirmed_at() } else { None };
        let soon = Deadline::earliest(self.settles_at().or(self.nudge_at()), confirmed);
        Deadline::earliest(self.context.deadline("login timed out"), soon)
    }

    /// Starts again with the next prompt.
    fn handle_reboot(&mut self) {
        self.step = LoginStep::Nothing;
        self.screen.clear();
        self.prompt = None;
        (self.nudges, self.name_tries) = (0, 0);
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
