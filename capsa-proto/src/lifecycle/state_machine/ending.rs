//! The ways to the end: their causes, and the steps of the stop ladder.

use alloc::format;
use alloc::string::{String, ToString};

use super::{Lifecycle, ProcessState};
use crate::backend::ReplyOutcome;
use crate::console::ConsoleCrash;
use crate::lifecycle::{Action, EndedBy, Exit, LifecycleTimer, Phase, StartError, StopStep};
use crate::plan::{CrashReporting, LaunchPlan, Message, ProcessId, Signal, StopAction};
use crate::spec::RebootPolicy;
use crate::time::Instant;
use core::time::Duration;

/// How often the power button is pressed during the grace period. A guest misses a press that comes
/// before it handles the button; a guest that is already powering off ignores further presses.
const POWER_BUTTON_INTERVAL: Duration = Duration::from_secs(5);

/// How long the loss of a helper or of a channel waits before it becomes the cause.
const CAUSE_DELAY: Duration = Duration::from_millis(200);

impl Lifecycle {
    pub(super) fn start_failed(&self, reason: &str) -> EndedBy {
        let (process, reason) = (self.hypervisor_name().into(), reason.into());
        EndedBy::StartFailed { error: StartError::Failed { process, reason } }
    }

    pub(super) fn boot_rejected(&self, reason: String) -> EndedBy {
        let step = self.plan.boot.get(self.boot_steps).map_or("boot", |message| message.purpose);
        let process = self.hypervisor_name().into();
        EndedBy::StartFailed { error: StartError::Rejected { process, step, reason } }
    }

    pub(super) fn helper_failed(&self, id: ProcessId, exit: Exit) -> EndedBy {
        EndedBy::StartFailed { error: StartError::Exited { process: self.name(id).into(), exit } }
    }

    pub(super) fn start_timed_out(&self) -> EndedBy {
        let (after, what) = self.phase.limit(&self.timing).unwrap_or_default();
        let process = self.launching.map_or("", |id| self.name(id)).to_string();
        let waiting_for = match self.phase {
            Phase::StartingHelpers => format!("{process} is ready"),
            _ => what.into(),
        };
        let stderr_tail = String::new();
        let error = StartError::TimedOut { process, waiting_for, after, stderr_tail };
        EndedBy::StartFailed { error }
    }

    pub(super) fn hypervisor_lost(&self, how: &str) -> EndedBy {
        EndedBy::HypervisorLost { reason: format!("{} {how}", self.hypervisor_name()) }
    }

    pub(super) fn cause_of_exit(&self, exit: &Exit) -> EndedBy {
        match exit.code {
            Some(0) if self.panic_seen || self.panic_reported => EndedBy::GuestPanic,
            // A backend without events: an exit with status 0 without a stop is a power-off.
            Some(0) => EndedBy::GuestPowerOff,
            _ => self.hypervisor_lost(&exit.to_string()),
        }
    }

    pub(super) fn cause_of_stop(&self) -> EndedBy {
        if self.time_limit_hit { EndedBy::TimeLimit } else { EndedBy::Owner }
    }

    pub(super) fn power_button_reply(
        &mut self,
        now: Instant,
        message: &Message,
        outcome: ReplyOutcome,
    ) {
        if self.plan.power_button.as_ref() != Some(message) {
            return;
        }
        match outcome {
            ReplyOutcome::Done | ReplyOutcome::Retry => {
                let at = now + POWER_BUTTON_INTERVAL;
                self.timers.set(LifecycleTimer::Resend, at, "press the power button again");
            }
            // A guest without a working power button needs no grace period.
            ReplyOutcome::Rejected(_) => self.grace_ended(now),
            // The guest may be off already: a hypervisor that exits closes the connection without
            // a reply.
            ReplyOutcome::Lost(_) => self.expect_end(now, self.cause_of_stop()),
        }
    }

    pub(super) fn guest_reset(&mut self, now: Instant) {
        if !self.restarts_on_reboot() {
            // Or a panic: all output of the console is known at the end only.
            self.guest_crashed(now, EndedBy::GuestReboot);
        } else if self.last_reset.is_none_or(|last| last + self.plan.reset_debounce <= now) {
            self.last_reset = Some(now);
            self.actions.push_back(Action::AnnounceReboot);
        }
    }

    pub(super) fn guest_crashed(&mut self, now: Instant, cause: EndedBy) {
        let exits_by_itself = self.plan.crash_reporting == CrashReporting::EventThenExit;
        let next = if exits_by_itself { Phase::WaitingForExit } else { Phase::QuitRequested };
        self.end(now, cause, next);
    }

    pub(super) fn console_crash(&mut self, now: Instant, crash: ConsoleCrash) {
        match crash {
            _ if !self.is_console_only() => {}
            ConsoleCrash::Restart => self.guest_reset(now),
            ConsoleCrash::Panic if self.restarts_on_reboot() => {}
            ConsoleCrash::Panic => self.guest_crashed(now, EndedBy::GuestPanic),
        }
    }

    /// If the guest restarts, a panic before the restart does not explain a later exit. Not every
    /// hypervisor reports the reset in between.
    pub(super) fn panic_is_cause(&self) -> bool {
        !self.restarts_on_reboot() && !self.is_console_only()
    }

    pub(super) fn grace_ended(&mut self, now: Instant) {
        self.end(now, self.cause_of_stop(), Phase::QuitRequested);
    }

    /// The VM ends soon: when the hypervisor exits, or else when [`LifecycleTimer::Cause`] expires.
    pub(super) fn expect_end(&mut self, now: Instant, cause: EndedBy) {
        if self.likely_cause.is_none() {
            self.likely_cause = Some(cause);
            self.timers.set(
                LifecycleTimer::Cause,
                now + CAUSE_DELAY,
                "the hypervisor may exit too",
            );
        }
    }

    pub(super) fn end_as_expected(&mut self, now: Instant, next: Phase) {
        let Some(cause) = self.likely_cause.take() else { return };
        let cause = match cause {
            // The start may have succeeded during the delay.
            EndedBy::StartFailed { error } if self.phase >= Phase::Running => {
                EndedBy::HypervisorLost { reason: error.to_string() }
            }
            cause => cause,
        };
        self.end(now, cause, next);
    }

    pub(super) fn quit_action(&self) -> Action {
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

    pub(super) fn signal_helpers(
        &mut self,
        signal: Signal,
        which: impl Fn(&LaunchPlan, ProcessId) -> bool,
    ) {
        for id in (0..self.hypervisor().0).map(ProcessId) {
            if self.processes[id.0] == ProcessState::Alive && which(&self.plan, id) {
                self.actions.push_back(Action::Signal(id, signal));
            }
        }
    }

    /// Removes signals that are still queued for a process that has exited: its id may be in use again.
    pub(super) fn cancel_signals(&mut self, to: ProcessId) {
        self.actions.retain(|action| !matches!(action, Action::Signal(id, _) if *id == to));
    }

    pub(super) fn record_step(&mut self, step: StopStep) {
        if !self.steps.contains(&step) {
            self.steps.push(step);
        }
    }

    fn restarts_on_reboot(&self) -> bool {
        self.plan.on_reboot == RebootPolicy::Restart
    }

    /// Only the console shows a guest crash.
    fn is_console_only(&self) -> bool {
        matches!(self.plan.crash_reporting, CrashReporting::ConsoleOnly { .. })
    }
}
