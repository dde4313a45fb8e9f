//! System calls that are the same on every Unix.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{Pid, mkfifo};
use rustix::fs::{FileType, OFlags, openat};

use super::{InheritedDescriptor, os};

/// Registers this process with the watchdog; called between fork and exec.
///
/// The child writes its own line, so it never runs unregistered: until `exec` it holds the
/// watchdog's socket, which keeps the watchdog alive. The line is `+ PID`, in one write, which is
/// far shorter than a socket's buffer.
pub(super) fn announce(watchdog: RawFd) -> Result<(), Errno> {
    let mut line = [0_u8; 24];
    // SAFETY: `getpid` cannot fail and is async-signal-safe.
    let pid = unsafe { libc::getpid() };
    let used = announcement(pid.unsigned_abs(), &mut line);
    // SAFETY: the pointer and length are those of a live slice; `write` is async-signal-safe.
    Errno::result(unsafe { libc::write(watchdog, line.as_ptr().cast(), used) }).map(drop)
}

/// Makes the child start as from a fresh shell: without descriptors that the embedding program
/// forgot to mark, and without ignored signals. A helper that waits for its own children cannot do
/// so if SIGCHLD is ignored.
pub(crate) fn prepare_exec(command: &mut Command) {
    let prepare = || {
        os::close_other_descriptors_on_exec();
        os::reset_signals();
        Ok(())
    };
    // SAFETY: between fork and exec the closure allocates nothing and takes no lock; both functions
    // are made to be called there.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Raises the soft limit of open files to the hard limit; called between fork and exec. Of the programs that
/// Capsa starts, none uses select(2), which the soft limit of 1024 is for. Where the system does not permit
/// it, as on macOS without a hard limit, the limit stays.
pub(super) fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Keeps the lowest descriptor numbers in use while this value lives.
///
/// In a child, its standard streams and the descriptors that it inherits replace what has their
/// numbers. If numbers below are free in the embedding program, other descriptors could get them: the
/// child's future standard streams, or the one by which the standard library reports a failed exec.
#[derive(Debug)]
pub(crate) struct ReservedNumbers {
    _taken: Vec<OwnedFd>,
}

impl ReservedNumbers {
    /// Reserves the numbers below `limit`.
    pub(crate) fn below(limit: u32) -> io::Result<Self> {
        let mut taken = Vec::new();
        loop {
            let file = null()?;
            if u32::try_from(file.as_raw_fd()).is_ok_and(|number| number >= limit) {
                return Ok(Self { _taken: taken });
            }
            taken.push(file);
        }
    }
}

/// The descriptors that a child inherits: how they get their numbers.
#[derive(Debug)]
pub(super) struct NumberChanges {
    /// The number of each descriptor, and the one that it gets. Between fork and exec only the system
    /// calls of [`NumberChanges::apply`] change the first.
    changes: Vec<(AtomicI32, RawFd)>,
    /// Larger than the numbers that the descriptors get.
    above: RawFd,
}

impl NumberChanges {
    pub(super) fn new(descriptors: &[InheritedDescriptor]) -> Self {
        let changes: Vec<_> = descriptors
            .iter()
            .map(|inherited| {
                let to = RawFd::try_from(inherited.number).expect("numbers are small");
                (AtomicI32::new(inherited.descriptor.as_raw_fd()), to)
            })
            .collect();
        let above = changes.iter().map(|(_, to)| to + 1).max().unwrap_or(0);
        Self { changes, above }
    }

    /// Gives the descriptors their numbers, and lets the program have them; called between fork and
    /// exec. Other descriptors with these numbers are closed.
    pub(super) fn apply(&self) -> Result<(), Errno> {
        // First away from all numbers: one descriptor may have the number that another gets.
        for (from, _) in &self.changes {
            let number = from.load(Ordering::Relaxed);
            // SAFETY: the call takes integers; `fcntl` is async-signal-safe.
            let moved = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, self.above) };
            from.store(Errno::result(moved)?, Ordering::Relaxed);
        }
        for (from, to) in &self.changes {
            // SAFETY: the call takes integers; `dup2` is async-signal-safe. The numbers differ, so the
            // new descriptor is not close-on-exec.
            Errno::result(unsafe { libc::dup2(from.load(Ordering::Relaxed), *to) })?;
        }
        Ok(())
    }
}

/// Writes `+ PID\n` without allocating.
fn announcement(mut pid: u32, line: &mut [u8; 24]) -> usize {
    let mut digits = [0_u8; 10];
    let mut count = 0;
    loop {
        digits[count] = b'0' + u8::try_from(pid % 10).unwrap_or(0);
        count += 1;
        pid /= 10;
        if pid == 0 {
            break;
        }
    }
    line[..2].copy_from_slice(b"+ ");
    for (to, digit) in line[2..].iter_mut().zip(digits[..count].iter().rev()) {
        *to = *digit;
    }
    line[2 + count] = b'\n';
    3 + count
}

