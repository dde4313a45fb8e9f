//! Linux: pidfds, `/proc`, `/dev/kvm`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use capsa_proto::host::{Arch, KvmDevice, KvmFacts, KvmGroup, Os};
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use rustix::fs::{FileType, Mode as RawMode, OFlags, ResolveFlags, SeekFrom, openat2, seek};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::LockHolder;
use super::{Poll, PollSource, unix};

pub(crate) use super::byte_lock::lock_on;
pub(crate) use super::netlink::is_route_to_host;
pub(crate) use super::vfork::spawn;

/// `sun_path` has 108 bytes, one of them for the NUL.
pub(crate) const SOCKET_PATH_MAX: usize = 107;

/// The directory in which a process finds its open descriptors. (`/dev/fd` is a link to it that
/// udev makes, not the kernel.)
pub(crate) const DESCRIPTORS: &str = "/proc/self/fd";

/// Opens a directory, and returns a short path to it that is valid while it is open.
pub(super) fn open_directory(path: &Path) -> io::Result<Option<(OwnedFd, PathBuf)>> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = nix::fcntl::open(path, flags, Mode::empty())?;
    let short = PathBuf::from(format!("{DESCRIPTORS}/{}", directory.as_raw_fd()));
    Ok(Some((directory, short)))
}

/// Close-on-exec from the beginning: another thread may fork at any time.
pub(super) const SOCKET_FLAGS: SocketFlags = SocketFlags::CLOEXEC;

/// Descriptors that a socket receives are close-on-exec from the beginning, too.
pub(super) const RECEIVE_FLAGS: RecvFlags = RecvFlags::CMSG_CLOEXEC;

/// `TMPFS_MAGIC`: the file system of a memfd.
const TMPFS: i64 = 0x0102_1994;

/// Whether a file is in memory, so that no access to it waits for anything.
pub(crate) fn is_memory_file(file: BorrowedFd<'_>) -> bool {
    let is_file = rustix::fs::fstat(file)
        .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::RegularFile);
    is_file && rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type == TMPFS)
}

/// Whether a descriptor is an event counter (eventfd): a write to it raises no signal, and waits for nothing if
/// it does not block.
pub(crate) fn is_event_counter(descriptor: BorrowedFd<'_>) -> bool {
    let link = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    std::fs::read_link(link).is_ok_and(|kind| kind.as_os_str() == "anon_inode:[eventfd]")
}

/// What keeps a call that sends from raising SIGPIPE.
pub(crate) const NO_SIGPIPE: SendFlags = SendFlags::NOSIGNAL;

/// Accepts a connection.
pub(super) fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::net::accept_with(listener, SOCKET_FLAGS)
}

/// Nothing to do: on Linux, the standard library passes MSG_NOSIGNAL to every `send`.
pub(super) fn no_sigpipe(_socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(())
}

/// Becomes readable when a child exits. It does not matter which code reaps the child.
#[derive(Debug)]
pub(crate) struct ExitWatch {
    _pidfd: PollSource<OwnedFd>,
}

impl ExitWatch {
    /// Watches a child.
    pub(crate) fn new(poll: &Poll, pid: u32, key: usize) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("not a process id"))?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            // The child has exited and was reaped: SIGCHLD is ignored, or the embedding program reaps
            // all children. A pipe without a writer is readable.
            Err(Errno::SRCH) => std::io::pipe()?.0.into(),
            opened => opened?,
        };
        Ok(Self { _pidfd: poll.add(pidfd, key)? })
    }
}

/// Marks all descriptors except the standard ones close-on-exec; called between fork and exec.
/// Descriptors that the embedding program forgot to mark must not reach a hypervisor that runs
/// hostile guests. Needs Linux 5.11; does nothing on older kernels.
pub(super) fn close_other_descriptors_on_exec() {
    // SAFETY: the call takes three integers and touches no memory of ours.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}

/// Sets every signal to its default disposition and discards those that are pending; called between
/// fork and exec. The system call is direct, because `sigaction` of the C library takes a lock for
/// SIGABRT.
pub(super) fn reset_signals() {
    // The beginning of the kernel's `struct sigaction` is the handler. No flags and an empty mask
    // follow. The kernel discards a pending signal when its disposition becomes "ignore".
    let (ignore, default) = ([libc::SIG_IGN as u64, 0, 0, 0], [libc::SIG_DFL as u64, 0, 0, 0]);
    for signal in 1..=64 {
        for action in [&ignore, &default] {
            let none = std::ptr::null_mut::<u64>();
            // SAFETY: `action` is valid for reading, and the size is that of the kernel's signal set.
            // It fails for two signals, which have no other disposition.
            unsafe {
                let size = size_of::<u64>();
                libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), none, size);
            }
        }
    }
}

