//! The status of a VM, and the stop report.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use super::{Exit, StartError};

/// The status of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmStatus {
    /// Planned; no process runs.
    Created,
    /// Its processes are starting.
    Starting,
    /// The hypervisor has started the guest. Whether the guest has booted shows only on its console.
    Running,
    /// The guest is paused: its vCPUs do not run. Its owner did it, or a disk error.
    Paused,
    /// The VM is stopping.
    Stopping,
    /// The VM ended normally: the guest powered off, or the owner stopped or killed the VM.
    Stopped {
        /// The hypervisor's exit status; `None` if a signal killed it, or if it was never started.
        exit_code: Option<i32>,
    },
    /// The start failed, or a process that the VM needs failed.
    Failed {
        /// What happened.
        message: String,
    },
}

impl VmStatus {
    /// `Stopped` or `Failed`: the status never changes again.
    pub const fn is_terminal(&self) -> bool {
        matches!(self, Self::Stopped { .. } | Self::Failed { .. })
    }

    /// `Starting`, `Running`, `Paused` or `Stopping`: processes may be running.
    pub const fn is_alive(&self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused | Self::Stopping)
    }
}

impl fmt::Display for VmStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created => f.write_str("created"),
            Self::Starting => f.write_str("starting"),
            Self::Running => f.write_str("running"),
            Self::Paused => f.write_str("paused"),
            Self::Stopping => f.write_str("stopping"),
            Self::Stopped { exit_code: Some(0) } => f.write_str("stopped"),
            Self::Stopped { exit_code: Some(code) } => write!(f, "stopped with status {code}"),
            // The hypervisor was killed, or was never started.
            Self::Stopped { exit_code: None } => f.write_str("stopped"),
            Self::Failed { message } => write!(f, "failed: {message}"),
        }
    }
}

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndedBy {
    /// The guest powered off, by itself or at the power button (then
    /// [`StopReport::steps`] begins with [`StopStep::PowerButton`]).
    GuestPowerOff,
    /// The guest reset, and its reboot policy ends the VM at a reset.
    GuestReboot,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The owner: the grace period of `stop` expired, `kill` was called, or the last handle was dropped.
    Owner,
    /// The time limit: the guest did not power off within the grace period that followed it.
    TimeLimit,
    /// The start failed.
    StartFailed {
        /// What failed.
        error: StartError,
    },
    /// A helper process ended.
    HelperLost {
        /// Which process, and how it ended.
        reason: String,
    },
    /// The hypervisor ended unexpectedly.
    HypervisorLost {
        /// Which process, and how it ended.
        reason: String,
    },
}

/// A step of the stop ladder that was needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopStep {
    /// The power button was pressed: the guest was asked to power off.
    PowerButton,
    /// The hypervisor received the quit command: the guest lost its power.
    Quit,
    /// The hypervisor was sent SIGKILL.
    Killed,
    /// A process did not exit after SIGKILL in time and was left running.
    GaveUp,
}

/// How long each step of the stop ladder may take.
///
/// A stop returns at the latest when `grace`, `quit` and `helpers` have passed: by default 5 seconds
/// after the caller's grace period, and usually milliseconds after it. Only a process that SIGKILL does
/// not end, for example because it waits for a dead network file system, takes longer: `kill` for the
/// hypervisor and `kill` for the helper processes. Then the VM has failed
/// ([`StopStep::GaveUp`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StopLimits {
    /// From the power button until the guest is off: the grace period.
    pub grace: Duration,
    /// From the quit command until the hypervisor is killed. Default: 3 seconds.
    pub quit: Duration,
    /// From the hypervisor's exit until the helper processes are killed. Default: 2 seconds.
    pub helpers: Duration,
    /// From SIGKILL until a process is given up. Default: 5 seconds.
    pub kill: Duration,
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StopReport {
    /// Why it ended.
    pub ended_by: EndedBy,
    /// The time limit started the stop.
    pub time_limit: bool,
    /// The steps of the stop ladder that were needed, in order.
    pub steps: Vec<StopStep>,
    /// How long each step might take.
    pub limits: StopLimits,
    /// How the hypervisor ended; `None` if it was never started or could not be reaped.
    pub exit: Option<Exit>,
}

impl StopReport {
    /// The report of a VM that ended for this reason: without time limit, steps, limits and exit.
    pub const fn new(ended_by: EndedBy) -> Self {
        let zero = Duration::ZERO;
        let limits = StopLimits { grace: zero, quit: zero, helpers: zero, kill: zero };
        Self { ended_by, time_limit: false, steps: Vec::new(), limits, exit: None }
    }

    /// Why the VM did not start, for a VM that ended before it was running.
    pub fn into_start_error(self) -> StartError {
        match self.ended_by {
            EndedBy::StartFailed { error } => error,
            _ => StartError::Ended { how: alloc::format!("{self}") },
        }
    }

    /// The terminal status that follows from the report.
    pub fn status(&self) -> VmStatus {
        match &self.ended_by {
            _ if self.steps.contains(&StopStep::GaveUp) => {
                VmStatus::Failed { message: alloc::format!("{self}") }
            }
            EndedBy::StartFailed { .. }
            | EndedBy::HelperLost { .. }
            | EndedBy::HypervisorLost { .. } => {
                VmStatus::Failed { message: alloc::format!("{self}") }
            }
            _ => VmStatus::Stopped { exit_code: self.exit.as_ref().and_then(|e| e.code) },
        }
    }
}

impl fmt::Display for StopReport {
    /// One line: `guest powered off, as asked`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = self.steps.contains(&StopStep::PowerButton);
        // A kill does not wait for the grace period, so it has no such step.
        let quit = self.steps.contains(&StopStep::Quit);
        match &self.ended_by {
            EndedBy::GuestPowerOff if asked => f.write_str("guest powered off, as asked")?,
            EndedBy::GuestPowerOff => f.write_str("guest powered off")?,
            EndedBy::GuestReboot => f.write_str("guest rebooted")?,
            EndedBy::GuestPanic => f.write_str("guest kernel panicked")?,
            EndedBy::Owner if asked && quit => {
                f.write_str("power cut: the guest did not power off within the grace period")?;
            }
            EndedBy::Owner => f.write_str("killed")?,
            EndedBy::TimeLimit => f.write_str("power cut")?,
            EndedBy::StartFailed { error } => write!(f, "start failed: {error}")?,
            EndedBy::HelperLost { reason } | EndedBy::HypervisorLost { reason } => {
                f.write_str(reason)?
            }
        }
        if self.time_limit {
            f.write_str(", time limit reached")?;
        }
        if self.steps.contains(&StopStep::GaveUp) {
            f.write_str(", and a process did not exit after SIGKILL")?;
        }
        Ok(())
    }
}
