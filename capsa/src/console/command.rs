//! [`RunningCommand`]: a command in the guest's shell whose output is read while it runs.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use capsa_proto::console::{CommandOutput, OUTPUT_LIMIT};
use futures_io::AsyncRead;

use super::vm_console::{ActiveWait, FinishedWait};
use crate::Result;
use crate::driver::WaitKey;
use crate::embed::ReaderId;

/// A running command, begun by [`VmConsole::spawn`](crate::VmConsole::spawn).
///
/// Its output can be of any length. A slow reader blocks the command if the console
/// [pauses](crate::console::Overflow::Pause); otherwise up to 16 MiB are kept, then output is dropped and
/// the result is marked as truncated. The output ends with the command; [`wait`](Self::wait)
/// returns its exit status.
///
/// Dropping it interrupts the command, as a time limit does, and discards the unread output.
#[derive(Debug)]
pub struct RunningCommand<'a> {
    pending: ActiveWait<'a>,
    reader: ReaderId,
    /// Output that was taken from the VM; `given` bytes of it were returned to the caller.
    taken: Vec<u8>,
    given: usize,
    ended: Option<Result<CommandOutput>>,
}

impl<'a> RunningCommand<'a> {
    pub(super) fn new(pending: ActiveWait<'a>, reader: ReaderId) -> Self {
        Self { pending, reader, taken: Vec::new(), given: 0, ended: None }
    }

    /// Reads output, waiting until there is some; the terminal's `\r\n` is converted to `\n`.
    /// Returns 0 when the command has ended or was interrupted, or the VM cannot be driven any more:
    /// [`wait`](Self::wait) returns the error.
    pub async fn read(&mut self, buf: &mut [u8]) -> usize {
        poll_fn(|cx| self.poll(cx, buf)).await
    }

    /// Waits for the end of the command. Returns its exit status and its unread output, at most the
    /// first 16 MiB of that.
    ///
    /// # Errors
    ///
    /// The same as [`VmConsole::run`](crate::VmConsole::run). Output that the command printed
    /// before the error can be read before this is called.
    pub async fn wait(mut self) -> Result<CommandOutput> {
        let (mut output, mut chunk) = (Vec::new(), vec![0; 16 << 10]);
        let mut is_cut = false;
        loop {
            let read = self.read(&mut chunk).await;
            if read == 0 {
                break;
            }
            let room = OUTPUT_LIMIT.saturating_sub(output.len()).min(read);
            output.extend_from_slice(&chunk[..room]);
            is_cut |= room < read;
        }
        let mut reply = self.ended.take().expect("it has been read to its end")?;
        reply.truncated |= is_cut;
        reply.output = output;
        Ok(reply)
    }

    pub(super) fn poll(&mut self, cx: &Context<'_>, buf: &mut [u8]) -> Poll<usize> {
        loop {
            let rest = &self.taken[self.given..];
            if !rest.is_empty() || buf.is_empty() {
                let n = rest.len().min(buf.len());
                buf[..n].copy_from_slice(&rest[..n]);
                self.given += n;
                return Poll::Ready(n);
            }
            if self.ended.is_some() {
                return Poll::Ready(0);
            }
            let id = self.pending.id;
            if let Err(error) = self.pending.shared.check_process() {
                self.ended = Some(Err(error.into()));
                continue;
            }
            let mut state = self.pending.shared.lock();
            (self.taken, self.given) = (state.vm.take_output(id), 0);
            if !self.taken.is_empty() {
                continue;
            }
            let mut result = match FinishedWait::take(&mut state, self.reader, id) {
                Some(finished) => finished.script_result(),
                None => {
                    let keys = [WaitKey::Data(self.reader), WaitKey::Ended(id)];
                    match keys.map(|key| self.pending.shared.wait(&mut state, key, cx)) {
                        [_, Poll::Ready(failed)] => failed,
                        [_, Poll::Pending] => return Poll::Pending,
                    }
                }
            };
            if let Ok(reply) = &mut result {
                self.taken = std::mem::take(&mut reply.output);
            }
            self.ended = Some(result);
        }
    }
}

impl AsyncRead for RunningCommand<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, buf).map(Ok)
    }
}
