//! [`RunCommand`]: runs a command in the guest's shell and collects its output and exit status.
//!
//! The command wrapper prints a begin mark and an end mark around the command's output; `line.rs`
//! describes the wrapper. The echo of the input comes before the begin mark and is discarded. The
//! shell prompt is not needed to find the end.
//!
//! Kernel messages within the output become part of it (`quiet` or `loglevel=` on the kernel command
//! line avoid them). If kernel messages interrupt a mark or the prompt, the search skips them once the
//! guest is silent.

mod interleaved;

use super::line::{EncodedCommand, Marks};
use super::output_buffer::OutputBuffer;
use super::{CommandOutput, Script, ScriptAction, ScriptContext, ScriptError, ScriptPoll, hint};
use crate::console::fault_check::SILENCE;
use crate::console::kernel_log::KernelLogFilter;
use crate::console::near_match::near_match;
use crate::console::{
    Cursor, GuestFault, Matcher, NearMatch, Overflow, PatternMatch, Scrollback, Search,
};
use crate::time::{Deadline, Instant};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

/// The default limit of the output: 16 MiB.
pub const OUTPUT_LIMIT: usize = 16 << 20;

/// How much output of a streamed command is read ahead of the caller if the scrollback pauses the
/// guest: 64 KiB, plus what the scrollback has at that point. If the scrollback drops old bytes, up to
/// [`OUTPUT_LIMIT`] is read ahead.
pub(super) const STREAM_AHEAD: usize = 64 << 10;

/// Ctrl-C, as a terminal sends it.
const INTERRUPT: u8 = 0x03;

/// The standard input of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stdin {
    /// `/dev/null`: a command that reads gets the end of file. The default. In a guest without that
    /// device (an initramfs that mounts no `/dev`) the command fails with the shell's message.
    #[default]
    Null,
    /// The console, for commands such as `stty`. A command that reads waits for further console input,
    /// or until the timeout.
    Terminal,
}

/// A running command.
///
/// The guest has to be at the prompt of a shell like dash, bash or busybox ash. zsh and fish are not
/// supported: `command eval` means something else there.
///
/// At a timeout, or when it is cancelled, the script writes Ctrl-C once and ends. This ends the command
/// if the console is a controlling terminal; a shell that is the init of an initramfs usually has
/// none, and the command keeps running. If the console closes or the guest reboots, the script ends
/// immediately.
///
/// ```
/// use capsa_proto::console::{Cursor, ScriptAction, RunCommand, Scrollback, Script};
/// use capsa_proto::time::Instant;
///
/// let now = Instant::ZERO;
/// let (mut log, mut cursor) = (Scrollback::default(), Cursor::at(0));
/// let mut script = RunCommand::new("uname", None, 7, now, None)?;
///
/// let ScriptAction::Write(line) = script.poll_output(now, &log, &mut cursor, false) else { panic!() };
/// log.push(&line); // the guest echoes what is typed
/// log.push(b"\r\ncapsa:begin:0000000000000007\r\n");
/// log.push(b"Linux\r\n");
/// log.push(b"capsa:end:0000000000000007:0;\r\n");
///
/// let ScriptAction::Done(reply) = script.poll_output(now, &log, &mut cursor, false) else { panic!() };
/// let reply = reply?;
/// assert_eq!((&reply.output[..], reply.status), (&b"Linux\n"[..], Some(0)));
/// # Ok::<(), capsa_proto::console::ScriptError>(())
/// ```
#[derive(Debug, Clone)]
pub struct RunCommand {
    context: ScriptContext,
    command: EncodedCommand,
    nonce: u64,
    stdin: Stdin,
    prompt: Option<Matcher>,
    state: RunState,
    /// The search of the current state.
    search: Option<Search>,
    collected: OutputBuffer,
    /// Whether the output is taken while the command runs.
    is_streamed: bool,
    /// Whether so much output is buffered that the scrollback is not read.
    is_paused: bool,
    status: Option<i32>,
    /// The cursor's lost bytes when the output started.
    lost_before: u64,
    /// The offset from which the current mark or prompt is searched.
    since: u64,
    /// The end of the scrollback at the last search across kernel messages.
    read_through: Option<u64>,
    /// The end of the scrollback at the last poll.
    polled_end: u64,
    /// Whether there is an unconfirmed guest fault that would end the command.
    may_be_faulty: bool,
    /// Whether the guest was reset.
    is_rebooted: bool,
    /// Ctrl-C was written; the script ends with this error.
    interrupted: Option<ScriptError>,
    begin: Matcher,
    more: Matcher,
    end: Matcher,
}