/// Sends a signal to the process group that `pid` leads.
///
/// A group that no longer exists is not an error. The group ids 0 and 1 are rejected: `killpg` sends the
/// signal to the group of this process, or to all processes. The file with the children of a run
/// directory, which a hypervisor can write, may have such an id.
pub(crate) fn signal_group(pid: u32, signal: Signal) -> io::Result<()> {
    let group = i32::try_from(pid).ok().filter(|group| *group > 1);
    let invalid = || {
        let text = format!("invalid process group {pid}: expected 2 to {}", i32::MAX);
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let group = Pid::from_raw(group.ok_or_else(invalid)?);
    match killpg(group, signal) {
        // macOS returns EPERM for a group of zombies only.
        Ok(()) | Err(Errno::ESRCH | Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Calls `handler` when this program ends by `exit` or by returning from `main`. The handler must not
/// panic. It also runs at the end of a forked child.
pub(crate) fn at_exit(handler: extern "C" fn()) {
    // SAFETY: the C library calls a function without arguments, which exists as long as this code. An
    // error means that memory is short; then the handler does not run.
    unsafe {
        libc::atexit(handler);
    }
}

/// Whether a child has exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitState {
    /// The child runs.
    Runs,
    /// The child has exited and was not reaped.
    Exited,
    /// Not a child of this process: it was reaped by other code.
    Unknown,
}

/// Whether a child has exited. Does not reap it.
pub(crate) fn exit_state(pid: u32) -> ExitState {
    wait(pid, libc::WNOHANG)
}

/// Waits until a child has exited, at most `limit`. Does not reap it.
pub(crate) fn wait_exited(pid: u32, limit: Duration) -> ExitState {
    let begin = Instant::now();
    let mut pause = Duration::from_micros(50);
    loop {
        let state = exit_state(pid);
        let left = limit.saturating_sub(begin.elapsed());
        if state != ExitState::Runs || left.is_zero() {
            return state;
        }
        std::thread::sleep(pause.min(left));
        pause = (2 * pause).min(Duration::from_millis(2));
    }
}

/// Reaps a child that has exited. `None` when other code has reaped it, or if SIGCHLD is ignored.
pub(crate) fn reap(pid: u32) -> Option<ExitStatus> {
    let pid = i32::try_from(pid).ok()?;
    loop {
        let mut status = 0;
        // SAFETY: `status` is valid for writing.
        match Errno::result(unsafe { libc::waitpid(pid, &raw mut status, 0) }) {
            Ok(_) => return Some(ExitStatus::from_raw(status)),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

fn wait(pid: u32, flags: libc::c_int) -> ExitState {
    loop {
        // SAFETY: an all-zero `siginfo_t` is a valid one.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOWAIT | flags;
        // SAFETY: `info` is valid for writing.
        let failed = unsafe { libc::waitid(libc::P_PID, pid, &raw mut info, flags) } != 0;
        if failed && Errno::last() == Errno::EINTR {
            continue;
        }
        // SAFETY: `waitid` fills in the fields of a child's exit, or leaves them zero.
        let found = unsafe { info.si_pid() } != 0;
        return match (failed, found) {
            (true, _) => ExitState::Unknown,
            (false, true) => ExitState::Exited,
            (false, false) => ExitState::Runs,
        };
    }
}

/// A raw pty: one end for the VM's I/O, the other end twice for a child.
pub(crate) struct Pty {
    /// Non-blocking.
    pub(crate) ours: File,
    pub(crate) stdin: OwnedFd,
    /// Opened separately from `stdin`. Some hypervisors make their input non-blocking; on a shared
    /// open file this would also apply to the output, and they would drop output that cannot be
    /// written at once.
    pub(crate) stdout: OwnedFd,
}

/// Opens a raw pty. Every descriptor is close-on-exec from its start, unlike those of `openpty`, which a
/// program that another thread starts could inherit: the console would then never close.
pub(crate) fn open_pty() -> io::Result<Pty> {
    let open = |flags: OFlag, path: &Path| {
        let flags = (OFlag::O_NOCTTY | flags).bits();
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
    };
    let ours = open(OFlag::O_NONBLOCK, "/dev/ptmx".as_ref())?;
    rustix::pty::grantpt(&ours)?;
    rustix::pty::unlockpt(&ours)?;
    let name = OsString::from_vec(rustix::pty::ptsname(&ours, Vec::new())?.into_bytes());
    let stdin = open(OFlag::empty(), name.as_ref())?;
    let mut modes = tcgetattr(&stdin)?;
    cfmakeraw(&mut modes);
    tcsetattr(&stdin, SetArg::TCSANOW, &modes)?;
    let stdout = open(OFlag::empty(), name.as_ref())?;
    Ok(Pty { ours, stdin: stdin.into(), stdout: stdout.into() })
}

/// Creates a FIFO for a process that writes to its path. Non-blocking. It is opened for writing too, so
/// that it has no end before the process opens it.
pub(crate) fn create_fifo(path: &Path) -> io::Result<File> {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let flags = OFlag::O_NONBLOCK.bits();
    File::options().read(true).write(true).custom_flags(flags).open(path)
}

/// Whether a socket accepts bytes now. Does not wait.
pub(crate) fn is_writable(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::POLLOUT)];
    let found = nix::poll::poll(&mut fds, PollTimeout::ZERO);
    found.is_ok() && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLOUT))
}

/// Opens `path` below `dir` one name after the other, and follows no symbolic link. `flags` are those of
/// the last name, `directory` those of the others.
pub(super) fn open_each(
    dir: BorrowedFd<'_>,
    path: &Path,
    directory: OFlags,
    flags: OFlags,
) -> io::Result<OwnedFd> {
    let mut at = dir.try_clone_to_owned()?;
    let mut names = path.iter().peekable();
    while let Some(name) = names.next() {
        let flags = if names.peek().is_some() { directory | OFlags::DIRECTORY } else { flags };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        at = openat(&at, name, flags, rustix::fs::Mode::empty())?;
    }
    Ok(at)
}

/// An error unless `found` is a regular file.
pub(super) fn require_regular(found: &rustix::fs::Stat) -> io::Result<()> {
    let what = match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => return Ok(()),
        FileType::Symlink => "a symbolic link",
        FileType::Directory => "a directory",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        _ => "a device",
    };
    let text = format!("expected a regular file, found {what}");
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// Opens `/dev/null`.
pub(crate) fn null() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open("/dev/null")?.into())
}

