//! [`VmConsole`]: the console of a VM, for async code.

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use capsa_proto::console::{CommandOutput, Pattern};

use super::{ConsoleLog, ConsoleReader, ConsoleWriter, RunningCommand};
use crate::driver::{Shared, SharedState, WaitKey};
use crate::embed::{Ended, Outcome, ReaderId, Vm, WaitId};
use crate::error::{hint, lossy};
use crate::{Error, Result, StopReport};

/// Ctrl-C, as a terminal sends it.
const INTERRUPT: u8 = 0x03;
/// Ctrl-D, as a terminal sends it.
const EOF: u8 = 0x04;

/// A console of a VM: reads the guest's output from the first byte, and writes its input.
///
/// The scrollback (default: 1 MiB) keeps output even when there is no reader. Each `VmConsole` has
/// its own read position. A wait that times out, or whose future is dropped, consumes nothing.
///
/// Every wait, write, login and command also returns:
///
/// - [`Error::NotRunning`] before the start. After the end too, except from a wait, which first
///   searches the unread output and returns [`Error::GuestEnded`] when it has no match.
/// - [`Error::Io`] when the VM cannot be driven any more: see [`VmHandle`](crate::VmHandle).
#[derive(Debug)]
pub struct VmConsole {
    reader: ConsoleReader,
    writer: ConsoleWriter,
}

