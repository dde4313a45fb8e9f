//! The sockets of the machine: each port of vsock that the command line names is relayed between
//! the guest's device and a unix socket, bytes as they are, from the moment that the guest runs.
//!
//! The device of the emulator speaks a protocol of its own on the host's side: who connects to its
//! socket says `CONNECT port` and hears `OK`; whom the guest looks for must listen at the socket's
//! name with `_port` behind it.
//!
//! Nothing that the device sent may be left unread when its connection is closed. That would reset
//! it, and vhost-device-vsock 0.3.0 does not tell its guest of a connection that was reset.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use super::super::http::accept;
use super::device::{Device, VsockDevice};
use super::go_url::Url;
use super::{device, log};

/// Relays what can be relayed. What cannot is told in the log, and the machine goes on without.
pub(super) fn expose(devices: &[Device], at: &Path) {
    for device in devices {
        let Device::Vsock(vsock) = device else { continue };
        let VsockDevice { port, socket_url, listen } = vsock;
        if socket_url.is_empty() {
            continue;
        }
        let how = if *listen { " (listening)" } else { "" };
        log::write("info", &format!("Exposing vsock port {port} on {socket_url}{how}"));
        let exposed = if *listen {
            listen_for_guest(*port, socket_url, at)
        } else {
            connect_to_guest(*port, socket_url, at)
        };
        if let Err(why) = exposed {
            log::write("warning", &format!("error exposing vsock port {port}: {why}"));
        }
    }
}

/// The guest connects: the host's socket is dialled for each connection. Where nobody listens, the
/// guest's connection ends at once.
fn listen_for_guest(port: u32, url: &str, at: &Path) -> Result<(), String> {
    let heard = PathBuf::from(format!("{}_{port}", at.display()));
    let _ = std::fs::remove_file(&heard);
    // What is no URL is found out with each connection.
    let path = Url::parse(&format!("unix:{url}"), false).unwrap_or_default().path;
    accept(bind(&heard)?, move |guest| match UnixStream::connect(&path) {
        Ok(host) => relay(guest, host),
        Err(_) => hang_up(&guest),
    });
    Ok(())
}

/// The host connects: the guest's port is dialled for each connection.
fn connect_to_guest(port: u32, url: &str, at: &Path) -> Result<(), String> {
    let path = Url::parse(&format!("unix://:{url}"), false)?.escaped_path();
    let at = at.to_owned();
    accept(bind(Path::new(&path))?, move |host| {
        if let Ok(guest) = dial(port, &at) {
            relay(host, guest);
        }
    });
    Ok(())
}

fn bind(path: &Path) -> Result<UnixListener, String> {
    UnixListener::bind(path).map_err(|error| {
        format!("listen unix {}: bind: {}", path.display(), device::in_go(&error.to_string()))
    })
}

fn dial(port: u32, at: &Path) -> io::Result<UnixStream> {
    let mut guest = UnixStream::connect(at)?;
    guest.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut answer = String::new();
    // Byte by byte: what is behind the line is the guest's.
    BufReader::with_capacity(1, &guest).read_line(&mut answer)?;
    match answer.starts_with("OK ") {
        true => Ok(guest),
        false => Err(io::ErrorKind::ConnectionRefused.into()),
    }
}

/// Carries bytes both ways until both ends have said all.
fn relay(one: UnixStream, other: UnixStream) {
    thread::scope(|scope| {
        scope.spawn(|| carry(&one, &other));
        carry(&other, &one);
    });
}

/// What can no longer be written is read all the same.
fn carry(mut from: &UnixStream, mut to: &UnixStream) {
    let mut chunk = [0; 1 << 16];
    let mut is_heard = true;
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        is_heard = is_heard && to.write_all(&chunk[..n]).is_ok();
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Says no more, and waits until the guest does so too.
fn hang_up(mut guest: &UnixStream) {
    let _ = guest.shutdown(Shutdown::Write);
    let _ = io::copy(&mut guest, &mut io::sink());
}
