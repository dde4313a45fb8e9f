//! Kills this program's hypervisors when this program dies, however it dies.
//!
//! A process cannot clean up after its own SIGKILL. A death signal (`PR_SET_PDEATHSIG`) is no help
//! either: it is bound to the *thread* that spawned, and threads of an embedding program come and
//! go. So one tiny process per program, a POSIX shell that reads a socket, knows the process groups
//! that Capsa started. When that closes, because the program is gone, it kills them and ends.
//!
//! What it does not do: it never touches a process that did not announce itself through
//! [`spawn`], and it never outlives its own work.
//!
//! A child announces itself between fork and exec (see [`sys::before_exec`]), so there is no moment
//! in which a hypervisor runs and the watchdog does not know it. A child that was reaped is
//! withdrawn *before* its number can be reused.

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

/// Reads `+ PID`, `- PID` and `=` (forget all) until its input closes, then kills every group still
/// listed.
///
/// It ignores what a terminal sends to whole groups, and lives in a group of its own.
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

/// Starts `command` in a process group of its own, known to the watchdog. It inherits `open` under
/// the numbers they have here.
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
            // A child that could not become the program has announced itself all the same, and its
            // number is free again.
            watchdog.tell_all()?;
            Err(error)
        }
    }
}

/// Spawns. Where the embedding program ignores the ends of its children, the standard library panics
/// over a child that could not become the program, because its end cannot be seen. So what can be
/// known before is looked at before, and the rest is caught.
fn execute(command: &mut Command) -> io::Result<Child> {
    let program = Path::new(command.get_program());
    if program.is_absolute() {
        access(program, AccessFlags::X_OK)?;
    }
    catch_unwind(AssertUnwindSafe(|| command.spawn()))
        .unwrap_or_else(|_| Err(io::Error::other("it is there and cannot be executed")))
}

/// Withdraws a child, after it exited and before it is reaped.
pub(crate) fn withdraw(pid: u32) {
    if let Some(watchdog) = lock().as_mut()
        && watchdog.fork_guard.is_same_process()
        && watchdog.live.remove(&pid)
    {
        // A watchdog that is gone is replaced at the next spawn, and then told who lives.
        let _ = watchdog.line.write_all(format!("- {pid}\n").as_bytes());
    }
}

fn lock() -> MutexGuard<'static, Option<Watchdog>> {
    WATCHDOG.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watchdog {
    /// The watchdog, started now if there is none or if somebody killed it.
    fn alive(slot: &mut Option<Self>) -> io::Result<&mut Self> {
        // A forked copy has a watchdog of its own, which knows nothing of what is not the copy's.
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
        // A socket and not a pipe: sockets can be written to without SIGPIPE, which a program that
        // embeds us may have left deadly.
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
        watchdog.tell_all()?;
        Ok(watchdog)
    }

    /// Replaces what the shell believes by what is true.
    fn tell_all(&mut self) -> io::Result<()> {
        let mut text = String::from("=\n");
        for pid in &self.live {
            text.push_str(&format!("+ {pid}\n"));
        }
        self.line.write_all(text.as_bytes())
    }
}
