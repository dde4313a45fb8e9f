//! [`Login`]: from whatever the console shows to a shell prompt.
//!
//! ```text
//!            login:            assword:              # $ >
//! (waiting) ───────► username ─────────► password ─────────► done
//!     │                  └───────────────────────────────────►│
//!     └─────── a guest that logs in by itself ───────────────►│
//! ```
//!
//! A prompt is what stands at the end of the output, escape sequences and kernel messages taken
//! out, and **has stood there for [`SETTLE`]**: whether `login: ` is a prompt or the beginning of
//! `login: root (automatic login)` shows only when nothing follows, and a wait makes the answer
//! independent of how the bytes were cut.
//!
//! Where silence lasts, Enter is pressed a few times, with growing pauses: a shell that was there
//! before us, or whose prompt was lost in kernel messages, then shows one. Never while a password
//! may be asked for, where Enter would be the answer.
//!
//! A kernel panic and an emergency shell end it by name, once the console is silent after their
//! words: the prompt of an emergency shell is not taken for that of a user's.

use super::screen::{PIECE, PromptKind, Screen};
use super::{CommandOutput, InputKind, Script, ScriptAction, ScriptContext, ScriptError, hint};
use crate::console::fault::FaultDetector;
use crate::console::{Cursor, GuestFault, Scrollback};
use crate::time::{Deadline, Instant};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

/// How long a prompt has to stand unchanged at the end of the output.
const SETTLE: Duration = Duration::from_millis(100);

/// The silence before Enter is pressed for the first time; doubled each time.
const NUDGE_AFTER: Duration = Duration::from_secs(5);

/// How often Enter is pressed unasked in one stage.
const NUDGES: u32 = 3;

/// How often a guest may ask for the name again before that counts as a refusal. An earlier Enter
/// of ours makes it ask once more than needed.
const NAME_TRIES: u32 = 3;

/// What the Enter key of a terminal sends. Getty learns from it to map it to a newline.
const ENTER: &str = "\r";

/// A login under way.
///
/// A guest that shows a shell prompt, with or without asking for anything, is logged in: a
/// password given and not asked for is no error. The reply's output is the end of the conversation.
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
    frame: ScriptContext,
    username: String,
    password: Option<Secret>,
    stage: LoginStep,
    written: InputKind,
    screen: Screen,
    /// A prompt that stands since then.
    standing: Option<(PromptKind, Instant)>,
    /// When something was last shown or typed; none before the first poll.
    active: Option<Instant>,
    nudges: u32,
    name_tries: u32,
}

/// What was typed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoginStep {
    Nothing,
    Name,
    Password,
}

