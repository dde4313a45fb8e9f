//! [`Child`]: a command that runs in the guest, and its streams.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use capsa_proto::agent::AgentError;
use futures_io::{AsyncRead, AsyncWrite};

use super::command::ExecOutput;
use super::status::ExitStatus;
use crate::driver::{OperationPart, Shared, SharedState, WaitKey};
use crate::embed::{OperationEnd, OperationHandle, OutputStream, TerminalSize};
use crate::{Error, Result};

/// A command that runs in the guest, begun by [`Command::spawn`](super::Command::spawn).
///
/// Its streams work after it is dropped or has ended, until they are dropped. An output that is not read
/// stops the command after 256 KiB; one that is dropped is discarded. Dropping the child kills its process
/// group.
#[derive(Debug)]
#[non_exhaustive]
pub struct Child {
    /// Its input, if it is piped. Dropping it ends the input.
    pub stdin: Option<ChildStdin>,
    /// Its standard output, if it is piped.
    pub stdout: Option<ChildOutput>,
    /// Its standard error, if it is piped.
    pub stderr: Option<ChildOutput>,
    operation: Arc<ActiveOperation>,
    begun: Instant,
    /// What it does, for errors: "running `ls`".
    action: String,
}

/// The standard input of a command. Closing or dropping it ends the input, after what was written.
///
/// Dropping the future of a `write` has written nothing. A write waits while 256 KiB are on the way to the
/// agent; a flush does not wait until the command has read.
#[derive(Debug)]
pub struct ChildStdin(Arc<ActiveOperation>);

/// The standard output or standard error of a command. Dropping the future of a `read` consumes nothing.
#[derive(Debug)]
pub struct ChildOutput {
    operation: Arc<ActiveOperation>,
    stream: OutputStream,
}

/// An operation of the agent. Dropping it ends the operation.
#[derive(Debug)]
struct ActiveOperation {
    shared: Arc<Shared>,
    handle: OperationHandle,
}

/// An output that is collected.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) bytes: Vec<u8>,
    pub(super) truncated: bool,
}

impl Child {
    pub(super) fn new(
        shared: Arc<Shared>,
        handle: OperationHandle,
        action: String,
        [stdin, stdout, stderr]: [bool; 3],
    ) -> Self {
        let operation = Arc::new(ActiveOperation { shared, handle });
        let output = |stream| ChildOutput { operation: Arc::clone(&operation), stream };
        Self {
            stdin: stdin.then(|| ChildStdin(Arc::clone(&operation))),
            stdout: stdout.then(|| output(OutputStream::Stdout)),
            stderr: stderr.then(|| output(OutputStream::Stderr)),
            operation,
            begun: Instant::now(),
            action,
        }
    }

    /// The process id in the guest; `None` before the command was started.
    pub fn id(&self) -> Option<u32> {
        self.operation.shared.lock().vm.command_pid(self.operation.handle)
    }

    /// Waits for the end of the command. Closes its input first, if it was not taken from the child, so that
    /// a command that reads it to the end can end.
    ///
    /// A command ends after its output. If that is longer than 256 KiB and nothing reads it, this waits
    /// without end: read it at the same time, or use [`wait_with_output`](Self::wait_with_output).
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// [`Error::GuestErrno`] when the command could not be started; [`Error::Timeout`] when its time limit
    /// has passed; [`Error::GuestEnded`] when the VM ends before; [`Error::Agent`] when the guest reboots,
    /// or the agent does not answer or breaks the protocol; [`Error::Io`] when the VM cannot be driven.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        Ok(match self.ended().await? {
            OperationEnd::Exited(status) => ExitStatus::exited(status),
            OperationEnd::Signaled(number) => ExitStatus::signaled(number),
            // The agent kills what it cancels.
            _ => ExitStatus::signaled(9),
        })
    }

    /// Waits for the end of an operation that may be no command.
    pub(super) async fn ended(&mut self) -> Result<OperationEnd> {
        self.stdin = None;
        let ActiveOperation { shared, handle } = &*self.operation;
        let ended = poll_fn(|cx| {
            shared.check_process()?;
            let mut state = shared.lock();
            match state.vm.operation_end(*handle) {
                Some(end) => Poll::Ready(Ok((end, state.vm.stop_report()))),
                None => {
                    let key = WaitKey::Operation(*handle, OperationPart::End);
                    shared.wait::<_, io::Error>(&mut state, key, cx)
                }
            }
        });
        let (end, report) = ended.await?;
        let expected = || format!("the end of {} in the guest", self.action);
        let error = match end {
            Ok(OperationEnd::Failed(errno)) => {
                Error::GuestErrno { operation: self.action.clone(), errno }
            }
            Ok(end) => return Ok(end),
            Err(AgentError::TimedOut { waited }) => {
                Error::Timeout { expected: expected(), waited, tail: String::new(), hint: None }
            }
            Err(error) => match report {
                Some(how) if error == AgentError::GuestEnded => Error::GuestEnded {
                    how: Box::new(how),
                    expected: expected(),
                    waited: self.begun.elapsed(),
                    tail: String::new(),
                    hint: None,
                },
                _ => Error::Agent(error),
            },
        };
        Err(error)
    }

    /// Waits for the end of the command and collects its outputs, at most 16 MiB of each.
    ///
    /// # Errors
    ///
    /// The same as [`wait`](Self::wait).
    pub async fn wait_with_output(self) -> Result<ExecOutput> {
        self.collect(16 << 20).await
    }

    pub(super) async fn collect(mut self, limit: usize) -> Result<ExecOutput> {
        let (out, err) = self.outputs(limit).await;
        let status = self.wait().await?;
        Ok(ExecOutput::new(status, out, err))
    }

    /// Ends its input and collects its outputs.
    pub(super) async fn outputs(&mut self, limit: usize) -> (Collected, Collected) {
        self.stdin = None;
        let (mut stdout, mut stderr) = (self.stdout.take(), self.stderr.take());
        let (mut out, mut err) = (Collected::default(), Collected::default());
        poll_fn(|cx| {
            let first = out.poll(stdout.as_mut(), limit, cx);
            let second = err.poll(stderr.as_mut(), limit, cx);
            ready!(first);
            second
        })
        .await;
        (out, err)
    }

    /// Kills the process group of the command, and discards the output that has not arrived.
    /// [`wait`](Self::wait) returns its end.
    pub fn kill(&mut self) {
        self.operation.change(|state, handle| state.vm.kill_command(handle));
    }

    /// Sends a signal, by the numbers of Linux, to the process group of the command. Numbers outside 1 to 64
    /// have no effect.
    pub fn signal(&mut self, number: i32) {
        self.operation.change(|state, handle| state.vm.signal_command(handle, number));
    }

    /// Changes the size of its [terminal](super::Command::terminal).
    pub fn resize(&mut self, rows: u16, columns: u16) {
        let size = TerminalSize { rows, columns };
        self.operation.change(|state, handle| state.vm.resize_command(handle, size));
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.operation.change(|state, handle| state.vm.cancel_operation(handle));
    }
}

