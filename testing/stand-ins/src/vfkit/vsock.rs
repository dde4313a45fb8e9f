//! The vsock sockets of the VM. Each port on the command line is relayed between the guest's vsock device
//! and a Unix socket, without changes to the bytes, while the guest runs.
//!
//! On the host's side, QEMU's device has a protocol of its own. A program that connects to the device's
//! socket sends `CONNECT port` and reads `OK`. A program to which the guest connects listens on the
//! socket's path with `_port` appended.
//!
//! The relay must read everything that the device sent before it closes a connection. Otherwise the
//! connection is reset, and vhost-device-vsock 0.3.0 does not report a reset to its guest.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use super::super::http::accept;
use super::device::{Device, VsockDevice};
use super::go_url::Url;
use super::{device, log};

/// Starts the relay of each vsock port. A port that cannot be relayed is logged, and the VM runs without
/// it.
pub(super) fn start_relays(devices: &[Device], at: &Path) {
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

/// Connects to the host's socket for each connection from the guest. If the host does not listen, the
/// guest's connection is closed.
fn listen_for_guest(port: u32, url: &str, at: &Path) -> Result<(), String> {
    let socket = PathBuf::from(format!("{}_{port}", at.display()));
    let _ = std::fs::remove_file(&socket);
    // As in the real one, an invalid URL is an error of each connection.
    let path = Url::parse(&format!("unix:{url}"), false).unwrap_or_default().path;
    accept(bind(&socket)?, move |guest| match UnixStream::connect(&path) {
        Ok(host) => relay(guest, host),
        Err(_) => close(&guest),
    });
    Ok(())
}

/// Connects to the guest's port for each connection from the host.
fn connect_to_guest(port: u32, url: &str, at: &Path) -> Result<(), String> {
    let path = Url::parse(&format!("unix://:{url}"), false)?.escaped_path();
    let at = at.to_owned();
    accept(bind(Path::new(&path))?, move |host| {
        if let Ok(guest) = connect_to_port(port, &at) {
            relay(host, guest);
        }
    });
    Ok(())
}

fn bind(path: &Path) -> Result<UnixListener, String> {
    UnixListener::bind(path).map_err(|error| {
        format!("listen unix {}: bind: {}", path.display(), device::go_error(&error.to_string()))
    })
}

fn connect_to_port(port: u32, at: &Path) -> io::Result<UnixStream> {
    let mut guest = UnixStream::connect(at)?;
    guest.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut reply = String::new();
    // Byte by byte: the bytes after the line are from the guest.
    BufReader::with_capacity(1, &guest).read_line(&mut reply)?;
    match reply.starts_with("OK ") {
        true => Ok(guest),
        false => Err(io::ErrorKind::ConnectionRefused.into()),
    }
}

/// Copies bytes in both directions until both ends have closed their writing side.
fn relay(one: UnixStream, other: UnixStream) {
    thread::scope(|scope| {
        scope.spawn(|| copy(&one, &other));
        copy(&other, &one);
    });
}

/// Copies bytes in one direction. After a failed write it continues to read and discards the bytes.
fn copy(mut from: &UnixStream, mut to: &UnixStream) {
    let mut chunk = [0; 1 << 16];
    let mut is_writable = true;
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        is_writable = is_writable && to.write_all(&chunk[..n]).is_ok();
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Closes the writing side and reads until the guest has closed its own.
fn close(mut guest: &UnixStream) {
    let _ = guest.shutdown(Shutdown::Write);
    let _ = io::copy(&mut guest, &mut io::sink());
}
