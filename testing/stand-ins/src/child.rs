//! Child processes that die with the stand-in, even if it is killed: each sets a parent death signal for
//! itself before it executes the program.
//!
//! The signal depends on the thread that started the child. So only the main thread may start children:
//! it lives as long as the process.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use capsa_fixtures::host;

/// The first argument of a stand-in that sets the death signal and then executes another program.
const EXEC_FLAG: &str = "--exec";

/// The time limit until a program listens. It usually takes 10 ms.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(60);

/// A device of the guest that is a process of its own, listening on a socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DeviceProcess {
    /// The program and its arguments.
    pub(super) words: Vec<String>,
    /// The socket on which the program listens when it is ready.
    pub(super) socket: PathBuf,
}

impl DeviceProcess {
    /// Starts the program and waits until it listens.
    ///
    /// # Errors
    ///
    /// When the program cannot be started, exits, or does not listen in time.
    pub(super) fn start(&self) -> Result<Child, String> {
        let Self { words, socket } = self;
        let _ = fs::remove_file(socket);
        let mut command = command(&words[0])?;
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
        let device = command.spawn();
        let mut device = device.map_err(|error| format!("cannot start {}: {error}", words[0]))?;
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        while !socket.exists() {
            if let Ok(Some(status)) = device.try_wait() {
                return Err(format!("{}: {status}", words[0]));
            }
            if Instant::now() > deadline {
                let _ = device.kill();
                return Err(format!("{} does not listen on its socket", words[0]));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(device)
    }
}

/// A command that runs `program`. The kernel kills it when this thread exits.
///
/// # Errors
///
/// When the program is not installed.
pub(super) fn command(program: &str) -> Result<Command, String> {
    let found = host::find_program(program).ok_or_else(|| format!("{program} is not installed"))?;
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(this);
    command.arg(EXEC_FLAG).arg(std::process::id().to_string()).arg(found);
    Ok(command)
}

/// Executes another program if the arguments of the stand-in request it. Every stand-in calls this first.
/// Returns an exit code if that fails, and `None` if the arguments are those of the stand-in.
pub(super) fn exec_if_requested(words: &[String]) -> Option<ExitCode> {
    match words {
        [first, rest @ ..] if first == EXEC_FLAG => Some(exec_program(rest)),
        _ => None,
    }
}

/// Executes a program. `words` are the process id of the stand-in, the program, and its arguments.
fn exec_program(words: &[String]) -> ExitCode {
    let [parent, program, arguments @ ..] = words else { return ExitCode::FAILURE };
    if let Err(error) = die_with_parent() {
        eprintln!("cannot set the parent death signal: {error}");
        return ExitCode::FAILURE;
    }
    // The parent may have exited before the signal was set.
    if nix::unistd::getppid().to_string() != *parent {
        return ExitCode::FAILURE;
    }
    let error = Command::new(program).args(arguments).exec();
    eprintln!("cannot execute {program}: {error}");
    ExitCode::FAILURE
}

#[cfg(target_os = "linux")]
fn die_with_parent() -> nix::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent() -> nix::Result<()> {
    // The stand-ins run on Linux only.
    Err(nix::errno::Errno::ENOTSUP)
}
