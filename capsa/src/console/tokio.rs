//! Tokio's I/O traits for the halves of a console and for running commands (feature `tokio`).
//!
//! They behave as the `futures` traits do, and work with `tokio::io::copy`. No runtime is needed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{ConsoleReader, ConsoleWriter, RunningCommand};

#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
impl AsyncRead for ConsoleReader {
    /// Ends when the console is closed and all output is read.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(self.poll(cx, buf.initialize_unfilled()))?;
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
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

#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
impl AsyncWrite for ConsoleWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, buf)
    }

    /// Does nothing: queued bytes are written as the guest reads them.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Does nothing: a console has no end of input. Ctrl-D is an ordinary byte.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