/// What the script does or expects next.
#[derive(Debug, Clone)]
enum RunState {
    /// Nothing was written yet.
    Start,
    /// The first of these lines is written next.
    WriteLine(VecDeque<Vec<u8>>),
    /// The mark that the shell took a line is expected; these lines are left.
    ExpectMore(VecDeque<Vec<u8>>),
    /// The begin mark is expected.
    Begin,
    /// The end of the begin mark's line is expected.
    BeginLine,
    /// Output or the end mark is expected.
    Output,
    /// The end of the end mark's line is expected.
    EndLine,
    Prompt,
}

enum RunStep {
    Write(Vec<u8>),
    Enter(RunState),
    Again,
    NeedOutput,
    Finished,
}

impl RunCommand {
    /// A script that runs `command`, from `now` on.
    ///
    /// `command` is one or more lines of shell, which the shell runs itself: `cd` and variables
    /// persist, `exit` ends the shell. With a `prompt`, the script ends when the prompt follows the
    /// command, and consumes it; without a prompt, or with an empty one, it ends with the line of the
    /// end mark. `nonce` identifies the marks of this command: use a different number for each command.
    ///
    /// # Errors
    /// When the command has a NUL byte or is longer than [`COMMAND_MAX`](super::COMMAND_MAX).
    pub fn new(
        command: &str,
        prompt: Option<&str>,
        nonce: u64,
        now: Instant,
        timeout: Option<Duration>,
    ) -> Result<Self, ScriptError> {
        let command = EncodedCommand::parse(command)?;
        let marks = Marks::new(nonce);
        Ok(Self {
            context: ScriptContext::new(now, timeout),
            command,
            nonce,
            stdin: Stdin::Null,
            prompt: prompt.filter(|p| !p.is_empty()).map(|p| Matcher::new([p])),
            state: RunState::Start,
            search: None,
            collected: OutputBuffer::new(OUTPUT_LIMIT),
            is_streamed: false,
            is_paused: false,
            status: None,
            lost_before: 0,
            since: 0,
            read_through: None,
            polled_end: 0,
            may_be_faulty: false,
            is_rebooted: false,
            interrupted: None,
            begin: Matcher::new([marks.begin]),
            more: Matcher::new([marks.more]),
            end: Matcher::new([marks.end]),
        })
    }

