//! `--vsock`: vsock ports of the guest as unix sockets of the host.
//!
//! The session waits for new connections; each of them is then carried by two threads of its own,
//! one for each direction, until both ends have said all. They end with the program.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use capsa::VsockDirection;
use capsa::embed::{Vm, VsockConnecting, VsockPortListener};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::failure::{CONFIG, Failure};
use crate::stdio::watch::Watch;
use crate::values::VsockRelay;
use crate::voice::Voice;

/// All relays of a run. Dropping them removes the sockets that were made.
#[derive(Debug, Default)]
pub(crate) struct Relays(Vec<Relay>);

#[derive(Debug)]
struct Relay {
    port: u32,
    socket: PathBuf,
    ear: Ear,
}

/// Where connections come in.
#[derive(Debug)]
enum Ear {
    Host(UnixListener),
    Guest(VsockPortListener),
}

impl Relays {
    /// Listens for each of them.
    pub(crate) fn listen(plans: &[VsockRelay], vm: &mut Vm) -> Result<Self, Failure> {
        let mut relays = Self::default();
        for VsockRelay { direction, port, socket } in plans {
            let refused = |error: &dyn std::fmt::Display| {
                let socket = socket.display();
                Failure::new(
                    CONFIG,
                    format!("cannot relay vsock port {port} and {socket}: {error}"),
                )
            };
            let ear = match direction {
                VsockDirection::ToGuest => {
                    let listener = listen(socket).map_err(|error| refused(&error))?;
                    listener.set_nonblocking(true).map_err(|error| refused(&error))?;
                    Ear::Host(listener)
                }
                VsockDirection::ToHost => {
                    Ear::Guest(vm.vsock_listen(*port).map_err(|error| refused(&error))?)
                }
            };
            relays.0.push(Relay { port: *port, socket: socket.clone(), ear });
        }
        Ok(relays)
    }

    /// Adds what they wait for.
    pub(crate) fn watch<'fd, Who: Copy>(
        &'fd self,
        watch: &mut Watch<'fd, Who>,
        who: impl Fn(usize) -> Who,
    ) {
        for (n, relay) in self.0.iter().enumerate() {
            match &relay.ear {
                Ear::Host(listener) => watch.readable(who(n), listener.as_fd()),
                Ear::Guest(listener) => watch.readable(who(n), listener.as_fd()),
            }
        }
    }

    /// Takes one connection, and lets it be carried.
    pub(crate) fn on_ready(&self, n: usize, vm: &Vm, voice: &Voice) {
        let Relay { port, socket, ear } = &self.0[n];
        let carried = match ear {
            Ear::Host(listener) => listener.accept().and_then(|(ours, _)| {
                let theirs = vm.vsock_connect(*port).map_err(io::Error::other)?;
                spawn(move || carry(ours, connected(theirs)?))
            }),
            Ear::Guest(listener) => listener.accept().and_then(|theirs| {
                let ours = UnixStream::connect(socket)?;
                spawn(move || carry(ours, theirs))
            }),
        };
        match carried {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                voice.warn(&format!("vsock port {port}: {error}"));
            }
            _ => {}
        }
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        for relay in &self.0 {
            if matches!(relay.ear, Ear::Host(_)) {
                let _ = fs::remove_file(&relay.socket);
            }
        }
    }
}

/// Listens. A socket on which nobody listens any more, as a run that was killed leaves one, is
/// replaced; whatever else is there is not touched.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(socket) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_left = fs::symlink_metadata(socket)?.file_type().is_socket()
                && UnixStream::connect(socket)
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            if !is_left {
                return Err(error);
            }
            fs::remove_file(socket)?;
            UnixListener::bind(socket)
        }
        bound => bound,
    }
}

fn spawn(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    // A connection that breaks is known to both its ends, and nobody else minds.
    thread::Builder::new().name("capsa-vsock".into()).spawn(move || drop(work())).map(drop)
}

/// Waits until the device has made the connection.
fn connected(mut connecting: VsockConnecting) -> io::Result<UnixStream> {
    while !connecting.proceed()? {
        poll(&mut [PollFd::new(connecting.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
    }
    Ok(connecting.into_stream())
}

/// Carries both directions until both have ended.
fn carry(ours: UnixStream, theirs: UnixStream) -> io::Result<()> {
    ours.set_nonblocking(false)?;
    theirs.set_nonblocking(false)?;
    let (from, to) = (ours.try_clone()?, theirs.try_clone()?);
    spawn(move || one_way(from, to))?;
    one_way(theirs, ours)
}

fn one_way(mut from: UnixStream, mut to: UnixStream) -> io::Result<()> {
    let copied = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    copied.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_socket_that_was_left_is_replaced_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let (left, used, file) =
            (dir.path().join("left"), dir.path().join("used"), dir.path().join("file"));
        drop(UnixListener::bind(&left).unwrap());
        assert!(left.exists());
        listen(&left).unwrap();
        let _used = UnixListener::bind(&used).unwrap();
        fs::write(&file, "dear").unwrap();
        for taken in [&used, &file] {
            assert_eq!(listen(taken).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
        assert_eq!(fs::read(&file).unwrap(), b"dear");
    }

    #[test]
    fn what_one_end_says_reaches_the_other_to_the_last_byte() {
        let (mut here, ours) = UnixStream::pair().unwrap();
        let (theirs, mut there) = UnixStream::pair().unwrap();
        spawn(move || carry(ours, theirs)).unwrap();
        let long = vec![7; 300_000];
        let sent = long.clone();
        let sender = thread::spawn(move || {
            here.write_all(&sent).unwrap();
            here.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            here.read_to_string(&mut answer).unwrap();
            answer
        });
        let mut came = Vec::new();
        there.read_to_end(&mut came).unwrap();
        assert!(came == long);
        there.write_all(b"thanks").unwrap();
        drop(there);
        assert_eq!(sender.join().unwrap(), "thanks");
    }
}