/// Clones a file; only its owner can read and write the clone.
///
/// If the file system cannot clone (ext4, tmpfs), the file is copied, keeping holes. This may take
/// long; no backend that clones runs on Linux except in tests.
pub(crate) fn clone_file(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let mut clone = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    if rustix::fs::ioctl_ficlone(&clone, &source).is_ok() {
        return Ok(());
    }
    let len = source.metadata()?.len();
    let mut at = 0;
    loop {
        let data = match seek(&source, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break, // nothing but a hole, or the end
            found => found?,
        };
        let hole = seek(&source, SeekFrom::Hole(data))?;
        seek(&source, SeekFrom::Start(data))?;
        seek(&clone, SeekFrom::Start(data))?;
        io::copy(&mut (&source).take(hole - data), &mut clone)?;
        at = hole;
    }
    clone.set_len(len)
}

/// Opens a regular file below `dir` for reading, by a relative path without `..`. The file that was checked
/// is the one that is opened: opening a pipe could wait, and opening a device could change it.
pub(crate) fn open_beneath(dir: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    let found = find_beneath(dir, path, OFlags::PATH)?;
    unix::require_regular(&rustix::fs::fstat(&found)?)?;
    let options = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let at = format!("{DESCRIPTORS}/{}", found.as_raw_fd());
    Ok(rustix::fs::open(at, options, RawMode::empty())?.into())
}

/// Opens a directory below `dir`, by a relative path without `..`.
pub(crate) fn open_directory_beneath(dir: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    find_beneath(dir, path, OFlags::PATH | OFlags::DIRECTORY)
}

/// Opens `path` with openat2, which fails with EAGAIN if a name changes meanwhile. Where the kernel or a
/// seccomp filter does not permit that call, symbolic links are not followed.
fn find_beneath(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    const ATTEMPTS: u32 = 100;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let find = || openat2(dir, path, flags | OFlags::CLOEXEC, RawMode::empty(), resolve);
    let found = (1..ATTEMPTS).map(|_| find()).find(|found| !matches!(found, Err(Errno::AGAIN)));
    match found.unwrap_or_else(find) {
        Err(Errno::NOSYS | Errno::PERM) => unix::open_each(dir, path, OFlags::PATH, flags),
        Err(Errno::XDEV) => {
            let text = "it is a symbolic link, or below one, that leads out of the share";
            Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
        }
        found => Ok(found?),
    }
}

/// The start time of a process, in clock ticks since boot. Together with the process id it is never
/// reused.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the command, may contain blanks and parentheses: count from its end.
    let rest = &stat[stat.rfind(')')? + 1..];
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// The process that holds a `flock` on the file, from `/proc/locks`.
///
/// `None` if there is none, if it is in another PID namespace, or if the file system reports another
/// device number to `stat` than to the kernel, as btrfs does.
pub(crate) fn lock_holder(file: &File) -> Option<LockHolder> {
    let found = file.metadata().ok()?;
    let (major, minor) = (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = flock_holder(&locks, &format!("{major:02x}:{minor:02x}:{}", found.ino()))?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (begin, end) = (stat.find('(')?, stat.rfind(')')?);
    let program = capsa_proto::text::escape_control_line(&stat[begin + 1..end]);
    let is_stopped = matches!(stat[end + 1..].trim_start().chars().next(), Some('T' | 't'));
    Some(LockHolder { pid, program, is_stopped })
}

/// The process id in the first line of `/proc/locks` for a `flock` on this file.
fn flock_holder(locks: &str, file: &str) -> Option<u32> {
    // `1: FLOCK  ADVISORY  WRITE 24908 fe:00:10010678 0 EOF`; a process that waits has `->` before
    // the kind.
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        if words.next() != Some("FLOCK") {
            return None;
        }
        let pid = words.nth(2)?.parse().ok();
        if words.next() == Some(file) { pid.filter(|pid| *pid != 0) } else { None }
    })
}