/// Text that does not show in `Debug`.
#[derive(Clone)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Login {
    /// A login that begins `now`.
    ///
    /// # Errors
    /// When the name or the password has a control byte: it would end the line, or be acted on by
    /// the terminal.
    pub fn new(
        username: &str,
        password: Option<&str>,
        now: Instant,
        timeout: Option<Duration>,
    ) -> Result<Self, ScriptError> {
        typeable("username", username)?;
        typeable("password", password.unwrap_or_default())?;
        Ok(Self {
            frame: ScriptContext::new(now, timeout),
            username: username.into(),
            password: password.map(|p| Secret(p.into())),
            stage: LoginStep::Nothing,
            written: InputKind::Plain,
            screen: Screen::default(),
            standing: None,
            active: None,
            nudges: 0,
            name_tries: 0,
        })
    }

    /// Takes in what is new. True when the guest refused.
    fn look(&mut self, now: Instant, log: &Scrollback, cursor: &mut Cursor) -> bool {
        let shown = self.screen.shown();
        while !cursor.peek(log).is_empty() {
            let from = cursor.offset().max(log.start());
            self.screen.push(cursor.before(log, from + PIECE as u64));
            if self.stage != LoginStep::Nothing && self.screen.says_incorrect() {
                return true;
            }
        }
        if self.screen.shown() != shown {
            self.active = Some(now);
            self.standing = self.screen.prompt_kind().map(|sign| (sign, now));
        }
        false
    }

    fn answer(
        &mut self,
        sign: PromptKind,
        now: Instant,
        log: &Scrollback,
        cursor: &mut Cursor,
    ) -> Option<ScriptAction> {
        match (sign, self.stage) {
            (PromptKind::Shell, _) => Some(self.succeed(log)),
            (PromptKind::Login, LoginStep::Nothing | LoginStep::Name)
                if self.name_tries < NAME_TRIES =>
            {
                self.name_tries += 1;
                self.frame.watch = Some(FaultDetector::for_all(log.end()));
                let name = self.username.clone();
                Some(self.write(LoginStep::Name, &name, now))
            }
            (PromptKind::Password, LoginStep::Name) => match self.password.clone() {
                Some(Secret(password)) => Some(self.write(LoginStep::Password, &password, now)),
                None => {
                    let username = self.username.clone();
                    Some(self.frame.fail(ScriptError::PasswordNeeded { username }, cursor))
                }
            },
            // Asked by somebody else's attempt: Enter will end that.
            (PromptKind::Password, LoginStep::Nothing) => None,
            (PromptKind::Login | PromptKind::Password, _) => Some(self.refused(cursor)),
        }
    }

    fn write(&mut self, stage: LoginStep, text: &str, now: Instant) -> ScriptAction {
        if stage != self.stage {
            self.nudges = 0;
        }
        self.stage = stage;
        self.written = match (stage, text) {
            (_, "") => InputKind::Nudge,
            (LoginStep::Password, _) => InputKind::Secret,
            _ => InputKind::Plain,
        };
        self.screen.clear();
        self.standing = None;
        self.active = Some(now);
        let mut line = Vec::with_capacity(text.len() + ENTER.len());
        line.extend_from_slice(text.as_bytes());
        line.extend_from_slice(ENTER.as_bytes());
        ScriptAction::Write(line)
    }

    fn succeed(&mut self, log: &Scrollback) -> ScriptAction {
        let output = self.frame.tail(log);
        let begin = self.frame.origin();
        let truncated = (output.len() as u64) < log.end() - begin.min(log.end());
        self.frame.succeed(CommandOutput { output, status: None, truncated })
    }

    fn refused(&mut self, cursor: &mut Cursor) -> ScriptAction {
        let username = self.username.clone();
        self.frame.fail(ScriptError::LoginIncorrect { username }, cursor)
    }

    /// What ends the login because nobody is there to log in to.
    fn fault(&self, now: Instant, log: &Scrollback, closed: bool) -> Option<ScriptError> {
        // A getty is beyond all of that, whatever was said before it.
        if matches!(self.standing, Some((PromptKind::Login, _))) && !closed {
            return None;
        }
        let seen = self.frame.fault(now, log, closed)?;
        let expected = self.expected().into();
        match seen.fault {
            GuestFault::KernelPanic => Some(self.frame.panicked(log, expected, seen)),
            GuestFault::EmergencyShell => Some(self.frame.in_emergency(log, expected, seen)),
            // Ours is known by the screen; one from before is nothing to us.
            GuestFault::LoginIncorrect => None,
        }
    }

    /// Whether a shell's prompt would be that of an emergency shell.
    fn is_suspicious(&self) -> bool {
        matches!(self.frame.suspicion(), Some(GuestFault::KernelPanic | GuestFault::EmergencyShell))
    }

    fn settles_at(&self) -> Option<Deadline> {
        let (sign, since) = self.standing?;
        // Nothing will come of these; see `answer` and `trouble`.
        let ignored = (sign, self.stage) == (PromptKind::Password, LoginStep::Nothing)
            || sign == PromptKind::Shell && self.is_suspicious();
        if ignored { None } else { Some(Deadline { at: since + SETTLE, why: "prompt settles" }) }
    }

    fn nudge_at(&self) -> Option<Deadline> {
        if self.is_suspicious()
            || self.stage == LoginStep::Name
            || self.nudges == NUDGES
            || self.settles_at().is_some()
        {
            return None;
        }
        let pause = NUDGE_AFTER * 2u32.pow(self.nudges);
        Some(Deadline { at: self.active? + pause, why: "console is silent, press Enter" })
    }

    fn unmet(
        &mut self,
        now: Instant,
        log: &Scrollback,
        cursor: &mut Cursor,
        closed: bool,
    ) -> ScriptAction {
        let near_match = hint::of_no_prompt(log, self.frame.origin(), self.nudges);
        let error = self.frame.unmet(now, log, closed, self.expected().into(), near_match);
        self.frame.fail(error, cursor)
    }

    fn expected(&self) -> &'static str {
        match self.stage {
            LoginStep::Nothing => "a login prompt or a shell prompt",
            LoginStep::Name => "a password prompt or a shell prompt",
            LoginStep::Password => "a shell prompt",
        }
    }
}

impl Script for Login {
    fn poll_output(
        &mut self,
        now: Instant,
        log: &Scrollback,
        cursor: &mut Cursor,
        closed: bool,
    ) -> ScriptAction {
        if let Some(ended) = self.frame.enter(cursor) {
            return ended;
        }
        self.active.get_or_insert(now);
        if self.look(now, log, cursor) {
            return self.refused(cursor);
        }
        self.frame.look(now, log);
        if let Some(error) = self.fault(now, log, closed) {
            return self.frame.fail(error, cursor);
        }
        if closed {
            return self.unmet(now, log, cursor, closed);
        }
        let over = self.frame.clock.is_over(now);
        // When the time is over a shell still counts, but nothing more is typed.
        if let (Some((sign, _)), Some(settles)) = (self.standing, self.settles_at())
            && (if over { sign == PromptKind::Shell } else { now >= settles.at })
            && let Some(output) = self.answer(sign, now, log, cursor)
        {
            return output;
        }
        if over {
            return self.unmet(now, log, cursor, closed);
        }
        if self.nudge_at().is_some_and(|nudge| now >= nudge.at) {
            self.nudges += 1;
            return self.write(self.stage, "", now);
        }
        ScriptAction::Wait
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        if self.frame.ended.is_some() {
            return None;
        }
        let certain = if self.is_suspicious() { self.frame.certain_at() } else { None };
        let soon = Deadline::earliest(self.settles_at().or(self.nudge_at()), certain);
        Deadline::earliest(self.frame.deadline("login timed out"), soon)
    }

    /// Begins anew with the next prompt.
    fn handle_reboot(&mut self) {
        self.stage = LoginStep::Nothing;
        self.screen.clear();
        self.standing = None;
        (self.nudges, self.name_tries) = (0, 0);
    }

    fn input_kind(&self) -> InputKind {
        self.written
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
