//! A child process: started in a clean environment, watched, killed, reaped.
//!
//! Each child leads its own process group, gets an allow-listed environment, and has no descriptors
//! except its standard streams and those passed explicitly. This module makes no decisions.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use capsa_proto::lifecycle::Exit;
use capsa_proto::plan::{ProcessPlan, Signal};
use nix::sys::signal::Signal as SysSignal;

use crate::oom;
use crate::stream::ByteStream;
use crate::sys::{self, ExitState, ExitWatch, ForkGuard, InheritedDescriptor, Poll, SpawnRequest};
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

/// Children that were killed and are not reaped yet. A leaf lock, except that of the watchdog; it is
/// held while nothing waits.
static DYING: Mutex<Dying> = Mutex::new(Dying { children: Vec::new(), awaited: 0 });

/// How long the drop of a running child waits after SIGKILL. The kernel needs milliseconds, and longer
/// to free the memory of a large guest; a process that waits for a dead network file system never
/// exits.
pub(crate) const REAP_LIMIT: Duration = Duration::from_secs(5);

struct Dying {
    children: Vec<ChildProcess>,
    /// The number of those that a thread has taken to wait for them.
    awaited: usize,
}

/// A running or exited child.
#[derive(Debug)]
pub(crate) struct ChildProcess {
    pid: u32,
    fork_guard: ForkGuard,
    reaped: bool,
    /// SIGKILL was sent to it.
    was_killed: AtomicBool,
    /// [`oom::kills_in_cgroup`] at the start.
    oom_kills: Option<u64>,
    exit: Option<ExitWatch>,
}

/// The descriptors that a child inherits.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    /// Its standard input and output; `/dev/null` if there are none.
    pub(crate) terminal: Option<(OwnedFd, OwnedFd)>,
    /// Descriptors that the child inherits under the same numbers.
    pub(crate) numbered: Vec<InheritedDescriptor>,
}

impl ChildProcess {
    /// Starts a process, whose exit the poller reports under `exit_key`. Also returns its standard
    /// error.
    pub(crate) fn spawn(
        plan: &ProcessPlan,
        poll: &Poll,
        exit_key: usize,
        inherited: Inherited,
    ) -> io::Result<(Self, ByteStream)> {
        let (stderr, theirs) = io::pipe()?;
        let (stdin, stdout) = match inherited.terminal {
            Some(terminal) => terminal,
            None => (sys::null()?, sys::null()?),
        };
        let pid = watchdog::spawn(SpawnRequest {
            program: &plan.program,
            args: &plan.args,
            env: &environment(),
            streams: &[stdin, stdout, theirs.into()],
            numbered: &inherited.numbered,
            watchdog: None,
        })?;
        // From here on, dropping `process` kills the child.
        let mut process = Self {
            pid,
            fork_guard: ForkGuard::new(),
            reaped: false,
            was_killed: AtomicBool::new(false),
            oom_kills: oom::kills_in_cgroup(),
            exit: None,
        };
        sys::set_nonblocking(stderr.as_fd())?;
        process.exit = Some(ExitWatch::new(poll, process.pid(), exit_key)?);
        Ok((process, ByteStream::File(OwnedFd::from(stderr).into())))
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
        self.was_killed.fetch_or(signal == SysSignal::SIGKILL, Ordering::Relaxed);
        sys::signal_group(self.pid(), signal)
    }

    /// Reaps the child if it has exited. Returns its exit once, then `None`.
    pub(crate) fn try_reap(&mut self) -> Option<Exit> {
        if self.reaped || sys::exit_state(self.pid()) == ExitState::Runs {
            return None;
        }
        let status = self.reap(Duration::ZERO);
        self.exit = None;
        let mut exit = Exit::new(status.and_then(|s| s.code()), status.and_then(|s| s.signal()));
        exit.killed_by = self.killed_by(exit.signal);
        Some(exit)
    }

    /// Who sent SIGKILL, unless Capsa did.
    fn killed_by(&self, signal: Option<i32>) -> Option<&'static str> {
        if self.was_killed.load(Ordering::Relaxed) || signal != Some(SysSignal::SIGKILL as i32) {
            return None;
        }
        let counted = self.oom_kills.zip(oom::kills_in_cgroup()).is_some_and(|(a, b)| a < b);
        Some(match counted || oom::is_in_kernel_log(self.pid()) {
            true => {
                "sent by the kernel's out-of-memory killer: the host or its cgroup has too little \
                 memory for this VM"
            }
            false => {
                "which Capsa did not send; the likely cause is the kernel's out-of-memory killer: see \
                 `dmesg`"
            }
        })
    }

    /// Leaves a child alone that survived SIGKILL: waiting for it could block forever. It stays in the
    /// watchdog's list, and its exit is not reported.
    pub(crate) fn give_up(&mut self) {
        tracing::error!(pid = self.pid(), "process survived SIGKILL");
        self.exit = None;
        self.reaped = true;
        watchdog::give_up(self.pid());
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
                self.give_up();
                return None;
            }
        };
        // Removed from the watchdog's list while the process id is still reserved.
        watchdog::deregister(self.pid());
        self.reaped = true;
        status.and_then(|()| sys::reap(self.pid))
    }
}

/// Kills children, in this order. If no other child of this program runs, waits until all that were
/// killed have exited, at most [`REAP_LIMIT`]. Otherwise they are reaped by a later call, so that
/// dropping many VMs costs what dropping one does.
pub(crate) fn kill_and_reap(children: impl Iterator<Item = ChildProcess>) {
    let mut dying = lock_dying();
    for mut child in children {
        // Its poller is closed next.
        child.exit = None;
        let _ = child.signal(Signal::Kill);
        dying.children.push(child);
    }
    let is_last = dying.children.len() + dying.awaited >= watchdog::live();
    drop(dying);
    reap_dying(if is_last { REAP_LIMIT } else { Duration::ZERO });
}

