//! Simulated guests: they replace a hypervisor in the tests of programs that use Capsa.
//!
//! A [`GuestSim`] is a sans-I/O state machine like the others of this crate: it takes console input
//! and gives console output and guest events. There are two: a [`ScriptedGuest`] follows the steps
//! of a test, a [`Replay`] repeats a recording. A driver of their own connects them to the same
//! [`VmCore`](crate::vm::VmCore) that drives a hypervisor, over a [`QmpServer`] in memory: console,
//! lifecycle and stop ladder are the same.
//!
//! # The loop
//!
//! 1. Hand in what happened: [`GuestSim::handle_input`], [`GuestSim::handle_power_button`].
//! 2. Carry out every [`SimAction`] from [`GuestSim::poll_action`]. [`SimAction::Exit`] is the last.
//! 3. Wait for input or until [`GuestSim::poll_timeout`]; then go back to 2.
//!
//! A simulation keeps at most `INPUT_MAX` bytes of unread input. Like a terminal, it drops input
//! beyond that.

mod line_discipline;
mod qmp_server;
mod replay;
mod scripted;
mod scripted_sim;
mod shell_input;
#[cfg(test)]
mod tests;

pub use qmp_server::{QmpCommand, QmpServer};
pub use replay::{Replay, ReplayError, ReplayInput, ReplaySpeed};
pub use scripted::{GuestReply, ScriptedGuest};

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::backend::{
    Availability, GuestEvent, HypervisorBackend, ProbePlan, ProbeReport, Version,
};
use crate::capabilities::{BackendCapabilities, ValidatedSpec, Violation};
use crate::cmdline::KernelCmdline;
use crate::codec::qmp::QmpMessage;
use crate::host::{Arch, HostFacts};
use crate::lifecycle::Exit;
use crate::plan::{
    ConsolePlan, ControlEndpoint, ControlPlan, CrashReporting, LaunchPlan, Message, Note,
    ProcessPlan, Protocol, Readiness, RunDirPlan, Signal, StopAction,
};
use crate::spec::{ConsoleMode, RebootPolicy, VmSpec};
use crate::time::{Deadline, Instant};

/// Most bytes of unread input that a simulation keeps: 256 KiB.
pub(crate) const INPUT_MAX: usize = 256 * 1024;

/// A running simulation of a guest.
pub trait GuestSim: fmt::Debug + Send {
    /// Called once, when the VM starts.
    fn begin(&mut self, now: Instant);

    /// Takes bytes that were written to the guest's console.
    fn handle_input(&mut self, now: Instant, bytes: &[u8]);

    /// The power button was pressed.
    fn handle_power_button(&mut self, now: Instant);

    /// The next action that is due now.
    fn poll_action(&mut self, now: Instant) -> Option<SimAction>;

    /// When the next action is due without further input.
    fn poll_timeout(&self) -> Option<Deadline>;

    /// The nonce that the next command must use, for simulations whose output is already fixed: its
    /// begin and end marks contain that number. `from` is the console offset from which the command's
    /// output will be read.
    fn nonce(&self, from: u64) -> Option<u64> {
        let _ = from;
        None
    }
}

/// What a simulated guest does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SimAction {
    /// The guest writes these bytes to its console.
    Output(Vec<u8>),
    /// The hypervisor reports this event.
    Event(GuestEvent),
    /// The hypervisor process exits.
    Exit(Exit),
}

/// A guest that can be simulated.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SimulatedGuest {
    /// A guest that follows the steps of a test.
    Scripted(ScriptedGuest),
    /// A guest that repeats a recording.
    Replay(Replay),
}

impl SimulatedGuest {
    /// A new simulation of this guest.
    pub fn simulate(&self) -> Box<dyn GuestSim> {
        match self {
            Self::Scripted(guest) => guest.simulate(),
            Self::Replay(replay) => replay.simulate(),
        }
    }

    /// The error with which the start of this guest fails, if a test wants that.
    pub fn start_error(&self) -> Option<&str> {
        match self {
            Self::Scripted(guest) => guest.start_error(),
            Self::Replay(_) => None,
        }
    }
}

impl From<ScriptedGuest> for SimulatedGuest {
    fn from(guest: ScriptedGuest) -> Self {
        Self::Scripted(guest)
    }
}

