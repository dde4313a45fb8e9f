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

/// What the loop is asked for.
#[derive(Debug)]
pub(super) enum VfkitEvent {
    /// A change of state: where its outcome goes.
    Change(VfkitCall, Sender<Result<(), String>>),
    /// SIGTERM or SIGINT came.
    Terminate(Signal),
    /// Something happened in the guest.
    Guest(EmulatorEvent),
}

impl From<(u64, EmulatorEvent)> for VfkitEvent {
    fn from((_, happened): (u64, EmulatorEvent)) -> Self {
        Self::Guest(happened)
    }
}

/// How long a guest has after a signal.
const GRACE: Duration = Duration::from_secs(5);

/// Runs a machine until it ends.
///
/// # Errors
///
/// Why it does not start, or that it broke.
pub(super) fn run(config: &Config, faults: Vec<VfkitFault>) -> Result<ExitCode, String> {
    if let Err(what) = framework::check_supported(config) {
        eprintln!("the stand-in does not have {what}");
        return Ok(ExitCode::from(UNKNOWN_CONFIG));
    }
    let dies = |fault: &VfkitFault| match fault {
        VfkitFault::ExitsAtStart(status) => Some(ExitCode::from(*status)),
        _ => None,
    };
    if let Some(status) = faults.iter().find_map(dies) {
        eprintln!("{}", VfkitFault::STDERR_LINE);
        return Ok(status);
    }
    framework::check(config)?;
    // Until here a signal just kills. Before there are other threads or children: all of them
    // inherit it. So a signal to the whole group ends the stand-in and not its guest, as it is with
    // the real one, whose guest is not in its group.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().map_err(|error| error.to_string())?;
    let (to, events_in) = channel();
    let state = Arc::new(Mutex::new(VzState::Stopped));
    let vm = VfkitVm {
        config,
        state: state.clone(),
        at: SocketDir::of(&config.endpoint)?,
        emulator: None,
        until: None,
        events_in,
        to: to.clone(),
        faults: faults.into(),
    };
    if let Endpoint::Unix(path) = &config.endpoint {
        let (config, faults) = (Arc::new(json!(config)), vm.faults.clone());
        let service = RestService { state, config, to: to.clone(), faults };
        if let Err(why) = service.serve(path) {
            // Neither usage nor cleaning up.
            log::write("fatal", &why);
            return Ok(ExitCode::FAILURE);
        }
    }
    if !vm.faults.contains(&VfkitFault::IgnoresSigterm) {
        std::thread::spawn(move || {
            while let Ok(signal) = signals.wait() {
                if to.send(VfkitEvent::Terminate(signal)).is_err() {
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
    at: SocketDir,
    emulator: Option<Emulator>,
    /// When something happens unless something else does before.
    until: Option<(Instant, DeadlineReason)>,
    events_in: Receiver<VfkitEvent>,
    to: Sender<VfkitEvent>,
    faults: Arc<[VfkitFault]>,
}

/// What happens when the time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeadlineReason {
    /// The start was watched.
    Start,
    /// A signal asked the guest to stop.
    Grace,
}

type RunResult = Result<ExitCode, String>;

impl VfkitVm<'_> {
    /// From the start to the end.
    fn run(mut self) -> RunResult {
        self.set(VzState::Starting);
        self.start()?;
        loop {
            let wait = self.until.map_or(Duration::from_secs(3600), |(until, _)| {
                until.saturating_duration_since(Instant::now())
            });
            let end = match self.events_in.recv_timeout(wait) {
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => self.late(),
                Err(RecvTimeoutError::Disconnected) => unreachable!("a sender is our own"),
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
                    self.until = Some((Instant::now() + *time, DeadlineReason::Start));
                    return Ok(());
                }
                VfkitFault::Error => {
                    self.set(VzState::Error);
                    return Ok(());
                }
                _ => {}
            }
        }
        let sockets = Sockets(self.at.0.clone());
        let machine = guest_args::machine(self.config, kernel, &sockets);
        self.emulator = Some(Emulator::start(&machine, 1, &self.to)?);
        self.set(VzState::Running);
        log::write("info", "virtual machine is running");
        vsock::expose(&self.config.devices, &sockets.vsock());
        log::write("info", "waiting for VM to stop");
        Ok(())
    }

    fn handle(&mut self, event: VfkitEvent) -> Option<RunResult> {
        match event {
            VfkitEvent::Change(call, outcome) => {
                let changed = self.change(call);
                let has_stopped = changed.is_ok() && call == VfkitCall::HardStop;
                let _ = outcome.send(changed);
                if has_stopped { self.stopped() } else { None }
            }
            VfkitEvent::Terminate(signal) => {
                let name = if signal == Signal::SIGINT { "interrupt" } else { "terminated" };
                log::captured(name);
                if let Err(why) = self.change(VfkitCall::Stop) {
                    log::write("error", &format!("failed to shutdown VM: {why}"));
                }
                // Another signal waits its turn behind this one.
                self.until.get_or_insert((Instant::now() + GRACE, DeadlineReason::Grace));
                None
            }
            VfkitEvent::Guest(EmulatorEvent::PoweredOff) => {
                if let Some(emulator) = &self.emulator {
                    emulator.drain();
                }
                if self.faults.contains(&VfkitFault::EndsInError) {
                    self.set(VzState::Error);
                    return Some(Err(
                        "virtualization error: hypervisor virtualization error".into()
                    ));
                }
                self.stopped()
            }
            VfkitEvent::Guest(EmulatorEvent::Exited(said)) => {
                // Killed by ourselves, it is no news.
                self.emulator.as_ref()?;
                eprintln!("the emulator died: {said}");
                Some(Ok(ExitCode::from(EMULATOR_EXITED)))
            }
            // It boots again, or stands still.
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
                self.set(VzState::Stopped);
                Ok(())
            }
            (VfkitCall::Pause, _) => Err(state.cannot("Pausing")),
            (VfkitCall::Resume, _) => Err(state.cannot("Resuming")),
            (VfkitCall::Stop | VfkitCall::HardStop | VfkitCall::State, _) => {
                Err(state.cannot("Stopping"))
            }
        }
    }

    fn execute(&mut self, command: &str, then: VzState) -> Result<(), String> {
        let emulator = self.emulator.as_ref().ok_or_else(|| self.state().cannot("Running"))?;
        emulator.execute(command)?;
        self.set(then);
        Ok(())
    }

    /// The machine has stopped, and with it the process.
    fn stopped(&mut self) -> Option<RunResult> {
        self.emulator = None;
        self.set(VzState::Stopped);
        if self.faults.contains(&VfkitFault::OutlivesVm) {
            return None;
        }
        log::write("info", "VM is stopped");
        Some(Ok(ExitCode::SUCCESS))
    }

    fn late(&mut self) -> Option<RunResult> {
        match self.until.take() {
            Some((_, DeadlineReason::Start)) => Some(Err("timeout waiting for VM state".into())),
            Some((_, DeadlineReason::Grace)) => {
                let why = "timeout waiting for VM state";
                log::write("warning", &format!("failed to wait for VM stop: {why}, forcing stop"));
                match self.change(VfkitCall::HardStop) {
                    Ok(()) => self.stopped(),
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

    fn set(&self, state: VzState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// Where the emulator's sockets are: in a directory beside the REST service's, which goes with it.
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