impl VmConsole {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let id = shared.lock().vm.add_reader();
        Self {
            reader: ConsoleReader::new(Arc::clone(&shared), id),
            writer: ConsoleWriter::new(shared),
        }
    }

    /// Splits the console into two halves for concurrent use. The reading half continues at the
    /// same position.
    pub fn split(self) -> (ConsoleReader, ConsoleWriter) {
        (self.reader, self.writer)
    }

    /// Records the console until the VM has ended: first the output still in the scrollback, then
    /// all further output. The file exists when this returns; see
    /// [`Recording`](crate::recording::Recording).
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the file cannot be created.
    #[cfg(feature = "recording")]
    #[cfg_attr(docsrs, doc(cfg(feature = "recording")))]
    pub fn record(&self, recording: impl Into<crate::recording::Recording>) -> Result<()> {
        recording.into().create()?.begin(&self.reader.shared)
    }

    /// Reads unread output, waiting until there is some. Returns 0 when the console is closed and
    /// all output is read, as at the end of a file; [`VmHandle::wait`](crate::VmHandle::wait) then
    /// waits for the end of the VM.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when there is no unread output and the VM cannot be driven.
    pub async fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        Ok(poll_fn(|cx| self.reader.poll(cx, buf)).await?)
    }

    /// Reads until `pattern` matches; returns everything up to the end of the match.
    ///
    /// # Errors
    ///
    /// [`Error::GuestEnded`] when the VM ends; [`Error::PatternNotFound`] when its console closes;
    /// [`Error::KernelPanic`] when the guest's kernel panics and prints nothing more for half a
    /// second. All are returned at once, before any time limit.
    pub async fn wait_for(&mut self, pattern: &str) -> Result<String> {
        self.expect(vec![pattern.into()], None).await.map(|found| found.output)
    }

    /// Like [`wait_for`](Self::wait_for), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// Also [`Error::Timeout`]; nothing is consumed in that case.
    pub async fn wait_for_timeout(&mut self, pattern: &str, timeout: Duration) -> Result<String> {
        self.expect(vec![pattern.into()], Some(timeout)).await.map(|found| found.output)
    }

    /// Reads until one of `patterns` matches; returns its index and everything up to the end of the
    /// match. The match with the earliest end wins; ties go to the pattern listed first.
    ///
    /// # Errors
    ///
    /// The same as [`wait_for`](Self::wait_for); [`Error::NoPatterns`] when `patterns` is empty.
    pub async fn wait_for_any(&mut self, patterns: &[&str]) -> Result<(usize, String)> {
        let patterns = patterns.iter().map(|literal| Pattern::from(*literal)).collect();
        self.expect(patterns, None).await.map(|found| (found.pattern, found.output))
    }

    /// Reads until `pattern`, a literal or a regular expression, matches, for at most `timeout`.
    /// Returns everything up to the end of the match, and the capture groups.
    ///
    /// A match ends as early as possible: see [`Pattern::regex`].
    ///
    /// ```no_run
    /// # async fn f(mut console: capsa::VmConsole) -> Result<(), Box<dyn std::error::Error>> {
    /// use capsa::console::Pattern;
    /// use std::time::Duration;
    ///
    /// let address = Pattern::regex(r"inet (\d+\.\d+\.\d+\.\d+)/")?;
    /// let found = console.wait_for_pattern(&address, Some(Duration::from_secs(30))).await?;
    /// println!("the guest's address: {}", found.group(1).unwrap_or("none"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The same as [`wait_for_timeout`](Self::wait_for_timeout).
    pub async fn wait_for_pattern(
        &mut self,
        pattern: &Pattern,
        timeout: Option<Duration>,
    ) -> Result<Match> {
        self.expect(vec![pattern.clone()], timeout).await
    }

    /// Like [`wait_for_pattern`](Self::wait_for_pattern), for several patterns. The match with the
    /// earliest end wins; ties go to the pattern listed first.
    ///
    /// # Errors
    ///
    /// The same as [`wait_for_timeout`](Self::wait_for_timeout); [`Error::NoPatterns`] when
    /// `patterns` is empty.
    pub async fn wait_for_any_pattern(
        &mut self,
        patterns: &[Pattern],
        timeout: Option<Duration>,
    ) -> Result<Match> {
        self.expect(patterns.to_vec(), timeout).await
    }

    /// Waits until the guest has printed nothing for `quiet`, counted from the call or from the
    /// last byte. Returns all unread output, at most as much as the scrollback keeps (default: 1
    /// MiB).
    ///
    /// # Errors
    ///
    /// The same as [`wait_for_timeout`](Self::wait_for_timeout); the end of the VM is an error, not
    /// silence. Nothing is consumed in these cases, nor when the future is dropped.
    pub async fn wait_for_silence(
        &mut self,
        quiet: Duration,
        timeout: Option<Duration>,
    ) -> Result<String> {
        let id = self.reader.id;
        let finished = self.begin(|state| state.vm.wait_for_silence(id, quiet, timeout)).await?;
        finished.script_result().map(|reply| lossy(reply.output))
    }

    /// Adds an independent reader at the same position, for example for a log beside a test that
    /// waits.
    pub fn reader(&self) -> ConsoleReader {
        self.reader.clone()
    }

    /// Writes all output that this console has not read yet, and all further output, to a file; see
    /// [`ConsoleReader::log_to`]. The position of this console does not change.
    ///
    /// # Errors
    ///
    /// The same as [`ConsoleReader::log_to`].
    pub fn log_to(&self, path: impl AsRef<Path>) -> Result<ConsoleLog> {
        self.reader().log_to(path)
    }

    /// Takes all unread output without waiting. An incomplete UTF-8 character at the end stays
    /// unread.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] in a forked child of the program.
    pub async fn read_available(&mut self) -> Result<String> {
        self.reader.shared.check_process()?;
        Ok(self.reader.shared.lock().vm.read_available(self.reader.id))
    }

    /// Writes all of `data`, waiting while the input queue is full.
    ///
    /// If the future is dropped, a part of `data` may have been written.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`]; [`Error::GuestEnded`] when the VM ends before all is written;
    /// [`Error::Io`] of kind `BrokenPipe` when the console is closed.
    pub async fn write(&mut self, data: &[u8]) -> Result<()> {
        let begun = Instant::now();
        let mut rest = data;
        while !rest.is_empty() {
            let taken = match poll_fn(|cx| self.writer.poll(cx, rest)).await {
                Ok(taken) => taken,
                Err(error) if rest.len() < data.len() => return Err(self.interrupted(error, begun)),
                Err(error) => return Err(error.downcast().unwrap_or_else(Error::Io)),
            };
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// The error of a write of which a part was written.
    fn interrupted(&self, error: io::Error, begun: Instant) -> Error {
        match self.reader.shared.snapshot().report {
            None => Error::Io(error),
            Some(how) => Error::GuestEnded {
                how: Box::new(how),
                expected: "the guest to take its input".into(),
                waited: begun.elapsed(),
                tail: String::new(),
                hint: None,
            },
        }
    }

    /// Writes a string.
    ///
    /// # Errors
    ///
    /// The same as [`write`](Self::write).
    pub async fn write_str(&mut self, s: &str) -> Result<()> {
        self.write(s.as_bytes()).await
    }

    /// Writes a string and a newline.
    ///
    /// # Errors
    ///
    /// The same as [`write`](Self::write).
    pub async fn write_line(&mut self, s: &str) -> Result<()> {
        self.write(format!("{s}\n").as_bytes()).await
    }

    /// Sends Ctrl-C.
    ///
    /// # Errors
    ///
    /// The same as [`write`](Self::write).
    pub async fn send_interrupt(&mut self) -> Result<()> {
        self.write(&[INTERRUPT]).await
    }

    /// Sends Ctrl-D.
    ///
    /// # Errors
    ///
    /// The same as [`write`](Self::write).
    pub async fn send_eof(&mut self) -> Result<()> {
        self.write(&[EOF]).await
    }

    /// Logs in: waits for the login prompt, types the username, and types the password if the guest
    /// asks for one. If a shell prompt is already there, it is used. There is no time limit; see
    /// [`login_timeout`](Self::login_timeout).
    ///
    /// # Errors
    ///
    /// [`Error::LoginIncorrect`] when the guest refuses the login; [`Error::EmergencyShell`] and
    /// [`Error::KernelPanic`] when the guest did not boot; [`Error::GuestEnded`] when the VM ends;
    /// [`Error::PatternNotFound`] when its console closes; [`Error::Script`] when the guest asks for
    /// a password and none was given, or when the username or password cannot be typed.
    pub async fn login(&mut self, username: &str, password: Option<&str>) -> Result<()> {
        self.log_in(username, password, None).await
    }

    /// Like [`login`](Self::login), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// Also [`Error::Timeout`].
    pub async fn login_timeout(
        &mut self,
        username: &str,
        password: Option<&str>,
        timeout: Duration,
    ) -> Result<()> {
        self.log_in(username, password, Some(timeout)).await
    }

    async fn log_in(
        &mut self,
        username: &str,
        password: Option<&str>,
        timeout: Option<Duration>,
    ) -> Result<()> {
        let id = self.reader.id;
        let finished = self.begin(|state| state.vm.login(id, username, password, timeout)).await?;
        finished.script_result().map(|_| ())
    }

    /// Runs a command in the guest's shell and returns its output, without the echo of the command
    /// and without the prompt, which is consumed. There is no time limit; see
    /// [`run_command_timeout`](Self::run_command_timeout).
    ///
    /// # Errors
    ///
    /// [`Error::Script`] when the command cannot be typed, or when there is no shell;
    /// [`Error::KernelPanic`] and [`Error::EmergencyShell`] when the guest has one of these faults;
    /// [`Error::GuestEnded`] when the VM ends; [`Error::PatternNotFound`] when its console closes.
    pub async fn run_command(&mut self, cmd: &str, prompt: &str) -> Result<String> {
        self.collect(cmd, Some(prompt), None).await.map(|reply| lossy(reply.output))
    }

    /// Like [`run_command`](Self::run_command), for at most `timeout`. The command is then
    /// interrupted.
    ///
    /// # Errors
    ///
    /// Also [`Error::Timeout`].
    pub async fn run_command_timeout(
        &mut self,
        cmd: &str,
        prompt: &str,
        timeout: Duration,
    ) -> Result<String> {
        let reply = self.collect(cmd, Some(prompt), Some(timeout)).await?;
        Ok(lossy(reply.output))
    }

    /// Runs a command and returns its output *and* its exit status. Needs no prompt.
    ///
    /// Dropping the future interrupts the command, as a time limit does. Run one command at a time:
    /// the output of two concurrent commands on one VM is mixed.
    ///
    /// # Errors
    ///
    /// The same as [`run_command_timeout`](Self::run_command_timeout).
    pub async fn run(&mut self, cmd: &str, timeout: Option<Duration>) -> Result<CommandOutput> {
        self.collect(cmd, None, timeout).await
    }

    /// Like [`run`](Self::run), in the login shell itself instead of a process of its own: `cd` and
    /// variables last, and `exit` ends the shell. The shell has to be like dash, bash or busybox ash. A
    /// command that is given up gets Ctrl-C only.
    ///
    /// # Errors
    ///
    /// The same as [`run`](Self::run).
    pub async fn run_in_login_shell(
        &mut self,
        cmd: &str,
        timeout: Option<Duration>,
    ) -> Result<CommandOutput> {
        let id = self.reader.id;
        let finished = self.begin(|state| state.vm.run_in_login_shell(id, cmd, timeout)).await?;
        finished.script_result()
    }

    /// Begins a command whose output is read while it runs, or is too large to keep in memory.
    ///
    /// ```no_run
    /// # async fn f(mut console: capsa::VmConsole) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut make = console.spawn("make -j2 2>&1", None)?;
    /// let mut chunk = [0; 4096];
    /// loop {
    ///     match make.read(&mut chunk).await {
    ///         0 => break,
    ///         n => print!("{}", String::from_utf8_lossy(&chunk[..n])),
    ///     }
    /// }
    /// println!("make ended with {:?}", make.wait().await?.status);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Script`] when the command cannot be typed. [`RunningCommand::wait`] returns the
    /// other errors.
    pub fn spawn(&mut self, cmd: &str, timeout: Option<Duration>) -> Result<RunningCommand<'_>> {
        self.begin_streaming(|vm, reader| vm.spawn(reader, cmd, timeout))
    }

    /// Like [`spawn`](Self::spawn), for a pager, an editor or a shell: the command has the guest's terminal.
    /// It reads what another console of the VM writes once it has printed something; before that, the
    /// shell would. Its output is not changed. The terminal's size is what `stty rows ROWS cols
    /// COLUMNS` sets in the guest. A command that is given up gets Ctrl-C only.
    ///
    /// # Errors
    ///
    /// The same as [`spawn`](Self::spawn).
    pub fn spawn_on_terminal(
        &mut self,
        cmd: &str,
        timeout: Option<Duration>,
    ) -> Result<RunningCommand<'_>> {
        self.begin_streaming(|vm, reader| vm.spawn_on_terminal(reader, cmd, timeout))
    }

    fn begin_streaming(
        &mut self,
        begin: impl FnOnce(&mut Vm, ReaderId) -> Result<WaitId>,
    ) -> Result<RunningCommand<'_>> {
        let (shared, reader) = (&*self.reader.shared, self.reader.id);
        shared.check_process()?;
        let id = shared.change(|state| {
            state.check_driver()?;
            begin(&mut state.vm, reader)
        })?;
        Ok(RunningCommand::new(ActiveWait { shared, id }, reader))
    }

    /// Mounts the shares that the guest has not mounted by itself, at their mount points, which are
    /// created. Guests with systemd 254 or later have mounted them before the login. Needs a root shell:
    /// [`login`](Self::login) first. Does nothing if the VM has no shares.
    ///
    /// # Errors
    ///
    /// [`Error::SharesNotMounted`] when the guest cannot mount a share, otherwise the same as
    /// [`run_command_timeout`](Self::run_command_timeout).
    pub async fn mount_shares(&mut self, timeout: Option<Duration>) -> Result<()> {
        let plan = self.reader.shared.lock().vm.launch_plan().clone();
        let Some(command) = plan.parts().mount_shares_command() else { return Ok(()) };
        let mounted = self.run(&command, timeout).await?;
        match mounted.success() {
            true => Ok(()),
            false => Err(Error::SharesNotMounted { output: lossy(mounted.output) }),
        }
    }

    async fn collect(
        &mut self,
        cmd: &str,
        prompt: Option<&str>,
        timeout: Option<Duration>,
    ) -> Result<CommandOutput> {
        let id = self.reader.id;
        let finished = self
            .begin(|state| match prompt {
                Some(prompt) => state.vm.run_command(id, cmd, prompt, timeout),
                None => state.vm.run(id, cmd, timeout),
            })
            .await?;
        finished.script_result()
    }

    async fn expect(&mut self, patterns: Vec<Pattern>, timeout: Option<Duration>) -> Result<Match> {
        let id = self.reader.id;
        let finished = self
            .begin(|state| state.vm.wait_for_any_pattern(id, patterns.iter().cloned(), timeout))
            .await?;
        finished.match_result(&patterns)
    }

    /// Begins a wait and waits for its end.
    async fn begin(
        &mut self,
        begin: impl FnOnce(&mut SharedState) -> Result<WaitId>,
    ) -> Result<FinishedWait> {
        let shared = &self.reader.shared;
        shared.check_process()?;
        let id = shared.change(|state| {
            state.check_driver()?;
            begin(state)
        })?;
        let waiting = ActiveWait { shared, id };
        poll_fn(|cx| {
            let mut state = waiting.shared.lock();
            match FinishedWait::take(&mut state, self.reader.id, id) {
                Some(finished) => Poll::Ready(Ok(finished)),
                None => waiting.shared.wait(&mut state, WaitKey::Ended(id), cx),
            }
        })
        .await
    }
}

