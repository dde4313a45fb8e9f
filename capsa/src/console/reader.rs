//! [`ConsoleReader`]: a read position in the guest's output; and [`Lines`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use capsa_proto::console::{self, Stripper};
use futures_io::AsyncRead;
use futures_lite::Stream;

use crate::driver::{Shared, WaitKey};
use crate::embed::ReaderId;
use crate::error::lossy;

/// The reading half of a console.
///
/// It reads as [`VmConsole::read`](crate::VmConsole::read). A clone starts at the same position and
/// is independent. A reader that falls behind the scrollback misses bytes; [`lost`](Self::lost)
/// counts them. Reading fails only when the VM cannot be driven any more.
#[derive(Debug)]
pub struct ConsoleReader {
    pub(super) shared: Arc<Shared>,
    pub(super) id: ReaderId,
    /// Removes escape sequences, if requested.
    stripper: Option<Stripper>,
}

impl ConsoleReader {
    pub(super) fn new(shared: Arc<Shared>, id: ReaderId) -> Self {
        Self { shared, id, stripper: None }
    }

    /// An observer at the oldest kept byte: it exerts no back-pressure.
    #[cfg(feature = "recording")]
    pub(crate) fn observer(shared: Arc<Shared>) -> Self {
        let id = shared.lock().vm.add_observer();
        Self::new(shared, id)
    }

    #[cfg(feature = "recording")]
    pub(crate) fn id(&self) -> ReaderId {
        self.id
    }

    /// Removes escape sequences (colours, cursor movements, window titles) from what is read from
    /// now on; see [`Stripper`].
    #[must_use]
    pub fn strip_ansi(mut self) -> Self {
        self.stripper.get_or_insert_default();
        self
    }

    /// Names this reader. On a console that [pauses](crate::console::Overflow::Pause), the error of a
    /// wait that timed out names the reader that holds up the guest.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        self.shared.lock().vm.name_reader(self.id, name);
        self
    }

    /// Returns the output as a stream of lines. It ends when the console is closed and all output
    /// is read.
    ///
    /// Dropping a future of the stream loses nothing; dropping the stream loses an incomplete line.
    pub fn lines(self) -> Lines {
        Lines { reader: self, lines: console::LineSplitter::default(), is_over: false }
    }

    pub(super) fn poll(&mut self, cx: &Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.shared.check_process()?;
        let mut state = self.shared.lock();
        loop {
            let n = state.vm.read(self.id, buf);
            let text = match &mut self.stripper {
                Some(stripper) => stripped(stripper, buf, n),
                None => n,
            };
            if text > 0 || buf.is_empty() {
                return Poll::Ready(Ok(text));
            }
            // The bytes were escape sequences only: read more.
            if n == 0 {
                break;
            }
        }
        if state.vm.is_console_closed() {
            return Poll::Ready(Ok(0));
        }
        self.shared.wait(&mut state, WaitKey::Data(self.id), cx)
    }

    /// The number of bytes that were dropped before this reader read them.
    pub fn lost(&self) -> u64 {
        self.shared.lock().vm.lost(self.id)
    }
}

/// Removes escape sequences from the first `n` bytes of `buf` in place; returns the new length.
fn stripped(stripper: &mut Stripper, buf: &mut [u8], n: usize) -> usize {
    let mut text = Vec::with_capacity(n);
    stripper.strip(&buf[..n], &mut text);
    buf[..text.len()].copy_from_slice(&text);
    text.len()
}

impl Clone for ConsoleReader {
    fn clone(&self) -> Self {
        let id = self.shared.lock().vm.clone_reader(self.id);
        Self { shared: Arc::clone(&self.shared), id, stripper: self.stripper.clone() }
    }
}

impl Drop for ConsoleReader {
    fn drop(&mut self) {
        if self.shared.check_process().is_err() {
            return;
        }
        // A paused console may resume when its slowest reader is removed.
        self.shared.change(|state| {
            state.remove_waker(WaitKey::Data(self.id));
            state.vm.remove_reader(self.id);
        });
    }
}

impl AsyncRead for ConsoleReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, buf)
    }
}

/// The lines of a console, as a [`Stream`] of text without line ends. Invalid UTF-8 becomes U+FFFD.
/// A line longer than 64 KiB is split. The stream also ends when the VM cannot be driven any more;
/// [`VmHandle::wait`](crate::VmHandle::wait) then returns the error.
///
/// ```no_run
/// # async fn f(console: capsa::VmConsole) {
/// use futures_lite::StreamExt;
///
/// let mut lines = console.reader().strip_ansi().lines();
/// while let Some(line) = lines.next().await {
///     println!("guest: {line}");
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Lines {
    reader: ConsoleReader,
    lines: console::LineSplitter,
    is_over: bool,
}

impl Lines {
    /// The number of bytes that were dropped before they were read, and are missing from the lines.
    pub fn lost(&self) -> u64 {
        self.reader.lost()
    }
}

impl Stream for Lines {
    type Item = String;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<String>> {
        let this = &mut *self;
        let mut chunk = [0; 4096];
        loop {
            if let Some(line) = this.lines.next_line() {
                return Poll::Ready(Some(lossy(line)));
            }
            if this.is_over {
                return Poll::Ready(this.lines.finish().map(lossy));
            }
            match this.reader.poll(cx, &mut chunk) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0) | Err(_)) => this.is_over = true,
                Poll::Ready(Ok(n)) => this.lines.push(&chunk[..n]),
            }
        }
    }
}
