//! Lifecycle 3: the life of a machine, from `Created` to a terminal status.
//!
//! The whole machine is two tables in [`table`]: what each phase does on entry and how long it may
//! take, and which trigger leads from where to where. [`Lifecycle`] only walks through them. It
//! starts nothing and signals nothing; it says what should happen and is told what did.
//!
//! # The loop
//!
//! 1. Hand in what happened with [`Lifecycle::handle_input`].
//! 2. Take every [`Action`] from [`Lifecycle::poll_action`] and carry it out. Its result is an input.
//! 3. Wait for the world, or until [`Lifecycle::poll_timeout`]; then hand in [`Input::Timeout`].
//! 4. Stop when the action [`Action::Release`] came: it is the last.
//!
//! # Laws
//!
//! Held by a fuzz body, which tests also feed with random inputs over many seeds:
//!
//! - every process that was spawned is, in the end, exited or killed;
//! - [`Action::Release`] comes exactly once, and last;
//! - a terminal status never changes;
//! - after a kill, timeouts alone lead to the end in a bounded number of steps;
//! - helpers are signalled only when the hypervisor is gone.
//!
#![doc = include_str!("diagram.md")]

#[doc(hidden)]
pub mod fuzz;
mod report;
mod state_machine;
pub mod table;

pub use report::{EndedBy, StopReport, StopStep, VmStatus};
pub use state_machine::Lifecycle;

use alloc::string::String;
use core::fmt;
use core::time::Duration;

use crate::backend::ReplyOutcome;
use crate::console::ConsoleCrash;
use crate::plan::{Message, ProcessId, Signal};

/// What happened, or what is wished for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Wish: start.
    Start,
    /// Wish: ask the guest to power off, and cut the power after `grace`.
    Stop {
        /// How long the guest may take.
        grace: Duration,
    },
    /// Wish: end it now.
    Kill,
    /// The process runs.
    Spawned(ProcessId),
    /// The process could not be started; the system's words.
    SpawnFailed(ProcessId, String),
    /// The process is up, in the sense of its plan.
    Ready(ProcessId),
    /// A control message was answered.
    Replied(ReplyOutcome),
    /// The process is gone.
    Exited(ProcessId, Exit),
    /// The control channel broke.
    ControlLost,
    /// What the hypervisor tells about its guest makes no sense any more; the reason. A reboot or a
    /// panic would go unseen from here on.
    EventsLost(String),
    /// The hypervisor says the guest powered off. Its process will follow.
    GuestPoweredOff,
    /// The guest reset.
    GuestReset,
    /// The hypervisor says that somebody else told it to quit: a signal, another client.
    ExternalQuit,
    /// The hypervisor says that it cannot go on with a virtual CPU.
    CpuFailed,
    /// The guest panicked: a panic device said so, or its console did.
    GuestPanicked {
        /// `true` when a panic device said so, so that it is certain. A panic seen on the console
        /// only explains the reset or exit that follows it: a guest may print what it likes.
        certain: bool,
    },
    /// The guest's kernel said on the console that it fell, and nothing after it. Believed where the
    /// hypervisor does not tell.
    ConsoleCrash(ConsoleCrash),
    /// A deadline may have passed. Safe to send at any time.
    Timeout,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Its exit status, when it exited.
    pub code: Option<i32>,
    /// The signal that ended it, otherwise.
    pub signal: Option<i32>,
    /// The last lines it wrote to standard error.
    pub stderr_tail: String,
}

impl Exit {
    /// It exited with this status and said nothing.
    pub const fn with_code(code: i32) -> Self {
        Self { code: Some(code), signal: None, stderr_tail: String::new() }
    }

    /// It gave up by itself: no signal, and not done.
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
        match self.stderr_tail.trim() {
            "" => Ok(()),
            said => write!(f, ": {said}"),
        }
    }
}

/// What should happen.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Start this process. Answer with [`Input::Spawned`] or [`Input::SpawnFailed`].
    Spawn(ProcessId),
    /// Watch for this process to be up. Answer with [`Input::Ready`].
    AwaitReady(ProcessId),
    /// Send this message. Answer with [`Input::Replied`].
    Control(Message),
    /// Send this signal.
    Signal(ProcessId, Signal),
    /// Tell whoever listens about this status.
    Announce(VmStatus),
    /// The guest booted again in the same machine.
    AnnounceReboot,
    /// Everything is over: free all there is. The last action.
    Release,
}

/// How long each phase may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// A helper, from its spawn to its socket.
    pub helper: Duration,
    /// The hypervisor, from its spawn to its control channel.
    pub launch: Duration,
    /// One boot message, from sending to its reply.
    pub boot: Duration,
    /// The guest, from being asked to power off, where a time limit ends it.
    pub grace: Duration,
    /// The hypervisor, from being told to quit to its exit.
    pub quit: Duration,
    /// A process, from SIGKILL to its exit.
    pub kill: Duration,
    /// The helpers, from the hypervisor's end to their own.
    pub drain: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            helper: Duration::from_secs(10),
            launch: Duration::from_secs(30),
            boot: Duration::from_secs(30),
            grace: DEFAULT_GRACE,
            // vfkit gives its guest five more seconds, and then needs a moment to force it.
            quit: Duration::from_secs(8),
            kill: Duration::from_secs(5),
            drain: Duration::from_secs(2),
        }
    }
}

/// How long a guest may take to power off when nobody says otherwise: 30 seconds.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// A wish that cannot be granted in the machine's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidState {
    /// It was started before.
    #[error("the machine was already started")]
    AlreadyStarted,
    /// It was never started.
    #[error("the machine was never started")]
    NotStarted,
}
