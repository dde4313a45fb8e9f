//! The guest of a stand-in: QEMU in software emulation, controlled over QMP, and its device processes.
//! Only the main thread may start it: see [`child`].

use std::env::consts::ARCH;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use super::child::{self, DeviceProcess};

/// An answer of the emulator takes a millisecond, its start a tenth of a second.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// What a guest does on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EmulatorEvent {
    /// It powered off.
    PoweredOff,
    /// It reset, and stands still.
    Reset,
    /// Its kernel told the panic device so.
    Panicked(&'static str),
    /// The emulator ended, which nobody asked for.
    Exited(String),
}

/// What there is to be started.
#[derive(Debug, Default)]
pub(super) struct EmulatedVm {
    /// The arguments of QEMU, without those for the monitor and the accelerator. Nothing may run
    /// before `cont`.
    pub(super) arguments: Vec<String>,
    /// What must listen before.
    pub(super) devices: Vec<DeviceProcess>,
}

/// A guest, which stops existing when this is dropped.
#[derive(Debug)]
pub(super) struct Emulator {
    qemu: Child,
    devices: Vec<Child>,
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
    pub(super) fn start<W>(vm: &EmulatedVm, life: u64, to: &Sender<W>) -> Result<Self, String>
    where
        W: From<(u64, EmulatorEvent)> + Send + 'static,
    {
        let cannot = |what: &'static str| move |error: io::Error| format!("cannot {what}: {error}");
        let devices = vm.devices.iter().map(DeviceProcess::start).collect::<Result<_, _>>()?;
        let (monitor, theirs) = UnixStream::pair().map_err(cannot("make a monitor"))?;
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|error| error.to_string())?;
        let mut qemu = child::command(&program())?
            .args("-nodefaults -no-user-config -display none -S".split(' '))
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-mon", "chardev=qmp,mode=control"])
            .args(["-chardev", &format!("socket,id=qmp,fd={}", theirs.as_raw_fd())])
            .args(&vm.arguments)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(cannot("start the emulator"))?;
        drop(theirs);
        let stderr = qemu.stderr.take().expect("it was asked for");
        let replies = listen(&monitor, stderr, life, to.clone()).map_err(cannot("listen"))?;
        let emulator = Self { qemu, devices, monitor, replies };
        emulator.reply()?; // its greeting
        emulator.execute("qmp_capabilities")?;
        emulator.execute("cont")?;
        Ok(emulator)
    }

    /// Tells it to do something, and waits until it says that it has.
    ///
    /// # Errors
    ///
    /// What it said, or that it said nothing.
    pub(super) fn execute(&self, command: &str) -> Result<(), String> {
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
            let _ = self.execute("query-status");
        }
    }

    fn reply(&self) -> Result<Value, String> {
        match self.replies.recv_timeout(REPLY_TIMEOUT) {
            Ok(Value::String(last_words)) => Err(last_words),
            Ok(reply) => Ok(reply),
            Err(RecvTimeoutError::Timeout) => Err("the emulator does not answer".into()),
            Err(RecvTimeoutError::Disconnected) => Err("the emulator is gone".into()),
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        for child in [&mut self.qemu].into_iter().chain(&mut self.devices) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sorts what the monitor says: events to `to`, replies to whoever asked. When it closes, the
/// emulator's last words are a reply too, as a string, and an event.
fn listen<W>(
    monitor: &UnixStream,
    mut stderr: ChildStderr,
    life: u64,
    to: Sender<W>,
) -> io::Result<Receiver<Value>>
where
    W: From<(u64, EmulatorEvent)> + Send + 'static,
{
    let (reply, replies) = channel();
    let lines = BufReader::new(monitor.try_clone()?);
    std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            let Ok(said) = serde_json::from_str::<Value>(&line) else { break };
            if said.get("event").is_some() {
                if let Some(happened) = happened(&said) {
                    let _ = to.send((life, happened).into());
                }
            } else if reply.send(said).is_err() {
                break;
            }
        }
        let mut said = String::new();
        let _ = stderr.read_to_string(&mut said);
        let said = said.trim().to_owned();
        let _ = reply.send(Value::String(said.clone()));
        let _ = to.send((life, EmulatorEvent::Exited(said)).into());
    });
    Ok(replies)
}

/// What an event of QMP says of the guest.
fn happened(event: &Value) -> Option<EmulatorEvent> {
    match (event["event"].as_str()?, event["data"]["reason"].as_str()) {
        ("SHUTDOWN", Some("guest-shutdown")) => Some(EmulatorEvent::PoweredOff),
        ("SHUTDOWN", Some("guest-reset")) => Some(EmulatorEvent::Reset),
        ("GUEST_PANICKED", _) => Some(EmulatorEvent::Panicked("panic")),
        ("GUEST_CRASHLOADED", _) => Some(EmulatorEvent::Panicked("crash_loaded")),
        _ => None,
    }
}

/// What runs the guest.
fn program() -> String {
    format!("qemu-system-{ARCH}")
}
