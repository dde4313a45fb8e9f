//! macOS: kqueue process filters, `libproc`, `sysctl`.

use std::fs::{self, File};
use std::io;
use std::num::NonZeroI32;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use capsa_proto::host::{Arch, KvmFacts, Os};
use capsa_proto::image_lock::ImageLock;
use nix::libc;
use polling::os::kqueue::{PollerKqueueExt, Process, ProcessOps};
use polling::{PollMode, Poller};
use rustix::fs::{CWD, CloneFlags, fclonefileat};
use rustix::io::Errno;
use rustix::net::{SocketFlags, sockopt};

use super::{Poll, PollSource};

/// `sun_path` has 104 bytes, one of them for the NUL.
pub(crate) const SOCKET_PATH_MAX: usize = 103;

/// Where a process finds what it has open.
pub(crate) const DESCRIPTORS: &str = "/dev/fd";

/// macOS has no flag for close-on-exec; it is set right after.
pub(super) const SOCKET_FLAGS: SocketFlags = SocketFlags::empty();

/// No SIGPIPE for what is sent on this socket, as the standard library says of those it makes.
pub(super) fn no_sigpipe(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(sockopt::set_socket_nosigpipe(socket, true)?)
}

/// This system has no locks of open files, as hypervisors set them elsewhere.
pub(crate) fn lock_on(_file: &File, _byte: u64) -> Option<ImageLock> {
    None
}

/// Becomes ready when a child exits, and stays so until it is dropped.
///
/// A process filter says once that a process exits, and too early: the kernel reports it before the
/// child can be waited for (libuv pull request 3521). So the filter is in a kqueue of its own that
/// nobody asks, and what is watched is that kqueue's descriptor: ready as long as the report waits in
/// it, as a pidfd is.
#[derive(Debug)]
pub(crate) struct ExitWatch {
    _queue: PollSource<Poller>,
}

impl ExitWatch {
    /// Watches a child that has not been reaped yet.
    pub(crate) fn new(poll: &Poll, pid: u32, key: usize) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(NonZeroI32::new);
        let pid = pid.ok_or_else(|| io::Error::other("not a process id"))?;
        let queue = Poller::new()?;
        // SAFETY: the process is our child and not reaped, so the id is its own.
        let filter = unsafe { Process::from_pid(pid, ProcessOps::Exit) };
        match queue.add_filter(filter, key, PollMode::Level) {
            // Of a child that has exited, kqueue says that there is none.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => queue.notify()?,
            added => added?,
        }
        Ok(Self { _queue: poll.add(queue, key)? })
    }
}

/// Called between fork and exec. Descriptors of the embedding program that it forgot to mark must
/// not reach a hypervisor that runs hostile guests. There is no call for all of them at once.
pub(super) fn close_other_descriptors_on_exec() {
    // SAFETY: the call takes nothing and reads a limit.
    for fd in 3..unsafe { libc::getdtablesize() } {
        // SAFETY: the call takes integers; `fcntl` is async-signal-safe. Most are not open, which it
        // says and which is no matter.
        unsafe {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}

/// Makes a clone of a file, for its owner alone to read and write.
///
/// It is at once or not at all: a copy of an image may take minutes, and whoever starts a machine
/// drives others meanwhile.
pub(crate) fn clone_file(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    match fclonefileat(&source, CWD, to, CloneFlags::NOOWNERCOPY) {
        // It has the permissions of the image, which may not be writable.
        Ok(()) => fs::set_permissions(to, PermissionsExt::from_mode(0o600)),
        Err(Errno::XDEV | Errno::NOTSUP) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "a throw-away disk is cloned, and for that the image and the run directory have to be \
             on one APFS volume: set CAPSA_RUN_DIR to a directory on the image's, or attach a copy",
        )),
        Err(errno) => Err(errno.into()),
    }
}

/// When a process started, in microseconds: with its pid, a name that is never reused.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let pid = i32::try_from(pid).ok()?;
    // SAFETY: an all-zero `proc_bsdinfo` is a valid one.
    let mut info: libc::proc_bsdinfo = unsafe { std::mem::zeroed() };
    let size = i32::try_from(size_of_val(&info)).ok()?;
    // SAFETY: `info` is valid for writing `size` bytes.
    let wrote =
        unsafe { libc::proc_pidinfo(pid, libc::PROC_PIDTBSDINFO, 0, (&raw mut info).cast(), size) };
    (wrote == size).then_some(info.pbi_start_tvsec * 1_000_000 + info.pbi_start_tvusec)
}

pub(crate) mod host {
    //! Facts about the host.

    use super::{Arch, KvmFacts, Os, libc};

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
