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

use super::super::emulator::{Emulator, Happened};
use super::super::{EMULATOR_DIED, UNKNOWN_CONFIG};
use super::config::{Bootloader, Config};
use super::framework::{self, Kernel, State};
use super::guest_args::{self, Sockets};
use super::rest::Service;
use super::rest_uri::Endpoint;
use super::{Call, Fault, log, vsock};

/// What the loop is asked for.
#[derive(Debug)]
pub(super) enum VfkitEvent {
    /// A change of state: where its outcome goes.
    Change(Call, Sender<Result<(), String>>),
    /// SIGTERM or SIGINT came.
    Terminate(Signal),
    /// Something happened in the guest.
    Guest(Happened),
}

impl From<(u64, Happened)> for VfkitEvent {
    fn from((_, happened): (u64, Happened)) -> Self {
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
pub(super) fn run(config: &Config, faults: Vec<Fault>) -> Result<ExitCode, String> {
    if let Err(what) = framework::beyond_the_stand_in(config) {
        eprintln!("the stand-in does not have {what}");
        return Ok(ExitCode::from(UNKNOWN_CONFIG));
    }
    let dies = |fault: &Fault| match fault {
        Fault::DiesAtStart(status) => Some(ExitCode::from(*status)),
        _ => None,
    };
    if let Some(status) = faults.iter().find_map(dies) {
        eprintln!("{}", Fault::LAST_WORDS);
        return Ok(status);
    }
    framework::check(config)?;
    // Until here a signal just kills. Before there are other threads or children: all of them
    // inherit it. So a signal to the whole group ends the stand-in and not its guest, as it is with
    // the real one, whose guest is not in its group.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().map_err(|error| error.to_string())?;
    let (to, events_in) = channel();
    let state = Arc::new(Mutex::new(State::Stopped));
    let machine = Machine {
        config,
        state: state.clone(),
        at: Directory::of(&config.endpoint)?,
        emulator: None,
        until: None,
        events_in,
        to: to.clone(),
        faults: faults.into(),
    };
    if let Endpoint::Unix(path) = &config.endpoint {
        let (config, faults) = (Arc::new(json!(config)), machine.faults.clone());
        let service = Service { state, config, to: to.clone(), faults };
        if let Err(why) = service.serve(path) {
            // Neither usage nor cleaning up.
            log::say("fatal", &why);
            return Ok(ExitCode::FAILURE);
        }
    }
    if !machine.faults.contains(&Fault::IgnoresSigterm) {
        std::thread::spawn(move || {
            while let Ok(signal) = signals.wait() {
                if to.send(VfkitEvent::Terminate(signal)).is_err() {
                    break;
                }
            }
        });
    }
    let ended = machine.live();
    if let Endpoint::Unix(path) = &config.endpoint {
        let _ = fs::remove_file(path);
    }
    ended
}

struct Machine<'a> {
    config: &'a Config,
    state: Arc<Mutex<State>>,
    at: Directory,
    emulator: Option<Emulator>,
    /// When something happens unless something else does before.
    until: Option<(Instant, Late)>,
    events_in: Receiver<VfkitEvent>,
    to: Sender<VfkitEvent>,
    faults: Arc<[Fault]>,
}

/// What happens when the time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Late {
    /// The start was watched.
    Start,
    /// A signal asked the guest to stop.
    Grace,
}

type End = Result<ExitCode, String>;

