//! The host's side of forwarded ports: sockets that are bound before the VM starts, so that a port in use is
//! an error of the build.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use capsa_proto::spec::{ForwardHost, PortForward, TransportProtocol};
use rustix::io::Errno;
use rustix::net::{SocketType, bind, getsockname, listen, sockopt};

use super::sockets::family;
use crate::sys::{self, ForkGuard};

/// Connections that wait until they are accepted.
const BACKLOG: i32 = 128;

/// Attempts to find a port that is free on both loopback addresses.
const ATTEMPTS: usize = 16;

/// Why a forward has no socket.
#[derive(Debug)]
pub struct ForwardError {
    /// The index of the forward in the plan.
    pub index: usize,
    /// What failed.
    pub error: io::Error,
}

impl fmt::Display for ForwardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot bind forward {}", self.index)
    }
}

impl std::error::Error for ForwardError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// A forward with its sockets.
#[derive(Debug)]
pub(super) struct ForwardSockets {
    /// The forward, with the port that it has.
    pub(super) forward: PortForward,
    pub(super) sockets: Vec<BoundSocket>,
}

/// A socket for connections or datagrams of clients. Does not block.
#[derive(Debug)]
pub(super) struct BoundSocket {
    pub(super) socket: OwnedFd,
    file: Option<SocketFile>,
}

impl BoundSocket {
    /// Whether it is a socket of the internet, not one on a path.
    pub(super) fn is_inet(&self) -> bool {
        self.file.is_none()
    }
}

impl AsFd for BoundSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The file of a unix socket. Dropping it removes the file, if it is still that of the socket.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// The device and the number of the file.
    identity: (u64, u64),
    fork_guard: ForkGuard,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.fork_guard.check_process().is_ok() && identity(&self.path) == Some(self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Binds the sockets of all forwards.
///
/// # Errors
///
/// Those that cannot be bound. Never empty.
pub(super) fn bind_forwards(
    forwards: &[PortForward],
) -> Result<Vec<ForwardSockets>, Vec<ForwardError>> {
    let (mut sockets, mut errors) = (Vec::new(), Vec::new());
    let bound = forwards.iter().enumerate().map(|(index, forward)| {
        let bound = match &forward.host {
            ForwardHost::Port { address, port } => bind_port(forward, *address, *port),
            ForwardHost::Unix(path) => bind_path(Path::new(path.as_str()))
                .map(|socket| ForwardSockets { forward: forward.clone(), sockets: vec![socket] }),
        };
        bound.map_err(|error| ForwardError { index, error })
    });
    for result in bound {
        match result {
            Ok(bound) => sockets.push(bound),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(sockets) } else { Err(errors) }
}

fn bind_port(
    forward: &PortForward,
    address: Option<IpAddr>,
    port: u16,
) -> io::Result<ForwardSockets> {
    let protocol = forward.protocol;
    let mut attempts = if port == 0 { ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        let first = address.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let (socket, bound) = bind_address((first, port).into(), protocol)?;
        let mut sockets = vec![socket];
        if address.is_none() {
            match bind_address((Ipv6Addr::LOCALHOST, bound).into(), protocol) {
                Ok((socket, _)) => sockets.push(socket),
                Err(error) if has_no_ipv6(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts > 0 => continue,
                Err(error) => return Err(error),
            }
        }
        let host = ForwardHost::Port { address, port: bound };
        return Ok(ForwardSockets { forward: PortForward { host, ..forward.clone() }, sockets });
    }
}

fn has_no_ipv6(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

/// Binds a socket. Returns its port, too.
fn bind_address(at: SocketAddr, protocol: TransportProtocol) -> io::Result<(BoundSocket, u16)> {
    let kind = match protocol {
        TransportProtocol::Tcp => SocketType::STREAM,
        TransportProtocol::Udp => SocketType::DGRAM,
    };
    let socket = sys::inet_socket(family(at), kind, None)?;
    if at.is_ipv6() {
        // Otherwise `::` contains 0.0.0.0.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == TransportProtocol::Tcp {
        // Connections of an earlier listener that are not forgotten yet do not matter.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &at)?;
    if protocol == TransportProtocol::Tcp {
        listen(&socket, BACKLOG)?;
    }
    let port = SocketAddr::try_from(getsockname(&socket)?)?.port();
    Ok((BoundSocket { socket, file: None }, port))
}

/// Listens on a path. A socket there that no process listens on is replaced: its owner was killed.
fn bind_path(path: &Path) -> io::Result<BoundSocket> {
    let mut listening = sys::listen_privately(path);
    if listening.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        && is_abandoned(path)
    {
        std::fs::remove_file(path)?;
        listening = sys::listen_privately(path);
    }
    let socket = listening?;
    let file = identity(path).map(|identity| SocketFile {
        path: path.to_owned(),
        identity,
        fork_guard: ForkGuard::new(),
    });
    Ok(BoundSocket { socket, file })
}

/// Whether no process has the socket of this file. A socket of another type asks, so that a listener gets no
/// connection.
pub(crate) fn is_abandoned(path: &Path) -> bool {
    let is_socket =
        std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let connected = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    is_socket && connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa_proto::path::HostPath;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    fn port(port: u16, protocol: TransportProtocol) -> PortForward {
        PortForward { host: ForwardHost::Port { address: None, port }, guest: 22, protocol }
    }

    fn number(bound: &ForwardSockets) -> u16 {
        match bound.forward.host {
            ForwardHost::Port { port, .. } => port,
            ForwardHost::Unix(_) => 0,
        }
    }

    #[test]
    fn port_zero_is_bound_on_both_loopbacks() {
        let forwards = [TransportProtocol::Tcp, TransportProtocol::Udp].map(|p| port(0, p));
        let bound = bind_forwards(&forwards).unwrap();
        TcpStream::connect((Ipv4Addr::LOCALHOST, number(&bound[0]))).unwrap();
        TcpStream::connect((Ipv6Addr::LOCALHOST, number(&bound[0]))).unwrap();
        let port = number(&bound[1]);
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let error = UdpSocket::bind((address, port)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{address}");
        }
    }

    #[test]
    fn port_in_use_is_an_error_with_its_index() {
        let taken = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let taken_port = taken.local_addr().unwrap().port();
        let forwards = [0, taken_port].map(|number| port(number, TransportProtocol::Tcp));
        let errors = bind_forwards(&forwards).unwrap_err();
        let [error] = &errors[..] else { panic!("{errors:?}") };
        assert_eq!((error.index, error.error.kind()), (1, io::ErrorKind::AddrInUse));
    }

    #[test]
    fn unix_socket_is_private_and_removed_if_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let host = ForwardHost::Unix(HostPath::new(path.to_str().unwrap()).unwrap());
        let forward = PortForward { host, guest: 80, protocol: TransportProtocol::Tcp };
        let bind = || bind_forwards(std::slice::from_ref(&forward));

        let bound = bind().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        let listener = &bound[0].sockets[0].socket;
        assert!(sys::accept(listener).is_ok());
        assert_eq!(bind().unwrap_err()[0].error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(sys::accept(listener).unwrap_err(), Errno::AGAIN, "the listener gets no client");
        drop(bound);
        assert!(!path.exists());

        let bound = bind().unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "of another program").unwrap();
        drop(bound);
        assert!(path.exists());
        assert_eq!(bind().unwrap_err()[0].error.kind(), io::ErrorKind::AddrInUse);

        // The file of an owner that was killed.
        std::fs::remove_file(&path).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(bind().unwrap());
        assert!(!path.exists());
    }
}