pub(crate) mod host {
    //! Facts about the host.

    use super::MetadataExt;
    use super::{Arch, AsRawFd, KvmDevice, KvmFacts, KvmGroup, Os, fs, io, libc};
    use nix::unistd::{Gid, Group, Uid, User, getgroups};

    nix::ioctl_none_bad!(kvm_get_api_version, nix::request_code_none!(0xAE, 0x00));

    pub(crate) const OS: Os = Os::Linux;

    pub(crate) fn memory_mb() -> u64 {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = total.and_then(|t| t.split_whitespace().next()).and_then(|t| t.parse().ok());
        kib.map_or(u64::MAX, |kib: u64| kib / 1024)
    }

    pub(crate) fn kvm(arch: Arch) -> KvmFacts {
        KvmFacts { device: kvm_device(), cpu_flag: arch != Arch::X86_64 || x86_virtualises() }
    }

    /// The Landlock ABI version.
    pub(crate) fn landlock() -> Option<u32> {
        const VERSION: u32 = 1;
        let none = std::ptr::null::<u8>();
        // SAFETY: with this flag the call takes no attributes and touches no memory of ours.
        let version =
            unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, VERSION) };
        u32::try_from(version).ok()
    }

    /// Whether a child of this process may open files by handles (open_by_handle_at): it has
    /// CAP_DAC_READ_SEARCH in the first user namespace.
    pub(crate) fn opens_by_handle() -> bool {
        const DAC_READ_SEARCH: u64 = 1 << 2;
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        let users = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        mask.is_some_and(|mask| mask & DAC_READ_SEARCH != 0)
            && users.split_whitespace().eq(["0", "0", "4294967295"])
    }

    fn kvm_device() -> KvmDevice {
        let device = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
        match device {
            Ok(device) => {
                // SAFETY: the descriptor is open and the request takes no argument.
                match unsafe { kvm_get_api_version(device.as_raw_fd()) } {
                    Ok(api) => KvmDevice::Answers { api },
                    Err(errno) => KvmDevice::Broken(errno.desc().into()),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => KvmDevice::Absent,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                KvmDevice::NoPermission(group("/dev/kvm"))
            }
            Err(error) => KvmDevice::Broken(error.to_string()),
        }
    }

    /// Whether group membership would let a user without access open `path`.
    fn group(path: &str) -> KvmGroup {
        const READ_AND_WRITE: u32 = 0o060;
        let Ok(metadata) = fs::metadata(path) else { return KvmGroup::Closed };
        let gid = Gid::from_raw(metadata.gid());
        let is_open = metadata.mode() & READ_AND_WRITE == READ_AND_WRITE && gid.as_raw() != 0;
        let has_it = getgroups().is_ok_and(|groups| groups.contains(&gid));
        let group = Group::from_gid(gid).ok().flatten().filter(|_| is_open && !has_it);
        let Some(group) = group else { return KvmGroup::Closed };
        match User::from_uid(Uid::current()) {
            Ok(Some(user)) if group.mem.contains(&user.name) => KvmGroup::Pending(group.name),
            _ => KvmGroup::Open(group.name),
        }
    }

    fn x86_virtualises() -> bool {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flock_holder_ignores_other_files_and_waiters() {
        let locks = "\
1: POSIX  ADVISORY  WRITE 1 fe:00:7 0 EOF
2: FLOCK  ADVISORY  WRITE 2 fe:00:70 0 EOF
3: -> FLOCK  ADVISORY  WRITE 3 fe:00:7 0 EOF
4: FLOCK  ADVISORY  WRITE 0 fe:00:8 0 EOF
5: FLOCK  ADVISORY  WRITE 5 fe:00:7 0 EOF
";
        assert_eq!(flock_holder(locks, "fe:00:7"), Some(5));
        assert_eq!(flock_holder(locks, "fe:00:8"), None, "a process of another namespace");
        assert_eq!(flock_holder(locks, "fe:00:9"), None);
    }
}
