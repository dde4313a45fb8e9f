//! Descriptors that a stand-in inherits, by their numbers on its command line.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

/// Takes the descriptor with this number. It gets another number, and no child inherits it.
///
/// # Errors
///
/// When this process has no descriptor with this number.
#[cfg(target_os = "linux")]
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    // Without unsafe code a number does not become a descriptor in any other way.
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    let taken = pidfd_getfd(&this, number, PidfdGetfdFlags::empty())?;
    nix::unistd::close(number)?;
    Ok(taken)
}

/// Takes the descriptor with this number.
///
/// # Errors
///
/// Always: the stand-ins run on Linux only.
#[cfg(not(target_os = "linux"))]
pub fn take(_number: RawFd) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}