/// A match of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Match {
    /// The index of the pattern in the given order.
    pub pattern: usize,
    /// Everything up to the end of the match.
    pub output: String,
    /// The matched text, then the capture groups of a regular expression. A group that did not
    /// participate is `None`, as is every group of a match longer than 64 KiB.
    pub groups: Vec<Option<String>>,
    /// The front of `output` was dropped because it exceeded the scrollback.
    pub truncated: bool,
}

impl Match {
    /// The matched text.
    pub fn text(&self) -> &str {
        self.group(0).unwrap_or_default()
    }

    /// A capture group; number 0 is the whole match.
    pub fn group(&self, number: usize) -> Option<&str> {
        self.groups.get(number)?.as_deref()
    }
}

/// A wait of a future. Dropping it cancels the wait.
#[derive(Debug)]
pub(super) struct ActiveWait<'a> {
    pub(super) shared: &'a Shared,
    pub(super) id: WaitId,
}

impl Drop for ActiveWait<'_> {
    fn drop(&mut self) {
        if self.shared.check_process().is_ok() {
            let mut state = self.shared.lock();
            state.remove_waker(WaitKey::Ended(self.id));
            state.vm.cancel(self.id);
        }
    }
}

/// A wait that has ended, and what explains its end.
pub(super) struct FinishedWait {
    ended: Ended,
    /// How the VM ended, if it has.
    report: Option<StopReport>,
    /// Another reader that holds up the guest, in words.
    held_up: Option<String>,
}

