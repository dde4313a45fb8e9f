//! [`Script`]: a state machine that drives the console: it reads output and writes input.
//!
//! There are three scripts: [`Login`], [`RunCommand`] and [`Silence`]. All are driven alike:
//!
//! 1. Call [`poll_output`](Script::poll_output) with the time and the scrollback.
//! 2. On [`Write`](ScriptAction::Write), send the bytes to the guest and go back to 1.
//! 3. On [`Wait`](ScriptAction::Wait), push guest output into the scrollback until some arrives or
//!    [`poll_timeout`](Script::poll_timeout) is reached; then go back to 1.
//! 4. On [`Done`](ScriptAction::Done), stop.
//!
//! A script consumes output while it reads, so the output may exceed the scrollback's capacity. A
//! script that fails moves the cursor back to where it started: the bytes that the scrollback still
//! has are unread again. Only [streamed](RunCommand::streamed) output stays read.

mod clean;
mod hint;
mod line;
mod login;
mod output_buffer;
mod run;
mod screen;
mod silence;
#[cfg(test)]
mod test_guest;

pub(super) use clean::{ECHO_WINDOW, without_wrappers};
pub use line::{COMMAND_MAX, CommandScope};
pub use login::Login;
pub use run::{OUTPUT_LIMIT, RunCommand};
pub use silence::Silence;

use super::expect::TimeLimit;
use super::fault_check::{FaultCheck, last_fault};
use super::{Cursor, FaultReport, GuestFault, NearMatch, Scrollback};
use crate::time::{Deadline, Instant};
use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

/// A state machine that drives the console.
pub trait Script {
    /// The next action. `closed` means that no more bytes will be pushed.
    ///
    /// All calls must use the same scrollback and cursor. The work of a call is bounded by the unread
    /// output. An error is sticky: further calls return it again.
    fn poll_output(
        &mut self,
        now: Instant,
        log: &Scrollback,
        cursor: &mut Cursor,
        closed: bool,
    ) -> ScriptAction {
        self.poll(ScriptPoll { now, log, cursor, closed, shell: ShellUse::Free })
    }

    /// Like [`poll_output`](Self::poll_output), beside scripts that may use the shell.
    fn poll(&mut self, poll: ScriptPoll<'_>) -> ScriptAction {
        match self.begin(poll.cursor) {
            Some(error) => ScriptAction::Done(Err(error)),
            None => self.advance(poll),
        }
    }

    /// Stores the place where the script starts, at the first call. Returns the error of a script that
    /// has ended.
    fn begin(&mut self, cursor: &Cursor) -> Option<ScriptError>;

    /// The next action of a script that has not ended; [`poll_output`](Self::poll_output) calls it.
    fn advance(&mut self, poll: ScriptPoll<'_>) -> ScriptAction;

    /// When to poll again if the guest prints nothing.
    fn poll_timeout(&self) -> Option<Deadline>;

    /// Takes the output of a streaming script since the last call. After the end of the script it
    /// returns the rest. Poll again after it: a script whose output is not taken stops reading.
    fn take_output(&mut self) -> Vec<u8> {
        Vec::new()
    }

    /// The guest was reset and boots again. All output from before the reset is in the scrollback.
    /// Poll again after it.
    fn handle_reboot(&mut self) {}

    /// Gives up the operation in the guest, after the script failed or instead of polling it again, at
    /// the script's place `at`. Returns the script that ends the operation, and its place. Drive it
    /// until it is done.
    fn abandon(&mut self, now: Instant, at: &Cursor) -> Option<(Box<dyn Script + Send>, Cursor)> {
        let _ = (now, at);
        None
    }

    /// Whether the script uses the guest's shell, so that no other command can be typed.
    fn shell_use(&self) -> ShellUse {
        ShellUse::Free
    }

    /// Whether the end of the script shows that the shell is free.
    fn frees_shell(&self) -> bool {
        false
    }

    /// The kind of the last [`ScriptAction::Write`], for the input log.
    fn input_kind(&self) -> InputKind {
        InputKind::Plain
    }
}

/// The arguments of one [`Script::poll_output`].
#[derive(Debug)]
pub struct ScriptPoll<'a> {
    /// The time.
    pub now: Instant,
    /// The output.
    pub log: &'a Scrollback,
    /// The script's place in it.
    pub cursor: &'a mut Cursor,
    /// Whether no more bytes will be pushed.
    pub closed: bool,
    /// Whether another script uses the guest's shell.
    pub shell: ShellUse,
}

/// The use of the guest's shell by a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShellUse {
    /// It does not use the shell.
    Free,
    /// It runs a command there, or ends one that was given up.
    Busy,
    /// This command was given up and cannot be ended.
    Stuck(String),
}

/// The kind of input that a script wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    /// Input that may be recorded.
    Plain,
    /// A line with a password, which is not recorded.
    Secret,
    /// Input that depends on timing: Enter, sent to a silent guest to make it print a prompt, or a
    /// repeated request to end a command.
    Nudge,
}

