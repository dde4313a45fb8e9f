//! What a machine's life looks like from status: its status, and the report of its end.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::Exit;

/// The status of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmStatus {
    /// Planned; nothing runs.
    Created,
    /// Its programs are starting.
    Starting,
    /// The hypervisor answers and the guest was told to go. Whether it is up, its console tells.
    Running,
    /// It is being ended.
    Stopping,
    /// It ended as machines do: the guest powered off, or somebody wanted it gone.
    Stopped {
        /// The hypervisor's exit status; `None` when it was killed by a signal.
        exit_code: Option<i32>,
    },
    /// It could not be started, or something it needs broke.
    Failed {
        /// What happened.
        message: String,
    },
}

impl VmStatus {
    /// `Stopped` or `Failed`: it will never change again.
    pub const fn is_terminal(&self) -> bool {
        matches!(self, Self::Stopped { .. } | Self::Failed { .. })
    }

    /// `Starting`, `Running` or `Stopping`: programs may be running.
    pub const fn is_alive(&self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Stopping)
    }
}

impl fmt::Display for VmStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created => f.write_str("created"),
            Self::Starting => f.write_str("starting"),
            Self::Running => f.write_str("running"),
            Self::Stopping => f.write_str("stopping"),
            Self::Stopped { exit_code: Some(0) } => f.write_str("stopped"),
            Self::Stopped { exit_code: Some(code) } => write!(f, "stopped with status {code}"),
            Self::Stopped { exit_code: None } => f.write_str("stopped by a signal"),
            Self::Failed { message } => write!(f, "failed: {message}"),
        }
    }
}

/// Who ended a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndedBy {
    /// The guest powered off, by itself or because it was asked to (then
    /// [`StopReport::steps`] begins with [`StopStep::PowerButton`]).
    GuestPowerOff,
    /// The guest reset, and a reset ends this machine.
    GuestReboot,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The owner: `stop` whose grace ran out, `kill`, or the last handle was dropped.
    Owner,
    /// The machine's time limit, when the guest did not power off within the grace.
    TimeLimit,
    /// It could not be started.
    StartFailed {
        /// What failed.
        reason: String,
    },
    /// A helper it needs ended.
    HelperLost {
        /// Which, and how.
        reason: String,
    },
    /// The hypervisor ended and nobody asked for that.
    HypervisorLost {
        /// Which, and how.
        reason: String,
    },
}

/// A step of the stop ladder that was needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopStep {
    /// The guest was asked to power off.
    PowerButton,
    /// The hypervisor was told to quit: the guest lost its power.
    Quit,
    /// The hypervisor was sent SIGKILL.
    Killed,
    /// A process did not even die of SIGKILL in time and was left behind.
    GaveUp,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopReport {
    /// Who ended it.
    pub ended_by: EndedBy,
    /// The time limit was what set its end going.
    pub time_limit: bool,
    /// The steps of the stop ladder that were needed, in order.
    pub steps: Vec<StopStep>,
    /// How the hypervisor ended; `None` when it never ran or could not be reaped.
    pub exit: Option<Exit>,
}

impl StopReport {
    /// The status that goes with it.
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
    /// One line without its verb: `guest powered off, as asked`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = self.steps.contains(&StopStep::PowerButton);
        // A kill does not wait for the grace, so it has no such step.
        let quit = self.steps.contains(&StopStep::Quit);
        match &self.ended_by {
            EndedBy::GuestPowerOff if asked => f.write_str("guest powered off, as asked")?,
            EndedBy::GuestPowerOff => f.write_str("guest powered off")?,
            EndedBy::GuestReboot => f.write_str("guest rebooted")?,
            EndedBy::GuestPanic => f.write_str("guest kernel panicked")?,
            EndedBy::Owner if asked && quit => {
                f.write_str("power cut: the guest did not power off within its grace")?;
            }
            EndedBy::Owner => f.write_str("killed")?,
            EndedBy::TimeLimit => f.write_str("power cut")?,
            EndedBy::StartFailed { reason } => write!(f, "start failed: {reason}")?,
            EndedBy::HelperLost { reason } | EndedBy::HypervisorLost { reason } => {
                f.write_str(reason)?
            }
        }
        if self.time_limit {
            f.write_str(", time limit reached")?;
        }
        if self.steps.contains(&StopStep::GaveUp) {
            f.write_str(", and a process did not die of SIGKILL")?;
        }
        Ok(())
    }
}
