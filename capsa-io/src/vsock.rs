//! Connections to a guest's vsock ports, and listeners for the guest's own.
//!
//! The device is the hypervisor's or a helper's; here are only the unix sockets it is reached by, as
//! [`VsockPlan`](capsa_proto::plan::VsockPlan) has them. Nothing here ever waits.

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

/// A connection to a port of the guest that is being made.
///
/// 1. Wait until it is readable.
/// 2. Call [`Connecting::proceed`]; when it says so, the stream is the guest's.
#[derive(Debug)]
pub struct Connecting {
    stream: UnixStream,
    /// `None` where the device gives none.
    answer: Option<ConnectAnswer>,
}

impl Connecting {
    /// Asks for a connection to `port`.
    ///
    /// # Errors
    ///
    /// When the device's socket cannot be connected to: the machine does not run, or it has more
    /// connections waiting than it takes. `ConnectionRefused` when the port has a socket of its own
    /// which is not served yet.
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
        // The first bytes on a new connection: they fit its buffer. A device whose guest is not up
        // may have closed it already, which the answer will show.
        match stream.write_all(connect_request(port).as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
        Ok(Self { stream, answer: Some(ConnectAnswer::default()) })
    }

    /// Reads what there is of the answer. `true` when the connection is made.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused` when nobody listens on that port of the guest.
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
                // A device that closes without having read the request resets the connection.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the device says that somebody listens. Where it does not, a stream to a port of nobody
    /// ends soon after it was made: see [`Connecting::has_ended`].
    pub fn is_answered(&self) -> bool {
        self.answer.is_some()
    }

    /// Whether a stream that was made has ended, with nothing said. Consumes nothing.
    pub fn has_ended(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match recv(&self.stream, &mut [0_u8], flags) {
            Ok((said, _)) => said == 0,
            Err(errno) => errno != rustix::io::Errno::AGAIN,
        }
    }

    /// The stream, non-blocking. Before the connection is made it is of no use.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }
}

impl AsFd for Connecting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Hears the connections that the guest makes to one port of the host. Dropped, it hears no more,
/// and the guest is refused.
#[derive(Debug)]
pub struct PortListener {
    listener: UnixListener,
    fork_guard: ForkGuard,
    path: PathBuf,
}

impl PortListener {
    /// Listens on the socket of a port, non-blocking. The run directory must be there.
    pub(crate) fn bind(socket: &HostPath) -> io::Result<Self> {
        let path = PathBuf::from(socket.as_str());
        let listener = UnixListener::bind(&path)?;
        let bound = Self { listener, fork_guard: ForkGuard::new(), path };
        bound.listener.set_nonblocking(true)?;
        Ok(bound)
    }

    /// The next connection, if one waits. It is non-blocking.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when none waits.
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
    fn a_direct_route_is_made_at_once_and_ends_where_nobody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let socket = HostPath::new(dir.path().join("s").to_str().unwrap()).unwrap();
        let begin = || Connecting::begin(VsockRoute::Direct(&socket), 5);
        assert_eq!(begin().unwrap_err().kind(), io::ErrorKind::ConnectionRefused, "not served yet");

        let device = UnixListener::bind(socket.as_str()).unwrap();
        let mut made = begin().unwrap();
        assert!(made.proceed().unwrap() && !made.is_answered());
        let (mut guest, _) = device.accept().unwrap();
        assert!(!made.has_ended(), "nothing was said yet");
        guest.write_all(b"hi").unwrap();
        drop(guest);
        assert!(!made.has_ended(), "something was said before the end");
        let mut said = String::new();
        made.into_stream().read_to_string(&mut said).unwrap();
        assert_eq!(said, "hi", "nothing was consumed");

        let refused = begin().unwrap();
        drop(device.accept().unwrap());
        assert!(refused.has_ended());
    }
}
