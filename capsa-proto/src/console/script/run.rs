//! [`RunCommand`]: a command in the guest's shell, with its output and its exit status.
//!
//! The command is typed between two `printf`s whose output marks where its own begins and ends;
//! see `line.rs` for the typed line and what it is proof against. The echo comes before the first
//! mark and is thrown away, and the prompt of the shell is not needed to find the end.
//!
//! The kernel may print into the middle of the output, and is then in it (`quiet` or `loglevel=` on
//! the kernel command line help). Where it prints into the middle of a mark or of the prompt, that is
//! read through once the guest is silent.

mod interleaved;

use super::line::{EncodedCommand, Marks};
use super::output_buffer::OutputBuffer;
use super::{CommandOutput, Script, ScriptAction, ScriptContext, ScriptError, hint};
use crate::console::fault::SILENCE;
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

/// How much output is kept unless told otherwise: 16 MiB.
pub const OUTPUT_LIMIT: usize = 16 << 20;

/// How much of a streamed command's output is read before it is taken, where the log makes the guest
/// wait: 64 KiB, and what else the log had when that was reached. A log that drops what is old is read
/// up to [`OUTPUT_LIMIT`].
pub(super) const STREAM_AHEAD: usize = 64 << 10;

/// Ctrl-C, as a terminal sends it.
const INTERRUPT: u8 = 0x03;

/// What a command reads from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stdin {
    /// `/dev/null`: a command that reads finds the end at once. The default. A guest without that
    /// device (an initramfs that mounts no `/dev`) fails the command and says so.
    #[default]
    Null,
    /// The console, for the likes of `stty`. A command that reads waits, until the timeout or for
    /// what else is written to the console.
    Terminal,
}

/// A command under way.
///
/// The guest has to be at the prompt of a shell like dash, bash or busybox ash. zsh and fish are not
/// supported: `command eval` means something else there.
///
/// On a timeout, and when it is cancelled, it types Ctrl-C once and then ends. That gives the shell
/// back where the console is a controlling terminal; a shell that is the init of an initramfs usually
/// has none, and goes on with the command. A console that closes, or a guest that reboots, ends the script at once.
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
    frame: ScriptContext,
    command: EncodedCommand,
    nonce: u64,
    stdin: Stdin,
    prompt: Option<Matcher>,
    stage: RunState,
    /// The search of the present stage.
    search: Option<Search>,
    collected: OutputBuffer,
    /// The output is taken as it comes.
    is_streamed: bool,
    /// There is so much of it that what else the log has is not read.
    waits_for_taker: bool,
    status: Option<i32>,
    /// What the cursor had lost when the output began.
    lost_before: u64,
    /// Where what is waited for may begin.
    since: u64,
    /// How much there was when it was looked for through messages of the kernel.
    read_through: Option<u64>,
    /// How much there was at the last poll.
    heard: u64,
    /// The guest may be in trouble that would end the command.
    is_suspicious: bool,
    /// The guest was reset, and its shell with it.
    is_rebooted: bool,
    /// Ctrl-C was typed, and this is what to end with.
    interrupted: Option<ScriptError>,
    begin: Matcher,
    more: Matcher,
    end: Matcher,
}

/// What comes next.
#[derive(Debug, Clone)]
enum RunState {
    /// The lines are not made yet.
    Fresh,
    /// The front line is to be typed.
    Type(VecDeque<Vec<u8>>),
    /// The mark that a line was taken; these are left to type.
    More(VecDeque<Vec<u8>>),
    Begin,
    BeginLine,
    Output,
    EndLine,
    Prompt,
}

enum RunStep {
    Write(Vec<u8>),
    Go(RunState),
    Again,
    Starved,
    Finished,
}

