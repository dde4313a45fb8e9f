//! A child process: started in a clean environment, watched, killed, reaped.
//!
//! Each child leads its own process group, gets an allow-listed environment, and has no descriptors
//! except its standard streams and those passed explicitly. Its standard error is read; the last
//! part of it goes into error messages. This module makes no decisions.

use std::ffi::OsString;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use capsa_proto::lifecycle::Exit;
use capsa_proto::plan::{ProcessPlan, Signal};
use nix::sys::signal::Signal as SysSignal;

use crate::sys::{self, ExitState, ExitWatch, ForkGuard, Poll, PollSource, SpawnRequest};
use crate::watchdog;

/// The variables that a child inherits. All others, such as tokens of the embedding program, are
/// removed.
const ENVIRONMENT: [&str; 9] = [
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PATH",
    "TMPDIR",
    "TZ",
    "USER",
    "XDG_RUNTIME_DIR",
];

/// The number of bytes of standard error that are kept.
const TAIL: usize = 4096;
/// The largest number of bytes of a line that are examined.
const LINE: usize = 1024;

/// How long dropping a running child waits after SIGKILL. The kernel needs milliseconds, and longer
/// to free the memory of a large guest; a process that waits for a dead network file system never
/// exits.
const REAP_LIMIT: Duration = Duration::from_secs(5);

/// A running or exited child.
#[derive(Debug)]
pub(crate) struct ChildProcess {
    pid: u32,
    fork_guard: ForkGuard,
    name: String,
    reaped: bool,
    exit: Option<ExitWatch>,
    stderr: Option<PollSource<PipeReader>>,
    /// The bytes of standard error that may still be read in this call.
    allowance: usize,
    tail: Vec<u8>,
    /// The current incomplete line, cut at [`LINE`] bytes.
    line: Vec<u8>,
}

/// The poller's keys for a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProcessKeys {
    pub(crate) exit: usize,
    pub(crate) stderr: usize,
}

/// The descriptors that a child inherits.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    /// Its standard input and output; `/dev/null` if there are none.
    pub(crate) terminal: Option<(OwnedFd, OwnedFd)>,
    /// Descriptors that the child inherits under the same numbers.
    pub(crate) open: Vec<OwnedFd>,
}

impl ChildProcess {
    /// Starts a process.
    pub(crate) fn spawn(
        plan: &ProcessPlan,
        poll: &Poll,
        keys: ProcessKeys,
        inherited: Inherited,
    ) -> io::Result<Self> {
        let (stderr, theirs) = io::pipe()?;
        let (stdin, stdout) = match inherited.terminal {
            Some(terminal) => terminal,
            None => (sys::null()?, sys::null()?),
        };
        let pid = watchdog::spawn(SpawnRequest {
            program: &plan.program,
            args: &plan.args,
            env: &environment(),
            streams: [stdin, stdout, theirs.into()],
            open: &inherited.open,
            watchdog: None,
        })?;
        let mut process = Self {
            pid,
            fork_guard: ForkGuard::new(),
            name: plan.name.clone(),
            reaped: false,
            exit: None,
            stderr: None,
            allowance: 0,
            tail: Vec::new(),
            line: Vec::new(),
        };
        // From here on, dropping `process` kills the child.
        sys::set_nonblocking(stderr.as_fd())?;
        process.stderr = Some(poll.add(stderr, keys.stderr)?);
        process.exit = Some(ExitWatch::new(poll, process.pid(), keys.exit)?);
        Ok(process)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Signals the whole process group, unless the child was reaped.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.reaped {
            return Ok(());
        }
        let signal = match signal {
            Signal::Term => SysSignal::SIGTERM,
            Signal::Kill => SysSignal::SIGKILL,
        };
        sys::signal_group(self.pid(), signal)
    }

    /// Sets how many bytes of standard error may be read until the next call of this method.
    pub(crate) fn allow(&mut self, bytes: usize) {
        self.allowance = bytes;
    }

    /// Reads standard error, as far as [allowed](Self::allow), and passes each complete line to
    /// `on_line`. Returns whether there may be more.
    pub(crate) fn drain_stderr(&mut self, mut on_line: impl FnMut(&str)) -> bool {
        let mut chunk = [0; 4096];
        while let Some(stderr) = &mut self.stderr {
            if self.allowance == 0 {
                return true;
            }
            let room = chunk.len().min(self.allowance);
            match stderr.io().read(&mut chunk[..room]) {
                Ok(0) => self.stderr = None,
                Ok(n) => {
                    self.allowance -= n;
                    tracing::debug!(
                        process = %self.name,
                        "stderr: {}",
                        String::from_utf8_lossy(&chunk[..n]).trim_end()
                    );
                    self.take_lines(&chunk[..n], &mut on_line);
                    self.tail.extend_from_slice(&chunk[..n]);
                    let excess = self.tail.len().saturating_sub(TAIL);
                    self.tail.drain(..excess);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.stderr = None,
            }
        }
        false
    }

    fn take_lines(&mut self, bytes: &[u8], mut on_line: impl FnMut(&str)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                on_line(String::from_utf8_lossy(&self.line).trim_end());
                self.line.clear();
            }
        }
    }

    /// Reaps the child if it has exited. Returns its exit once, then `None`.
    pub(crate) fn try_reap(&mut self) -> Option<Exit> {
        if self.reaped || sys::exit_state(self.pid()) == ExitState::Runs {
            return None;
        }
        let status = self.reap(Duration::ZERO);
        self.exit = None;
        self.allow(16 * TAIL);
        self.drain_stderr(|_| {});
        self.stderr = None;
        Some(Exit {
            code: status.and_then(|s| s.code()),
            signal: status.and_then(|s| s.signal()),
            stderr_tail: last_lines(&self.tail),
        })
    }

    /// Kills the process group and waits for the exit of the child, at most `limit`. `None` when other
    /// code has reaped the child, or when it did not exit in time.
    fn reap(&mut self, limit: Duration) -> Option<ExitStatus> {
        // Kill what the child left in its group while its process id is still reserved by the
        // zombie.
        let _ = sys::signal_group(self.pid(), SysSignal::SIGKILL);
        let status = match sys::wait_exited(self.pid(), limit) {
            // Other code reaped the child, or SIGCHLD is ignored: it has exited, and its status is
            // unknown.
            ExitState::Unknown => None,
            ExitState::Exited => Some(()),
            ExitState::Runs => {
                // It stays in the watchdog's list.
                tracing::error!(pid = self.pid(), "process survived SIGKILL");
                self.reaped = true;
                return None;
            }
        };
        // Removed from the watchdog's list while the process id is still reserved.
        watchdog::deregister(self.pid());
        self.reaped = true;
        status.and_then(|()| sys::reap(self.pid))
    }
}

