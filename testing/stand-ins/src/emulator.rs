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

/// The time limit for a reply of QEMU. A reply usually takes a millisecond, the start 100 ms.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// An event of the guest, or the exit of QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EmulatorEvent {
    /// The guest powered off.
    PoweredOff,
    /// The guest reset. With `-action reboot=shutdown` QEMU pauses it then.
    Reset,
    /// The guest reported a panic to the pvpanic device: the name of cloud-hypervisor's event.
    Panicked(&'static str),
    /// QEMU exited: its standard error.
    Exited(String),
}

/// The programs of a VM, with their arguments.
#[derive(Debug, Default)]
pub(super) struct EmulatedVm {
    /// The arguments of QEMU, without those for QMP and the accelerator. The guest does not run before
    /// the command `cont`.
    pub(super) arguments: Vec<String>,
    /// The device processes, which must listen before QEMU starts.
    pub(super) devices: Vec<DeviceProcess>,
}

/// A running guest. Dropping it kills QEMU and the device processes.
#[derive(Debug)]
pub(super) struct Emulator {
    qemu: Child,
    devices: Vec<Child>,
    monitor: UnixStream,
    replies: Receiver<Value>,
}

impl Emulator {
    /// Starts the device processes, QEMU and the guest. The events are sent to `to`, each with
    /// `generation`.
    ///
    /// # Errors
    ///
    /// When a program does not start. The text has QEMU's standard error if there is any.
    pub(super) fn start<W>(vm: &EmulatedVm, generation: u64, to: &Sender<W>) -> Result<Self, String>
    where
        W: From<(u64, EmulatorEvent)> + Send + 'static,
    {
        let cannot = |what: &'static str| move |error: io::Error| format!("cannot {what}: {error}");
        let devices = vm.devices.iter().map(DeviceProcess::start).collect::<Result<_, _>>()?;
        let (monitor, qemu_end) = UnixStream::pair().map_err(cannot("make a monitor"))?;
        fcntl(&qemu_end, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|error| error.to_string())?;
        let mut qemu = child::command(&program())?
            .args("-nodefaults -no-user-config -display none -S".split(' '))
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-mon", "chardev=qmp,mode=control"])
            .args(["-chardev", &format!("socket,id=qmp,fd={}", qemu_end.as_raw_fd())])
            .args(&vm.arguments)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(cannot("start the emulator"))?;
        drop(qemu_end);
        let stderr = qemu.stderr.take().expect("stderr is piped");
        let replies =
            read_monitor(&monitor, stderr, generation, to.clone()).map_err(cannot("listen"))?;
        let emulator = Self { qemu, devices, monitor, replies };
        emulator.reply()?; // the greeting of QMP
        emulator.execute("qmp_capabilities")?;
        emulator.execute("cont")?;
        Ok(emulator)
    }

    /// Executes a QMP command and waits for its reply.
    ///
    /// # Errors
    ///
    /// When QEMU replies with an error, exits, or does not reply in time.
    pub(super) fn execute(&self, command: &str) -> Result<(), String> {
        let line = json!({ "execute": command });
        // If this fails, `reply` returns the cause.
        let _ = (&self.monitor).write_all(format!("{line}\n").as_bytes());
        match self.reply()?.get("error") {
            None => Ok(()),
            Some(error) => Err(format!("{command}: {error}")),
        }
    }

    /// Waits until the last console output is written: when the guest powers off, QEMU may still hold
    /// output for which the terminal had no room.
    pub(super) fn drain(&self) {
        for _ in 0..2 {
            let stdout = io::stdout();
            let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
            let _ = poll(&mut fds, PollTimeout::from(10_000u16));
            // QEMU has run its event loop once when it replies.
            let _ = self.execute("query-status");
        }
    }

    fn reply(&self) -> Result<Value, String> {
        match self.replies.recv_timeout(REPLY_TIMEOUT) {
            Ok(Value::String(stderr)) => Err(stderr),
            Ok(reply) => Ok(reply),
            Err(RecvTimeoutError::Timeout) => {
                Err(format!("the emulator did not reply within {} s", REPLY_TIMEOUT.as_secs()))
            }
            Err(RecvTimeoutError::Disconnected) => Err("the emulator has exited".into()),
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

/// Reads QMP in a thread: sends events to `to` and replies to the returned channel. When QEMU closes the
/// connection, its standard error is sent as [`EmulatorEvent::Exited`] and, as a string, as a reply.
fn read_monitor<W>(
    monitor: &UnixStream,
    mut stderr: ChildStderr,
    generation: u64,
    to: Sender<W>,
) -> io::Result<Receiver<Value>>
where
    W: From<(u64, EmulatorEvent)> + Send + 'static,
{
    let (reply, replies) = channel();
    let lines = BufReader::new(monitor.try_clone()?);
    std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            let Ok(message) = serde_json::from_str::<Value>(&line) else { break };
            if message.get("event").is_some() {
                if let Some(event) = parse_event(&message) {
                    let _ = to.send((generation, event).into());
                }
            } else if reply.send(message).is_err() {
                break;
            }
        }
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        let text = text.trim().to_owned();
        let _ = reply.send(Value::String(text.clone()));
        let _ = to.send((generation, EmulatorEvent::Exited(text)).into());
    });
    Ok(replies)
}

/// The event of the guest that a QMP event reports.
fn parse_event(event: &Value) -> Option<EmulatorEvent> {
    match (event["event"].as_str()?, event["data"]["reason"].as_str()) {
        ("SHUTDOWN", Some("guest-shutdown")) => Some(EmulatorEvent::PoweredOff),
        ("SHUTDOWN", Some("guest-reset")) => Some(EmulatorEvent::Reset),
        ("GUEST_PANICKED", _) => Some(EmulatorEvent::Panicked("panic")),
        ("GUEST_CRASHLOADED", _) => Some(EmulatorEvent::Panicked("crash_loaded")),
        _ => None,
    }
}

/// The QEMU program for the architecture of this host.
fn program() -> String {
    format!("qemu-system-{ARCH}")
}
