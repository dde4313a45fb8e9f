//! Standard output, as slow as it may be: a write is only begun when it will not block.
//!
//! The modes of standard output are shared with whoever else has it, so it is not made
//! non-blocking. A pipe that polls as writable takes [`PIPE_BUF`] bytes at once. A terminal promises
//! nothing of the kind and is opened anew, where being non-blocking is its own affair.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::ttyname;

/// What every system takes without blocking when it says that it takes something; Linux takes 4096.
const PIPE_BUF: usize = if cfg!(target_os = "linux") { 4096 } else { 512 };

/// Bytes on their way to standard output.
#[derive(Debug)]
pub(crate) struct Output {
    to: File,
    bytes: Vec<u8>,
    written: usize,
    /// Nobody reads any more: what comes is dropped.
    broken: bool,
    /// Bytes were dropped that somebody may have wanted: the disk is full, say.
    is_lossy: bool,
    last: Option<u8>,
}

impl Output {
    /// Standard output, with nothing waiting.
    pub(crate) fn new() -> io::Result<Self> {
        let stdout = io::stdout();
        let terminal = ttyname(&stdout).ok().and_then(|name| {
            let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
            File::options().write(true).custom_flags(flags.bits()).open(name).ok()
        });
        let to = match terminal {
            Some(terminal) => terminal,
            None => File::from(stdout.as_fd().try_clone_to_owned()?),
        };
        Ok(Self { to, bytes: Vec::new(), written: 0, broken: false, is_lossy: false, last: None })
    }

    /// Whether everything was written, so that it takes more.
    pub(crate) fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// Takes bytes. Whoever has many waits until what it has is written.
    pub(crate) fn put(&mut self, bytes: Vec<u8>) {
        if self.broken {
            return;
        }
        self.last = bytes.last().copied().or(self.last);
        match self.is_empty() {
            true => (self.bytes, self.written) = (bytes, 0),
            false => self.bytes.extend(bytes),
        }
    }

    /// Writes some. To be called when the descriptor is writable.
    pub(crate) fn on_writable(&mut self) {
        let rest = &self.bytes[self.written..];
        match self.to.write(&rest[..rest.len().min(PIPE_BUF)]) {
            Ok(n) => self.written += n,
            Err(error)
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(error) => {
                self.broken = true;
                self.bytes.clear();
                self.written = 0;
                let gone = [Errno::EPIPE, Errno::EIO].map(|errno| Some(errno as i32));
                if !gone.contains(&error.raw_os_error()) {
                    // A full disk is worth a word; that nobody reads any more is not.
                    self.is_lossy = true;
                    let text = format!("cannot write to standard output any more: {error}");
                    let _ = writeln!(io::stderr(), "capsa: {text}");
                }
            }
        }
    }

    /// Whether nothing can be written any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether bytes were dropped for another reason than that nobody reads.
    pub(crate) fn is_lossy(&self) -> bool {
        self.is_lossy
    }

    /// Whether the last line was not ended.
    pub(crate) fn is_mid_line(&self) -> bool {
        self.last.is_some_and(|byte| byte != b'\n')
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.to.as_fd()
    }
}
