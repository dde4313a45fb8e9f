//! [`Script`]: a conversation with a guest, as what to type next and when it is over.
//!
//! Three come with Capsa: [`Login`], [`RunCommand`] and [`Silence`]. All are driven alike:
//!
//! 1. Call [`poll_output`](Script::poll_output), with the time and the log.
//! 2. On [`Write`](ScriptAction::Write), send the bytes to the guest and go back to 1.
//! 3. On [`Wait`](ScriptAction::Wait), push what the guest says into the log, until something came or
//!    [`poll_timeout`](Script::poll_timeout) is reached; then go back to 1.
//! 4. On [`Done`](ScriptAction::Done), stop.
//!
//! A script consumes what it reads as it reads it, so that a guest can say more than the log holds.
//! One that fails puts the cursor back where it began: what is still in the log can be read again.
//! Only what a script [streams](RunCommand::streamed) stays read.

mod hint;
mod line;
mod login;
mod output_buffer;
mod run;
mod screen;
mod silence;
#[cfg(test)]
mod test_guest;

pub use line::COMMAND_MAX;
pub use login::Login;
pub use run::{OUTPUT_LIMIT, RunCommand, Stdin};
pub use silence::Silence;

use super::expect::TimeLimit;
use super::fault::{FaultDetector, last_fault};
use super::{Cursor, FaultReport, GuestFault, NearMatch, Scrollback};
use crate::time::{Deadline, Instant};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

/// A conversation that is under way.
pub trait Script {
    /// What to do next. `closed` means that no more bytes will be pushed.
    ///
    /// All calls take the same log and cursor. A call's work is bounded by what is unread in the
    /// log. An error is sticky: it is given again when asked again.
    fn poll_output(
        &mut self,
        now: Instant,
        log: &Scrollback,
        cursor: &mut Cursor,
        closed: bool,
    ) -> ScriptAction;

    /// When to poll again even if the guest says nothing.
    fn poll_timeout(&self) -> Option<Deadline>;

    /// What a script that streams brought since this was called last; also after its end, and then
    /// the rest. Poll again after it: one whose output is not taken reads no further.
    fn take_output(&mut self) -> Vec<u8> {
        Vec::new()
    }

    /// The guest was reset and boots again: whoever was asked is no longer there. All that it said
    /// before is in the log. Poll again after it.
    fn handle_reboot(&mut self) {}

    /// Nobody wants it any more: what is to be typed so that the guest gives up as well. It is not
    /// polled after that.
    fn handle_cancel(&mut self) -> Option<Vec<u8>> {
        None
    }

    /// What the last [`ScriptAction::Write`] was, to somebody who records what is typed.
    fn input_kind(&self) -> InputKind {
        InputKind::Plain
    }
}

/// What a script wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    /// Anybody may see it.
    Plain,
    /// A line with a password.
    Secret,
    /// Enter, to see whether anybody is there. It depends on how long the guest was silent.
    Nudge,
}

/// What a script wants.
///
/// Its `Debug` form gives the length of a write, not the bytes: they may be a password.
#[derive(Clone, PartialEq, Eq)]
pub enum ScriptAction {
    /// These bytes go to the guest, all of them and in order; do not log them. Then poll again.
    Write(Vec<u8>),
    /// More output of the guest, or a later time.
    Wait,
    /// It is over.
    Done(Result<CommandOutput, ScriptError>),
}

/// What a script brought back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandOutput {
    /// For a command, its output, with the terminal's `\r\n` made `\n` again. For a login, the last
    /// 2 KiB or fewer of the conversation, as they came.
    pub output: Vec<u8>,
    /// For a command, its exit status as the shell has it: above 128 for death by a signal.
    pub status: Option<i32>,
    /// Whether `output` is not all there was.
    pub truncated: bool,
}