/// Sets `O_NONBLOCK`.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::fd::AsFd;

    use nix::fcntl::FdFlag;

    #[test]
    fn wait_exited_running_child_ends_at_limit() {
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        assert_eq!(wait_exited(child.id(), Duration::from_millis(5)), ExitState::Runs);
        child.kill().unwrap();
        assert_eq!(wait_exited(child.id(), Duration::from_secs(60)), ExitState::Exited);
        child.wait().unwrap();
        assert_eq!(wait_exited(child.id(), Duration::ZERO), ExitState::Unknown);
    }

    #[test]
    fn open_pty_descriptors_are_close_on_exec() {
        let Pty { ours, stdin, stdout } = open_pty().unwrap();
        for fd in [ours.as_fd(), stdin.as_fd(), stdout.as_fd()] {
            let flags = FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD).unwrap());
            assert!(flags.contains(FdFlag::FD_CLOEXEC));
        }
        let flags = |fd: BorrowedFd<'_>| {
            OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap()) & OFlag::O_NONBLOCK
        };
        assert_eq!(flags(ours.as_fd()), OFlag::O_NONBLOCK);
        set_nonblocking(stdin.as_fd()).unwrap();
        assert_eq!(flags(stdout.as_fd()), OFlag::empty(), "two open files");
        std::io::Write::write_all(&mut File::from(stdout), b"a\nb").unwrap();
        let mut text = [0; 4];
        let len = std::io::Read::read(&mut &ours, &mut text).unwrap();
        assert_eq!(&text[..len], b"a\nb", "raw");
    }

    #[test]
    fn signal_group_rejects_all_processes() {
        for pid in [0, 1, u32::MAX] {
            // By default, no process reacts to this signal.
            assert!(signal_group(pid, Signal::SIGURG).is_err(), "{pid}");
        }
        assert!(signal_group(4_194_304, Signal::SIGURG).is_ok(), "larger than a process id");
    }

    #[test]
    fn announcement_has_the_watchdog_format() {
        for pid in [0, 1, 10, 4_194_304, u32::MAX] {
            let mut line = [0; 24];
            let used = announcement(pid, &mut line);
            assert_eq!(&line[..used], format!("+ {pid}\n").as_bytes());
        }
    }

    #[test]
    fn open_each_follows_no_links() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/file"), "").unwrap();
        std::os::unix::fs::symlink("d", dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("d/link")).unwrap();
        let root = OwnedFd::from(File::open(dir.path()).unwrap());
        let open =
            |path| open_each(root.as_fd(), Path::new(path), OFlags::RDONLY, OFlags::RDONLY).is_ok();
        assert_eq!(
            ["d/file", "d", "link/file", "d/link", "link"].map(open),
            [true, true, false, false, false]
        );
    }
}
