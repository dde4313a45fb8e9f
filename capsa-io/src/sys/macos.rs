//! macOS: kqueue process filters, `sysctl`.

use std::io;
use std::num::NonZeroI32;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use capsa_proto::host::{Arch, KvmFacts, Os};
use polling::os::kqueue::{PollerKqueueExt, Process, ProcessOps};
use polling::{PollMode, Poller};
use rustix::net::{SocketFlags, sockopt};

use super::Poll;

/// `sun_path` has 104 bytes, one of them for the NUL.
pub(crate) const SOCKET_PATH_MAX: usize = 103;

/// Where a process finds what it has open.
pub(crate) const DESCRIPTORS: &str = "/dev/fd";

/// macOS has no flag for close-on-exec; it is set right after.
pub(super) const SOCKET_FLAGS: SocketFlags = SocketFlags::empty();

/// No SIGPIPE for what is sent on this socket, as the standard library says of those it makes.
pub(super) fn no_sigpipe(socket: &OwnedFd) -> io::Result<()> {
    Ok(sockopt::set_socket_nosigpipe(socket, true)?)
}

/// Becomes ready when a child exits.
#[derive(Debug)]
pub(crate) struct ExitWatch {
    poller: Arc<Poller>,
    pid: NonZeroI32,
}

impl ExitWatch {
    /// Watches a child that has not been reaped yet.
    pub(crate) fn new(poll: &Poll, pid: u32, key: usize) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(NonZeroI32::new);
        let pid = pid.ok_or_else(|| io::Error::other("not a process id"))?;
        let poller = Arc::clone(poll.poller());
        // SAFETY: the process is our child and not reaped, so the id is its own.
        let filter = unsafe { Process::from_pid(pid, ProcessOps::Exit) };
        poller.add_filter(filter, key, PollMode::Level)?;
        Ok(Self { poller, pid })
    }
}

impl Drop for ExitWatch {
    fn drop(&mut self) {
        // SAFETY: only the identity of the filter matters for its removal.
        let filter = unsafe { Process::from_pid(self.pid, ProcessOps::Exit) };
        // The filter went by itself when the process was reaped.
        let _ = self.poller.delete_filter(filter);
    }
}

/// macOS has no call for this; descriptors of ours are all close-on-exec.
pub(super) fn close_other_descriptors_on_exec() {}

/// Not known without private interfaces; a run directory's lock says whether its owner lives.
pub(crate) fn start_time(_pid: u32) -> Option<u64> {
    None
}

pub(crate) mod host {
    //! Facts about the host.

    use super::{Arch, KvmFacts, Os};
    use nix::libc;

    pub(crate) const OS: Os = Os::MacOs;

    pub(crate) fn memory_mb() -> u64 {
        let mut bytes: u64 = 0;
        let mut size = size_of::<u64>();
        // SAFETY: the name is NUL-terminated and the buffer is as large as `size` says.
        let failed = unsafe {
            libc::sysctlbyname(
                c"hw.memsize".as_ptr(),
                (&raw mut bytes).cast(),
                &raw mut size,
                std::ptr::null_mut(),
                0,
            )
        };
        if failed == 0 { bytes >> 20 } else { u64::MAX }
    }

    pub(crate) fn kvm(_arch: Arch) -> KvmFacts {
        KvmFacts::ABSENT
    }

    pub(crate) fn landlock() -> Option<u32> {
        None
    }
}
