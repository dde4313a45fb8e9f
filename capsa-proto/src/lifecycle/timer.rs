//! [`TimerTable`]: the deadlines of a lifecycle, by name.

use crate::time::{Deadline, Instant};

/// A deadline of the lifecycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LifecycleTimer {
    /// When a message is sent again: a boot message, or the power button.
    Resend,
    /// When the loss of a helper or a channel becomes the cause of the end. Often the loss is only a
    /// consequence of the hypervisor's exit, although it is noticed first.
    Cause,
    /// The time limit of the VM. It goes on while the guest is paused.
    TimeLimit,
    /// How long the hypervisor may take to pause or resume the guest.
    PauseRequest,
    /// The next check whether a starting process is ready.
    Readiness,
    /// The limit of the current phase.
    Phase,
}

impl LifecycleTimer {
    /// All timers, in the order in which they expire if several are due.
    pub const ALL: [Self; 6] = [
        Self::Resend,
        Self::Cause,
        Self::TimeLimit,
        Self::PauseRequest,
        Self::Readiness,
        Self::Phase,
    ];
}

/// The deadline of each timer that runs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TimerTable {
    deadlines: [Option<Deadline>; LifecycleTimer::ALL.len()],
}

impl TimerTable {
    /// Starts a timer, or moves it.
    pub(super) fn set(&mut self, timer: LifecycleTimer, at: Instant, why: &'static str) {
        self.deadlines[timer as usize] = Some(Deadline { at, why });
    }

    /// Whether the timer runs.
    pub(super) fn runs(&self, timer: LifecycleTimer) -> bool {
        self.deadlines[timer as usize].is_some()
    }

    /// Moves a timer to an earlier time; a later time has no effect.
    pub(super) fn shorten(&mut self, timer: LifecycleTimer, at: Instant) {
        if let Some(deadline) = &mut self.deadlines[timer as usize] {
            deadline.at = deadline.at.min(at);
        }
    }

    /// Stops a timer.
    pub(super) fn stop(&mut self, timer: LifecycleTimer) {
        self.deadlines[timer as usize] = None;
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Deadline> {
        self.deadlines.iter().copied().fold(None, Deadline::earliest)
    }

    /// Whether the timer runs and its deadline has passed; it stops then.
    pub(super) fn take_expired(&mut self, timer: LifecycleTimer, now: Instant) -> bool {
        let expired = self.deadlines[timer as usize].take_if(|deadline| deadline.at <= now);
        expired.is_some()
    }
}
