//! The watchdog: kills this program's child processes when this program dies, even by SIGKILL.
//!
//! A process cannot clean up after its own SIGKILL. A parent-death signal (`PR_SET_PDEATHSIG`) does
//! not help: it is bound to the *thread* that spawned, and threads of an embedding program end
//! earlier. So each program has one small watchdog process, a POSIX shell that reads a socket and
//! keeps a list of the process groups that Capsa started. When the socket closes because the
//! program has died, the shell kills these groups and exits.
//!
//! When the program ends by `exit` or by returning from `main`, it kills and reaps what is left and
//! then reaps its watchdog ([`end`]): the first process of a container may reap none.
//!
//! The watchdog never touches a process that was not started through [`spawn`], and it exits when
//! its work is done.
//!
//! No call waits for the watchdog. A watchdog that is suspended, for example with its cgroup, reads
//! nothing; when its socket is full, it is killed and replaced by one that gets the whole list.
//!
//! A child registers itself between fork and exec (see [`sys::spawn`]), so no hypervisor ever
//! runs without being registered. A reaped child is removed from the list *before* its process id
//! can be reused.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::context;
use crate::sys::{self, ExitState, FIRST_NUMBER, ForkGuard, ReservedNumbers, SpawnRequest};

/// The shell script. It reads `+ PID`, `- PID` and `=` (clear the list) until its input closes,
/// then kills all listed groups.
///
/// It ignores the signals that a terminal sends to a process group, and runs in its own group.
const SCRIPT: &str = "\
trap '' HUP INT QUIT TERM TSTP TTIN TTOU
live=' '
while read -r op pid; do
  case $op in
    +) live=\"$live$pid \" ;;
    -) case $live in
         *\" $pid \"*) live=\"${live%%\" $pid \"*} ${live#*\" $pid \"}\" ;;
       esac ;;
    =) live=' ' ;;
  esac
done
for pid in $live; do
  kill -KILL -\"$pid\" 2>/dev/null
done
";

/// How long the end of the program waits for its children after SIGKILL.
const EXIT_LIMIT: Duration = Duration::from_secs(2);

/// How long it waits for the shell, which has nothing left to do, before it kills it.
const SHELL_LIMIT: Duration = Duration::from_millis(500);

static WATCHDOG: Mutex<Option<Watchdog>> = Mutex::new(None);

/// The process that started the last watchdog, read without the lock: in a forked child another thread
/// of its parent may hold it for ever.
static OWNER: AtomicU32 = AtomicU32::new(0);

struct Watchdog {
    /// The process id of the shell.
    shell: u32,
    fork_guard: ForkGuard,
    /// Non-blocking, also for the children that register themselves.
    line: UnixStream,
    live: BTreeSet<u32>,
    /// Those of them that survived SIGKILL.
    given_up: BTreeSet<u32>,
    /// Shells that were killed because they did not read, until they are reaped.
    killed: Vec<u32>,
}

/// Starts a program, registered with the watchdog. Returns its process id.
///
/// # Errors
///
/// When the watchdog or the program cannot be started.
pub(crate) fn spawn(request: SpawnRequest<'_>) -> io::Result<u32> {
    let mut slot = lock();
    let watchdog = Watchdog::alive(&mut slot)?;
    let registered = |watchdog: &Watchdog| {
        sys::spawn(&SpawnRequest { watchdog: Some(watchdog.line.as_fd()), ..request })
    };
    let mut spawned = registered(watchdog);
    if spawned.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        // The watchdog has died since it was checked, so the child could not register itself.
        watchdog.replace()?;
        spawned = registered(watchdog);
    }
    match spawned {
        Ok(pid) => {
            watchdog.live.insert(pid);
            Ok(pid)
        }
        Err(error) => {
            // The child has registered itself although exec failed, and its process id is free
            // again.
            watchdog.send_list().or_else(|_| watchdog.replace())?;
            Err(error)
        }
    }
}

