//! [`RunCommand`]: runs a command in the guest's shell and collects its output and exit status.
//!
//! The command wrapper prints a begin mark and an end mark around the command's output; `line.rs`
//! describes the wrapper, `ladder.rs` how a command that was given up is ended. The echo of the input comes before the begin mark and is discarded. The
//! shell prompt is not needed to find the end.
//!
//! Kernel messages within the output become part of it (`quiet` or `loglevel=` on the kernel command
//! line avoid them). If kernel messages interrupt a mark or the prompt, the search skips them once the
//! guest is silent.

mod interleaved;
mod ladder;
mod lost_shell;
mod marks;

use self::ladder::SignalLadder;
use self::lost_shell::{ECHO, LostShell, ShellProbe};
use self::marks::{line_end, partial_mark_len, seek};
use super::line::{self, EncodedCommand, Marks, StatusParse, parse_status};
use super::output_buffer::OutputBuffer;
use super::{
    CommandOutput, CommandScope, InputKind, Script, ScriptAction, ScriptContext, ScriptError,
    ScriptPoll, ShellUse, hint,
};
use crate::console::fault_check::SILENCE;
use crate::console::near_match::near_match;
use crate::console::{
    Cursor, GuestFault, Matcher, NearMatch, Overflow, PatternMatch, Scrollback, Search,
};
use crate::time::{Deadline, Instant};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
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

/// How long to wait for the echo of the line that ends the wrapper, so that it is not unread output.
const ECHO_LIMIT: Duration = Duration::from_millis(200);

/// How much of a command an error shows, in characters.
const SHOWN_MAX: usize = 80;