/// The next action of a script.
///
/// Its `Debug` form shows the length of a write, not the bytes: they may be a password.
#[derive(Clone, PartialEq, Eq)]
pub enum ScriptAction {
    /// Write these bytes to the console, completely and in order, then poll again. Do not log them.
    Write(Vec<u8>),
    /// Wait for more output, or until [`Script::poll_timeout`].
    Wait,
    /// The script has ended.
    Done(Result<CommandOutput, ScriptError>),
}

/// The result of a script, above all of a command.
///
/// Its `Debug` form shows the output as text, at most the last 200 characters.
#[derive(Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CommandOutput {
    /// For a command, its output, with the terminal's `\r\n` replaced by `\n`. For a login, the last
    /// output, at most 2 KiB, unchanged.
    pub output: Vec<u8>,
    /// For a command, its exit status as the shell reports it: above 128 if a signal killed it.
    pub status: Option<i32>,
    /// Whether `output` is incomplete.
    pub truncated: bool,
}

impl CommandOutput {
    /// The output as text. Bytes that are not UTF-8 become U+FFFD.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.output)
    }

    /// Whether the command exited with status 0.
    pub fn success(&self) -> bool {
        self.status == Some(0)
    }
}

impl fmt::Debug for CommandOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text();
        let cut = text.char_indices().rev().nth(199).map_or(0, |(at, _)| at);
        f.debug_struct("CommandOutput")
            .field("output", &&text[cut..])
            .field("status", &self.status)
            .field("truncated", &self.truncated)
            .finish()
    }
}

/// Why a script failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScriptError {
    /// The timeout expired.
    #[error("timed out after {waited:?} waiting for {expected}{}", explanation(.fault, .near_match))]
    TimedOut {
        /// What the script waited for, in words.
        expected: String,
        /// The time since the script was created.
        waited: Duration,
        /// The last output, at most 2 KiB.
        tail: Vec<u8>,
        /// The last guest fault in the output.
        fault: Option<FaultReport>,
        /// The output that came closest, or the last line and its meaning.
        near_match: Option<Box<NearMatch>>,
    },
    /// The console closed.
    #[error("console closed while waiting for {expected}{}", explanation(.fault, .near_match))]
    Closed {
        /// What the script waited for, in words.
        expected: String,
        /// The time since the script was created.
        waited: Duration,
        /// The last output, at most 2 KiB.
        tail: Vec<u8>,
        /// The last guest fault in the output.
        fault: Option<FaultReport>,
        /// The output that came closest, or the last line and its meaning.
        near_match: Option<Box<NearMatch>>,
    },
    /// The guest kernel panicked and printed nothing more.
    #[error("guest kernel panicked while waiting for {expected}: {line}")]
    KernelPanic {
        /// What the script waited for, in words.
        expected: String,
        /// The first line of the panic message.
        line: String,
        /// The last output, at most 2 KiB.
        tail: Vec<u8>,
    },
    /// The boot failed: the guest is in an emergency shell, or asks for its password.
    #[error("guest is in an emergency shell while waiting for {expected}: {line}")]
    EmergencyShell {
        /// What the script waited for, in words.
        expected: String,
        /// The line of output that shows it.
        line: String,
        /// The last output, at most 2 KiB.
        tail: Vec<u8>,
    },
    /// The guest was reset while a command ran, and boots again.
    #[error("guest rebooted while waiting for {expected}")]
    Rebooted {
        /// What the script waited for, in words.
        expected: String,
        /// The last output, at most 2 KiB.
        tail: Vec<u8>,
    },
    /// The guest is at a login prompt and took the command for a login.
    #[error("no user is logged in: the guest took the command for a login and refused it")]
    NotLoggedIn {
        /// The last output, at most 2 KiB.
        tail: Vec<u8>,
    },
    /// The guest refused the user name or the password.
    #[error("login as {username:?} refused by the guest")]
    LoginIncorrect {
        /// The user name.
        username: String,
    },
    /// The guest asked for a password, and none was given.
    #[error("guest asked for a password for {username:?} and none was given")]
    PasswordNeeded {
        /// The user name.
        username: String,
    },
    /// A command that was given up still occupies the shell: it ignores all signals, or the shell did
    /// not begin it.
    #[error("the shell is still occupied by an earlier command that could not be ended: {command}")]
    ShellBusy {
        /// The first line of that command, at most 80 characters, escaped.
        command: String,
    },
    /// The shell exited while it ran the command: the guest shows a prompt and no exit status.
    #[error("the shell exited while it ran the command; log in again")]
    ShellExited {
        /// The last output, at most 2 KiB.
        tail: Vec<u8>,
    },
    /// The command is longer than [`COMMAND_MAX`].
    #[error("command of {len} bytes is longer than {max} bytes")]
    CommandTooLong {
        /// The length of the command, with special bytes escaped.
        len: usize,
        /// The maximum length.
        max: usize,
    },
    /// A user name, password or command has a byte that cannot be sent through a terminal.
    #[error("{what} contains the byte {byte:#04x}, which cannot be typed")]
    Untypeable {
        /// Which text, in words; never its content.
        what: &'static str,
        /// The first such byte.
        byte: u8,
    },
    /// The script was polled after it had succeeded.
    #[error("script has already ended")]
    Ended,
}