impl RunCommand {
    /// A script that runs `command` from `now` on.
    ///
    /// `command` is one or more lines of shell, run by the shell itself: `cd` and variables last,
    /// `exit` ends the shell. With a `prompt`, the script ends when that has come after the
    /// command, and consumes it; without (or with an empty one) it ends with the line of the mark.
    /// `nonce` tells this command's marks from others: a different number for each command.
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
            frame: ScriptContext::new(now, timeout),
            command,
            nonce,
            stdin: Stdin::Null,
            prompt: prompt.filter(|p| !p.is_empty()).map(|p| Matcher::new([p])),
            stage: RunState::Fresh,
            search: None,
            collected: OutputBuffer::new(OUTPUT_LIMIT),
            is_streamed: false,
            waits_for_taker: false,
            status: None,
            lost_before: 0,
            since: 0,
            read_through: None,
            heard: 0,
            is_suspicious: false,
            is_rebooted: false,
            interrupted: None,
            begin: Matcher::new([marks.begin]),
            more: Matcher::new([marks.more]),
            end: Matcher::new([marks.end]),
        })
    }

    /// Keeps at most the first `bytes` of the output. The rest is read, thrown away, and admitted
    /// in [`CommandOutput::truncated`].
    #[must_use]
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.collected.set_limit(bytes);
        self
    }

    /// Output is taken [as it comes](Script::take_output), however much there is; [`CommandOutput::output`]
    /// is what was not taken by the end. Where it is not taken, a log that [pauses](Overflow::Pause)
    /// soon makes the guest wait; of any other 16 MiB are read ahead, then it drops what is old and
    /// that is admitted in [`CommandOutput::truncated`].
    ///
    /// When it fails, all that came can still be taken, and is not unread again. Where the kernel
    /// prints into the mark of the end, what came of the mark is in the output.
    #[must_use]
    pub fn streamed(mut self) -> Self {
        self.is_streamed = true;
        self.output_limit(usize::MAX)
    }

    /// What the command reads from.
    #[must_use]
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    fn step(&mut self, log: &Scrollback, cursor: &mut Cursor) -> RunStep {
        match &mut self.stage {
            RunState::Fresh => {
                RunStep::Go(RunState::Type(self.command.lines(self.nonce, self.stdin)))
            }
            RunState::Type(lines) => {
                let line = lines.pop_front().unwrap_or_default();
                let lines = core::mem::take(lines);
                self.stage = if lines.is_empty() { RunState::Begin } else { RunState::More(lines) };
                self.since = cursor.offset();
                RunStep::Write(line)
            }
            RunState::More(lines) => match seek(&self.more, &mut self.search, log, cursor) {
                Some(_) => RunStep::Go(RunState::Type(core::mem::take(lines))),
                None => RunStep::Starved,
            },
            RunState::Begin => match seek(&self.begin, &mut self.search, log, cursor) {
                Some(_) => RunStep::Go(RunState::BeginLine),
                None => RunStep::Starved,
            },
            RunState::BeginLine => match line_end(log, cursor) {
                true => {
                    self.lost_before = cursor.lost();
                    RunStep::Go(RunState::Output)
                }
                false => RunStep::Starved,
            },
            RunState::Output => self.output(log, cursor),
            RunState::EndLine => match (line_end(log, cursor), &self.prompt) {
                (false, _) => RunStep::Starved,
                (true, Some(_)) => RunStep::Go(RunState::Prompt),
                (true, None) => RunStep::Finished,
            },
            RunState::Prompt => match &self.prompt {
                Some(prompt) if seek(prompt, &mut self.search, log, cursor).is_none() => {
                    RunStep::Starved
                }
                _ => RunStep::Finished,
            },
        }
    }

    /// Gathers what is surely output, up to the end mark with its status.
    fn output(&mut self, log: &Scrollback, cursor: &mut Cursor) -> RunStep {
        if self.waits_for_taker {
            return RunStep::Starved;
        }
        let search = self.search.get_or_insert_with(|| Search::from(cursor.offset()));
        let hit = self.end.find(search, log);
        let Some(PatternMatch { start, end, .. }) = hit else {
            // Whoever follows the output sees each byte as soon as it cannot be of the mark.
            let held = half_mark(cursor.peek(log), &self.end);
            self.collected.push(cursor.before(log, log.end() - held as u64));
            return RunStep::Starved;
        };
        self.collected.push(cursor.before(log, start));
        match status(log.since(end)) {
            StatusParse::Known { status, len } => {
                cursor.before(log, end + len as u64);
                self.status = Some(status);
                self.search = None;
                RunStep::Go(RunState::EndLine)
            }
            StatusParse::Incomplete => RunStep::Starved,
            StatusParse::No => {
                // Something that looked like our mark was printed by the command.
                self.collected.push(cursor.before(log, end));
                self.search = None;
                RunStep::Again
            }
        }
    }

    /// When what is waited for is looked for through messages of the kernel, if nothing comes.
    fn reads_through_at(&self) -> Option<Deadline> {
        if self.waits_for_taker {
            return None;
        }
        let since = self.frame.silent_since()?;
        let why = "the kernel may have printed into a mark";
        (self.read_through != Some(self.heard)).then_some(Deadline { at: since + SILENCE, why })
    }

    fn is_silent(&self, now: Instant, closed: bool) -> bool {
        self.reads_through_at().is_some_and(|due| closed || now >= due.at)
    }

    /// What ends the command because there is no shell (any more) that could run it.
    ///
    /// A command may print any of those words and then be silent for as long as it likes. So while
    /// it runs only a panic counts, and only with its last line; the others count while the shell
    /// has not taken the command.
    fn fault(&mut self, now: Instant, log: &Scrollback, closed: bool) -> Option<ScriptError> {
        let is_taken =
            matches!(self.stage, RunState::Output | RunState::EndLine | RunState::Prompt);
        self.is_suspicious = match self.frame.suspicion() {
            // A guest that is held back is silent for that.
            _ if self.waits_for_taker => false,
            Some(GuestFault::KernelPanic) => closed || self.frame.panic_is_whole(log),
            Some(_) => !is_taken,
            None => false,
        };
        if !self.is_suspicious {
            return None;
        }
        let seen = self.frame.fault(now, log, closed)?;
        Some(match seen.fault {
            GuestFault::KernelPanic => self.frame.panicked(log, self.expected(), seen),
            GuestFault::EmergencyShell => self.frame.in_emergency(log, self.expected(), seen),
            GuestFault::LoginIncorrect => ScriptError::NotLoggedIn { tail: self.frame.tail(log) },
        })
    }

    /// Ends without the command's end.
    fn fail(&mut self, error: ScriptError, log: &Scrollback, cursor: &mut Cursor) -> ScriptAction {
        if !self.is_streamed {
            return self.frame.fail(error, cursor);
        }
        if matches!(self.stage, RunState::Output) {
            self.collected.push(&cursor.take(log));
            self.collected.close();
        }
        let mut read = *cursor;
        self.frame.fail(error, &mut read)
    }

    /// What came instead of what is waited for.
    fn near_match(&self, log: &Scrollback) -> Option<NearMatch> {
        match &self.stage {
            RunState::Output => hint::of_lost_shell(log, self.since),
            RunState::EndLine => None,
            RunState::Prompt => near_match(self.prompt.as_ref()?.patterns(), log.since(self.since))
                .or_else(|| hint::of_another_prompt(log, self.since)),
            _ => hint::of_no_shell(log, self.frame.origin()),
        }
    }

    fn expected(&self) -> String {
        match &self.stage {
            RunState::Fresh
            | RunState::Type(_)
            | RunState::More(_)
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
        if let Some(error) = self.interrupted.take() {
            return self.fail(error, log, cursor);
        }
        if self.waits_for_taker {
            self.frame.forget_silence();
        }
        self.frame.look(now, log);
        self.heard = log.end();
        let ends = closed || self.is_rebooted || self.frame.is_over(now, closed);
        let ahead = match log.overflow() {
            Overflow::Pause => STREAM_AHEAD,
            Overflow::DropOldest => OUTPUT_LIMIT,
        };
        loop {
            let is_full = self.is_streamed && self.collected.len() >= ahead && !ends;
            self.waits_for_taker = is_full && cursor.offset() < log.end();
            match self.step(log, cursor) {
                RunStep::Write(bytes) => return ScriptAction::Write(bytes),
                RunStep::Go(stage) => {
                    self.stage = stage;
                    self.since = cursor.offset();
                }
                RunStep::Finished => {
                    let (output, cut) = self.collected.finish();
                    let truncated = cut || cursor.lost() > self.lost_before;
                    return self.frame.succeed(CommandOutput {
                        output,
                        status: self.status,
                        truncated,
                    });
                }
                RunStep::Again => {}
                RunStep::Starved
                    if self.is_silent(now, closed) && self.read_through(log, cursor) => {}
                RunStep::Starved => break,
            }
        }
        if let Some(error) = self.fault(now, log, closed || self.is_rebooted) {
            self.fail(error, log, cursor)
        } else if self.is_rebooted {
            let (expected, tail) = (self.expected(), self.frame.tail(log));
            self.fail(ScriptError::Rebooted { expected, tail }, log, cursor)
        } else if self.frame.is_over(now, closed) {
            let (expected, near_match) = (self.expected(), self.near_match(log));
            let error = self.frame.unmet(now, log, closed, expected, near_match);
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
        if self.frame.ended.is_some() {
            return None;
        }
        let certain = if self.is_suspicious { self.frame.certain_at() } else { None };
        let soon = Deadline::earliest(certain, self.reads_through_at());
        Deadline::earliest(self.frame.deadline("console command timed out"), soon)
    }

    fn take_output(&mut self) -> Vec<u8> {
        if self.is_streamed { self.collected.take() } else { Vec::new() }
    }

    fn handle_reboot(&mut self) {
        self.is_rebooted = true;
    }

    fn handle_cancel(&mut self) -> Option<Vec<u8>> {
        let is_over = self.frame.ended.is_some() || self.interrupted.is_some();
        let runs = !is_over
            && !matches!(self.stage, RunState::Fresh | RunState::EndLine | RunState::Prompt);
        runs.then(|| vec![INTERRUPT])
    }
}

/// Looks for a mark, consuming what surely comes before it, and then the mark itself.
fn seek(
    matcher: &Matcher,
    search: &mut Option<Search>,
    log: &Scrollback,
    cursor: &mut Cursor,
) -> Option<PatternMatch> {
    let state = search.get_or_insert_with(|| Search::from(cursor.offset()));
    let hit = matcher.find(state, log);
    match hit {
        Some(hit) => {
            cursor.before(log, hit.end);
            *search = None;
        }
        None => _ = cursor.before(log, state.settled(matcher)),
    }
    hit
}

/// How many bytes at the end of `text` are the beginning of the mark, and not all of it.
fn half_mark(text: &[u8], mark: &Matcher) -> usize {
    let mark = mark.patterns()[0].as_literal().unwrap_or_default();
    (1..mark.len()).rev().find(|n| text.ends_with(&mark[..*n])).unwrap_or(0)
}

/// Consumes the end of a mark's line, and messages of the kernel in it. False when it may still come.
/// What else there is instead is not part of it.
fn line_end(log: &Scrollback, cursor: &mut Cursor) -> bool {
    let unread = cursor.peek(log);
    let mut through = KernelLogFilter::new(unread);
    let (end, is_whole) = loop {
        match through.next() {
            Some(b'\r') => {}
            Some(b'\n') => break (through.at(), true),
            Some(_) => break (through.at() - 1, !through.is_midway()),
            None => break (through.at(), false),
        }
    };
    // What was passed over is not looked at again.
    cursor.before(log, log.end() - (unread.len() - end) as u64);
    is_whole
}

enum StatusParse {
    Known { status: i32, len: usize },
    Incomplete,
    No,
}

/// Reads `decimal ";"`, with as many digits as an exit status can have.
fn status(bytes: &[u8]) -> StatusParse {
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
