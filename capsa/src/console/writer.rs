//! [`ConsoleWriter`]: writes the guest's input.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_io::AsyncWrite;

use crate::driver::{Shared, WaitKey, WaiterId};

/// The writing half of a console.
#[derive(Debug)]
pub struct ConsoleWriter {
    shared: Arc<Shared>,
    waiter_id: WaiterId,
}

impl ConsoleWriter {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let waiter_id = shared.waiter_id();
        Self { shared, waiter_id }
    }

    pub(super) fn poll(&self, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.shared.check_process()?;
        let mut state = self.shared.lock();
        state.check_driver()?;
        match state.vm.write(bytes) {
            Ok(0) if !bytes.is_empty() => {
                self.shared.wait(&mut state, WaitKey::Writable(self.waiter_id), cx)
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
        if self.shared.check_process().is_ok() {
            self.shared.lock().remove_waker(WaitKey::Writable(self.waiter_id));
        }
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

    /// Does nothing: queued bytes are written as the guest reads them.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Does nothing: a console has no end of input. Ctrl-D is an ordinary byte.
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