impl Machine<'_> {
    /// From the start to the end.
    fn live(mut self) -> End {
        self.set(State::Starting);
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
                Fault::NeverRuns => return Ok(()),
                Fault::StartTimesOut(time) => {
                    self.until = Some((Instant::now() + *time, Late::Start));
                    return Ok(());
                }
                Fault::Error => {
                    self.set(State::Error);
                    return Ok(());
                }
                _ => {}
            }
        }
        let sockets = Sockets(self.at.0.clone());
        let machine = guest_args::machine(self.config, kernel, &sockets);
        self.emulator = Some(Emulator::start(&machine, 1, &self.to)?);
        self.set(State::Running);
        log::say("info", "virtual machine is running");
        vsock::expose(&self.config.devices, &sockets.vsock());
        log::say("info", "waiting for VM to stop");
        Ok(())
    }

    fn handle(&mut self, event: VfkitEvent) -> Option<End> {
        match event {
            VfkitEvent::Change(call, outcome) => {
                let changed = self.change(call);
                let has_stopped = changed.is_ok() && call == Call::HardStop;
                let _ = outcome.send(changed);
                if has_stopped { self.stopped() } else { None }
            }
            VfkitEvent::Terminate(signal) => {
                let name = if signal == Signal::SIGINT { "interrupt" } else { "terminated" };
                log::captured(name);
                if let Err(why) = self.change(Call::Stop) {
                    log::say("error", &format!("failed to shutdown VM: {why}"));
                }
                // Another signal waits its turn behind this one.
                self.until.get_or_insert((Instant::now() + GRACE, Late::Grace));
                None
            }
            VfkitEvent::Guest(Happened::PoweredOff) => {
                if let Some(emulator) = &self.emulator {
                    emulator.drain();
                }
                if self.faults.contains(&Fault::EndsInError) {
                    self.set(State::Error);
                    return Some(Err(
                        "virtualization error: hypervisor virtualization error".into()
                    ));
                }
                self.stopped()
            }
            VfkitEvent::Guest(Happened::Died(said)) => {
                // Killed by ourselves, it is no news.
                self.emulator.as_ref()?;
                eprintln!("the emulator died: {said}");
                Some(Ok(ExitCode::from(EMULATOR_DIED)))
            }
            // It boots again, or stands still.
            VfkitEvent::Guest(Happened::Reset | Happened::Panicked(_)) => None,
        }
    }

    fn change(&mut self, call: Call) -> Result<(), String> {
        let state = self.state();
        match (call, state) {
            (Call::Pause, State::Running) => self.tell("stop", State::Paused),
            (Call::Resume, State::Paused) => self.tell("cont", State::Running),
            (Call::Stop, State::Running) => self.tell("system_powerdown", State::Running),
            (Call::HardStop, State::Running | State::Paused) => {
                self.emulator = None;
                self.set(State::Stopped);
                Ok(())
            }
            (Call::Pause, _) => Err(state.cannot("Pausing")),
            (Call::Resume, _) => Err(state.cannot("Resuming")),
            (Call::Stop | Call::HardStop | Call::State, _) => Err(state.cannot("Stopping")),
        }
    }

    fn tell(&mut self, command: &str, then: State) -> Result<(), String> {
        let emulator = self.emulator.as_ref().ok_or_else(|| self.state().cannot("Running"))?;
        emulator.tell(command)?;
        self.set(then);
        Ok(())
    }

    /// The machine has stopped, and with it the process.
    fn stopped(&mut self) -> Option<End> {
        self.emulator = None;
        self.set(State::Stopped);
        if self.faults.contains(&Fault::OutlivesItsMachine) {
            return None;
        }
        log::say("info", "VM is stopped");
        Some(Ok(ExitCode::SUCCESS))
    }

    fn late(&mut self) -> Option<End> {
        match self.until.take() {
            Some((_, Late::Start)) => Some(Err("timeout waiting for VM state".into())),
            Some((_, Late::Grace)) => {
                let why = "timeout waiting for VM state";
                log::say("warning", &format!("failed to wait for VM stop: {why}, forcing stop"));
                match self.change(Call::HardStop) {
                    Ok(()) => self.stopped(),
                    Err(why) => {
                        log::say("error", &format!("failed to force stop VM: {why}"));
                        None
                    }
                }
            }
            None => None,
        }
    }

    fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// Where the emulator's sockets are: in a directory beside the REST service's, which goes with it.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn of(endpoint: &Endpoint) -> Result<Self, String> {
        let path = match endpoint {
            Endpoint::Unix(path) => Path::new(path).with_file_name("vz"),
            _ => env::temp_dir().join(format!("vz-{}", std::process::id())),
        };
        fs::create_dir_all(&path).map_err(|error| error.to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