impl From<Replay> for SimulatedGuest {
    fn from(replay: Replay) -> Self {
        Self::Replay(replay)
    }
}

/// The backend name in launch plans and reports.
const NAME: &str = "simulated";

/// The events of a simulated hypervisor, by their names in QMP.
const EVENTS: [(&str, GuestEvent); 7] = [
    ("POWEROFF", GuestEvent::PoweredOff),
    ("RESET", GuestEvent::Reset),
    ("PANIC", GuestEvent::Panicked),
    ("QUIT", GuestEvent::ExternalQuit),
    ("CPU_FAILURE", GuestEvent::CpuFailed),
    ("STOP", GuestEvent::Paused),
    ("RESUME", GuestEvent::Resumed),
];

/// The name in QMP by which a simulated hypervisor reports an event.
pub fn event_name(event: GuestEvent) -> &'static str {
    EVENTS.iter().find(|(_, known)| *known == event).map_or("OTHER", |(name, _)| name)
}

/// The launch plan of a VM with a simulated guest.
pub fn plan(
    at: &RunDirPlan,
    console: ConsoleMode,
    on_reboot: RebootPolicy,
    time_limit: Option<Duration>,
) -> LaunchPlan {
    LaunchPlan {
        network: None,
        backend: NAME,
        run_dir: at.path().clone(),
        processes: vec![ProcessPlan {
            name: "simulated guest".into(),
            program: NAME.into(),
            args: Vec::new(),
            descriptors: Vec::new(),
            ready: Readiness::ControlConnected,
            ends_with_hypervisor: true,
        }],
        control: ControlPlan { protocol: Protocol::Qmp, endpoint: ControlEndpoint::SocketPair },
        overlays: Vec::new(),
        disks: Vec::new(),
        console: console_plan(console),
        shares: Vec::new(),
        serial_port: None,
        vsock: None,
        agent: None,
        boot: Vec::new(),
        power_button: Some(Message::qmp("ask the guest to power off", "system_powerdown")),
        pause: Message::qmp("pause the guest", "stop"),
        resume: Message::qmp("resume the guest", "cont"),
        quit: StopAction::Signal(Signal::Term),
        crash_reporting: CrashReporting::Event,
        reset_debounce: Duration::ZERO,
        cmdline: String::new(),
        on_reboot,
        time_limit,
        notes: vec![Note::info(
            "the guest is simulated: no hypervisor runs; kernel, disks, shares and network are \
             ignored",
        )],
    }
}

fn console_plan(mode: ConsoleMode) -> ConsolePlan {
    match mode {
        ConsoleMode::Disabled => ConsolePlan::None,
        mode => ConsolePlan::SocketPair { mode },
    }
}

/// The backend of VMs with simulated guests. It is never selected automatically and accepts every
/// VM spec.
#[derive(Debug, Default)]
pub struct SimBackend {
    capabilities: BackendCapabilities,
}

impl HypervisorBackend for SimBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &BackendCapabilities {
        &self.capabilities
    }

    fn probe(&self, _: Arch, _: Option<&VmSpec>) -> ProbePlan {
        ProbePlan::default()
    }

    fn availability(&self, _: &HostFacts, _: &ProbeReport) -> Availability {
        let version: Option<Version> = None;
        let (blockers, missing_features, warnings) = (Vec::new(), Vec::new(), Vec::new());
        Availability { version, program: None, blockers, missing_features, warnings }
    }

    fn kernel_cmdline_defaults(&self, _: &VmSpec, _: &HostFacts) -> KernelCmdline {
        KernelCmdline::new()
    }

    fn default_root_device(&self) -> &str {
        "/dev/vda"
    }

    fn validate(&self, _: &VmSpec, _: &HostFacts, _: &ProbeReport) -> Vec<Violation> {
        Vec::new()
    }

    fn event(&self, event: &QmpMessage) -> Option<GuestEvent> {
        let QmpMessage::Event { name, .. } = event else { return None };
        EVENTS.iter().find(|(known, _)| known == name).map(|(_, event)| *event)
    }

    fn plan(
        &self,
        vm: &ValidatedSpec,
        at: &RunDirPlan,
        _: &HostFacts,
        _: &ProbeReport,
    ) -> LaunchPlan {
        plan(at, vm.spec().console, vm.spec().on_reboot, vm.spec().time_limit)
    }
}
