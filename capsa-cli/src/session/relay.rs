//! `--vsock`: relays vsock ports of the guest to Unix sockets of the host.
//!
//! The session polls the listeners. Each connection then has two threads, one for each direction,
//! which copy bytes until both directions have ended or this program exits.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use capsa::embed::{Vm, VsockConnecting, VsockPortListener};
use capsa::vsock::VsockDirection;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::failure::{CONFIG, CliError};
use crate::reporter::Reporter;
use crate::stdio::poll_set::PollSet;
use crate::values::VsockRelay;

/// All relays of a run. Dropping it removes the Unix sockets that it created.
#[derive(Debug, Default)]
pub(crate) struct Relays(Vec<Relay>);

#[derive(Debug)]
struct Relay {
    port: u32,
    socket: PathBuf,
    listener: RelayListener,
}

/// The listener for new connections.
#[derive(Debug)]
enum RelayListener {
    Host(UnixListener),
    Guest(VsockPortListener),
}

impl Relays {
    /// Creates the listener of each relay.
    pub(crate) fn listen(plans: &[VsockRelay], vm: &mut Vm) -> Result<Self, CliError> {
        let mut relays = Self::default();
        for VsockRelay { direction, port, socket } in plans {
            let failed = |error: &dyn std::fmt::Display| {
                let socket = socket.display();
                CliError::new(
                    CONFIG,
                    format!("cannot relay vsock port {port} to {socket}: {error}"),
                )
            };
            let listener = match direction {
                VsockDirection::ToGuest => {
                    let listener = listen(socket).map_err(|error| failed(&error))?;
                    listener.set_nonblocking(true).map_err(|error| failed(&error))?;
                    RelayListener::Host(listener)
                }
                VsockDirection::ToHost => {
                    RelayListener::Guest(vm.vsock_listen(*port).map_err(|error| failed(&error))?)
                }
            };
            relays.0.push(Relay { port: *port, socket: socket.clone(), listener });
        }
        Ok(relays)
    }

    /// Adds the descriptors to poll.
    pub(crate) fn register<'fd, Source: Copy>(
        &'fd self,
        poll_set: &mut PollSet<'fd, Source>,
        source: impl Fn(usize) -> Source,
    ) {
        for (n, relay) in self.0.iter().enumerate() {
            match &relay.listener {
                RelayListener::Host(listener) => poll_set.readable(source(n), listener.as_fd()),
                RelayListener::Guest(listener) => poll_set.readable(source(n), listener.as_fd()),
            }
        }
    }

    /// Accepts one connection and starts to copy its bytes.
    pub(crate) fn on_ready(&self, n: usize, vm: &Vm, reporter: &Reporter) {
        let Relay { port, socket, listener } = &self.0[n];
        let started = match listener {
            RelayListener::Host(listener) => listener.accept().and_then(|(ours, _)| {
                let theirs = vm.vsock_connect(*port).map_err(io::Error::other)?;
                spawn(move || copy_both_ways(ours, connected(theirs)?))
            }),
            RelayListener::Guest(listener) => listener.accept().and_then(|theirs| {
                let ours = UnixStream::connect(socket)?;
                spawn(move || copy_both_ways(ours, theirs))
            }),
        };
        match started {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                reporter.warn(&format!("cannot relay a connection of vsock port {port}: {error}"));
            }
            _ => {}
        }
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        for relay in &self.0 {
            if matches!(relay.listener, RelayListener::Host(_)) {
                let _ = fs::remove_file(&relay.socket);
            }
        }
    }
}

/// Listens on a Unix socket. A socket that no process listens on, as a killed run leaves one, is
/// replaced; any other file is not touched.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(socket) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_stale = fs::symlink_metadata(socket)?.file_type().is_socket()
                && UnixStream::connect(socket)
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            if !is_stale {
                return Err(error);
            }
            fs::remove_file(socket)?;
            UnixListener::bind(socket)
        }
        bound => bound,
    }
}

fn spawn(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    // Both ends see a broken connection, so its error is not reported.
    thread::Builder::new().name("capsa-vsock".into()).spawn(move || drop(work())).map(drop)
}

/// Blocks until the vsock device has made the connection.
fn connected(mut connecting: VsockConnecting) -> io::Result<UnixStream> {
    while !connecting.proceed()? {
        poll(&mut [PollFd::new(connecting.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
    }
    Ok(connecting.into_stream())
}

/// Copies both directions until both have ended.
fn copy_both_ways(ours: UnixStream, theirs: UnixStream) -> io::Result<()> {
    ours.set_nonblocking(false)?;
    theirs.set_nonblocking(false)?;
    let (from, to) = (ours.try_clone()?, theirs.try_clone()?);
    spawn(move || copy_one_way(from, to))?;
    copy_one_way(theirs, ours)
}

fn copy_one_way(mut from: UnixStream, mut to: UnixStream) -> io::Result<()> {
    let copied = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    copied.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn listen_replaces_stale_socket_only() {
        let dir = tempfile::tempdir().unwrap();
        let (stale, used, file) =
            (dir.path().join("stale"), dir.path().join("used"), dir.path().join("file"));
        drop(UnixListener::bind(&stale).unwrap());
        assert!(stale.exists());
        listen(&stale).unwrap();
        let _used = UnixListener::bind(&used).unwrap();
        fs::write(&file, "kept").unwrap();
        for taken in [&used, &file] {
            assert_eq!(listen(taken).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
        assert_eq!(fs::read(&file).unwrap(), b"kept");
    }

    #[test]
    fn relay_copies_every_byte_both_ways() {
        let (mut here, ours) = UnixStream::pair().unwrap();
        let (theirs, mut there) = UnixStream::pair().unwrap();
        spawn(move || copy_both_ways(ours, theirs)).unwrap();
        let long = vec![7; 300_000];
        let sent = long.clone();
        let sender = thread::spawn(move || {
            here.write_all(&sent).unwrap();
            here.shutdown(Shutdown::Write).unwrap();
            let mut reply = String::new();
            here.read_to_string(&mut reply).unwrap();
            reply
        });
        let mut received = Vec::new();
        there.read_to_end(&mut received).unwrap();
        assert!(received == long);
        there.write_all(b"thanks").unwrap();
        drop(there);
        assert_eq!(sender.join().unwrap(), "thanks");
    }
}
