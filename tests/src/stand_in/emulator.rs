//! The guest: QEMU in software emulation, told what to do over QMP.
//!
//! It dies with the stand-in, however that dies: each child asks for a death signal of its own
//! before it becomes the program. Such a signal is bound to the thread that started the child, so
//! they are started by the main thread alone, which lives as long as the process.

use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use super::config::VmConfig;
use super::guest_args;
use super::vmm::Wish;
use crate::host;

/// The first word of a stand-in that is to become another program.
pub(super) const BECOME: &str = "--become";

/// An answer of the emulator takes a millisecond, its start a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a guest does on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Happened {
    /// It powered off.
    PoweredOff,
    /// It reset, and stands still.
    Reset,
    /// Its kernel told the panic device so.
    Panicked(&'static str),
    /// The emulator ended, which nobody asked for.
    Died(String),
}

/// A guest, which stops existing when this is dropped.
#[derive(Debug)]
pub(super) struct Emulator {
    qemu: Child,
    vsock: Option<Child>,
    monitor: UnixStream,
    replies: Receiver<Value>,
}

impl Emulator {
    /// Starts the machine and lets its guest go. What happens in it goes to `to`, marked with
    /// `life`.
    ///
    /// # Errors
    ///
    /// What the emulator said, or why it could not say anything.
    pub(super) fn start(config: &VmConfig, life: u64, to: &Sender<Wish>) -> Result<Self, String> {
        let cannot = |what: &'static str| move |error: io::Error| format!("cannot {what}: {error}");
        let vsock = start_vsock(config)?;
        let (monitor, theirs) = UnixStream::pair().map_err(cannot("make a monitor"))?;
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|error| error.to_string())?;
        let terminal = io::stdin().is_terminal();
        let arguments = guest_args::arguments(config, theirs.as_raw_fd(), terminal);
        let mut command = child(&guest_args::program())?;
        let mut qemu = command
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(cannot("start the emulator"))?;
        drop(theirs);
        let stderr = qemu.stderr.take().expect("it was asked for");
        let replies = listen(&monitor, stderr, life, to.clone()).map_err(cannot("listen"))?;
        let emulator = Self { qemu, vsock, monitor, replies };
        emulator.reply()?; // its greeting
        emulator.tell("qmp_capabilities")?;
        emulator.tell("cont")?;
        Ok(emulator)
    }

    /// Tells it to do something, and waits until it says that it has.
    ///
    /// # Errors
    ///
    /// What it said, or that it said nothing.
    pub(super) fn tell(&self, command: &str) -> Result<(), String> {
        let line = json!({ "execute": command });
        // Where that fails, the reply is why.
        let _ = (&self.monitor).write_all(format!("{line}\n").as_bytes());
        match self.reply()?.get("error") {
            None => Ok(()),
            Some(error) => Err(format!("{command}: {error}")),
        }
    }

    /// Waits until the guest's last words are out: when its power goes, the serial port may still
    /// hold what the terminal had no room for.
    pub(super) fn drain(&self) {
        for _ in 0..2 {
            let stdout = io::stdout();
            let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
            let _ = poll(&mut fds, PollTimeout::from(10_000u16));
            // After an answer the emulator has been around its loop.
            let _ = self.tell("query-status");
        }
    }

    fn reply(&self) -> Result<Value, String> {
        match self.replies.recv_timeout(PATIENCE) {
            Ok(Value::String(last_words)) => Err(last_words),
            Ok(reply) => Ok(reply),
            Err(RecvTimeoutError::Timeout) => Err("the emulator does not answer".into()),
            Err(RecvTimeoutError::Disconnected) => Err("the emulator is gone".into()),
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        for child in [Some(&mut self.qemu), self.vsock.as_mut()].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sorts what the monitor says: events to `to`, replies to whoever asked. When it closes, the
/// emulator's last words are a reply too, as a string, and an event.
fn listen(
    monitor: &UnixStream,
    mut stderr: ChildStderr,
    life: u64,
    to: Sender<Wish>,
) -> io::Result<Receiver<Value>> {
    let (reply, replies) = channel();
    let lines = BufReader::new(monitor.try_clone()?);
    std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            let Ok(said) = serde_json::from_str::<Value>(&line) else { break };
            if said.get("event").is_some() {
                if let Some(happened) = happened(&said) {
                    let _ = to.send(Wish::Guest(life, happened));
                }
            } else if reply.send(said).is_err() {
                break;
            }
        }
        let mut said = String::new();
        let _ = stderr.read_to_string(&mut said);
        let said = said.trim().to_owned();
        let _ = reply.send(Value::String(said.clone()));
        let _ = to.send(Wish::Guest(life, Happened::Died(said)));
    });
    Ok(replies)
}

/// What an event of QMP says of the guest.
fn happened(event: &Value) -> Option<Happened> {
    match (event["event"].as_str()?, event["data"]["reason"].as_str()) {
        ("SHUTDOWN", Some("guest-shutdown")) => Some(Happened::PoweredOff),
        ("SHUTDOWN", Some("guest-reset")) => Some(Happened::Reset),
        ("GUEST_PANICKED", _) => Some(Happened::Panicked("panic")),
        ("GUEST_CRASHLOADED", _) => Some(Happened::Panicked("crash_loaded")),
        _ => None,
    }
}

fn start_vsock(config: &VmConfig) -> Result<Option<Child>, String> {
    let (Some(vsock), Some(words)) = (&config.vsock, guest_args::vsock_device(config)) else {
        return Ok(None);
    };
    let backend = guest_args::vsock_backend(&vsock.socket);
    let _ = fs::remove_file(&backend);
    let device =
        child(&words[0])?.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let mut device = device.map_err(|error| format!("cannot start {}: {error}", words[0]))?;
    let deadline = Instant::now() + PATIENCE;
    while !backend.exists() {
        if let Ok(Some(status)) = device.try_wait() {
            return Err(format!("{}: {status}", words[0]));
        }
        if Instant::now() > deadline {
            let _ = device.kill();
            return Err(format!("{} does not listen", words[0]));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(Some(device))
}

/// A command that becomes `program`, and dies with this thread.
fn child(program: &str) -> Result<Command, String> {
    let found = host::find_program(program).ok_or_else(|| format!("{program} is not installed"))?;
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(this);
    command.arg(BECOME).arg(std::process::id().to_string()).arg(found);
    Ok(command)
}

/// Becomes the program that `words` name behind the id of the process to die with.
pub(super) fn become_program(words: &[String]) -> ExitCode {
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
    // Neither is there a cloud-hypervisor to stand in for.
    Err(nix::errno::Errno::ENOTSUP)
}