    /// Keeps at most the first `bytes` of the output. The rest is read and discarded, and
    /// [`CommandOutput::truncated`] is set.
    #[must_use]
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.collected.set_limit(bytes);
        self
    }

    /// Streams the output: it is taken [while the command runs](Script::take_output), without a limit;
    /// [`CommandOutput::output`] is what was not taken before the end. While it is not taken, a
    /// scrollback that [pauses](Overflow::Pause) pauses the guest; with any other, 16 MiB are read
    /// ahead, then old output is dropped and [`CommandOutput::truncated`] is set.
    ///
    /// If the command fails, all output can still be taken, and stays read. If kernel messages
    /// interrupt the end mark, the first part of the mark is in the output.
    #[must_use]
    pub fn streamed(mut self) -> Self {
        self.is_streamed = true;
        self.output_limit(usize::MAX)
    }

    /// Sets the standard input of the command.
    #[must_use]
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    fn step(&mut self, log: &Scrollback, cursor: &mut Cursor) -> RunStep {
        match &mut self.state {
            RunState::Start => {
                RunStep::Enter(RunState::WriteLine(self.command.lines(self.nonce, self.stdin)))
            }
            RunState::WriteLine(lines) => {
                let line = lines.pop_front().unwrap_or_default();
                let lines = core::mem::take(lines);
                self.state =
                    if lines.is_empty() { RunState::Begin } else { RunState::ExpectMore(lines) };
                self.since = cursor.offset();
                RunStep::Write(line)
            }
            RunState::ExpectMore(lines) => match seek(&self.more, &mut self.search, log, cursor) {
                Some(_) => RunStep::Enter(RunState::WriteLine(core::mem::take(lines))),
                None => RunStep::NeedOutput,
            },
            RunState::Begin => match seek(&self.begin, &mut self.search, log, cursor) {
                Some(_) => RunStep::Enter(RunState::BeginLine),
                None => RunStep::NeedOutput,
            },
            RunState::BeginLine => match line_end(log, cursor) {
                true => {
                    self.lost_before = cursor.lost();
                    RunStep::Enter(RunState::Output)
                }
                false => RunStep::NeedOutput,
            },
            RunState::Output => self.output(log, cursor),
            RunState::EndLine => match (line_end(log, cursor), &self.prompt) {
                (false, _) => RunStep::NeedOutput,
                (true, Some(_)) => RunStep::Enter(RunState::Prompt),
                (true, None) => RunStep::Finished,
            },
            RunState::Prompt => match &self.prompt {
                Some(prompt) if seek(prompt, &mut self.search, log, cursor).is_none() => {
                    RunStep::NeedOutput
                }
                _ => RunStep::Finished,
            },
        }
    }

    /// Collects output up to the end mark, and parses the exit status.
    fn output(&mut self, log: &Scrollback, cursor: &mut Cursor) -> RunStep {
        if self.is_paused {
            return RunStep::NeedOutput;
        }
        let search = self.search.get_or_insert_with(|| Search::from(cursor.offset()));
        let found = self.end.find(search, log);
        let Some(PatternMatch { start, end, .. }) = found else {
            // Bytes that cannot belong to the mark are output; a partial mark is kept back.
            let held = partial_mark_len(cursor.peek(log), &self.end);
            self.collected.push(cursor.before(log, log.end() - held as u64));
            return RunStep::NeedOutput;
        };
        self.collected.push(cursor.before(log, start));
        match parse_status(log.since(end)) {
            StatusParse::Known { status, len } => {
                cursor.before(log, end + len as u64);
                self.status = Some(status);
                self.search = None;
                RunStep::Enter(RunState::EndLine)
            }
            StatusParse::Incomplete => RunStep::NeedOutput,
            StatusParse::No => {
                // The command printed text that looks like the end mark.
                self.collected.push(cursor.before(log, end));
                self.search = None;
                RunStep::Again
            }
        }
    }

    /// When to search across kernel messages, if there is no further output.
    fn search_across_kernel_log_at(&self) -> Option<Deadline> {
        if self.is_paused {
            return None;
        }
        let since = self.context.silent_since()?;
        let why = "kernel messages may interrupt a mark";
        (self.read_through != Some(self.polled_end))
            .then_some(Deadline { at: since + SILENCE, why })
    }

    fn is_silent(&self, now: Instant, closed: bool) -> bool {
        self.search_across_kernel_log_at().is_some_and(|due| closed || now >= due.at)
    }

    /// The error if a guest fault ends the command.
    ///
    /// A command may print the text of a fault and then be silent. So faults count until the shell has
    /// taken the command; while it runs, only a panic after which the guest ends or reboots.
    fn fault(&mut self, now: Instant, log: &Scrollback, closed: bool) -> Option<ScriptError> {
        let is_taken =
            matches!(self.state, RunState::Output | RunState::EndLine | RunState::Prompt);
        self.may_be_faulty = match self.context.fault_candidate() {
            // A paused guest is silent for that reason.
            _ if self.is_paused => false,
            Some(GuestFault::KernelPanic) if closed => true,
            Some(GuestFault::KernelPanic) => !is_taken && self.context.panic_is_complete(),
            Some(_) => !is_taken,
            None => false,
        };
        if !self.may_be_faulty {
            return None;
        }
        let report = self.context.fault(now, log, closed)?;
        Some(match report.fault {
            GuestFault::KernelPanic => self.context.panicked(log, self.expected(), report),
            GuestFault::EmergencyShell => self.context.in_emergency(log, self.expected(), report),
            GuestFault::LoginIncorrect => ScriptError::NotLoggedIn { tail: self.context.tail(log) },
        })
    }

    /// Ends the script with an error.
    fn fail(&mut self, error: ScriptError, log: &Scrollback, cursor: &mut Cursor) -> ScriptAction {
        if !self.is_streamed {
            return self.context.fail(error, cursor);
        }
        if matches!(self.state, RunState::Output) {
            self.collected.push(&cursor.take(log));
            self.collected.close();
        }
        let mut read = *cursor;
        self.context.fail(error, &mut read)
    }

    /// The output that came instead of the expected text, for the error.
    fn near_match(&self, log: &Scrollback) -> Option<NearMatch> {
        match &self.state {
            RunState::Output => hint::for_lost_shell(log, self.since),
            RunState::EndLine => None,
            RunState::Prompt => near_match(self.prompt.as_ref()?.patterns(), log.since(self.since))
                .or_else(|| hint::for_other_prompt(log, self.since)),
            _ => hint::for_command_not_taken(log, self.context.origin()),
        }
    }

    fn expected(&self) -> String {
        match &self.state {
            RunState::Start
            | RunState::WriteLine(_)
            | RunState::ExpectMore(_)
            | RunState::Begin
            | RunState::BeginLine => "the shell to take the command".into(),
            RunState::Output | RunState::EndLine => "the command to end".into(),
            RunState::Prompt => {
                let prompt = self.prompt.as_ref().and_then(|m| m.patterns().first());
                prompt.map(|prompt| format!("the prompt {prompt}")).unwrap_or_default()
            }
        }
    }
}