impl Drop for ChildProcess {
    /// Sends SIGKILL to the group of a running child and waits for it, at most [`REAP_LIMIT`].
    fn drop(&mut self) {
        if !self.reaped && self.fork_guard.is_same_process() {
            self.reap(REAP_LIMIT);
        }
    }
}

/// A command with the allow-listed environment.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().current_dir("/").envs(environment());
    command
}

/// The allow-listed environment.
fn environment() -> Vec<(&'static str, OsString)> {
    ENVIRONMENT.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))).collect()
}

/// The last lines of a program's standard error, where the reason for its exit usually is.
fn last_lines(tail: &[u8]) -> String {
    let text = String::from_utf8_lossy(tail);
    let lines: Vec<&str> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(6)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa_proto::path::HostPath;
    use capsa_proto::plan::Readiness;
    use std::time::Instant;

    fn plan(script: &str) -> ProcessPlan {
        ProcessPlan {
            name: "test".into(),
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            ready: Readiness::SocketExists(HostPath::new("/none").unwrap()),
            ends_with_hypervisor: true,
        }
    }

    fn spawn(script: &str) -> (Poll, ChildProcess) {
        let poll = Poll::new().unwrap();
        let process = ChildProcess::spawn(
            &plan(script),
            &poll,
            ProcessKeys { exit: 1, stderr: 2 },
            Inherited::default(),
        );
        (poll, process.unwrap())
    }

    fn exit_of(process: &mut ChildProcess) -> Exit {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            process.allow(1024);
            process.drain_stderr(|_| {});
            if let Some(exit) = process.try_reap() {
                return exit;
            }
            assert!(Instant::now() < deadline, "the child did not exit");
            std::thread::yield_now();
        }
    }

    #[test]
    fn reap_returns_status_and_stderr() {
        let (_poll, mut process) = spawn("echo no such disk >&2; exit 3");
        let exit = exit_of(&mut process);
        assert_eq!((exit.code, exit.stderr_tail.as_str()), (Some(3), "no such disk"));
    }

    #[test]
    fn stderr_lines_are_whole_and_cut_at_limit() {
        let (_poll, mut process) = spawn("sleep 1000");
        let mut lines = Vec::new();
        let long = [b'x'; 2 * LINE];
        for read in [&b"one\ntw"[..], b"o\r\n\n", &long, &long, b"\nan incomplete line"] {
            process.take_lines(read, |line| lines.push(line.to_owned()));
        }
        assert_eq!(lines, ["one", "two", "", &"x".repeat(LINE)]);
    }

    #[test]
    fn child_environment_is_allow_listed() {
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some(), "cargo sets it for tests");
        let (_poll, mut process) = spawn("echo \"${CARGO_MANIFEST_DIR:-nothing}\" >&2");
        assert_eq!(exit_of(&mut process).stderr_tail, "nothing");
    }

    #[test]
    fn drop_kills_the_process_group() {
        let (_poll, mut process) = spawn("sleep 1000 & echo $! >&2; wait");
        let deadline = Instant::now() + Duration::from_secs(10);
        while process.tail.is_empty() {
            process.allow(1024);
            process.drain_stderr(|_| {});
            assert!(Instant::now() < deadline, "no output on stderr");
            std::thread::yield_now();
        }
        let sleeper: u32 = last_lines(&process.tail).parse().unwrap();
        let before = sys::start_time(sleeper);
        // In a container whose init process does not reap, zombies remain.
        let is_dead = || {
            let stat = std::fs::read_to_string(format!("/proc/{sleeper}/stat")).unwrap_or_default();
            sys::start_time(sleeper) != before || stat.contains(") Z ")
        };
        drop(process);
        while before.is_some() && !is_dead() {
            assert!(Instant::now() < deadline, "the sleeper outlived its group");
            std::thread::yield_now();
        }
    }

    #[test]
    fn spawn_missing_program_is_an_error() {
        let poll = Poll::new().unwrap();
        let mut plan = plan("");
        plan.program = "/nowhere/at/all".into();
        let error = ChildProcess::spawn(
            &plan,
            &poll,
            ProcessKeys { exit: 1, stderr: 2 },
            Inherited::default(),
        )
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
