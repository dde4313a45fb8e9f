//! Connections to the guest's vsock ports, and listeners for connections from the guest.
//!
//! The vsock device belongs to the hypervisor or a helper process. This module handles only the
//! unix sockets in front of it, as described by [`VsockPlan`](capsa_proto::plan::VsockPlan). It
//! never blocks.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use capsa_proto::codec::vsock::{ConnectAnswer, connect_request};
use capsa_proto::path::HostPath;
use capsa_proto::plan::VsockRoute;
use rustix::net::{RecvFlags, recv};

use crate::sys::{self, ForkGuard};

/// A connection to a port of the guest that is being established.
///
/// 1. Wait until it is readable.
/// 2. Call [`Connecting::proceed`] until it returns `true`; then the stream is connected to the
///    guest.
#[derive(Debug)]
pub struct Connecting {
    stream: UnixStream,
    /// `None` if the device sends no handshake.
    answer: Option<ConnectAnswer>,
}

impl Connecting {
    /// Begins a connection to `port`.
    ///
    /// # Errors
    ///
    /// When the device's socket cannot be reached: the VM does not run, or the device's queue of
    /// connections is full. `ConnectionRefused` when the port has its own socket and it has no
    /// listener yet.
    pub fn begin(route: VsockRoute<'_>, port: u32) -> io::Result<Self> {
        let socket = match route {
            VsockRoute::Handshake(socket) => socket,
            VsockRoute::Direct(socket) => {
                let stream = sys::connect(Path::new(socket.as_str())).map_err(|error| {
                    let is_missing = error.kind() == io::ErrorKind::NotFound;
                    if is_missing { io::ErrorKind::ConnectionRefused.into() } else { error }
                })?;
                return Ok(Self { stream, answer: None });
            }
        };
        let mut stream = sys::connect(Path::new(socket.as_str()))?;
        // The first bytes of a connection fit its buffer. If the guest is not up, the device may
        // have closed the connection already; the handshake shows that.
        match stream.write_all(connect_request(port).as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
        Ok(Self { stream, answer: Some(ConnectAnswer::default()) })
    }

    /// Reads the device's handshake. Returns `true` when the connection is established.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused` when the guest has no listener on the port.
    pub fn proceed(&mut self) -> io::Result<bool> {
        let Some(answer) = &mut self.answer else { return Ok(true) };
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::ConnectionRefused.into()),
                Ok(_) => {
                    if answer.handle_byte(byte[0]).map_err(io::Error::other)? {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A device that closes without reading the request resets the connection.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the device reports that the guest listens. If it does not, a refused stream ends
    /// shortly after it is established: see [`Connecting::has_ended`].
    pub fn is_answered(&self) -> bool {
        self.answer.is_some()
    }

    /// Whether an established stream has ended without data. Consumes nothing.
    pub fn has_ended(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match recv(&self.stream, &mut [0_u8], flags) {
            Ok((data, _)) => data == 0,
            Err(errno) => errno != rustix::io::Errno::AGAIN,
        }
    }

    /// The stream, non-blocking. Use it only after the connection is established.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }
}

impl AsFd for Connecting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Accepts connections from the guest to one port of the host. After it is dropped, connections are
/// refused.
#[derive(Debug)]
pub struct PortListener {
    listener: UnixListener,
    fork_guard: ForkGuard,
    path: PathBuf,
}

impl PortListener {
    /// Listens on the socket of a port, non-blocking. The run directory must exist.
    pub(crate) fn bind(socket: &HostPath) -> io::Result<Self> {
        let path = PathBuf::from(socket.as_str());
        let listener = UnixListener::from(sys::listen(&path)?);
        let bound = Self { listener, fork_guard: ForkGuard::new(), path };
        bound.listener.set_nonblocking(true)?;
        Ok(bound)
    }

    /// Returns the next connection, in non-blocking mode.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl AsFd for PortListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for PortListener {
    fn drop(&mut self) {
        if self.fork_guard.is_same_process() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_route_connects_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let socket = HostPath::new(dir.path().join("s").to_str().unwrap()).unwrap();
        let begin = || Connecting::begin(VsockRoute::Direct(&socket), 5);
        assert_eq!(begin().unwrap_err().kind(), io::ErrorKind::ConnectionRefused, "not served yet");

        let device = UnixListener::bind(socket.as_str()).unwrap();
        let mut made = begin().unwrap();
        assert!(made.proceed().unwrap() && !made.is_answered());
        let (mut guest, _) = device.accept().unwrap();
        assert!(!made.has_ended(), "no data yet");
        guest.write_all(b"hi").unwrap();
        drop(guest);
        assert!(!made.has_ended(), "there is unread data before the end");
        let mut data = String::new();
        made.into_stream().read_to_string(&mut data).unwrap();
        assert_eq!(data, "hi", "nothing was consumed");

        let refused = begin().unwrap();
        drop(device.accept().unwrap());
        assert!(refused.has_ended());
    }
}
