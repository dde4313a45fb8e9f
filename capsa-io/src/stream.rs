//! A non-blocking byte stream to a hypervisor: a unix socket, or the master of a pty.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::sys;

#[derive(Debug)]
pub(crate) enum Stream {
    Socket(UnixStream),
    Pty(File),
}

/// What a read came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Got {
    Bytes(usize),
    NothingYet,
    Closed,
}

impl Stream {
    /// Connects to a listening socket. The listener's queue is empty, so this does not block.
    pub(crate) fn connect(path: &str) -> io::Result<Self> {
        let socket = UnixStream::connect(Path::new(path))?;
        sys::set_nonblocking(socket.as_fd())?;
        Ok(Self::Socket(socket))
    }

    pub(crate) fn read(&mut self, into: &mut [u8]) -> Got {
        loop {
            let read = match self {
                Self::Socket(socket) => socket.read(into),
                Self::Pty(pty) => pty.read(into),
            };
            return match read {
                Ok(0) => Got::Closed,
                Ok(n) => Got::Bytes(n),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Got::NothingYet,
                // A pty whose other side is gone says EIO, a killed peer ECONNRESET.
                Err(_) => Got::Closed,
            };
        }
    }

    /// Writes what goes now. Zero when nothing does.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let wrote = match self {
                Self::Socket(socket) => socket.write(bytes),
                Self::Pty(pty) => pty.write(bytes),
            };
            return match wrote {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                wrote => wrote,
            };
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Socket(socket) => socket.as_fd(),
            Self::Pty(pty) => pty.as_fd(),
        }
    }
}
