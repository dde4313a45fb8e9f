//! The watchdog: kills this program's child processes when this program dies, even by SIGKILL.
//!
//! A process cannot clean up after its own SIGKILL. A parent-death signal (`PR_SET_PDEATHSIG`) does
//! not help: it is bound to the *thread* that spawned, and threads of an embedding program end
//! earlier. So each program has one small watchdog process, a POSIX shell that reads a socket and
//! keeps a list of the process groups that Capsa started. When the socket closes because the
//! program has died, the shell kills these groups and exits.
//!
//! The watchdog never touches a process that was not started through [`spawn`], and it exits when
//! its work is done.
//!
//! A child registers itself between fork and exec (see [`sys::before_exec`]), so no hypervisor ever
//! runs without being registered. A reaped child is removed from the list *before* its process id
//! can be reused.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::unistd::{AccessFlags, access};

use crate::sys::{self, ForkGuard};

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

static WATCHDOG: Mutex<Option<Watchdog>> = Mutex::new(None);

struct Watchdog {
    shell: Child,
    fork_guard: ForkGuard,
    line: UnixStream,
    live: BTreeSet<u32>,
}

/// Starts `command` in its own process group, registered with the watchdog. The child inherits the
/// descriptors in `open` under the same numbers.
///
/// # Errors
///
/// When the watchdog or the program cannot be started.
pub(crate) fn spawn(command: &mut Command, open: &[OwnedFd]) -> io::Result<Child> {
    let mut slot = lock();
    let watchdog = Watchdog::alive(&mut slot)?;
    command.process_group(0);
    let open = open.iter().map(AsRawFd::as_raw_fd).collect();
    sys::before_exec(command, watchdog.line.as_raw_fd(), open);
    match execute(command) {
        Ok(child) => {
            watchdog.live.insert(child.id());
            Ok(child)
        }
        Err(error) => {
            // The child has registered itself although exec failed, and its process id is free
            // again.
            watchdog.send_list()?;
            Err(error)
        }
    }
}

/// Spawns. If the embedding program ignores SIGCHLD, the standard library panics when exec fails,
/// because it cannot reap the child. So likely errors are checked before, and the panic is caught.
fn execute(command: &mut Command) -> io::Result<Child> {
    let program = Path::new(command.get_program());
    if program.is_absolute() {
        access(program, AccessFlags::X_OK)?;
    }
    catch_unwind(AssertUnwindSafe(|| command.spawn())).unwrap_or_else(|_| {
        Err(io::Error::other("exec failed: the file exists but cannot be executed"))
    })
}

/// Removes a child from the list, after it has exited and before it is reaped.
pub(crate) fn deregister(pid: u32) {
    if let Some(watchdog) = lock().as_mut()
        && watchdog.fork_guard.is_same_process()
        && watchdog.live.remove(&pid)
    {
        // A dead watchdog is replaced at the next spawn and then gets the whole list.
        let _ = watchdog.line.write_all(format!("- {pid}\n").as_bytes());
    }
}

fn lock() -> MutexGuard<'static, Option<Watchdog>> {
    WATCHDOG.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watchdog {
    /// Returns the watchdog; starts it if there is none or if it has died.
    fn alive(slot: &mut Option<Self>) -> io::Result<&mut Self> {
        // After a fork the child process needs its own watchdog, which does not know the parent's
        // children.
        drop(slot.take_if(|watchdog| !watchdog.fork_guard.is_same_process()));
        let lost = match slot {
            Some(watchdog) => watchdog.shell.try_wait().map_or(true, |ended| ended.is_some()),
            None => false,
        };
        let live = if lost { slot.take().map(|g| g.live) } else { None }.unwrap_or_default();
        match slot {
            Some(watchdog) => Ok(watchdog),
            None => Ok(slot.insert(Self::start(live)?)),
        }
    }

    fn start(live: BTreeSet<u32>) -> io::Result<Self> {
        // A socket, not a pipe: writing to it cannot raise SIGPIPE, which may be deadly in an
        // embedding program.
        let (line, theirs) = sys::socket_pair()?;
        let mut command = Command::new("/bin/sh");
        sys::prepare_exec(&mut command);
        let shell = command
            .args(["-c", SCRIPT, "capsa-watchdog"])
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| {
                io::Error::new(error.kind(), format!("cannot start /bin/sh as watchdog: {error}"))
            })?;
        let mut watchdog = Self { shell, fork_guard: ForkGuard::new(), line, live };
        watchdog.send_list()?;
        Ok(watchdog)
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
