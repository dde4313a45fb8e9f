//! The console of a machine, for async code.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use capsa_proto::console::Reply;
use futures_io::{AsyncRead, AsyncWrite};

use crate::driver::{For, Shared, State, Ticket};
use crate::embed::{Ended, ReaderId, WaitId, matched};
use crate::error::lossy;
use crate::{Error, Recording, Result};

/// Ctrl-C, as a terminal sends it.
const INTERRUPT: u8 = 0x03;
/// Ctrl-D, as a terminal sends it.
const EOF: u8 = 0x04;

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
            reader: ConsoleReader { shared: Arc::clone(&shared), id },
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
    /// [`Error::PatternNotFound`] when the console closes first.
    pub async fn wait_for(&mut self, pattern: &str) -> Result<String> {
        self.expect(&[pattern], None).await.map(|(_, text)| text)
    }

    /// As [`wait_for`](Self::wait_for), for this long at most.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] as well. Nothing is consumed then.
    pub async fn wait_for_timeout(&mut self, pattern: &str, timeout: Duration) -> Result<String> {
        self.expect(&[pattern], Some(timeout)).await.map(|(_, text)| text)
    }

    /// Reads until one of `patterns`, and gives its index and everything up to and with it. The
    /// earliest end wins, ties go to the first listed.
    ///
    /// # Errors
    ///
    /// As [`wait_for`](Self::wait_for).
    pub async fn wait_for_any(&mut self, patterns: &[&str]) -> Result<(usize, String)> {
        self.expect(patterns, None).await
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
            let taken = poll_fn(|cx| self.writer.poll(cx, rest)).await?;
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
    /// [`Error::Script`] when the guest refuses, [`Error::PatternNotFound`] when the console closes.
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
        let wait = self.begin(|state| state.vm.login(id, username, password, timeout)).await?;
        script(wait).map(|_| ())
    }

    /// Runs a command in the guest's shell and gives its output, without the echo of the command
    /// and without the prompt, which is consumed. No time limit; see
    /// [`run_command_timeout`](Self::run_command_timeout).
    ///
    /// # Errors
    ///
    /// [`Error::Script`] when the command cannot be typed, [`Error::PatternNotFound`] when the
    /// console closes.
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
    /// # Errors
    ///
    /// As [`run_command_timeout`](Self::run_command_timeout).
    pub async fn run(&mut self, cmd: &str, timeout: Option<Duration>) -> Result<Reply> {
        self.run_in_shell(cmd, None, timeout).await
    }

    async fn run_in_shell(
        &mut self,
        cmd: &str,
        prompt: Option<&str>,
        timeout: Option<Duration>,
    ) -> Result<Reply> {
        let id = self.reader.id;
        script(self.begin(|state| state.vm.run_command(id, cmd, prompt, timeout)).await?)
    }

    async fn expect(
        &mut self,
        patterns: &[&str],
        timeout: Option<Duration>,
    ) -> Result<(usize, String)> {
        let id = self.reader.id;
        let ended = self.begin(|state| Ok(state.vm.expect(id, patterns, timeout))).await?;
        matched(ended, patterns)
    }

    /// Begins a conversation and waits for its end.
    async fn begin(&mut self, begin: impl FnOnce(&mut State) -> Result<WaitId>) -> Result<Ended> {
        let shared = &self.reader.shared;
        let id = begin(&mut shared.lock())?;
        shared.poke();
        let waiting = Conversing { shared, id };
        Ok(poll_fn(|cx| {
            let mut state = waiting.shared.lock();
            if let Some(ended) = state.vm.take_ended(id) {
                return Poll::Ready(ended);
            }
            state.wake(For::Ended(id), cx.waker());
            Poll::Pending
        })
        .await)
    }
}

fn script(ended: Ended) -> Result<Reply> {
    match ended {
        Ended::Script(result) => result.map_err(Error::from),
        Ended::Expect(_) => unreachable!("a script is no wait for patterns"),
    }
}

/// A conversation somebody waits for. Given up when the waiting is.
struct Conversing<'a> {
    shared: &'a Shared,
    id: WaitId,
}

impl Drop for Conversing<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.forget(For::Ended(self.id));
        state.vm.cancel(self.id);
    }
}

/// The reading half of a console.
///
/// Reads as [`VmConsole::read`]; a clone starts at the same place and goes its own way.
#[derive(Debug)]
pub struct ConsoleReader {
    shared: Arc<Shared>,
    id: ReaderId,
}

impl ConsoleReader {
    /// A reader at the oldest byte that is kept, for whose sake no output is held back.
    pub(crate) fn observer(shared: Arc<Shared>) -> Self {
        let id = shared.lock().vm.supervisor().console_mut().add_observer();
        Self { shared, id }
    }

    pub(crate) fn id(&self) -> ReaderId {
        self.id
    }

    fn poll(&self, cx: &Context<'_>, buf: &mut [u8]) -> Poll<usize> {
        let mut state = self.shared.lock();
        let n = state.vm.supervisor().console_mut().read(self.id, buf);
        if n > 0 || buf.is_empty() || state.vm.supervisor().console().is_closed() {
            return Poll::Ready(n);
        }
        state.wake(For::Data(self.id), cx.waker());
        Poll::Pending
    }

    /// Bytes that were dropped before this reader read them: it was further behind than what is kept.
    pub fn lost(&self) -> u64 {
        self.shared.lock().vm.supervisor().console().lost(self.id)
    }
}

impl Clone for ConsoleReader {
    fn clone(&self) -> Self {
        let id = self.shared.lock().vm.supervisor().console_mut().clone_reader(self.id);
        Self { shared: Arc::clone(&self.shared), id }
    }
}

impl Drop for ConsoleReader {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.forget(For::Data(self.id));
        state.vm.remove_reader(self.id);
        drop(state);
        // With the slowest reader gone, a paused console may go on.
        self.shared.poke();
    }
}

impl AsyncRead for ConsoleReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, buf).map(Ok)
    }
}

/// The writing half of a console.
#[derive(Debug)]
pub struct ConsoleWriter {
    shared: Arc<Shared>,
    ticket: Ticket,
}

impl ConsoleWriter {
    fn new(shared: Arc<Shared>) -> Self {
        let ticket = shared.lock().ticket();
        Self { shared, ticket }
    }

    fn poll(&self, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        match state.vm.write(bytes) {
            Ok(0) if !bytes.is_empty() => {
                state.wake(For::Writable(self.ticket), cx.waker());
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
        self.shared.lock().forget(For::Writable(self.ticket));
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
