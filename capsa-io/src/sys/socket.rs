//! Unix sockets. None of them raises SIGPIPE, and all are close-on-exec.
//!
//! A path may be longer than a socket address, where the system can name the directory by a descriptor.

use std::ffi::OsStr;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, Protocol, RecvAncillaryBuffer, RecvAncillaryMessage, ReturnFlags,
    SocketAddrUnix, SocketType,
};

use crate::context;

use super::{SOCKET_PATH_MAX, os, set_nonblocking};

/// Descriptors that are received at once, at most.
const DESCRIPTORS_MAX: usize = 16;

/// The number of connections that wait until a listener accepts them.
const BACKLOG: i32 = 128;

/// Connects to a listening unix socket without blocking.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = unix_socket()?;
    set_nonblocking(socket.as_fd())?;
    connect_socket(socket, path)
}

/// Connects to a listening unix socket, and waits while its queue is full.
pub(crate) fn connect_blocking(path: &Path) -> io::Result<UnixStream> {
    connect_socket(unix_socket()?, path)
}

fn connect_socket(socket: OwnedFd, path: &Path) -> io::Result<UnixStream> {
    let address = Address::new(path)?;
    net::connect(&socket, &address.socket()?)?;
    Ok(UnixStream::from(socket))
}

/// Listens on a path. The listener blocks in `accept`.
pub(crate) fn listen(path: &Path) -> io::Result<OwnedFd> {
    listen_with(path, BACKLOG)
}

fn listen_with(path: &Path, backlog: i32) -> io::Result<OwnedFd> {
    let socket = unix_socket()?;
    let address = Address::new(path)?;
    let bound = net::bind(&socket, &address.socket()?);
    bound.and_then(|()| net::listen(&socket, backlog)).map_err(|errno| {
        context::failed(format!("cannot listen on {}", path.display()), errno.into())
    })?;
    Ok(socket)
}

/// Listens on a path that only this user can connect to. The listener does not block.
pub(crate) fn listen_privately(path: &Path) -> io::Result<OwnedFd> {
    let socket = unix_socket()?;
    set_nonblocking(socket.as_fd())?;
    net::bind(&socket, &Address::new(path)?.socket()?)?;
    // Nothing can connect before it listens.
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Accepts a connection. It does not block.
pub(crate) fn accept(listener: impl AsFd) -> Result<OwnedFd, Errno> {
    let socket = os::accept(listener.as_fd())?;
    if set_nonblocking(socket.as_fd()).and_then(|()| prepare_socket(&socket)).is_err() {
        return Err(Errno::CONNABORTED);
    }
    Ok(socket)
}

/// Receives bytes, and the descriptors that came with them.
pub(crate) fn receive_with_descriptors(
    socket: impl AsFd,
    into: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let slices = &mut [IoSliceMut::new(into)];
    let received = net::recvmsg(socket, slices, &mut control, os::RECEIVE_FLAGS)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    for descriptor in &*descriptors {
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors"));
    }
    Ok(received.bytes)
}

/// The address of a path: the path itself, or another one for the same file that is short enough.
struct Address {
    path: PathBuf,
    /// Keeps `path` valid.
    _directory: Option<OwnedFd>,
}

impl Address {
    fn new(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= SOCKET_PATH_MAX {
            return Ok(Self { path: path.to_owned(), _directory: None });
        }
        let directory = path.parent().map(os::open_directory).transpose()?.flatten();
        let too_long = || {
            let length = path.as_os_str().len();
            let text = format!(
                "socket path {} has {length} bytes; the limit is {SOCKET_PATH_MAX}",
                path.display()
            );
            io::Error::new(io::ErrorKind::InvalidFilename, text)
        };
        let (directory, short) = directory.ok_or_else(too_long)?;
        let name: &OsStr = path.file_name().ok_or_else(too_long)?;
        Ok(Self { path: short.join(name), _directory: Some(directory) })
    }

    fn socket(&self) -> io::Result<SocketAddrUnix> {
        Ok(SocketAddrUnix::new(&self.path)?)
    }
}

fn unix_socket() -> io::Result<OwnedFd> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, os::SOCKET_FLAGS, None)?;
    prepare_socket(&socket)?;
    Ok(socket)
}

fn prepare_socket(socket: &OwnedFd) -> io::Result<()> {
    fcntl(socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    os::no_sigpipe(socket.as_fd())
}

/// A socket of the internet that does not block.
pub(crate) fn inet_socket(
    family: AddressFamily,
    kind: SocketType,
    protocol: Option<Protocol>,
) -> io::Result<OwnedFd> {
    let socket = net::socket_with(family, kind, os::SOCKET_FLAGS, protocol)?;
    prepare_socket(&socket)?;
    set_nonblocking(socket.as_fd())?;
    Ok(socket)
}

/// A pair of connected sockets that do not raise SIGPIPE. Those of the standard library do on
/// macOS.
pub(crate) fn socket_pair() -> io::Result<(UnixStream, UnixStream)> {
    let (one, other) = UnixStream::pair()?;
    for socket in [&one, &other] {
        os::no_sigpipe(socket.as_fd())?;
    }
    Ok((one, other))
}

/// A pair of connected sockets for datagrams, with buffers as for a network card: a sender that never waits
/// fills small ones. macOS limits a datagram to the size of the sender's buffer.
pub(crate) fn datagram_pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
    let (one, other) = UnixDatagram::pair()?;
    for socket in [&one, &other] {
        os::no_sigpipe(socket.as_fd())?;
        // The system's limit may be lower.
        let _ = net::sockopt::set_socket_send_buffer_size(socket, 1 << 20);
        let _ = net::sockopt::set_socket_recv_buffer_size(socket, 4 << 20);
    }
    Ok((one, other))
}

#[cfg(test)]
pub(crate) fn listen_with_a_short_queue(path: &Path) -> io::Result<OwnedFd> {
    listen_with(path, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc;
    use std::io::Write;
    use std::process::Command;

    #[cfg(target_os = "linux")]
    #[test]
    fn listen_accepts_a_path_of_any_length() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(200));
        std::fs::create_dir(&long).unwrap();
        let path = long.join("s");
        let listener = std::os::unix::net::UnixListener::from(listen(&path).unwrap());
        let mut ours = connect(&path).unwrap();
        ours.write_all(b"x").unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        std::io::Read::read_exact(&mut theirs, &mut [0]).unwrap();
        assert!(path.exists());
        let error = listen(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("cannot listen on"), "{error}");
    }

    #[test]
    fn write_to_closed_peer_raises_no_sigpipe() {
        const ALONE: &str = "CAPSA_TEST_ALONE";
        let name = "sys::socket::tests::write_to_closed_peer_raises_no_sigpipe";
        if std::env::var_os(ALONE).is_none() {
            let this = std::env::current_exe().unwrap();
            let status = Command::new(this).args([name, "--exact"]).env(ALONE, "1").status();
            assert!(status.unwrap().success());
            return;
        }
        // SAFETY: the default disposition runs no code.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut ours = connect(&path).unwrap();
        drop(listener.accept().unwrap());
        let (mut one, other) = socket_pair().unwrap();
        drop(other);
        for socket in [&mut ours, &mut one] {
            assert_eq!(socket.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
    }
}