/// Why a script did not get to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScriptError {
    /// The time was over.
    #[error("timed out after {waited:?} waiting for {expected}{}", explanation(.fault, .near_match))]
    TimedOut {
        /// What should have come next, in words.
        expected: String,
        /// Since the script was made.
        waited: Duration,
        /// The last 2 KiB or fewer of what came instead.
        tail: Vec<u8>,
        /// What trouble the guest was in, as far as what came tells.
        fault: Option<FaultReport>,
        /// What came close to it, or what the guest shows instead.
        near_match: Option<Box<NearMatch>>,
    },
    /// The console closed.
    #[error("console closed while waiting for {expected}{}", explanation(.fault, .near_match))]
    Closed {
        /// What should have come next, in words.
        expected: String,
        /// Since the script was made.
        waited: Duration,
        /// The last 2 KiB or fewer before the end.
        tail: Vec<u8>,
        /// What trouble the guest was in, as far as what came tells.
        fault: Option<FaultReport>,
        /// What came close to it, or what the guest shows instead.
        near_match: Option<Box<NearMatch>>,
    },
    /// The guest's kernel panicked, and said nothing more.
    #[error("guest kernel panicked while waiting for {expected}: {line}")]
    KernelPanic {
        /// What should have come next, in words.
        expected: String,
        /// The panic's first line.
        line: String,
        /// The last 2 KiB or fewer of what came.
        tail: Vec<u8>,
    },
    /// The guest did not boot through: it is in an emergency shell, or asks for the password of one.
    #[error("guest is in an emergency shell, while waiting for {expected}: {line}")]
    EmergencyShell {
        /// What should have come next, in words.
        expected: String,
        /// The line that told.
        line: String,
        /// The last 2 KiB or fewer of what came.
        tail: Vec<u8>,
    },
    /// The guest was reset while a command ran, and boots again.
    #[error("guest rebooted while waiting for {expected}")]
    Rebooted {
        /// What should have come next, in words.
        expected: String,
        /// The last 2 KiB or fewer of what came.
        tail: Vec<u8>,
    },
    /// A command was typed where there is no shell: the guest took it for a login.
    #[error("the guest is not at a shell: it took the command for a login and refused it")]
    NotLoggedIn {
        /// The last 2 KiB or fewer of what came.
        tail: Vec<u8>,
    },
    /// The guest refused the username or the password.
    #[error("login as {username:?} refused by the guest")]
    LoginIncorrect {
        /// Who tried.
        username: String,
    },
    /// The guest asked for a password and none was given.
    #[error("guest asked for a password for {username:?} and none was given")]
    PasswordNeeded {
        /// Who tried.
        username: String,
    },
    /// The command is longer than [`COMMAND_MAX`].
    #[error("command of {len} bytes is longer than {max} bytes")]
    CommandTooLong {
        /// What it would take, with special bytes escaped.
        len: usize,
        /// What is allowed.
        max: usize,
    },
    /// A name, a password or a command has a byte that cannot be typed as itself.
    #[error("{what} contains the byte {byte:#04x}, which cannot be typed")]
    Untypeable {
        /// What was to be typed, in words; never its content.
        what: &'static str,
        /// The first such byte.
        byte: u8,
    },
    /// The script was polled after it had succeeded.
    #[error("script has already ended")]
    Ended,
}

/// What may be behind an error, for the end of its message.
fn explanation(fault: &Option<FaultReport>, near_match: &Option<Box<NearMatch>>) -> String {
    match (fault, near_match) {
        (Some(fault), _) => format!(": {fault}"),
        (None, Some(near_match)) => format!(": {near_match}"),
        (None, None) => String::new(),
    }
}

impl fmt::Debug for ScriptAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(bytes) => write!(f, "Write({} bytes)", bytes.len()),
            Self::Wait => f.write_str("Wait"),
            Self::Done(result) => f.debug_tuple("Done").field(result).finish(),
        }
    }
}

/// What all scripts do alike: know their time, where they began, and how they ended.
#[derive(Debug, Clone)]
struct ScriptContext {
    clock: TimeLimit,
    begin: Option<Cursor>,
    watch: Option<FaultDetector>,
    ended: Option<ScriptError>,
}