/// A running command.
///
/// The guest has to be at the prompt of a login shell: of any one, except for [`CommandScope::Shell`].
/// A command in the scope [`CommandScope::Process`] has no terminal, `TERM=dumb` and `PAGER=cat`; programs
/// that write into a pipe in blocks do so here too.
///
/// At a timeout the script ends at once. [`Script::abandon`] gives the script that then ends the
/// command in the guest. If the console closes or the guest reboots, the script ends immediately.
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
/// let ScriptAction::Write(ok) = script.poll_output(now, &log, &mut cursor, false) else { panic!() };
/// assert_eq!(ok, b" : 0000000000000007 ok\n"); // the wrapper may end
/// log.push(b" : 0000000000000007 ok\r\n"); // its echo
/// let ScriptAction::Done(reply) = script.poll_output(now, &log, &mut cursor, false) else { panic!() };
/// let reply = reply?;
/// assert_eq!((&reply.output[..], reply.status), (&b"Linux\n"[..], Some(0)));
/// # Ok::<(), capsa_proto::console::ScriptError>(())
/// ```
#[derive(Debug, Clone)]
pub struct RunCommand {
    context: ScriptContext,
    command: EncodedCommand,
    /// The command in an error.
    shown: String,
    nonce: u64,
    scope: CommandScope,
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
    /// Where the script stood when its timeout expired.
    given_up_at: Option<Cursor>,
    /// Ends the command.
    ladder: Option<SignalLadder>,
    lost_shell: LostShell,
    input_kind: InputKind,
    /// How long the echo of the last input is expected.
    echo_until: Option<Instant>,
    /// The echo of the line that ends the wrapper.
    ok: Matcher,
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
    /// The wrapper may end.
    Release,
    /// The echo of the line that ends the wrapper is expected.
    Echo,
    /// The end of that line is expected.
    EchoLine,
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
    /// `command` is one or more lines of shell. With a `prompt`, the script ends when the prompt follows the
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
        let first_line = command.trim_start().lines().next().unwrap_or_default();
        let shown = first_line.escape_debug().take(SHOWN_MAX).collect();
        let command = EncodedCommand::parse(command)?;
        let marks = Marks::new(nonce);
        Ok(Self {
            context: ScriptContext::new(now, timeout),
            command,
            shown,
            nonce,
            scope: CommandScope::default(),
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
            given_up_at: None,
            ladder: None,
            lost_shell: LostShell::default(),
            input_kind: InputKind::Plain,
            echo_until: None,
            ok: Matcher::new([line::request(nonce, "ok").trim_ascii()]),
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

    /// Sets where the command runs.
    #[must_use]
    pub fn scope(mut self, scope: CommandScope) -> Self {
        if scope == CommandScope::Terminal {
            self.end = Matcher::new([Marks::end_on_terminal(self.nonce)]);
            self.collected.set_unchanged();
        }
        self.scope = scope;
        self
    }

    /// Whether the wrapper may end and its echo is expected.
    fn is_released(&self) -> bool {
        matches!(self.state, RunState::Echo | RunState::EchoLine)
    }

    /// Whether the wrapper reads the console while the command runs.
    fn has_listener(&self) -> bool {
        self.scope == CommandScope::Process
    }

    fn step(&mut self, log: &Scrollback, cursor: &mut Cursor, shell: &ShellUse) -> RunStep {
        let has_listener = self.has_listener();
        match &mut self.state {
            RunState::Start if *shell != ShellUse::Free => {
                cursor.before(log, log.end());
                RunStep::NeedOutput
            }
            RunState::Start => {
                RunStep::Enter(RunState::WriteLine(self.command.lines(self.nonce, self.scope)))
            }
            // The wrapper reads a command that was given up: this line is no part of it.
            RunState::WriteLine(_) if self.ladder.is_some() => {
                self.state = RunState::Begin;
                RunStep::Write(line::request(self.nonce, "ok"))
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
            RunState::EndLine if !line_end(log, cursor) => RunStep::NeedOutput,
            RunState::EndLine => RunStep::Enter(RunState::Release),
            RunState::Release if self.scope == CommandScope::Shell => {
                RunStep::Enter(RunState::Prompt)
            }
            // Processes of the command may have missed the signal that ended it.
            RunState::Release if self.ladder.take().is_some() && has_listener => {
                self.input_kind = InputKind::Nudge;
                RunStep::Write(line::request(self.nonce, "KILL"))
            }
            RunState::Release => {
                self.state = RunState::Echo;
                RunStep::Write(line::request(self.nonce, "ok"))
            }
            RunState::Echo => {
                let search = self.search.get_or_insert_with(|| Search::from(cursor.offset()));
                let Some(found) = self.ok.find(search, log) else { return RunStep::NeedOutput };
                cursor.before(log, found.end);
                RunStep::Enter(RunState::EchoLine)
            }
            RunState::EchoLine if !line_end(log, cursor) => RunStep::NeedOutput,
            RunState::EchoLine => RunStep::Enter(RunState::Prompt),
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
        // The echo of Enter is no output.
        let echoed = cursor.peek(log);
        if self.lost_shell.echo_at() == Some(cursor.offset()) && !echoed.is_empty() {
            if ECHO.starts_with(echoed) && echoed.len() < ECHO.len() {
                return RunStep::NeedOutput;
            }
            if echoed.starts_with(ECHO) {
                cursor.before(log, cursor.offset() + ECHO.len() as u64);
            }
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
            RunState::EndLine | RunState::Release => None,
            RunState::Echo | RunState::EchoLine => None,
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
            RunState::Output
            | RunState::EndLine
            | RunState::Release
            | RunState::Echo
            | RunState::EchoLine => "the command to end".into(),
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
        let ScriptPoll { now, log, cursor, closed, shell } = poll;
        if let (RunState::Start, ShellUse::Stuck(command)) = (&self.state, &shell) {
            let command = command.clone();
            return self.fail(ScriptError::ShellBusy { command }, log, cursor);
        }
        self.input_kind = InputKind::Plain;
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
            match self.step(log, cursor, &shell) {
                RunStep::Write(_) if closed || self.is_rebooted => {}
                RunStep::Write(bytes) => {
                    self.echo_until = Some(now + ECHO_LIMIT);
                    return ScriptAction::Write(bytes);
                }
                RunStep::Enter(state) => {
                    self.state = state;
                    self.since = cursor.offset();
                    self.search = None;
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
                // A terminal without an echo.
                RunStep::NeedOutput
                    if self.is_released()
                        && (ends || self.echo_until.is_none_or(|at| now >= at)) =>
                {
                    self.state = RunState::Prompt;
                    self.search = None;
                }
                RunStep::NeedOutput => break,
            }
        }
        if self.is_released() {
            return ScriptAction::Wait;
        }
        if let Some(error) = self.fault(now, log, closed || self.is_rebooted) {
            self.fail(error, log, cursor)
        } else if self.is_rebooted {
            let (expected, tail) = (self.expected(), self.context.tail(log));
            self.fail(ScriptError::Rebooted { expected, tail }, log, cursor)
        } else if self.context.is_over(now, closed) {
            let (expected, near_match) = (self.expected(), self.near_match(log));
            let error = self.context.not_met(now, log, closed, expected, near_match);
            self.given_up_at = (!closed).then_some(*cursor);
            self.fail(error, log, cursor)
        } else if self.is_not_taken(now, log) {
            let tail = self.context.tail(log);
            self.fail(ScriptError::NotLoggedIn { tail }, log, cursor)
        } else if let Some(request) = self.poll_ladder(now) {
            ScriptAction::Write(request)
        } else {
            match self.probe(now, log) {
                ShellProbe::Wait => ScriptAction::Wait,
                ShellProbe::Enter => {
                    self.input_kind = InputKind::Nudge;
                    ScriptAction::Write(b"\r".to_vec())
                }
                ShellProbe::Lost => {
                    let tail = self.context.tail(log);
                    self.fail(ScriptError::ShellExited { tail }, log, cursor)
                }
            }
        }
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        if self.context.ended.is_some() {
            return None;
        }
        let certain = if self.may_be_faulty { self.context.fault_confirmed_at() } else { None };
        let soon = Deadline::earliest(certain, self.search_across_kernel_log_at());
        let echo = self.echo_until.filter(|_| self.is_released());
        let echo = echo.map(|at| Deadline { at, why: "the terminal may have no echo" });
        let soon = Deadline::earliest(Deadline::earliest(echo, self.probe_at()), soon);
        let ladder = self.ladder.as_ref().and_then(SignalLadder::poll_timeout);
        let soon = Deadline::earliest(Deadline::earliest(ladder, self.not_taken_at()), soon);
        Deadline::earliest(self.context.deadline("console command timed out"), soon)
    }

    fn take_output(&mut self) -> Vec<u8> {
        if self.is_streamed { self.collected.take() } else { Vec::new() }
    }

    fn handle_reboot(&mut self) {
        self.is_rebooted = true;
    }

    fn abandon(&mut self, now: Instant, at: &Cursor) -> Option<(Box<dyn Script + Send>, Cursor)> {
        self.give_up(now, at)
    }

    fn shell_use(&self) -> ShellUse {
        if self.ladder.as_ref().is_some_and(SignalLadder::is_stuck) {
            ShellUse::Stuck(self.shown.clone())
        } else if matches!(self.state, RunState::Start | RunState::Prompt) || self.is_released() {
            ShellUse::Free
        } else {
            ShellUse::Busy
        }
    }

    fn input_kind(&self) -> InputKind {
        self.input_kind
    }
}

#[cfg(test)]
mod tests;