impl ActiveOperation {
    /// In a forked child it does nothing.
    fn change(&self, change: impl FnOnce(&mut SharedState, OperationHandle)) {
        if self.shared.check_process().is_ok() {
            self.shared.change(|state| change(state, self.handle));
        }
    }
}

impl Drop for ActiveOperation {
    fn drop(&mut self) {
        self.change(|state, handle| {
            for part in OperationPart::ALL {
                state.remove_waker(WaitKey::Operation(handle, part));
            }
            state.vm.drop_operation(handle);
        });
    }
}

impl ChildOutput {
    pub(super) fn poll(&mut self, cx: &Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let ActiveOperation { shared, handle } = &*self.operation;
        shared.check_process()?;
        let mut state = shared.lock();
        let read = state.vm.read_operation(*handle, self.stream, buf);
        if read > 0 {
            return Poll::Ready(Ok(read));
        }
        match state.vm.operation_end(*handle) {
            Some(Ok(_)) => Poll::Ready(Ok(0)),
            Some(Err(error)) => Poll::Ready(Err(io::Error::other(error))),
            None => {
                let part = match self.stream {
                    OutputStream::Stdout => OperationPart::Stdout,
                    OutputStream::Stderr => OperationPart::Stderr,
                };
                shared.wait(&mut state, WaitKey::Operation(*handle, part), cx)
            }
        }
    }
}

impl Drop for ChildOutput {
    fn drop(&mut self) {
        let stream = self.stream;
        self.operation.change(|state, handle| state.vm.ignore_operation_output(handle, stream));
    }
}

impl AsyncRead for ChildOutput {
    /// Ends with the command. An operation that did not finish is an error here as well.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, buf)
    }
}

impl ChildStdin {
    pub(super) fn poll(&mut self, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let ActiveOperation { shared, handle } = &*self.0;
        shared.check_process()?;
        let mut state = shared.lock();
        match state.vm.write_input(*handle, bytes)? {
            0 => shared.wait(&mut state, WaitKey::Operation(*handle, OperationPart::Input), cx),
            n => {
                drop(state);
                shared.wake_driver();
                Poll::Ready(Ok(n))
            }
        }
    }

    pub(super) fn end(&mut self) {
        self.0.change(|state, handle| state.vm.end_input(handle));
    }
}

impl Drop for ChildStdin {
    fn drop(&mut self) {
        self.end();
    }
}

impl AsyncWrite for ChildStdin {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl Collected {
    /// Reads to the end. An error ends it, too: `wait` returns it.
    fn poll(
        &mut self,
        output: Option<&mut ChildOutput>,
        limit: usize,
        cx: &Context<'_>,
    ) -> Poll<()> {
        let Some(output) = output else { return Poll::Ready(()) };
        let mut chunk = vec![0; 64 << 10];
        while let Ok(read @ 1..) = ready!(output.poll(cx, &mut chunk)) {
            let room = limit.saturating_sub(self.bytes.len()).min(read);
            self.bytes.extend_from_slice(&chunk[..room]);
            self.truncated |= room < read;
        }
        Poll::Ready(())
    }
}
