//! What each phase does on entry: its actions, its timers, its status.

use crate::lifecycle::{Action, EndedBy, Phase, StopStep, Timer};
use crate::plan::{CrashReporting, LaunchPlan, ProcessId, Signal, StopAction};
use crate::time::Instant;

use super::{Lifecycle, ProcessState};

impl Lifecycle {
    pub(super) fn enter(&mut self, now: Instant, phase: Phase) {
        self.phase = phase;
        self.reset_timers(now);
        self.announce();
        match phase {
            Phase::Created | Phase::Running | Phase::WaitingForExit => {}
            Phase::StartingHelpers | Phase::StartingHypervisor => {
                self.readiness_checks = 0;
                self.actions.extend(self.launching.map(Action::Launch));
                self.check_readiness(now);
            }
            Phase::Booting => self.send_boot_message(),
            Phase::ShutdownRequested if self.plan.power_button.is_none() => self.grace_ended(now),
            Phase::ShutdownRequested => {
                self.record_step(StopStep::PowerButton);
                self.press_power_button();
            }
            Phase::QuitRequested => {
                self.record_step(StopStep::Quit);
                self.actions.push_back(self.quit_action());
            }
            Phase::KillingHypervisor => {
                self.cancel_launches();
                if self.processes[self.hypervisor().0] == ProcessState::Alive {
                    self.record_step(StopStep::Killed);
                    self.actions.push_back(Action::Signal(self.hypervisor(), Signal::Kill));
                } else {
                    self.enter(now, Phase::StoppingHelpers);
                }
            }
            Phase::StoppingHelpers => {
                self.signal_helpers(Signal::Term, |plan, id| {
                    !plan.process(id).ends_with_hypervisor
                });
                self.end_when_all_exited(now);
            }
            Phase::KillingHelpers => {
                self.cancel_launches();
                self.signal_helpers(Signal::Kill, |_, _| true);
                self.end_when_all_exited(now);
            }
            Phase::Ended => self.actions.push_back(Action::Release),
        }
    }

    fn reset_timers(&mut self, now: Instant) {
        self.timers.stop(Timer::Readiness);
        self.timers.stop(Timer::Resend);
        self.timers.stop(Timer::Phase);
        self.timers.stop(Timer::TimeLimit);
        if let Some((limit, why)) = self.phase.limit(&self.timing) {
            let is_grace = self.phase == Phase::ShutdownRequested;
            let limit = if is_grace { self.grace } else { limit };
            self.timers.set(Timer::Phase, now + limit, why);
        }
        if let (Phase::Running, Some(limit)) = (self.phase, self.plan.time_limit) {
            self.timers.set(Timer::TimeLimit, now + limit, "time limit");
        }
        if !matches!(
            self.phase,
            Phase::StartingHypervisor | Phase::Booting | Phase::Running | Phase::ShutdownRequested
        ) {
            self.timers.stop(Timer::Cause);
            self.likely_cause = None;
        }
    }

    fn announce(&mut self) {
        let status = match self.phase.status() {
            Some(status) => status,
            None => self.report().expect("the phase is the last one").status(),
        };
        if status != self.status {
            self.status = status.clone();
            self.actions.push_back(Action::Announce(status));
        }
    }

    fn quit_action(&self) -> Action {
        let quit = match (&self.cause, &self.plan.crash_reporting) {
            (
                Some(EndedBy::GuestPanic | EndedBy::GuestReboot),
                CrashReporting::ConsoleOnly { power_off },
            ) => return Action::Send(power_off.clone()),
            _ => self.plan.quit.clone(),
        };
        match quit {
            StopAction::Control(message) => Action::Send(message),
            StopAction::Signal(signal) => Action::Signal(self.hypervisor(), signal),
        }
    }

    fn signal_helpers(&mut self, signal: Signal, which: impl Fn(&LaunchPlan, ProcessId) -> bool) {
        for id in (0..self.hypervisor().0).map(ProcessId) {
            if self.processes[id.0] == ProcessState::Alive && which(&self.plan, id) {
                self.actions.push_back(Action::Signal(id, signal));
            }
        }
    }

    pub(super) fn press_power_button(&mut self) {
        self.actions.extend(self.plan.power_button.clone().map(Action::Send));
    }

    pub(super) fn send_boot_message(&mut self) {
        self.actions.extend(self.plan.boot.get(self.boot_steps).cloned().map(Action::Send));
    }

    /// Removes launches that are still queued.
    fn cancel_launches(&mut self) {
        self.actions.retain(|action| !matches!(action, Action::Launch(_) | Action::CheckReady(_)));
    }

    pub(super) fn record_step(&mut self, step: StopStep) {
        if !self.steps.contains(&step) {
            self.steps.push(step);
        }
    }
}
