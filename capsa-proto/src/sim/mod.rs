//! Guests that are played: what takes a hypervisor's place in the tests of other programs.
//!
//! A [`GuestSim`] is a machine of its own, as pure as the others: it hears what is typed, and says what
//! the guest would. Two come with Capsa: a [`ScriptedGuest`] does as it was told, a [`Replay`] does what
//! a recorded guest did. The driver treats either as it treats a hypervisor: the same console, the
//! same lifecycle machine, the same stop ladder.
//!
//! # The loop
//!
//! 1. Hand in what came: [`GuestSim::handle_input`], [`GuestSim::handle_power_button`].
//! 2. Carry out every [`SimAction`] from [`GuestSim::poll_action`]. After [`SimAction::Exit`] there is none.
//! 3. Wait for input, or until [`GuestSim::poll_timeout`]; then go back to 2.
//!
//! What a play keeps of its input is bounded by [`INPUT_MAX`]; beyond it, as a terminal does, it
//! drops what is typed.

mod line_discipline;
mod replay;
mod scripted;
mod scripted_sim;
mod shell_input;
#[cfg(test)]
mod tests;

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
use crate::capabilities::{BackendCapabilities, Checked, Violation};
use crate::cmdline::KernelCmdline;
use crate::host::{Arch, HostFacts};
use crate::lifecycle::Exit;
use crate::path::HostPath;
use crate::plan::{
    ConsolePlan, ControlPlan, CrashReporting, LaunchPlan, Message, Note, ProcessPlan, Protocol,
    Readiness, RunDirPlan, Signal, StopAction,
};
use crate::spec::{ConsoleMode, RebootPolicy, VmSpec};
use crate::time::{Deadline, Instant};

/// Bytes of input that a play keeps while it is busy: 256 KiB.
pub const INPUT_MAX: usize = 256 * 1024;

/// A guest that is played.
pub trait GuestSim: fmt::Debug + Send {
    /// Its power is on from here.
    fn begin(&mut self, now: Instant);

    /// This was typed.
    fn handle_input(&mut self, now: Instant, bytes: &[u8]);

    /// The power button was pressed.
    fn handle_power_button(&mut self, now: Instant);

    /// The next thing it does now.
    fn poll_action(&mut self, now: Instant) -> Option<SimAction>;

    /// When it does something even if nothing is typed.
    fn poll_timeout(&self) -> Option<Deadline>;

    /// The number by which the next command's marks must be known, where the answer to it is fixed
    /// already; `from` is the offset in the output from which on it will be read.
    fn nonce(&self, from: u64) -> Option<u64> {
        let _ = from;
        None
    }
}

/// What a played guest does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SimAction {
    /// It says this on its console.
    Output(Vec<u8>),
    /// Its hypervisor says this of it.
    Event(GuestEvent),
    /// Its hypervisor ends.
    Exit(Exit),
}

/// What a test wants played.
#[derive(Debug, Clone)]
pub enum SimulatedGuest {
    /// A guest that does as it was told.
    Guest(ScriptedGuest),
    /// A recorded guest.
    Replay(Replay),
}

impl SimulatedGuest {
    /// A play of it, from the beginning.
    pub fn simulate(&self) -> Box<dyn GuestSim> {
        match self {
            Self::Guest(guest) => guest.simulate(),
            Self::Replay(replay) => replay.simulate(),
        }
    }

    /// What keeps it from starting, where that is its part.
    pub fn start_error(&self) -> Option<&str> {
        match self {
            Self::Guest(guest) => guest.start_error(),
            Self::Replay(_) => None,
        }
    }
}

impl From<ScriptedGuest> for SimulatedGuest {
    fn from(guest: ScriptedGuest) -> Self {
        Self::Guest(guest)
    }
}

impl From<Replay> for SimulatedGuest {
    fn from(replay: Replay) -> Self {
        Self::Replay(replay)
    }
}

/// What stands in the plan in the hypervisor's place.
const NAME: &str = "fake";

/// The plan of a machine that is played.
pub fn plan(
    at: &RunDirPlan,
    console: ConsoleMode,
    on_reboot: RebootPolicy,
    time_limit: Option<Duration>,
) -> LaunchPlan {
    let socket = at.socket("none");
    LaunchPlan {
        backend: NAME,
        run_dir: at.path().clone(),
        processes: vec![ProcessPlan {
            name: "fake guest".into(),
            program: NAME.into(),
            args: Vec::new(),
            ready: Readiness::ControlConnected,
            ends_with_hypervisor: true,
        }],
        control: ControlPlan { protocol: Protocol::Qmp, socket: socket.clone() },
        event_pipe: None,
        overlays: Vec::new(),
        console: console_plan(console, socket),
        vsock: None,
        boot: Vec::new(),
        power_button: Some(Message::qmp("ask the guest to power off", "system_powerdown")),
        quit: StopAction::Signal(Signal::Term),
        crash_reporting: CrashReporting::Event,
        reset_debounce: Duration::ZERO,
        cmdline: String::new(),
        on_reboot,
        time_limit,
        notes: vec![Note::info(
            "the guest is played by a test: no hypervisor runs, and no kernel, disk, share or \
             network was looked at",
        )],
    }
}

fn console_plan(mode: ConsoleMode, socket: HostPath) -> ConsolePlan {
    match mode {
        ConsoleMode::Disabled => ConsolePlan::None,
        mode => ConsolePlan::Socket { socket, mode },
    }
}

/// The backend of machines that are played: it is never chosen and refuses nothing, for there is
/// nothing to choose or refuse.
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

    fn plan(&self, vm: &Checked, at: &RunDirPlan, _: &HostFacts, _: &ProbeReport) -> LaunchPlan {
        plan(at, vm.spec().console, vm.spec().on_reboot, vm.spec().time_limit)
    }
}
