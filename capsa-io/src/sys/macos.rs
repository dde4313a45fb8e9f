//! macOS: kqueue process filters, `libproc`, `sysctl`.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroI32;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use capsa_proto::host::{Arch, KvmFacts, Os};
use capsa_proto::image_lock::ImageLock;
use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::{AccessFlags, access};
use polling::os::kqueue::{PollerKqueueExt, Process, ProcessOps};
use polling::{PollMode, Poller};
use rustix::fs::{CWD, CloneFlags, OFlags, fclonefileat, fstat};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, sockopt};

use super::{LockHolder, RouteProtocol};
use super::{Poll, PollSource, SpawnRequest, unix};

/// `sun_path` has 104 bytes, one of them for the NUL.
pub(crate) const SOCKET_PATH_MAX: usize = 103;

/// The directory in which a process finds its open descriptors.
pub(crate) const DESCRIPTORS: &str = "/dev/fd";

/// macOS has no path to a directory by its descriptor.
pub(super) fn open_directory(_path: &Path) -> io::Result<Option<(OwnedFd, PathBuf)>> {
    Ok(None)
}

/// macOS has no such flag; close-on-exec is set right after.
pub(super) const SOCKET_FLAGS: SocketFlags = SocketFlags::empty();

pub(super) const RECEIVE_FLAGS: RecvFlags = RecvFlags::empty();

/// No hypervisor of this system shares its memory as a file.
pub(crate) fn is_memory_file(_file: BorrowedFd<'_>) -> bool {
    false
}

/// No hypervisor of this system has one.
pub(crate) fn is_event_counter(_descriptor: BorrowedFd<'_>) -> bool {
    false
}

/// macOS has no such flag; each socket has the option.
pub(crate) const NO_SIGPIPE: SendFlags = SendFlags::empty();

/// Accepts a connection.
pub(super) fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::net::accept(listener)
}

/// Disables SIGPIPE for this socket, as the standard library does for its sockets.
pub(super) fn no_sigpipe(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(sockopt::set_socket_nosigpipe(socket, true)?)
}

/// macOS has no open-file-description locks, which hypervisors use elsewhere.
pub(crate) fn lock_on(_file: &File, _byte: u64) -> Option<ImageLock> {
    None
}

/// macOS does not show which process holds a `flock`.
pub(crate) fn lock_holder(_file: &File) -> Option<LockHolder> {
    None
}

/// Becomes readable when a child exits, and stays so until it is dropped.
///
/// A process filter reports an exit only once, and too early: before the child can be reaped (libuv
/// pull request 3521). So the filter is in its own kqueue, from which no event is taken. The poller
/// watches the descriptor of that kqueue, which stays readable while the event is pending, like a
/// pidfd.
#[derive(Debug)]
pub(crate) struct ExitWatch {
    _queue: PollSource<Poller>,
}

impl ExitWatch {
    /// Watches a child that was not reaped yet.
    pub(crate) fn new(poll: &Poll, pid: u32, key: usize) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(NonZeroI32::new);
        let pid = pid.ok_or_else(|| io::Error::other("not a process id"))?;
        let queue = Poller::new()?;
        // SAFETY: the process is our child and not reaped, so the id is its own.
        let filter = unsafe { Process::from_pid(pid, ProcessOps::Exit) };
        match queue.add_filter(filter, key, PollMode::Level) {
            // kqueue returns ESRCH for a child that has exited already.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => queue.notify()?,
            added => added?,
        }
        Ok(Self { _queue: poll.add(queue, key)? })
    }
}