impl Script for RunCommand {
    fn begin(&mut self, cursor: &Cursor) -> Option<ScriptError> {
        self.context.begin(cursor)
    }

    fn advance(&mut self, poll: ScriptPoll<'_>) -> ScriptAction {
        let ScriptPoll { now, log, cursor, closed } = poll;
        if let Some(error) = self.interrupted.take() {
            return self.fail(error, log, cursor);
        }
        if self.is_paused {
            self.context.restart_silence();
        }
        self.context.observe(now, log);
        self.polled_end = log.end();
        let ends = closed || self.is_rebooted || self.context.is_over(now, closed);
        let ahead = match log.overflow() {
            Overflow::Pause => STREAM_AHEAD,
            Overflow::DropOldest => OUTPUT_LIMIT,
        };
        loop {
            let is_full = self.is_streamed && self.collected.len() >= ahead && !ends;
            self.is_paused = is_full && cursor.offset() < log.end();
            match self.step(log, cursor) {
                RunStep::Write(bytes) => return ScriptAction::Write(bytes),
                RunStep::Enter(state) => {
                    self.state = state;
                    self.since = cursor.offset();
                }
                RunStep::Finished => {
                    let (output, cut) = self.collected.finish();
                    let truncated = cut || cursor.lost() > self.lost_before;
                    return self.context.succeed(CommandOutput {
                        output,
                        status: self.status,
                        truncated,
                    });
                }
                RunStep::Again => {}
                RunStep::NeedOutput
                    if self.is_silent(now, closed) && self.read_through(log, cursor) => {}
                RunStep::NeedOutput => break,
            }
        }
        if let Some(error) = self.fault(now, log, closed || self.is_rebooted) {
            self.fail(error, log, cursor)
        } else if self.is_rebooted {
            let (expected, tail) = (self.expected(), self.context.tail(log));
            self.fail(ScriptError::Rebooted { expected, tail }, log, cursor)
        } else if self.context.is_over(now, closed) {
            let (expected, near_match) = (self.expected(), self.near_match(log));
            let error = self.context.not_met(now, log, closed, expected, near_match);
            if closed {
                return self.fail(error, log, cursor);
            }
            self.interrupted = Some(error);
            ScriptAction::Write(vec![INTERRUPT])
        } else {
            ScriptAction::Wait
        }
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        if self.context.ended.is_some() {
            return None;
        }
        let certain = if self.may_be_faulty { self.context.fault_confirmed_at() } else { None };
        let soon = Deadline::earliest(certain, self.search_across_kernel_log_at());
        Deadline::earliest(self.context.deadline("console command timed out"), soon)
    }

