//! Connections to a guest's vsock ports, and listeners for the guest's own.
//!
//! The device is the hypervisor's or a helper's; here are only the unix sockets it is reached by, as
//! [`VsockPlan`] has them. Nothing here ever waits.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use capsa_proto::codec::vsock::{ConnectAnswer, connect_request};
use capsa_proto::plan::VsockPlan;

use crate::sys;

/// A connection to a port of the guest that is being made.
///
/// 1. Wait until it is readable.
/// 2. Call [`Connecting::proceed`]; when it says so, the stream is the guest's.
#[derive(Debug)]
pub struct Connecting {
    stream: UnixStream,
    answer: ConnectAnswer,
}

impl Connecting {
    /// Asks for a connection to `port`.
    ///
    /// # Errors
    ///
    /// When the device's socket cannot be connected to: the machine does not run, or it has more
    /// connections waiting than it takes.
    pub fn begin(vsock: &VsockPlan, port: u32) -> io::Result<Self> {
        let mut stream = sys::connect(Path::new(vsock.socket.as_str()))?;
        // The first bytes on a new connection: they fit its buffer. A device whose guest is not up
        // may have closed it already, which the answer will show.
        match stream.write_all(connect_request(port).as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
        Ok(Self { stream, answer: ConnectAnswer::default() })
    }

    /// Reads what there is of the answer. `true` when the connection is made.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused` when nobody listens on that port of the guest.
    pub fn proceed(&mut self) -> io::Result<bool> {
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::ConnectionRefused.into()),
                Ok(_) => {
                    if self.answer.handle_byte(byte[0]).map_err(io::Error::other)? {
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
    path: PathBuf,
}

impl PortListener {
    /// Listens on `port`, non-blocking. The run directory must be there.
    pub(crate) fn bind(vsock: &VsockPlan, port: u32) -> io::Result<Self> {
        let path = PathBuf::from(vsock.listener(port).as_str());
        let listener = UnixListener::bind(&path)?;
        let bound = Self { listener, path };
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
        let _ = fs::remove_file(&self.path);
    }
}
