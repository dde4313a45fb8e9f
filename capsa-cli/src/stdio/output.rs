//! Buffers and writes standard output or standard error without blocking.
//!
//! They are not made non-blocking, because other processes share their open file
//! descriptions. A pipe that polls as writable accepts [`PIPE_BUF`] bytes without blocking. A
//! terminal does not guarantee that, so it is opened again, with `O_NONBLOCK`.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::ttyname;

use crate::print::print_message;
use crate::stdio::poll_set::PollSet;

/// The bytes that a writable pipe accepts without blocking: 4096 on Linux, 512 by POSIX.
pub(crate) const PIPE_BUF: usize = if cfg!(target_os = "linux") { 4096 } else { 512 };

/// Standard output or standard error, and the bytes that are not written yet.
#[derive(Debug)]
pub(crate) struct OutputWriter {
    to: File,
    name: &'static str,
    bytes: Vec<u8>,
    written: usize,
    /// A write failed: further bytes are dropped.
    is_broken: bool,
    /// Bytes were dropped because of an error other than a closed reader, e.g. a full disk.
    is_lossy: bool,
    last: Option<u8>,
}

impl OutputWriter {
    /// A writer to standard output.
    pub(crate) fn new() -> io::Result<Self> {
        Self::to_stream(io::stdout().as_fd(), "standard output")
    }

    /// A writer to standard error.
    pub(crate) fn to_stderr() -> io::Result<Self> {
        Self::to_stream(io::stderr().as_fd(), "standard error")
    }

    fn to_stream(stream: BorrowedFd<'_>, name: &'static str) -> io::Result<Self> {
        let terminal = ttyname(stream).ok().and_then(|name| {
            let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
            File::options().write(true).custom_flags(flags.bits()).open(name).ok()
        });
        let to = match terminal {
            Some(terminal) => terminal,
            None => File::from(stream.try_clone_to_owned()?),
        };
        Ok(Self { name, ..Self::to_file(to) })
    }

    /// A writer to a file that was opened with `O_NONBLOCK`.
    pub(crate) fn to_file(to: File) -> Self {
        Self {
            to,
            name: "standard output",
            bytes: Vec::new(),
            written: 0,
            is_broken: false,
            is_lossy: false,
            last: None,
        }
    }

    /// Writes the rest, until no byte is accepted for `stall`.
    pub(crate) fn drain(&mut self, stall: Duration) {
        while !self.is_empty() {
            let mut poll_set = PollSet::new();
            poll_set.writable((), self.to.as_fd());
            if poll_set.wait(Some(stall)).is_ok_and(|ready| ready.is_empty()) {
                return;
            }
            self.on_writable();
        }
    }

    /// Whether everything is written, so that [`OutputWriter::put`] may be called.
    pub(crate) fn is_empty(&self) -> bool {
        self.unwritten() == 0
    }

    /// How many bytes are not written yet.
    pub(crate) fn unwritten(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Appends to the buffer. The buffer has no limit: a caller with much output waits until it is
    /// empty.
    pub(crate) fn put(&mut self, bytes: Vec<u8>) {
        if self.is_broken {
            return;
        }
        self.last = bytes.last().copied().or(self.last);
        match self.is_empty() {
            true => (self.bytes, self.written) = (bytes, 0),
            false => self.bytes.extend(bytes),
        }
    }

    /// Writes some bytes. Call it when the descriptor is writable.
    pub(crate) fn on_writable(&mut self) {
        let rest = &self.bytes[self.written..];
        match self.to.write(&rest[..rest.len().min(PIPE_BUF)]) {
            Ok(n) => self.written += n,
            Err(error)
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(error) => {
                self.is_broken = true;
                self.bytes.clear();
                self.written = 0;
                let closed = [Errno::EPIPE, Errno::EIO].map(|errno| Some(errno as i32));
                if !closed.contains(&error.raw_os_error()) {
                    // A full disk is reported; a closed reader is not.
                    self.is_lossy = true;
                    let text =
                        format!("cannot write to {}: {error}; further output is lost", self.name);
                    print_message(&format!("capsa: {text}\n"));
                }
            }
        }
    }

    /// Whether a write has failed, for any reason.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Whether bytes were dropped because of an error other than a closed reader.
    pub(crate) fn is_lossy(&self) -> bool {
        self.is_lossy
    }

    /// Whether the last line has no line feed yet.
    pub(crate) fn is_mid_line(&self) -> bool {
        self.last.is_some_and(|byte| byte != b'\n')
    }
}

impl AsFd for OutputWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.to.as_fd()
    }
}
