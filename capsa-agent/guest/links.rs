//! The transports: vsock, a virtio-serial port, a serial port, or an inherited descriptor.
//!
//! Their drivers may appear at any time, so those that are not open are tried again and again.

use crate::guest::BootedGuest;
use crate::protocol::{SERIAL_NAME, VSOCK_PORT};
use crate::sys::{self, Errno, Fd, O_NO_TERMINAL, O_NONBLOCK, O_READ_WRITE, Outcome};

/// The numbers of the transports.
pub(crate) const VSOCK: usize = 0;
const VIRTIO_SERIAL: usize = 1;
const SERIAL: usize = 2;
/// How many there are.
pub(crate) const LINKS: usize = 3;

/// The context of the host.
const HOST: u32 = 2;

/// How long the serial port waits for the better transports, from the time when the guest is ready.
const SERIAL_DELAY: u64 = 3_000;

/// How long a transport rests whose other end is not connected.
const REST: u64 = 200;

/// The open transports.
pub(crate) struct Links {
    pub(crate) open: [Option<Fd>; LINKS],
    pub(crate) listener: Option<Fd>,
    /// Until when a transport is not read.
    resting: [u64; LINKS],
    /// Whether the only transport is an inherited one.
    pub(crate) is_served: bool,
}

impl Links {
    /// None yet.
    pub(crate) fn none() -> Self {
        Self { open: [None, None, None], listener: None, resting: [0; LINKS], is_served: false }
    }

    /// This one alone.
    pub(crate) fn one(fd: Fd) -> Self {
        fd.set_nonblocking();
        Self { open: [Some(fd), None, None], is_served: true, ..Self::none() }
    }

    /// Opens what is there. `ready_since`: when the guest became ready.
    pub(crate) fn open_missing(&mut self, guest: &BootedGuest, now: u64, ready_since: Option<u64>) {
        let Some(mounts) = guest.mounts().filter(|_| !self.is_served) else { return };
        // To ask for a socket would start `modprobe` as long as there is no driver.
        let has_vsock = || sys::stat_at(Some(&mounts.dev), b"vsock", false).is_ok();
        if self.listener.is_none() && has_vsock() {
            self.listener = sys::listen_vsock(VSOCK_PORT).ok();
        }
        if self.open[VIRTIO_SERIAL].is_none() {
            self.open[VIRTIO_SERIAL] = open_virtio_serial(&mounts.sys, &mounts.dev).ok();
        }
        let is_late = ready_since.is_some_and(|since| now - since >= SERIAL_DELAY);
        if is_late && self.open[VSOCK].is_none() && self.open[VIRTIO_SERIAL].is_none() {
            let port = &mut self.open[SERIAL];
            if port.is_none() {
                *port = open_serial(&mounts.dev).ok();
            }
        }
    }

    /// Accepts a connection of the host; it takes the place of an earlier one. Whether there is one.
    pub(crate) fn accept(&mut self) -> bool {
        let Some(Ok((connection, context))) = self.listener.as_ref().map(Fd::accept_vsock) else {
            return false;
        };
        if context != HOST {
            return false;
        }
        self.open[VSOCK] = Some(connection);
        true
    }

    /// A transport has no other end: a connection is closed, a port rests.
    pub(crate) fn handle_end(&mut self, link: usize, now: u64) {
        if link == VSOCK {
            self.open[link] = None;
        } else {
            self.resting[link] = now + REST;
        }
    }

    /// How long a transport rests; 0 if it does not.
    pub(crate) fn rest(&self, link: usize, now: u64) -> u64 {
        self.resting[link].saturating_sub(now)
    }
}

/// Opens the virtio-serial port with the agent's name.
fn open_virtio_serial(sys: &Fd, dev: &Fd) -> Outcome<Fd> {
    let ports = sys::open_at(Some(sys), b"class/virtio-ports", sys::O_DIRECTORY, 0)?;
    for (_, port) in ports.entries()? {
        let name = sys::read_file(Some(&ports), &[&port, &b"/name"[..]].concat(), 256);
        if name.is_ok_and(|name| name.trim_ascii() == SERIAL_NAME.as_bytes()) {
            return sys::open_at(Some(dev), &port, O_READ_WRITE | O_NONBLOCK, 0);
        }
    }
    Err(Errno::ENOENT)
}

/// Opens the second serial port. One without hardware refuses its settings.
fn open_serial(dev: &Fd) -> Outcome<Fd> {
    let port = sys::open_at(Some(dev), b"ttyS1", O_READ_WRITE | O_NONBLOCK | O_NO_TERMINAL, 0)?;
    port.set_raw()?;
    Ok(port)
}
