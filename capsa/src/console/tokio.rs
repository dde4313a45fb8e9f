//! The halves of a console, and running commands, as tokio's readers and writers, behind the feature `tokio`.
//!
//! They are what the `futures` ones are, for `tokio::io::copy` and its kin. No runtime is needed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{ConsoleReader, ConsoleWriter, RunningCommand};

impl AsyncRead for ConsoleReader {
    /// Ends when the console has closed and all of it is read.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(self.poll(cx, buf.initialize_unfilled()));
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for RunningCommand<'_> {
    /// Ends with the command.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(self.poll(cx, buf.initialize_unfilled()));
        buf.advance(read);
        Poll::Ready(Ok(()))
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
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