/// The explanation at the end of an error message.
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

/// State that all scripts have: time limit, start, faults and end.
#[derive(Debug, Clone)]
struct ScriptContext {
    time_limit: TimeLimit,
    start: Option<Cursor>,
    faults: Option<FaultCheck>,
    ended: Option<ScriptError>,
}

impl ScriptContext {
    fn new(now: Instant, timeout: Option<Duration>) -> Self {
        Self { time_limit: TimeLimit::new(now, timeout), start: None, faults: None, ended: None }
    }

    /// Stores the start of the script at the first call. Returns its error if it has ended.
    fn begin(&mut self, cursor: &Cursor) -> Option<ScriptError> {
        self.start.get_or_insert(*cursor);
        self.ended.clone()
    }

    /// Whether the script has to end: the console closed or the timeout expired.
    fn is_over(&self, now: Instant, closed: bool) -> bool {
        closed || self.time_limit.is_over(now)
    }

    fn succeed(&mut self, reply: CommandOutput) -> ScriptAction {
        self.ended = Some(ScriptError::Ended);
        ScriptAction::Done(Ok(reply))
    }

    fn fail(&mut self, error: ScriptError, cursor: &mut Cursor) -> ScriptAction {
        if let Some(start) = self.start {
            *cursor = start;
        }
        self.ended = Some(error.clone());
        ScriptAction::Done(Err(error))
    }

    /// Takes in the guest faults in the new output.
    fn observe(&mut self, now: Instant, log: &Scrollback) {
        let from = self.start.unwrap_or_default().offset();
        self.faults.get_or_insert_with(|| FaultCheck::for_all(log, from)).observe(now, log);
    }

    /// The fault that was found, confirmed or not.
    fn fault_candidate(&self) -> Option<GuestFault> {
        self.faults.as_ref().and_then(FaultCheck::candidate)
    }

    /// Restarts the silence: while the guest may be paused, silence proves nothing.
    fn restart_silence(&mut self) {
        if let Some(faults) = &mut self.faults {
            faults.restart_silence();
        }
    }

    /// Whether there is a panic with its last line.
    fn panic_is_complete(&self) -> bool {
        self.faults.as_ref().is_some_and(FaultCheck::panic_is_complete)
    }

    /// The time since which the guest has printed nothing.
    fn silent_since(&self) -> Option<Instant> {
        self.faults.as_ref().and_then(FaultCheck::silent_since)
    }

    /// When the fault is confirmed, if the guest prints nothing more.
    fn fault_confirmed_at(&self) -> Option<Deadline> {
        self.faults.as_ref().and_then(FaultCheck::confirmed_at)
    }

    /// The fault that is confirmed now. A closed console confirms it too.
    fn fault(&self, now: Instant, log: &Scrollback, closed: bool) -> Option<FaultReport> {
        let faults = self.faults.as_ref()?;
        if closed { faults.at_end(log) } else { faults.confirmed(now, log) }
    }

    fn panicked(&self, log: &Scrollback, expected: String, report: FaultReport) -> ScriptError {
        ScriptError::KernelPanic { expected, line: report.line, tail: self.tail(log) }
    }

    fn in_emergency(&self, log: &Scrollback, expected: String, report: FaultReport) -> ScriptError {
        ScriptError::EmergencyShell { expected, line: report.line, tail: self.tail(log) }
    }

    /// The error when the console closed or the timeout expired.
    fn not_met(
        &self,
        now: Instant,
        log: &Scrollback,
        closed: bool,
        expected: String,
        near_match: Option<NearMatch>,
    ) -> ScriptError {
        let (waited, tail) = (self.time_limit.waited(now), self.tail(log));
        let fault = last_fault(log, &self.start.unwrap_or_default());
        let near_match = near_match.map(Box::new);
        if closed {
            ScriptError::Closed { expected, waited, tail, fault, near_match }
        } else {
            ScriptError::TimedOut { expected, waited, tail, fault, near_match }
        }
    }

    /// The offset where the script started.
    fn origin(&self) -> u64 {
        self.start.unwrap_or_default().offset()
    }

    fn tail(&self, log: &Scrollback) -> Vec<u8> {
        super::expect::tail_since(log, self.start.unwrap_or_default().offset())
    }

    fn deadline(&self, why: &'static str) -> Option<Deadline> {
        if self.ended.is_some() { None } else { self.time_limit.deadline(why) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn command_output_debug_shows_text() {
        let output =
            CommandOutput { output: b"caf\xc3\xa9 \xff".into(), status: Some(0), truncated: false };
        assert!(output.success());
        assert_eq!(output.text(), "café \u{fffd}");
        let debug = format!("{output:?}");
        assert_eq!(
            debug,
            "CommandOutput { output: \"café \u{fffd}\", status: Some(0), truncated: false }"
        );
        let long = CommandOutput { output: vec![b'x'; 100_000], status: None, truncated: true };
        assert!(!long.success());
        assert_eq!(format!("{long:?}").matches('x').count(), 200);
    }
}
