//! System calls that are the same on every Unix.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::pty::openpty;
use nix::sys::signal::{Signal, killpg};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{Pid, ttyname};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketType};

use super::os;

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

/// Reserves the descriptor numbers 0 to 2 while this value lives.
///
/// If the embedding program has closed its standard streams, other descriptors could get these
/// numbers; in a child, the standard streams would then replace them.
#[derive(Debug)]
pub(crate) struct StandardStreams {
    _taken: Vec<OwnedFd>,
}

impl StandardStreams {
    pub(crate) fn take() -> io::Result<Self> {
        let mut taken = Vec::new();
        loop {
            let file = null()?;
            if file.as_raw_fd() > 2 {
                return Ok(Self { _taken: taken });
            }
            taken.push(file);
        }
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
/// A group that no longer exists is not an error.
pub(crate) fn signal_group(pid: u32, signal: Signal) -> io::Result<()> {
    let group = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
    match killpg(group, signal) {
        // macOS returns EPERM for a group of zombies only.
        Ok(()) | Err(Errno::ESRCH | Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno.into()),
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

/// Connects to a listening unix socket without blocking.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = unix_socket()?;
    set_nonblocking(socket.as_fd())?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

fn unix_socket() -> io::Result<OwnedFd> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, os::SOCKET_FLAGS, None)?;
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    os::no_sigpipe(socket.as_fd())?;
    Ok(socket)
}

/// A pair of connected sockets that do not raise SIGPIPE. Those of the standard library do on
/// macOS.
pub(crate) fn socket_pair() -> io::Result<(UnixStream, UnixStream)> {
    let (one, other) = UnixStream::pair()?;
    for socket in [&one, &other] {
        os::no_sigpipe(socket.as_fd())?;
    }
    Ok((one, other))
}

#[cfg(test)]
pub(crate) fn listen_with_a_short_queue(path: &Path) -> io::Result<OwnedFd> {
    let socket = unix_socket()?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    net::listen(&socket, 1)?;
    Ok(socket)
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

/// Opens a raw pty.
pub(crate) fn open_pty() -> io::Result<Pty> {
    let pty = openpty(None, None)?;
    for fd in [&pty.master, &pty.slave] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    let mut modes = tcgetattr(&pty.slave)?;
    cfmakeraw(&mut modes);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &modes)?;
    set_nonblocking(pty.master.as_fd())?;
    let stdout = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(ttyname(&pty.slave)?)?;
    Ok(Pty { ours: File::from(pty.master), stdin: pty.slave, stdout: stdout.into() })
}

/// Whether a socket accepts bytes now. Does not wait.
pub(crate) fn is_writable(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::POLLOUT)];
    let found = nix::poll::poll(&mut fds, PollTimeout::ZERO);
    found.is_ok() && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLOUT))
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
    use std::io::Write;

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
    fn announcement_has_the_watchdog_format() {
        for pid in [0, 1, 10, 4_194_304, u32::MAX] {
            let mut line = [0; 24];
            let used = announcement(pid, &mut line);
            assert_eq!(&line[..used], format!("+ {pid}\n").as_bytes());
        }
    }

    #[test]
    fn write_to_closed_peer_raises_no_sigpipe() {
        const ALONE: &str = "CAPSA_TEST_ALONE";
        let name = "sys::unix::tests::write_to_closed_peer_raises_no_sigpipe";
        if std::env::var_os(ALONE).is_none() {
            let this = std::env::current_exe().unwrap();
            let status = Command::new(this).args([name, "--exact"]).env(ALONE, "1").status();
            assert!(status.unwrap().success());
            return;
        }
        // SAFETY: the default disposition runs no code.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut ours = connect(&path).unwrap();
        drop(listener.accept().unwrap());
        let (mut one, other) = socket_pair().unwrap();
        drop(other);
        for socket in [&mut ours, &mut one] {
            assert_eq!(socket.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
    }
}
