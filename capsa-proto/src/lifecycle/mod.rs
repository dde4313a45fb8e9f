//! The lifecycle of a VM: the state machine from `Created` to a terminal status.
//!
//! `Lifecycle::handle_input` is one exhaustive `match` over the [`Phase`] and the [`Input`]. It does
//! no I/O: it accepts inputs and returns actions. [`VmCore`](crate::vm::VmCore) drives it.
//!
//! # The loop
//!
//! 1. Pass events to `Lifecycle::handle_input`.
//! 2. Take every [`Action`] from `Lifecycle::poll_action` and carry it out. If a process cannot be
//!    launched, pass [`Input::LaunchFailed`] at once.
//! 3. Wait for an event, or until [`Lifecycle::poll_timeout`]; then call
//!    `Lifecycle::handle_timeout`.
//! 4. Stop after [`Action::Release`], the last action.
//!
//! # Invariants
//!
//! The fuzz body checks them; the tests run it with random inputs from many seeds:
//!
//! - every launched process has exited or was killed when the lifecycle ends;
//! - [`Action::Release`] comes exactly once, and last;
//! - a terminal status never changes;
//! - after a kill, timeouts alone end the lifecycle in a bounded number of steps;
//! - a helper is signalled only after the hypervisor has exited or was killed.
//!
#![doc = include_str!("diagram.md")]

#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod phase;
mod report;
mod start_error;
mod state_machine;
mod timer;

pub use phase::Phase;
pub use report::{EndedBy, StopLimits, StopReport, StopStep, VmStatus};
pub use start_error::{Cause, StartError};
pub use state_machine::Lifecycle;
pub use timer::LifecycleTimer;

use alloc::string::String;
use core::fmt;
use core::time::Duration;

use crate::backend::{GuestEvent, ReplyOutcome};
use crate::console::ConsoleCrash;
use crate::plan::{Message, ProcessId, Signal};

/// An event, or a request of the owner.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Request: start the VM.
    Start,
    /// Request: ask the guest to power off, and make the hypervisor quit after `grace`.
    Stop {
        /// The grace period.
        grace: Duration,
    },
    /// Request: kill the VM now.
    Kill,
    /// Request: pause the guest.
    Pause,
    /// Request: resume the guest.
    Resume,
    /// The process could not be launched.
    LaunchFailed(ProcessId, Cause),
    /// The process is ready, as its plan's [`Readiness`](crate::plan::Readiness) defines it.
    Ready(ProcessId),
    /// The hypervisor exited.
    HypervisorExited(Exit),
    /// A helper exited.
    HelperExited(ProcessId, Exit),
    /// The reply to a control message.
    Replied(Message, ReplyOutcome),
    /// The control channel failed or was closed.
    ControlLost,
    /// The hypervisor's events can no longer be read; the reason. From now on a reboot or a panic
    /// would go unnoticed.
    EventsLost(String),
    /// The hypervisor reports an event of the guest.
    Guest(GuestEvent),
    /// A line of a kernel panic is on the console. It only explains a reset or exit that follows,
    /// because a guest can print any text.
    ConsolePanic,
    /// The guest's kernel restarts, powers off or boots, so the text of a panic before that is none.
    ConsoleNoPanic,
    /// The last output on the console is a crash message of the guest's kernel. Used only if the
    /// hypervisor does not report guest crashes ([`CrashReporting::ConsoleOnly`]).
    ///
    /// [`CrashReporting::ConsoleOnly`]: crate::plan::CrashReporting::ConsoleOnly
    ConsoleCrash(ConsoleCrash),
    /// The deadline of a timer has passed; `Lifecycle::handle_timeout` makes it.
    Expired(LifecycleTimer),
}

/// A request to pause or resume the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseRequest {
    /// Pause it.
    Pause,
    /// Resume it.
    Resume,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exit {
    /// The exit status; `None` if a signal killed the process.
    pub code: Option<i32>,
    /// The signal that killed the process.
    pub signal: Option<i32>,
    /// Who sent SIGKILL, if Capsa did not.
    pub killed_by: Option<&'static str>,
    /// The last lines on standard error.
    pub stderr_tail: String,
}

impl Exit {
    /// An exit with this status and no output on standard error.
    pub const fn with_code(code: i32) -> Self {
        Self::new(Some(code), None)
    }

    /// An exit with this status or by this signal, and no output on standard error.
    pub const fn new(code: Option<i32>, signal: Option<i32>) -> Self {
        Self { code, signal, killed_by: None, stderr_tail: String::new() }
    }

    /// The process exited with a status other than 0.
    fn failed(&self) -> bool {
        self.code.is_some_and(|code| code != 0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exited with status {code}")?,
            (None, Some(signal)) => write!(f, "was killed by signal {signal}")?,
            (None, None) => write!(f, "ended")?,
        }
        if let Some(killed_by) = self.killed_by {
            write!(f, " (SIGKILL), {killed_by}")?;
        }
        match self.stderr_tail.trim() {
            "" => Ok(()),
            stderr => write!(f, ": {stderr}"),
        }
    }
}

/// What the caller must carry out.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Launch this process. A failure is [`Input::LaunchFailed`].
    Launch(ProcessId),
    /// Check whether this process is ready. If it is, the result is [`Input::Ready`]; otherwise the
    /// check is repeated.
    CheckReady(ProcessId),
    /// Send this message. The result is [`Input::Replied`].
    Send(Message),
    /// Send this signal.
    Signal(ProcessId, Signal),
    /// Notify waiters of this status.
    Announce(VmStatus),
    /// Notify waiters that the guest rebooted in the same VM.
    AnnounceReboot,
    /// Notify waiters that the hypervisor did not pause or resume the guest, and why.
    AnnounceRejection(PauseRequest, String),
    /// The lifecycle has ended: release all resources. The last action.
    Release,
}

/// How long each phase may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From the spawn of a helper until it is ready.
    pub helper: Duration,
    /// From the spawn of the hypervisor until its control channel is connected.
    pub launch: Duration,
    /// From sending a boot message until its reply.
    pub boot: Duration,
    /// From a request to pause or resume the guest until its reply.
    pub pause: Duration,
    /// The grace period after the time limit.
    pub grace: Duration,
    /// From the guest's power-off until the hypervisor exits, if no stop was requested.
    pub exit: Duration,
    /// From the quit command until the hypervisor exits. In a stop, also from the guest's power-off,
    /// if the grace period ends earlier.
    pub quit: Duration,
    /// From SIGKILL until the process exits.
    pub kill: Duration,
    /// From the hypervisor's exit until the helpers exit.
    pub drain: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            helper: Duration::from_secs(10),
            launch: Duration::from_secs(30),
            boot: Duration::from_secs(30),
            pause: Duration::from_secs(30),
            grace: DEFAULT_GRACE,
            exit: Duration::from_secs(8),
            // A stop may last this much longer than its grace period. It also ends vfkit, which after
            // SIGTERM waits five seconds for a guest that has used up its grace period.
            quit: Duration::from_secs(3),
            kill: Duration::from_secs(5),
            drain: Duration::from_secs(2),
        }
    }
}

/// The default grace period: 30 seconds.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// A request that is not possible in the current phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidState {
    /// The VM was already started.
    #[error("VM was already started")]
    AlreadyStarted,
    /// The VM was not started.
    #[error("VM was not started")]
    NotStarted,
    /// The VM neither runs nor is paused.
    #[error("VM is not running")]
    NotRunning,
}