impl FinishedWait {
    /// Takes the result of a wait of `reader`. `None` while it is pending.
    pub(super) fn take(state: &mut SharedState, reader: ReaderId, wait: WaitId) -> Option<Self> {
        let ended = state.vm.take_ended(wait)?;
        let report = state.vm.stop_report();
        let held_up = state.vm.blocking_reader(reader).map(|blocking| blocking.to_string());
        Some(Self { ended, report, held_up })
    }

    /// The result of a wait for patterns.
    fn match_result(self, patterns: &[Pattern]) -> Result<Match> {
        let Ended::Expect(outcome) = self.ended else {
            unreachable!("expected the result of a wait for patterns")
        };
        let all = || patterns.iter().map(Pattern::to_string).collect::<Vec<_>>().join(", ");
        let expected = match patterns {
            [one] => one.to_string(),
            _ => format!("one of [{}]", all()),
        };
        let error = match outcome {
            Outcome::Matched { pattern, output, truncated, groups } => {
                let text = |group: Range<usize>| lossy(output[group].to_vec());
                let groups = groups.into_iter().map(|group| group.map(text)).collect();
                return Ok(Match { pattern, groups, output: lossy(output), truncated });
            }
            Outcome::TimedOut { tail, waited, fault, near_match } => {
                let hint = self.held_up.or(hint(fault, near_match));
                Error::Timeout { expected, waited, tail: lossy(tail), hint }
            }
            Outcome::Closed { tail, waited, fault, near_match } => {
                let (tail, hint) = (lossy(tail), hint(fault, near_match));
                Error::PatternNotFound { pattern: expected, waited, tail, hint }
            }
            Outcome::Panicked { tail, line, .. } => {
                Error::KernelPanic { expected, line, tail: lossy(tail) }
            }
            _ => unreachable!("an unknown outcome"),
        };
        Err(error.with_end(self.report))
    }

    /// The result of a script.
    pub(super) fn script_result(self) -> Result<CommandOutput> {
        let Ended::Script(result) = self.ended else {
            unreachable!("expected the result of a script")
        };
        result.map_err(|error| match Error::from(error).with_end(self.report) {
            Error::Timeout { expected, waited, tail, hint } => {
                Error::Timeout { expected, waited, tail, hint: self.held_up.or(hint) }
            }
            error => error,
        })
    }
}