/// Reaps the children that were killed and have exited by then, and waits for the others, at most
/// `limit` for all. Those that a wait leaves are given up.
pub(crate) fn reap_dying(limit: Duration) {
    let begin = Instant::now();
    let remains = |child: &mut ChildProcess| {
        if !child.fork_guard.is_same_process() {
            return false;
        }
        let left = limit.saturating_sub(begin.elapsed());
        let runs = sys::wait_exited(child.pid, left) == ExitState::Runs;
        if !runs {
            child.try_reap();
        }
        runs
    };
    let mut dying = lock_dying();
    if limit.is_zero() {
        return dying.children.retain_mut(remains);
    }
    // Other threads do not wait for the lock meanwhile.
    let mut children = std::mem::take(&mut dying.children);
    let awaited = children.len();
    dying.awaited += awaited;
    drop(dying);
    children.retain_mut(remains);
    children.iter_mut().for_each(ChildProcess::give_up);
    lock_dying().awaited -= awaited;
}

fn lock_dying() -> MutexGuard<'static, Dying> {
    DYING.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::ReadResult;
    use capsa_proto::path::HostPath;
    use capsa_proto::plan::Readiness;
    use std::time::Instant;

    fn plan(script: &str) -> ProcessPlan {
        ProcessPlan {
            name: "test".into(),
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            descriptors: vec![],
            ready: Readiness::SocketExists(HostPath::new("/none").unwrap()),
            ends_with_hypervisor: true,
        }
    }

    struct Spawned {
        _poll: Poll,
        process: ChildProcess,
        stderr: ByteStream,
    }

    fn spawn(script: &str) -> Spawned {
        let poll = Poll::new().unwrap();
        let spawned = ChildProcess::spawn(&plan(script), &poll, 1, Inherited::default());
        let (process, stderr) = spawned.unwrap();
        Spawned { _poll: poll, process, stderr }
    }

    impl Spawned {
        /// What is on standard error once `until` returns a value.
        fn wait<T>(mut self, until: impl Fn(&mut ChildProcess, &str) -> Option<T>) -> (T, String) {
            let deadline = Instant::now() + Duration::from_secs(10);
            let (mut text, mut chunk) = (String::new(), [0; 1024]);
            loop {
                let done = until(&mut self.process, &text);
                while let ReadResult::Bytes(n) = self.stderr.read(&mut chunk) {
                    text.push_str(std::str::from_utf8(&chunk[..n]).unwrap());
                }
                if let Some(done) = done {
                    return (done, text);
                }
                assert!(Instant::now() < deadline, "timed out");
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn reap_returns_status_and_stderr() {
        let spawned = spawn("echo no such disk >&2; exit 3");
        let (exit, stderr) = spawned.wait(|process, _| process.try_reap());
        assert_eq!((exit.code, stderr.as_str()), (Some(3), "no such disk\n"));
    }

    #[test]
    fn child_environment_is_allow_listed() {
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some(), "cargo sets it for tests");
        let spawned = spawn("echo \"${CARGO_MANIFEST_DIR:-nothing}\" >&2");
        assert_eq!(spawned.wait(|process, _| process.try_reap()).1, "nothing\n");
    }

    #[test]
    fn drop_kills_the_process_group() {
        let spawned = spawn("sleep 1000 & echo $! >&2; wait");
        let deadline = Instant::now() + Duration::from_secs(10);
        // The start time is read while the process lives: the wait drops it at its end.
        let (pid_and_start, _) = spawned.wait(|_, text| {
            let sleeper: u32 = text.trim().parse().ok()?;
            Some((sleeper, sys::start_time(sleeper)))
        });
        let (sleeper, before) = pid_and_start;
        // In a container whose init process does not reap, zombies remain.
        let is_dead = || {
            let stat = std::fs::read_to_string(format!("/proc/{sleeper}/stat")).unwrap_or_default();
            sys::start_time(sleeper) != before || stat.contains(") Z ")
        };
        while before.is_some() && !is_dead() {
            assert!(Instant::now() < deadline, "the sleeper outlived its group");
            std::thread::yield_now();
        }
    }

    #[test]
    fn last_of_concurrent_drops_waits_for_all() {
        const ALONE: &str = "CAPSA_TEST_ALONE";
        let name = "process::tests::last_of_concurrent_drops_waits_for_all";
        if std::env::var_os(ALONE).is_none() {
            let this = std::env::current_exe().unwrap();
            let status = Command::new(this).args([name, "--exact"]).env(ALONE, "1").status();
            assert!(status.unwrap().success());
            return;
        }
        // A child that survives SIGKILL is waited for no more.
        let mut survivor = spawn("exec sleep 1000").process;
        survivor.give_up();
        for round in 0..300 {
            let barrier = std::sync::Barrier::new(4);
            let children = [(); 4].map(|()| spawn("exec sleep 1000").process);
            std::thread::scope(|scope| {
                for child in children {
                    scope.spawn(|| {
                        barrier.wait();
                        kill_and_reap([child].into_iter());
                    });
                }
            });
            assert_eq!(watchdog::live(), 0, "round {round}");
        }
        survivor.reap(REAP_LIMIT);
    }

    #[test]
    fn spawn_missing_program_is_an_error() {
        let poll = Poll::new().unwrap();
        let mut plan = plan("");
        plan.program = "/nowhere/at/all".into();
        let error = ChildProcess::spawn(&plan, &poll, 1, Inherited::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
