//! [`RunningCommand`]: a command in the guest's shell, with its output while it comes.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use capsa_proto::console::{CommandOutput, OUTPUT_LIMIT};
use futures_io::AsyncRead;

use super::ActiveWait;
use crate::Result;
use crate::driver::WaitKey;
use crate::embed::{ReaderId, script_result};

/// A command under way; [`VmConsole::spawn`](crate::VmConsole::spawn) began it.
///
/// Its output is read as it comes, and can be of any length. A reader that is slow makes the command
/// wait where the console [pauses](crate::Overflow::Pause); of any other it may be 16 MiB behind, then
/// bytes are dropped, which the reply admits. Output ends with the command; [`wait`](Self::wait) says
/// how that was.
///
/// Dropping it interrupts the command, as a time limit does, and gives up what was not read of it.
#[derive(Debug)]
pub struct RunningCommand<'a> {
    pending: ActiveWait<'a>,
    reader: ReaderId,
    /// Output that was taken from the machine, and how much of it was handed out.
    taken: Vec<u8>,
    given: usize,
    ended: Option<Result<CommandOutput>>,
}

impl<'a> RunningCommand<'a> {
    pub(super) fn new(pending: ActiveWait<'a>, reader: ReaderId) -> Self {
        Self { pending, reader, taken: Vec::new(), given: 0, ended: None }
    }

    /// Reads some of the output, with the terminal's `\r\n` made `\n` again, waiting for it. Zero: the
    /// command has ended, or was cut off.
    pub async fn read(&mut self, buf: &mut [u8]) -> usize {
        poll_fn(|cx| self.poll(cx, buf)).await
    }

    /// Waits for its end, and gives its exit status and what was not read of its output, the first
    /// 16 MiB of that at most.
    ///
    /// # Errors
    ///
    /// As [`VmConsole::run`](crate::VmConsole::run). What the command printed before can still be
    /// read up to then.
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
        Ok(CommandOutput { output, ..reply })
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
            let mut state = self.pending.shared.lock();
            (self.taken, self.given) = (state.vm.take_output(id), 0);
            if !self.taken.is_empty() {
                continue;
            }
            let Some(ended) = state.vm.take_ended(id) else {
                state.register_waker(WaitKey::Data(self.reader), cx.waker());
                state.register_waker(WaitKey::Ended(id), cx.waker());
                return Poll::Pending;
            };
            let mut result = script_result(ended, state.vm.stop_report());
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