impl ScriptContext {
    fn new(now: Instant, timeout: Option<Duration>) -> Self {
        Self { clock: TimeLimit::new(now, timeout), begin: None, watch: None, ended: None }
    }

    /// Notes where the script began, on the first call, and gives its error again when it has ended.
    fn enter(&mut self, cursor: &Cursor) -> Option<ScriptAction> {
        self.begin.get_or_insert(*cursor);
        self.ended.clone().map(|error| ScriptAction::Done(Err(error)))
    }

    /// Whether there is nothing more to wait for.
    fn is_over(&self, now: Instant, closed: bool) -> bool {
        closed || self.clock.is_over(now)
    }

    fn succeed(&mut self, reply: CommandOutput) -> ScriptAction {
        self.ended = Some(ScriptError::Ended);
        ScriptAction::Done(Ok(reply))
    }

    fn fail(&mut self, error: ScriptError, cursor: &mut Cursor) -> ScriptAction {
        if let Some(begin) = self.begin {
            *cursor = begin;
        }
        self.ended = Some(error.clone());
        ScriptAction::Done(Err(error))
    }

    /// Looks out for trouble in what is new.
    fn look(&mut self, now: Instant, log: &Scrollback) {
        let from = self.begin.unwrap_or_default().offset();
        self.watch.get_or_insert_with(|| FaultDetector::for_all(from)).look(now, log);
    }

    /// What the guest seems to suffer from, whether or not that is certain.
    fn suspicion(&self) -> Option<GuestFault> {
        self.watch.as_ref().and_then(FaultDetector::suspicion)
    }

    /// The guest may be held back: that it says nothing proves nothing.
    fn forget_silence(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.forget_silence();
        }
    }

    /// Whether a panic was seen with its last line.
    fn panic_is_whole(&self, log: &Scrollback) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.panic_is_whole(log))
    }

    /// Since when the guest has said nothing.
    fn silent_since(&self) -> Option<Instant> {
        self.watch.as_ref().and_then(FaultDetector::silent_since)
    }

    /// When a suspicion becomes certain.
    fn certain_at(&self) -> Option<Deadline> {
        self.watch.as_ref().and_then(FaultDetector::due)
    }

    /// The trouble that is certain now, or that the end of the console makes certain.
    fn fault(&self, now: Instant, log: &Scrollback, closed: bool) -> Option<FaultReport> {
        let watch = self.watch.as_ref()?;
        if closed { watch.sighting(log) } else { watch.certain(now, log) }
    }

    fn panicked(&self, log: &Scrollback, expected: String, seen: FaultReport) -> ScriptError {
        ScriptError::KernelPanic { expected, line: seen.line, tail: self.tail(log) }
    }

    fn in_emergency(&self, log: &Scrollback, expected: String, seen: FaultReport) -> ScriptError {
        ScriptError::EmergencyShell { expected, line: seen.line, tail: self.tail(log) }
    }

    /// What was waited for did not come: the console closed, or else the time is over.
    fn unmet(
        &self,
        now: Instant,
        log: &Scrollback,
        closed: bool,
        expected: String,
        near_match: Option<NearMatch>,
    ) -> ScriptError {
        let (waited, tail) = (self.clock.waited(now), self.tail(log));
        let fault = last_fault(log, &self.begin.unwrap_or_default());
        let near_match = near_match.map(Box::new);
        if closed {
            ScriptError::Closed { expected, waited, tail, fault, near_match }
        } else {
            ScriptError::TimedOut { expected, waited, tail, fault, near_match }
        }
    }

    /// The offset where the script began.
    fn origin(&self) -> u64 {
        self.begin.unwrap_or_default().offset()
    }

    fn tail(&self, log: &Scrollback) -> Vec<u8> {
        super::expect::tail_since(log, self.begin.unwrap_or_default().offset())
    }

    fn deadline(&self, why: &'static str) -> Option<Deadline> {
        if self.ended.is_some() { None } else { self.clock.deadline(why) }
    }
}
