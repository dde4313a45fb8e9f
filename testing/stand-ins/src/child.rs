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

/// The first word of a stand-in that is to become another program.
const EXEC_FLAG: &str = "--exec";

/// How long a program may take until it listens. It takes a hundredth of a second.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// A device of the guest that is a process of its own, listening on a socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DeviceProcess {
    /// The program and its arguments.
    pub(super) words: Vec<String>,
    /// Where it listens when it is ready.
    pub(super) socket: PathBuf,
}

impl DeviceProcess {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    ///
    /// What it is that cannot be started, or that it does not listen.
    pub(super) fn start(&self) -> Result<Child, String> {
        let Self { words, socket } = self;
        let _ = fs::remove_file(socket);
        let mut command = command(&words[0])?;
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
        let device = command.spawn();
        let mut device = device.map_err(|error| format!("cannot start {}: {error}", words[0]))?;
        let deadline = Instant::now() + REPLY_TIMEOUT;
        while !socket.exists() {
            if let Ok(Some(status)) = device.try_wait() {
                return Err(format!("{}: {status}", words[0]));
            }
            if Instant::now() > deadline {
                let _ = device.kill();
                return Err(format!("{} does not listen", words[0]));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(device)
    }
}

/// A command that becomes `program`, and dies with this thread.
///
/// # Errors
///
/// When it is not installed.
pub(super) fn command(program: &str) -> Result<Command, String> {
    let found = host::find_program(program).ok_or_else(|| format!("{program} is not installed"))?;
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(this);
    command.arg(EXEC_FLAG).arg(std::process::id().to_string()).arg(found);
    Ok(command)
}

/// What a stand-in does first: where its words say so, it becomes another program, and there is
/// only a status when it cannot.
pub(super) fn exec_if_requested(words: &[String]) -> Option<ExitCode> {
    match words {
        [first, rest @ ..] if first == EXEC_FLAG => Some(exec_program(rest)),
        _ => None,
    }
}

/// Becomes the program that `words` name behind the id of the process to die with.
fn exec_program(words: &[String]) -> ExitCode {
    let [parent, program, arguments @ ..] = words else { return ExitCode::FAILURE };
    if let Err(error) = die_with_parent() {
        eprintln!("no death signal: {error}");
        return ExitCode::FAILURE;
    }
    // It may have died before it could be asked for a signal.
    if nix::unistd::getppid().to_string() != *parent {
        return ExitCode::FAILURE;
    }
    let error = Command::new(program).args(arguments).exec();
    eprintln!("cannot become {program}: {error}");
    ExitCode::FAILURE
}

#[cfg(target_os = "linux")]
fn die_with_parent() -> nix::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent() -> nix::Result<()> {
    // Neither is there a hypervisor to stand in for.
    Err(nix::errno::Errno::ENOTSUP)
}
