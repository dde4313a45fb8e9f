//! A non-blocking byte stream to a process: a unix socket, the master of a pty, or a pipe.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::sys;

#[derive(Debug)]
pub(crate) enum ByteStream {
    Socket(UnixStream),
    File(File),
}

/// The result of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadResult {
    Bytes(usize),
    NothingYet,
    Closed,
}

impl ByteStream {
    /// Connects to a listening socket without blocking. A full queue of the listener is an error,
    /// because a hostile listener can keep its queue full.
    pub(crate) fn connect(path: &str) -> io::Result<Self> {
        sys::connect(Path::new(path)).map(Self::Socket)
    }

    pub(crate) fn read(&mut self, into: &mut [u8]) -> ReadResult {
        loop {
            let read = match self {
                Self::Socket(socket) => socket.read(into),
                Self::File(file) => file.read(into),
            };
            return match read {
                Ok(0) => ReadResult::Closed,
                Ok(n) => ReadResult::Bytes(n),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ReadResult::NothingYet,
                // A pty returns EIO when its other side is closed; a killed peer causes ECONNRESET.
                Err(_) => ReadResult::Closed,
            };
        }
    }

    /// Writes as much as is accepted now; 0 if nothing is.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let wrote = match self {
                Self::Socket(socket) => socket.write(bytes),
                Self::File(file) => file.write(bytes),
            };
            return match wrote {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                wrote => wrote,
            };
        }
    }

    /// Writes as much as is accepted now from the front of `queue`. If the stream is closed, the
    /// queue is dropped; the reading side reports the close.
    pub(crate) fn write_from(&mut self, queue: &mut VecDeque<u8>) {
        while !queue.is_empty() {
            let (front, _) = queue.as_slices();
            match self.write(front) {
                Ok(0) => break,
                Ok(n) => drop(queue.drain(..n)),
                Err(_) => queue.clear(),
            }
        }
    }
}

impl AsFd for ByteStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Socket(socket) => socket.as_fd(),
            Self::File(file) => file.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn connect_with_full_queue_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s").to_str().unwrap().to_owned();
        let _listener = sys::listen_with_a_short_queue(Path::new(&path)).unwrap();
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            let connected: Vec<_> = (0..8).map(|_| ByteStream::connect(&path)).collect();
            done.send(connected.into_iter().filter(Result::is_ok).count())
        });
        let connected = is_done.recv_timeout(Duration::from_secs(10)).expect("it blocks");
        assert!((1..8).contains(&connected), "{connected}");
    }
}