/// Removes a child from the list, after it has exited and before it is reaped.
pub(crate) fn deregister(pid: u32) {
    if let Some(watchdog) = lock().as_mut()
        && watchdog.fork_guard.is_same_process()
        && watchdog.remove(pid)
        && let Err(error) = watchdog.line.write_all(format!("- {pid}\n").as_bytes())
        && (error.kind() == io::ErrorKind::WouldBlock || !watchdog.live.is_empty())
        && let Err(error) = watchdog.replace()
    {
        tracing::warn!("cannot replace the watchdog, which has died or does not read: {error}");
    }
    // A dead watchdog without children is replaced at the next spawn.
}

/// Counts a child that survived SIGKILL no more; it stays in the list.
pub(crate) fn give_up(pid: u32) {
    if let Some(watchdog) = lock().as_mut()
        && watchdog.fork_guard.is_same_process()
        && watchdog.live.contains(&pid)
    {
        watchdog.given_up.insert(pid);
    }
}

/// The number of children that are not reaped, without those that were given up.
pub(crate) fn live() -> usize {
    lock().as_ref().map_or(0, |watchdog| watchdog.live.len() - watchdog.given_up.len())
}

/// Kills and reaps the children that are left, and ends the watchdog; called when the program ends.
/// It waits for the children at most [`EXIT_LIMIT`], and usually a millisecond for the shell.
extern "C" fn end() {
    // A forked child has none of its parent's children to end.
    if OWNER.load(Ordering::Relaxed) != std::process::id() {
        return;
    }
    // Another thread may hold the lock.
    let begin = Instant::now();
    let mut slot = loop {
        match WATCHDOG.try_lock() {
            Ok(slot) => break slot,
            Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
            Err(TryLockError::WouldBlock) if begin.elapsed() > EXIT_LIMIT => return,
            Err(TryLockError::WouldBlock) => std::thread::yield_now(),
        }
    };
    let Some(watchdog) = slot.take_if(|watchdog| watchdog.fork_guard.is_same_process()) else {
        return;
    };
    let Watchdog { shell, line, live, killed, .. } = watchdog;
    for child in &live {
        let _ = sys::signal_group(*child, Signal::SIGKILL);
    }
    let reap = |pid: &u32| {
        let left = EXIT_LIMIT.saturating_sub(begin.elapsed());
        if sys::wait_exited(*pid, left) == ExitState::Exited {
            sys::reap(*pid);
        }
    };
    live.iter().for_each(reap);
    drop(line);
    if sys::wait_exited(shell, SHELL_LIMIT) == ExitState::Runs {
        // It is suspended, and nothing is left for it to kill.
        let _ = sys::signal_group(shell, Signal::SIGKILL);
    }
    killed.iter().chain([&shell]).for_each(reap);
}

fn lock() -> MutexGuard<'static, Option<Watchdog>> {
    WATCHDOG.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watchdog {
    /// Returns the watchdog; starts it if there is none, if it has died, or if it does not read.
    fn alive(slot: &mut Option<Self>) -> io::Result<&mut Self> {
        // After a fork the child process needs its own watchdog, which does not know the parent's
        // children.
        drop(slot.take_if(|watchdog| !watchdog.fork_guard.is_same_process()));
        let Some(watchdog) = slot else { return Ok(slot.insert(Self::start()?)) };
        watchdog.killed.retain(|shell| !has_ended(*shell));
        if has_ended(watchdog.shell) || !sys::is_writable(watchdog.line.as_fd()) {
            watchdog.replace()?;
        }
        Ok(watchdog)
    }

    fn start() -> io::Result<Self> {
        static AT_EXIT: Once = Once::new();
        AT_EXIT.call_once(|| sys::at_exit(end));
        let (shell, line) = start_shell()?;
        OWNER.store(std::process::id(), Ordering::Relaxed);
        let (live, given_up, killed) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        Ok(Self { shell, fork_guard: ForkGuard::new(), line, live, given_up, killed })
    }

    fn remove(&mut self, pid: u32) -> bool {
        self.given_up.remove(&pid);
        self.live.remove(&pid)
    }

    /// Replaces the shell. SIGKILL ends the old one before its socket closes, so it kills no group. The
    /// new one has the list by then: if this program dies meanwhile, one of them kills the groups.
    fn replace(&mut self) -> io::Result<()> {
        let (shell, line) = start_shell()?;
        let old = std::mem::replace(&mut self.shell, shell);
        let old_line = std::mem::replace(&mut self.line, line);
        let sent = self.send_list();
        if !has_ended(old) {
            tracing::warn!(pid = old, "the watchdog does not read: replaced");
            let _ = sys::signal_group(old, Signal::SIGKILL);
            self.killed.push(old);
        }
        drop(old_line);
        sent
    }

    /// Sends the whole list to the shell.
    fn send_list(&mut self) -> io::Result<()> {
        let mut text = String::from("=\n");
        for pid in &self.live {
            text.push_str(&format!("+ {pid}\n"));
        }
        self.line.write_all(text.as_bytes())
    }
}

