//! The console of a machine, for async code.

mod command;
mod log;
mod reader;
#[cfg(feature = "tokio")]
mod tokio;

use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use capsa_proto::console::{CommandOutput, Pattern};
use futures_io::AsyncWrite;

use crate::driver::{Shared, SharedState, WaitKey, WaiterId};
use crate::embed::{Ended, WaitId, match_result, script_result};
use crate::error::lossy;
use crate::{Error, Recording, Result, StopReport};

/// Ctrl-C, as a terminal sends it.
const INTERRUPT: u8 = 0x03;
/// Ctrl-D, as a terminal sends it.
const EOF: u8 = 0x04;

pub use command::RunningCommand;
pub use log::{ConsoleLog, Logged};
pub use reader::{ConsoleReader, Lines};

/// A console: reads what the guest says from the first byte on, and writes to it.
///
/// The guest's output is kept (1 MiB unless said) whether or not anybody reads. Each `VmConsole` has
/// a place of its own in it. A wait that times out, or whose future is dropped, consumes nothing.
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

    /// Two halves for concurrent use. Nothing that is unread is lost.
    pub fn split(self) -> (ConsoleReader, ConsoleWriter) {
        (self.reader, self.writer)
    }

    /// Records what the guest says from now on, and what is still kept of what it said before, until
    /// the machine is over. The file is made before this comes back; see [`Recording`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the file cannot be made.
    pub fn record(&self, recording: impl Into<Recording>) -> Result<()> {
        recording.into().create()?.begin(&self.reader.shared)
    }

    /// Reads what there is, waiting for something. Zero: the console closed and all of it is read.
    ///
    /// # Errors
    ///
    /// None today.
    pub async fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        Ok(poll_fn(|cx| self.reader.poll(cx, buf)).await)
    }

    /// Reads until `pattern`, and gives everything up to and with it.
    ///
    /// # Errors
    ///
    /// [`Error::PatternNotFound`] when the machine ends first, with how it ended, or its console
    /// closes; [`Error::KernelPanic`] when its kernel panics and is silent for half a second. Both come
    /// at once, whatever time is left.
    pub async fn wait_for(&mut self, pattern: &str) -> Result<String> {
        self.expect(vec![pattern.into()], None).await.map(|found| found.output)
    }

    /// As [`wait_for`](Self::wait_for), for this long at most.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] as well. Nothing is consumed then.
    pub async fn wait_for_timeout(&mut self, pattern: &str, timeout: Duration) -> Result<String> {
        self.expect(vec![pattern.into()], Some(timeout)).await.map(|found| found.output)
    }

    /// Reads until one of `patterns`, and gives its index and everything up to and with it. The
    /// earliest end wins, ties go to the first listed.
    ///
    /// # Errors
    ///
    /// As [`wait_for`](Self::wait_for).
    pub async fn wait_for_any(&mut self, patterns: &[&str]) -> Result<(usize, String)> {
        let patterns = patterns.iter().map(|literal| Pattern::from(*literal)).collect();
        self.expect(patterns, None).await.map(|found| (found.pattern, found.output))
    }

    /// Reads until `pattern`, a literal or a regular expression, for as long as `timeout`, and gives
    /// everything up to and with it, and the groups of an expression.
    ///
    /// A match ends as soon as it can: see [`Pattern::regex`].
    ///
    /// ```no_run
    /// # async fn f(mut console: capsa::VmConsole) -> Result<(), Box<dyn std::error::Error>> {
    /// use capsa::Pattern;
    /// use std::time::Duration;
    ///
    /// let address = Pattern::regex(r"inet (\d+\.\d+\.\d+\.\d+)/")?;
    /// let found = console.wait_for_pattern(&address, Some(Duration::from_secs(30))).await?;
    /// println!("the guest is {}", found.group(1).unwrap_or("nowhere"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`wait_for_timeout`](Self::wait_for_timeout).
    pub async fn wait_for_pattern(
        &mut self,
        pattern: &Pattern,
        timeout: Option<Duration>,
    ) -> Result<Match> {
        self.expect(vec![pattern.clone()], timeout).await
    }

    /// As [`wait_for_pattern`](Self::wait_for_pattern), for any of these. The earliest end wins, ties
    /// go to the first listed.
    ///
    /// # Errors
    ///
    /// As [`wait_for_timeout`](Self::wait_for_timeout).
    pub async fn wait_for_any_pattern(
        &mut self,
        patterns: &[Pattern],
        timeout: Option<Duration>,
    ) -> Result<Match> {
        self.expect(patterns.to_vec(), timeout).await
    }

    /// Waits until the guest has said nothing for as long as `quiet`, from now or from its last byte
    /// on, and gives all that was unread.
    ///
    /// What is more than the console keeps (1 MiB unless said) is not in it.
    ///
    /// # Errors
    ///
    /// As [`wait_for_timeout`](Self::wait_for_timeout): a guest that ended is not silent. Nothing is
    /// consumed then, nor when the future is dropped.
    pub async fn wait_for_silence(
        &mut self,
        quiet: Duration,
        timeout: Option<Duration>,
    ) -> Result<String> {
        let id = self.reader.id;
        let (ended, report) =
            self.begin(|state| Ok(state.vm.expect_silence(id, quiet, timeout))).await?;
        script_result(ended, report).map(|reply| lossy(&reply.output))
    }

    /// Another reader at the same place, which goes its own way: for a log beside a test that waits.
    pub fn reader(&self) -> ConsoleReader {
        self.reader.clone()
    }

    /// Writes everything that this console has not read yet, and all that comes, into a file; see
    /// [`ConsoleReader::log_to`]. Reading from the console goes on as if nothing were.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn log_to(&self, path: impl AsRef<Path>) -> Result<ConsoleLog> {
        self.reader().log_to(path)
    }

    /// Takes what there is without waiting. A character that has only half arrived stays.
    ///
    /// # Errors
    ///
    /// None today.
    pub async fn read_available(&mut self) -> Result<String> {
        let mut state = self.reader.shared.lock();
        Ok(lossy(&state.vm.supervisor().console_mut().take_text(self.reader.id)))
    }

    /// Writes all of `data`, waiting while the guest does not take it.
    ///
    /// Dropping the future leaves some of it written, and the rest not.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] of kind `BrokenPipe` when the console is closed.
    pub async fn write(&mut self, data: &[u8]) -> Result<()> {
        let mut rest = data;
        while !rest.is_empty() {
            let taken = poll_fn(|cx| self.writer.poll(cx, rest)).await.map_err(Error::Io)?;
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// Writes a text.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub async fn write_str(&mut self, s: &str) -> Result<()> {
        self.write(s.as_bytes()).await
    }

    /// Writes a text and a newline.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub async fn write_line(&mut self, s: &str) -> Result<()> {
        self.write(format!("{s}\n").as_bytes()).await
    }

    /// Sends Ctrl-C.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub async fn send_interrupt(&mut self) -> Result<()> {
        self.write(&[INTERRUPT]).await
    }

    /// Sends Ctrl-D.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub async fn send_eof(&mut self) -> Result<()> {
        self.write(&[EOF]).await
    }

    /// Logs in: waits for the login prompt, types the name, and the password where one is asked for.
    /// A shell that is there already is taken as it is. No time limit; see
    /// [`login_timeout`](Self::login_timeout).
    ///
    /// # Errors
    ///
    /// [`Error::LoginIncorrect`] when the guest refuses; [`Error::EmergencyShell`] and
    /// [`Error::KernelPanic`] when it did not come up; [`Error::PatternNotFound`] when the machine ends
    /// or its console closes; [`Error::Script`] when it asks for a password and none was given, or
    /// what is to be typed cannot be.
    pub async fn login(&mut self, username: &str, password: Option<&str>) -> Result<()> {
        self.log_in(username, password, None).await
    }

    /// As [`login`](Self::login), for this long at most.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] as well.
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
        let (ended, report) =
            self.begin(|state| state.vm.login(id, username, password, timeout)).await?;
        script_result(ended, report).map(|_| ())
    }

    /// Runs a command in the guest's shell and gives its output, without the echo of the command
    /// and without the prompt, which is consumed. No time limit; see
    /// [`run_command_timeout`](Self::run_command_timeout).
    ///
    /// # Errors
    ///
    /// [`Error::Script`] when the command cannot be typed, or the guest is not at a shell;
    /// [`Error::KernelPanic`] and [`Error::EmergencyShell`] when it is in that trouble;
    /// [`Error::PatternNotFound`] when the machine ends or its console closes.
    pub async fn run_command(&mut self, cmd: &str, prompt: &str) -> Result<String> {
        self.run_in_shell(cmd, Some(prompt), None).await.map(|reply| lossy(&reply.output))
    }

    /// As [`run_command`](Self::run_command), for this long at most. Then the command is interrupted.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] as well.
    pub async fn run_command_timeout(
        &mut self,
        cmd: &str,
        prompt: &str,
        timeout: Duration,
    ) -> Result<String> {
        let reply = self.run_in_shell(cmd, Some(prompt), Some(timeout)).await?;
        Ok(lossy(&reply.output))
    }

    /// Runs a command and gives its output *and* its exit status. Needs no prompt to be named.
    ///
    /// Dropping the future interrupts the command, as a time limit does. One command at a time: of two
    /// at once on one machine, each has the other's echo in its output.
    ///
    /// # Errors
    ///
    /// As [`run_command_timeout`](Self::run_command_timeout).
    pub async fn run(&mut self, cmd: &str, timeout: Option<Duration>) -> Result<CommandOutput> {
        self.run_in_shell(cmd, None, timeout).await
    }

    /// Begins a command whose output is wanted while it runs, or is longer than one likes to keep.
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
    /// [`Error::Script`] when the command cannot be typed. The others come with
    /// [`RunningCommand::wait`].
    pub fn spawn(&mut self, cmd: &str, timeout: Option<Duration>) -> Result<RunningCommand<'_>> {
        let (shared, reader) = (&*self.reader.shared, self.reader.id);
        let id = shared.lock().vm.stream_command(reader, cmd, timeout)?;
        shared.wake_driver();
        Ok(RunningCommand::new(ActiveWait { shared, id }, reader))
    }

    async fn run_in_shell(
        &mut self,
        cmd: &str,
        prompt: Option<&str>,
        timeout: Option<Duration>,
    ) -> Result<CommandOutput> {
        let id = self.reader.id;
        let (ended, report) =
            self.begin(|state| state.vm.run_command(id, cmd, prompt, timeout)).await?;
        script_result(ended, report)
    }

    async fn expect(&mut self, patterns: Vec<Pattern>, timeout: Option<Duration>) -> Result<Match> {
        let id = self.reader.id;
        let (ended, report) = self
            .begin(|state| Ok(state.vm.expect_patterns(id, patterns.iter().cloned(), timeout)))
            .await?;
        match_result(ended, &patterns, report)
    }

    /// Begins a conversation and waits for its end. With that comes how the machine ended, if it
    /// has.
    async fn begin(
        &mut self,
        begin: impl FnOnce(&mut SharedState) -> Result<WaitId>,
    ) -> Result<(Ended, Option<StopReport>)> {
        let shared = &self.reader.shared;
        let id = begin(&mut shared.lock())?;
        shared.wake_driver();
        let waiting = ActiveWait { shared, id };
        Ok(poll_fn(|cx| {
            let mut state = waiting.shared.lock();
            if let Some(ended) = state.vm.take_ended(id) {
                return Poll::Ready((ended, state.vm.stop_report()));
            }
            state.register_waker(WaitKey::Ended(id), cx.waker());
            Poll::Pending
        })
        .await)
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Match {
    /// The index of the pattern, in the order given.
    pub pattern: usize,
    /// Everything up to and with what was found.
    pub output: String,
    /// What was found, then what the groups of a regular expression took. A group that took no part
    /// is `None`, and so is every group of a match longer than 64 KiB.
    pub groups: Vec<Option<String>>,
    /// Bytes were dropped from the front of `output`: it was more than the console keeps.
    pub truncated: bool,
}

impl Match {
    /// What was found.
    pub fn text(&self) -> &str {
        self.group(0).unwrap_or_default()
    }

    /// What a group took; the whole is number 0.
    pub fn group(&self, number: usize) -> Option<&str> {
        self.groups.get(number)?.as_deref()
    }
}

/// A conversation somebody waits for. Given up when the waiting is.
#[derive(Debug)]
struct ActiveWait<'a> {
    shared: &'a Shared,
    id: WaitId,
}

impl Drop for ActiveWait<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.remove_waker(WaitKey::Ended(self.id));
        state.vm.cancel(self.id);
    }
}

/// The writing half of a console.
#[derive(Debug)]
pub struct ConsoleWriter {
    shared: Arc<Shared>,
    waiter_id: WaiterId,
}

impl ConsoleWriter {
    fn new(shared: Arc<Shared>) -> Self {
        let waiter_id = shared.lock().waiter_id();
        Self { shared, waiter_id }
    }

    fn poll(&self, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        match state.vm.write(bytes) {
            Ok(0) if !bytes.is_empty() => {
                state.register_waker(WaitKey::Writable(self.waiter_id), cx.waker());
                Poll::Pending
            }
            result => Poll::Ready(result),
        }
    }
}

impl Clone for ConsoleWriter {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.shared))
    }
}

impl Drop for ConsoleWriter {
    fn drop(&mut self) {
        self.shared.lock().remove_waker(WaitKey::Writable(self.waiter_id));
    }
}

impl AsyncWrite for ConsoleWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, buf)
    }

    /// Bytes leave as the guest takes them; there is nothing to push.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A console has no end of input to send: Ctrl-D is a byte.
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
