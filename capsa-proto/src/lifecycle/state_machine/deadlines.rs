//! Which timers run in a phase.

use super::Lifecycle;
use crate::lifecycle::{LifecycleTimer, Phase};
use crate::time::Instant;

impl Lifecycle {
    pub(super) fn reset_timers(&mut self, now: Instant) {
        self.timers.stop(LifecycleTimer::Readiness);
        self.timers.stop(LifecycleTimer::Resend);
        self.timers.stop(LifecycleTimer::Phase);
        if let Some((limit, why)) = self.phase.limit(&self.timing) {
            let at = match (self.phase, self.stop_by) {
                (Phase::ShutdownRequested, _) => *self.stop_by.insert(now + self.grace),
                // The rest of the grace period is for a hypervisor that writes back its disks.
                (Phase::WaitingForExit, Some(by)) => by.max(now + self.timing.quit),
                _ => now + limit,
            };
            self.timers.set(LifecycleTimer::Phase, at, why);
        }
        if !matches!(self.phase, Phase::Running | Phase::Paused) {
            self.timers.stop(LifecycleTimer::TimeLimit);
            self.timers.stop(LifecycleTimer::PauseRequest);
        } else if let Some(limit) = self.plan.time_limit
            && !self.timers.runs(LifecycleTimer::TimeLimit)
        {
            self.timers.set(LifecycleTimer::TimeLimit, now + limit, "time limit");
        }
        if !matches!(
            self.phase,
            Phase::StartingHypervisor
                | Phase::Booting
                | Phase::Running
                | Phase::Paused
                | Phase::ShutdownRequested
        ) {
            self.timers.stop(LifecycleTimer::Cause);
            self.likely_cause = None;
        }
    }
}
