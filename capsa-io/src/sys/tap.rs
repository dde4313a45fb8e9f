//! A tap device: a network card of this host's kernel, whose frames a program reads and writes.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;

/// Creates a tap device named `name` in the network namespace of the calling thread. It is down, and ends
/// with the descriptor, which gives and takes a frame with each call.
///
/// # Errors
///
/// When `/dev/net/tun` cannot be opened, or the process may not create devices.
pub fn open_tap(name: &str) -> io::Result<OwnedFd> {
    nix::ioctl_write_ptr_bad!(
        tun_set_iff,
        nix::request_code_write!(b'T', 202, size_of::<i32>()),
        libc::ifreq
    );
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: an all-zero `ifreq` is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: `request` is valid for the call, which reads it and writes the name.
    unsafe { tun_set_iff(tun.as_raw_fd(), &raw const request) }?;
    Ok(tun.into())
}