    fn take_output(&mut self) -> Vec<u8> {
        if self.is_streamed { self.collected.take() } else { Vec::new() }
    }

    fn handle_reboot(&mut self) {
        self.is_rebooted = true;
    }

    fn handle_cancel(&mut self) -> Option<Vec<u8>> {
        let is_over = self.context.ended.is_some() || self.interrupted.is_some();
        let runs = !is_over
            && !matches!(self.state, RunState::Start | RunState::EndLine | RunState::Prompt);
        runs.then(|| vec![INTERRUPT])
    }
}

/// Searches for a mark. Consumes the output before it, and then the mark.
fn seek(
    matcher: &Matcher,
    search: &mut Option<Search>,
    log: &Scrollback,
    cursor: &mut Cursor,
) -> Option<PatternMatch> {
    let state = search.get_or_insert_with(|| Search::from(cursor.offset()));
    let found = matcher.find(state, log);
    match found {
        Some(found) => {
            cursor.before(log, found.end);
            *search = None;
        }
        None => _ = cursor.before(log, state.earliest_start(matcher)),
    }
    found
}

/// The length of the incomplete mark at the end of `text`.
fn partial_mark_len(text: &[u8], mark: &Matcher) -> usize {
    let mark = mark.patterns()[0].as_literal().unwrap_or_default();
    (1..mark.len()).rev().find(|n| text.ends_with(&mark[..*n])).unwrap_or(0)
}

/// Consumes the end of a mark's line, and kernel messages in it. Returns `false` if it may still
/// arrive. Other text is not consumed.
fn line_end(log: &Scrollback, cursor: &mut Cursor) -> bool {
    let unread = cursor.peek(log);
    let mut through = KernelLogFilter::new(unread);
    let (end, is_whole) = loop {
        match through.next() {
            Some(b'\r') => {}
            Some(b'\n') => break (through.at(), true),
            Some(_) => break (through.at() - 1, !through.is_in_message()),
            None => break (through.at(), false),
        }
    };
    // Skipped messages are not read again.
    cursor.before(log, log.end() - (unread.len() - end) as u64);
    is_whole
}

enum StatusParse {
    Known { status: i32, len: usize },
    Incomplete,
    No,
}

/// Parses `decimal ";"`, with at most as many digits as an exit status has.
fn parse_status(bytes: &[u8]) -> StatusParse {
    const DIGITS: usize = 3;
    let digits = bytes.iter().take(DIGITS + 1).take_while(|b| b.is_ascii_digit()).count();
    match bytes.get(digits) {
        None if digits <= DIGITS => StatusParse::Incomplete,
        Some(b';') if (1..=DIGITS).contains(&digits) => {
            let status = bytes[..digits].iter().fold(0, |n, b| n * 10 + i32::from(b - b'0'));
            StatusParse::Known { status, len: digits + 1 }
        }
        _ => StatusParse::No,
    }
}

#[cfg(test)]
mod tests;