/// Marks all descriptors except the standard ones close-on-exec; called between fork and exec.
/// Descriptors that the embedding program forgot to mark must not reach a hypervisor that runs
/// hostile guests. macOS has no call for all of them at once.
pub(super) fn close_other_descriptors_on_exec() {
    // SAFETY: the call takes nothing and reads a limit.
    for fd in 3..unsafe { libc::getdtablesize() } {
        // SAFETY: the call takes integers; `fcntl` is async-signal-safe. Most are not open; the error is
        // ignored.
        unsafe {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}

/// Sets every signal to its default disposition; called between fork and exec.
pub(super) fn reset_signals() {
    for signal in Signal::iterator() {
        // SAFETY: the default disposition runs no code. It cannot be set for two of them, which have
        // no other; `signal` is async-signal-safe.
        unsafe {
            libc::signal(signal as libc::c_int, libc::SIG_DFL);
        }
    }
}

/// Starts a program. Returns the process id of the child, which leads a process group.
///
/// # Errors
///
/// When the program cannot be executed; no child is left then.
pub(crate) fn spawn(request: &SpawnRequest<'_>) -> io::Result<u32> {
    let [stdin, stdout, stderr] = request.streams.each_ref().map(OwnedFd::try_clone);
    let mut command = Command::new(request.program);
    command.args(request.args).env_clear().current_dir("/").process_group(0);
    command.envs(request.env.iter().map(|(name, value)| (name, value)));
    command.stdin(stdin?).stdout(stdout?).stderr(stderr?);
    unix::prepare_exec(&mut command);
    let numbers = unix::NumberChanges::new(request.numbered);
    let watchdog = request.watchdog.map(|socket| socket.as_raw_fd());
    let prepare = move || {
        // Before the change of numbers, which may close the watchdog's socket.
        watchdog.map_or(Ok(()), unix::announce)?;
        numbers.apply()?;
        unix::raise_open_files();
        Ok(())
    };
    // SAFETY: between fork and exec the closure allocates nothing and takes no lock; it calls only
    // async-signal-safe functions.
    unsafe {
        command.pre_exec(prepare);
    }
    // If the embedding program ignores SIGCHLD, the standard library panics when exec fails, because it
    // cannot reap the child. So likely errors are checked before, and the panic is caught.
    access(request.program, AccessFlags::X_OK)?;
    let child = catch_unwind(AssertUnwindSafe(|| command.spawn())).unwrap_or_else(|_| {
        Err(io::Error::other("exec failed: the file exists but cannot be executed"))
    });
    Ok(child?.id())
}

/// Clones a file; only its owner can read and write the clone.
///
/// It clones instantly or fails, and never copies: copying an image may take minutes, during which
/// the caller drives no VM.
pub(crate) fn clone_file(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    match fclonefileat(&source, CWD, to, CloneFlags::NOOWNERCOPY) {
        // The clone has the permissions of the image, which may be read-only.
        Ok(()) => fs::set_permissions(to, PermissionsExt::from_mode(0o600)),
        Err(Errno::XDEV | Errno::NOTSUP) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "an ephemeral disk is a clone, so the image and the run directory must be \
             on one APFS volume: set CAPSA_RUN_DIR to a directory on the image's volume, or copy the image",
        )),
        Err(errno) => Err(errno.into()),
    }
}

/// Opens a regular file below `dir` for reading, by a relative path without `..` or symbolic links.
/// Opening a pipe does not wait.
pub(crate) fn open_beneath(dir: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let found = unix::open_each(dir, path, OFlags::RDONLY, flags)?;
    unix::require_regular(&fstat(&found)?)?;
    Ok(found.into())
}

/// Opens a directory below `dir`, by a relative path without `..` or symbolic links.
pub(crate) fn open_directory_beneath(dir: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    unix::open_each(dir, path, OFlags::RDONLY, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Whether `remote` is an address of this host, or the broadcast address of a link: an address of an
/// interface, or of the loopback network.
///
/// # Errors
///
/// When the interfaces cannot be listed.
pub(crate) fn is_route_to_host(remote: SocketAddr, _protocol: RouteProtocol) -> io::Result<bool> {
    let ip = remote.ip();
    let is_special = match ip {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_multicast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    };
    if ip.is_unspecified() || ip.is_loopback() || is_special {
        return Ok(true);
    }
    let mut first = std::ptr::null_mut();
    // SAFETY: `first` is valid for writing.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let (mut next, mut found) = (first, false);
    while !next.is_null() {
        // SAFETY: the list has entries until a null pointer, and is freed below.
        let entry = unsafe { &*next };
        // SAFETY: the addresses of an entry are null or valid while the list lives.
        let is_equal = |address| unsafe { ip_of(address) } == Some(ip);
        let is_broadcast = entry.ifa_flags & libc::IFF_BROADCAST as libc::c_uint != 0;
        found |= is_equal(entry.ifa_addr) || is_broadcast && is_equal(entry.ifa_dstaddr);
        next = entry.ifa_next;
    }
    // SAFETY: the list is from getifaddrs, and is not used any more.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}

/// The IP address of a socket address.
///
/// # Safety
///
/// `address` is null, or points to a socket address that is as long as its family requires.
unsafe fn ip_of(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: as the caller ensures; a list entry is aligned for every family.
    unsafe {
        match i32::from(address.as_ref()?.sa_family) {
            libc::AF_INET => {
                let v4 = address.cast::<libc::sockaddr_in>().read_unaligned();
                Some(IpAddr::from(v4.sin_addr.s_addr.to_ne_bytes()))
            }
            libc::AF_INET6 => {
                let v6 = address.cast::<libc::sockaddr_in6>().read_unaligned();
                Some(IpAddr::from(v6.sin6_addr.s6_addr))
            }
            _ => None,
        }
    }
}

/// The start time of a process, in microseconds. Together with the process id it is never reused.
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

    /// No virtiofsd runs on macOS.
    pub(crate) fn opens_by_handle() -> bool {
        true
    }
}
