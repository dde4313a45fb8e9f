//! The VM: a loop in the main thread that handles changes of state, signals and guest events.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use serde_json::json;

use super::super::emulator::{Emulator, EmulatorEvent};
use super::super::{EMULATOR_EXITED, UNKNOWN_CONFIG};
use super::config::{Bootloader, Config};
use super::framework::{self, Kernel, VzState};
use super::guest_args::{self, Sockets};
use super::rest::RestService;
use super::rest_uri::Endpoint;
use super::{VfkitCall, VfkitFault, log, vsock};

/// An event that the loop handles.
#[derive(Debug)]
pub(super) enum VfkitEvent {
    /// A request for a change of state, and the sender for its result.
    Change(VfkitCall, Sender<Result<(), String>>),
    /// SIGTERM or SIGINT.
    Terminate(Signal),
    /// An event of the emulator.
    Guest(EmulatorEvent),
}

impl From<(u64, EmulatorEvent)> for VfkitEvent {
    fn from((_, happened): (u64, EmulatorEvent)) -> Self {
        Self::Guest(happened)
    }
}

/// The grace period of a guest after a signal.
const GRACE_PERIOD: Duration = Duration::from_secs(5);

/// Runs a VM until the process ends, and returns the exit code.
///
/// # Errors
///
/// When the VM does not start, or fails later.
pub(super) fn run(config: &Config, faults: Vec<VfkitFault>) -> Result<ExitCode, String> {
    if let Err(what) = framework::check_supported(config) {
        eprintln!("the stand-in does not support {what}");
        return Ok(ExitCode::from(UNKNOWN_CONFIG));
    }
    let exit_at_start = |fault: &VfkitFault| match fault {
        VfkitFault::ExitsAtStart(status) => Some(ExitCode::from(*status)),
        _ => None,
    };
    if let Some(status) = faults.iter().find_map(exit_at_start) {
        eprintln!("{}", VfkitFault::STDERR_LINE);
        return Ok(status);
    }
    framework::check(config)?;
    // Until here a signal kills the process, as in the real one. Blocked before the first thread or
    // child starts: all of them inherit the signal mask. So a signal to the process group ends the
    // stand-in and not QEMU. The guest of the real one is not in its process group.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().map_err(|error| error.to_string())?;
    let (sender, receiver) = channel();
    let state = Arc::new(Mutex::new(VzState::Stopped));
    let vm = VfkitVm {
        config,
        state: state.clone(),
        dir: SocketDir::of(&config.endpoint)?,
        emulator: None,
        deadline: None,
        receiver,
        sender: sender.clone(),
        faults: faults.into(),
    };
    if let Endpoint::Unix(path) = &config.endpoint {
        let (config, faults) = (Arc::new(json!(config)), vm.faults.clone());
        let service = RestService { state, config, sender: sender.clone(), faults };
        if let Err(why) = service.serve(path) {
            // The real one prints no usage here, and leaves the socket.
            log::write("fatal", &why);
            return Ok(ExitCode::FAILURE);
        }
    }
    if !vm.faults.contains(&VfkitFault::IgnoresSigterm) {
        std::thread::spawn(move || {
            while let Ok(signal) = signals.wait() {
                if sender.send(VfkitEvent::Terminate(signal)).is_err() {
                    break;
                }
            }
        });
    }
    let ended = vm.run();
    if let Endpoint::Unix(path) = &config.endpoint {
        let _ = fs::remove_file(path);
    }
    ended
}

struct VfkitVm<'a> {
    config: &'a Config,
    state: Arc<Mutex<VzState>>,
    dir: SocketDir,
    emulator: Option<Emulator>,
    /// When a time limit expires, and which one.
    deadline: Option<(Instant, DeadlineReason)>,
    receiver: Receiver<VfkitEvent>,
    sender: Sender<VfkitEvent>,
    faults: Arc<[VfkitFault]>,
}

/// The time limit that a deadline belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeadlineReason {
    /// The VM must reach the state `Running`.
    Start,
    /// The guest must power off after a signal.
    GracePeriod,
}

type RunResult = Result<ExitCode, String>;

