//! The phases of a lifecycle: their limits, and the status that users see.

use core::time::Duration;

use super::{Timing, VmStatus};

/// A state of the lifecycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Planned; no process runs.
    Created,
    /// Helpers start, one after the other.
    StartingHelpers,
    /// The hypervisor starts; its control channel is not connected yet.
    StartingHypervisor,
    /// The boot messages are sent, one after the other.
    Booting,
    /// The guest was started.
    Running,
    /// The guest is paused, by its owner or at a disk error.
    Paused,
    /// The guest was asked to power off.
    ShutdownRequested,
    /// The guest is off; the hypervisor has not exited yet.
    WaitingForExit,
    /// The hypervisor received the quit command.
    QuitRequested,
    /// The hypervisor was sent SIGKILL.
    KillingHypervisor,
    /// The hypervisor has exited; helpers exit by themselves or after SIGTERM.
    StoppingHelpers,
    /// Helpers were sent SIGKILL.
    KillingHelpers,
    /// The lifecycle has ended.
    Ended,
}

impl Phase {
    /// All phases, in the order in which a VM can pass through them.
    pub const ALL: [Self; 13] = [
        Self::Created,
        Self::StartingHelpers,
        Self::StartingHypervisor,
        Self::Booting,
        Self::Running,
        Self::Paused,
        Self::ShutdownRequested,
        Self::WaitingForExit,
        Self::QuitRequested,
        Self::KillingHypervisor,
        Self::StoppingHelpers,
        Self::KillingHelpers,
        Self::Ended,
    ];

    /// How long the phase may take, and what it waits for. `None`: without limit. The limit of
    /// [`Phase::ShutdownRequested`] is the default grace period; a stop may have its own.
    pub const fn limit(self, timing: &Timing) -> Option<(Duration, &'static str)> {
        match self {
            Self::Created | Self::Running | Self::Paused | Self::Ended => None,
            Self::StartingHelpers => Some((timing.helper, "helper is ready")),
            Self::StartingHypervisor => Some((timing.launch, "control channel is connected")),
            Self::Booting => Some((timing.boot, "boot message is answered")),
            Self::ShutdownRequested => Some((timing.grace, "grace period")),
            Self::WaitingForExit => Some((timing.exit, "hypervisor exits")),
            Self::QuitRequested => Some((timing.quit, "hypervisor exits after the quit command")),
            Self::KillingHypervisor => Some((timing.kill, "hypervisor exits after SIGKILL")),
            Self::StoppingHelpers => Some((timing.drain, "helpers exit")),
            Self::KillingHelpers => Some((timing.kill, "helpers exit after SIGKILL")),
        }
    }

    /// The status of a VM in this phase; `None` at the end, where the stop report gives it.
    pub const fn status(self) -> Option<VmStatus> {
        match self {
            Self::Created => Some(VmStatus::Created),
            Self::StartingHelpers | Self::StartingHypervisor | Self::Booting => {
                Some(VmStatus::Starting)
            }
            Self::Running => Some(VmStatus::Running),
            Self::Paused => Some(VmStatus::Paused),
            Self::ShutdownRequested
            | Self::WaitingForExit
            | Self::QuitRequested
            | Self::KillingHypervisor
            | Self::StoppingHelpers
            | Self::KillingHelpers => Some(VmStatus::Stopping),
            Self::Ended => None,
        }
    }
}