/// Starts a shell with an empty list. Returns its process id and its socket.
fn start_shell() -> io::Result<(u32, UnixStream)> {
    // A child that registers itself has other descriptors as its standard streams.
    let _numbers = ReservedNumbers::below(FIRST_NUMBER)?;
    // A socket, not a pipe: writing to it cannot raise SIGPIPE, which may be deadly in an embedding
    // program.
    let (line, theirs) = sys::socket_pair()?;
    line.set_nonblocking(true)?;
    let started = sys::spawn(&SpawnRequest {
        program: "/bin/sh",
        args: &["-c", SCRIPT, "capsa-watchdog"].map(String::from),
        env: &[],
        streams: &[theirs.into(), sys::null()?, sys::null()?],
        numbered: &[],
        watchdog: None,
    });
    let shell =
        started.map_err(|error| context::failed("cannot start /bin/sh as watchdog", error))?;
    Ok((shell, line))
}

/// Whether a shell has exited. Reaps it.
fn has_ended(shell: u32) -> bool {
    let has_ended = sys::exit_state(shell) != ExitState::Runs;
    if has_ended {
        sys::reap(shell);
    }
    has_ended
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc;

    use nix::sys::signal::kill;
    use nix::unistd::Pid;

    use super::*;
    use crate::sys::{exit_state, wait_exited};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn shell() -> u32 {
        lock().as_ref().expect("a watchdog").shell
    }

    fn start(program: &str, args: &[String]) -> u32 {
        let streams = &[(); 3].map(|()| sys::null().unwrap());
        let request =
            SpawnRequest { program, args, env: &[], streams, numbered: &[], watchdog: None };
        spawn(request).unwrap()
    }

    /// The socket of a suspended watchdog is full after fewer than 300 lines on Linux.
    fn run_400_children() {
        for _ in 0..400 {
            let child = start("/bin/sh", &["-c", "exit 0"].map(String::from));
            assert_eq!(wait_exited(child, PATIENCE), ExitState::Exited);
            deregister(child);
            assert!(sys::reap(child).unwrap().success());
        }
    }

    /// Whether this process runs one test only. If not, runs `test` in such a process: the other tests of
    /// this one use the same watchdog.
    fn is_alone(test: &str) -> bool {
        const ALONE: &str = "CAPSA_TEST_ALONE";
        if std::env::var_os(ALONE).is_some() {
            return true;
        }
        let this = std::env::current_exe().unwrap();
        let name = format!("watchdog::tests::{test}");
        let output = Command::new(this).args([&name, "--exact"]).env(ALONE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        false
    }

    #[test]
    fn watchdog_that_closes_its_socket_is_replaced() {
        if !is_alone("watchdog_that_closes_its_socket_is_replaced") {
            return;
        }
        let sleeper = start("/bin/sleep", &["1000".into()]);
        let first = shell();
        // As if the shell died after the check that it runs.
        kill(Pid::from_raw(first.cast_signed()), Signal::SIGSTOP).unwrap();
        lock().as_ref().unwrap().line.shutdown(std::net::Shutdown::Both).unwrap();
        let second = start("/bin/sleep", &["1000".into()]);
        assert_ne!(shell(), first);
        let watchdog = lock().take().unwrap();
        assert!(watchdog.live.iter().eq(&BTreeSet::from([sleeper, second])));
        assert_eq!(exit_state(sleeper), ExitState::Runs);
        drop(watchdog);
        for pid in [sleeper, second] {
            assert_eq!(wait_exited(pid, PATIENCE), ExitState::Exited);
            sys::reap(pid);
        }
    }

    #[test]
    fn end_in_fork_does_not_wait_for_the_lock() {
        if !is_alone("end_in_fork_does_not_wait_for_the_lock") {
            return;
        }
        let sleeper = start("/bin/sleep", &["1000".into()]);
        let held = lock();
        assert!(sys::run_in_fork(|| {
            let begin = Instant::now();
            end();
            assert!(begin.elapsed() < EXIT_LIMIT / 2, "{:?}", begin.elapsed());
        }));
        drop(held);
        assert_eq!(exit_state(sleeper), ExitState::Runs);
        end();
        assert_eq!(exit_state(sleeper), ExitState::Unknown, "reaped");
    }

    #[test]
    fn dead_watchdog_is_replaced_when_a_child_exits() {
        if !is_alone("dead_watchdog_is_replaced_when_a_child_exits") {
            return;
        }
        let [first, second] = [0, 1].map(|_| start("/bin/sleep", &["1000".into()]));
        let old = shell();
        kill(Pid::from_raw(old.cast_signed()), Signal::SIGKILL).unwrap();
        assert_eq!(wait_exited(old, PATIENCE), ExitState::Exited);
        kill(Pid::from_raw(first.cast_signed()), Signal::SIGKILL).unwrap();
        assert_eq!(wait_exited(first, PATIENCE), ExitState::Exited);
        deregister(first);
        sys::reap(first);
        assert_ne!(shell(), old);
        // The new one has the list.
        drop(lock().take());
        assert_eq!(wait_exited(second, PATIENCE), ExitState::Exited);
        sys::reap(second);
    }

    #[test]
    fn socket_has_no_number_of_a_standard_stream() {
        if !is_alone("socket_has_no_number_of_a_standard_stream") {
            return;
        }
        nix::unistd::close(0).unwrap();
        let (shell, line) = start_shell().unwrap();
        assert!(std::os::fd::AsRawFd::as_raw_fd(&line) > 2);
        drop(line);
        assert_eq!(wait_exited(shell, PATIENCE), ExitState::Exited);
        sys::reap(shell);
    }

    #[test]
    fn suspended_watchdog_is_replaced() {
        if !is_alone("suspended_watchdog_is_replaced") {
            return;
        }
        let sleeper = start("/bin/sleep", &["1000".into()]);
        let first = shell();
        kill(Pid::from_raw(first.cast_signed()), Signal::SIGSTOP).unwrap();
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            run_400_children();
            done.send(()).unwrap();
        });
        let ended = is_done.recv_timeout(PATIENCE);
        if ended.is_err() {
            // This ends the thread, which waits for the suspended shell.
            let _ = sys::signal_group(sleeper, Signal::SIGKILL);
            let _ = kill(Pid::from_raw(first.cast_signed()), Signal::SIGKILL);
            std::process::exit(1);
        }
        assert_ne!(shell(), first);
        assert_eq!(exit_state(first), ExitState::Unknown, "the old one is reaped");
        // The new one has the list, and the old one killed nothing.
        assert_eq!(exit_state(sleeper), ExitState::Runs);
        let watchdog = lock().take().unwrap();
        assert_eq!(watchdog.live.iter().collect::<Vec<_>>(), [&sleeper]);
        drop(watchdog);
        assert_eq!(wait_exited(sleeper, PATIENCE), ExitState::Exited);
        sys::reap(sleeper);
    }
}