impl VfkitVm<'_> {
    /// Starts the VM and handles events until the process ends.
    fn run(mut self) -> RunResult {
        self.set_state(VzState::Starting);
        self.start()?;
        loop {
            let wait = self.deadline.map_or(Duration::from_secs(3600), |(until, _)| {
                until.saturating_duration_since(Instant::now())
            });
            let end = match self.receiver.recv_timeout(wait) {
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => self.handle_timeout(),
                Err(RecvTimeoutError::Disconnected) => unreachable!("this struct holds a sender"),
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    fn start(&mut self) -> Result<(), String> {
        let Bootloader::Linux(linux) = &self.config.bootloader else { return Ok(()) };
        let kernel = Kernel::at(&linux.kernel)?;
        for fault in self.faults.iter() {
            match fault {
                VfkitFault::NeverRuns => return Ok(()),
                VfkitFault::StartTimesOut(time) => {
                    self.deadline = Some((Instant::now() + *time, DeadlineReason::Start));
                    return Ok(());
                }
                VfkitFault::Error => {
                    self.set_state(VzState::Error);
                    return Ok(());
                }
                _ => {}
            }
        }
        let sockets = Sockets(self.dir.0.clone());
        let vm = guest_args::emulated_vm(self.config, kernel, &sockets);
        self.emulator = Some(Emulator::start(&vm, 1, &self.sender)?);
        self.set_state(VzState::Running);
        log::write("info", "virtual machine is running");
        vsock::start_relays(&self.config.devices, &sockets.vsock());
        log::write("info", "waiting for VM to stop");
        Ok(())
    }

    fn handle(&mut self, event: VfkitEvent) -> Option<RunResult> {
        match event {
            VfkitEvent::Change(call, outcome) => {
                let changed = self.change(call);
                let has_stopped = changed.is_ok() && call == VfkitCall::HardStop;
                let _ = outcome.send(changed);
                if has_stopped { self.handle_stop() } else { None }
            }
            VfkitEvent::Terminate(signal) => {
                let name = if signal == Signal::SIGINT { "interrupt" } else { "terminated" };
                log::captured(name);
                if let Err(why) = self.change(VfkitCall::Stop) {
                    log::write("error", &format!("failed to shutdown VM: {why}"));
                }
                // A second signal does not extend the grace period.
                self.deadline
                    .get_or_insert((Instant::now() + GRACE_PERIOD, DeadlineReason::GracePeriod));
                None
            }
            VfkitEvent::Guest(EmulatorEvent::PoweredOff) => {
                if let Some(emulator) = &self.emulator {
                    emulator.drain();
                }
                if self.faults.contains(&VfkitFault::EndsInError) {
                    self.set_state(VzState::Error);
                    return Some(Err(
                        "virtualization error: hypervisor virtualization error".into()
                    ));
                }
                self.handle_stop()
            }
            VfkitEvent::Guest(EmulatorEvent::Exited(stderr)) => {
                // Without an emulator, the stand-in itself has killed it.
                self.emulator.as_ref()?;
                eprintln!("the emulator exited: {stderr}");
                Some(Ok(ExitCode::from(EMULATOR_EXITED)))
            }
            // After a reset the guest boots again; after a panic it does nothing.
            VfkitEvent::Guest(EmulatorEvent::Reset | EmulatorEvent::Panicked(_)) => None,
        }
    }

    fn change(&mut self, call: VfkitCall) -> Result<(), String> {
        let state = self.state();
        match (call, state) {
            (VfkitCall::Pause, VzState::Running) => self.execute("stop", VzState::Paused),
            (VfkitCall::Resume, VzState::Paused) => self.execute("cont", VzState::Running),
            (VfkitCall::Stop, VzState::Running) => {
                self.execute("system_powerdown", VzState::Running)
            }
            (VfkitCall::HardStop, VzState::Running | VzState::Paused) => {
                self.emulator = None;
                self.set_state(VzState::Stopped);
                Ok(())
            }
            (VfkitCall::Pause, _) => Err(state.invalid_transition("Pausing")),
            (VfkitCall::Resume, _) => Err(state.invalid_transition("Resuming")),
            (VfkitCall::Stop | VfkitCall::HardStop | VfkitCall::State, _) => {
                Err(state.invalid_transition("Stopping"))
            }
        }
    }

    fn execute(&mut self, command: &str, then: VzState) -> Result<(), String> {
        let emulator =
            self.emulator.as_ref().ok_or_else(|| self.state().invalid_transition("Running"))?;
        emulator.execute(command)?;
        self.set_state(then);
        Ok(())
    }

    /// Handles the end of the VM, which ends the process.
    fn handle_stop(&mut self) -> Option<RunResult> {
        self.emulator = None;
        self.set_state(VzState::Stopped);
        if self.faults.contains(&VfkitFault::OutlivesVm) {
            return None;
        }
        log::write("info", "VM is stopped");
        Some(Ok(ExitCode::SUCCESS))
    }

    fn handle_timeout(&mut self) -> Option<RunResult> {
        match self.deadline.take() {
            Some((_, DeadlineReason::Start)) => Some(Err("timeout waiting for VM state".into())),
            Some((_, DeadlineReason::GracePeriod)) => {
                let why = "timeout waiting for VM state";
                log::write("warning", &format!("failed to wait for VM stop: {why}, forcing stop"));
                match self.change(VfkitCall::HardStop) {
                    Ok(()) => self.handle_stop(),
                    Err(why) => {
                        log::write("error", &format!("failed to force stop VM: {why}"));
                        None
                    }
                }
            }
            None => None,
        }
    }

    fn state(&self) -> VzState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_state(&self, state: VzState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// The directory of the emulator's sockets, beside the socket of the REST service. Dropping it removes
/// the directory.
#[derive(Debug)]
struct SocketDir(PathBuf);

impl SocketDir {
    fn of(endpoint: &Endpoint) -> Result<Self, String> {
        let path = match endpoint {
            Endpoint::Unix(path) => Path::new(path).with_file_name("vz"),
            _ => env::temp_dir().join(format!("vz-{}", std::process::id())),
        };
        fs::create_dir_all(&path).map_err(|error| error.to_string())?;
        Ok(Self(path))
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
