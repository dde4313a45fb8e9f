//! [`Lifecycle`]: what an input means in a phase, and what a phase does on entry.

mod entry;

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::timer::TimerTable;
use super::{
    Action, EndedBy, Exit, Input, InvalidState, Phase, StartError, StopReport, StopStep, Timer,
    Timing, VmStatus,
};
use crate::backend::{GuestEvent, ReplyOutcome};
use crate::console::ConsoleCrash;
use crate::plan::{CrashReporting, LaunchPlan, Message, ProcessId};
use crate::spec::RebootPolicy;
use crate::time::{Deadline, Instant};

/// The delay before a boot message is sent again.
const RETRY_DELAY: Duration = Duration::from_millis(20);

/// How often the power button is pressed during the grace period. A guest misses a press that comes
/// before it handles the button; a guest that is already powering off ignores further presses.
const POWER_BUTTON_INTERVAL: Duration = Duration::from_secs(5);

/// How long the loss of a helper or of a channel waits before it becomes the cause.
const CAUSE_DELAY: Duration = Duration::from_millis(200);

/// The lifecycle of one VM. See the [module](super) for the loop and the invariants.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    plan: Arc<LaunchPlan>,
    timing: Timing,
    phase: Phase,
    timers: TimerTable,
    processes: Vec<ProcessState>,
    /// The process that is starting.
    launching: Option<ProcessId>,
    readiness_checks: u32,
    /// The boot messages that succeeded.
    boot_steps: usize,
    actions: VecDeque<Action>,
    status: VmStatus,

    grace: Duration,
    last_reset: Option<Instant>,
    panic_seen: bool,
    time_limit_hit: bool,
    /// What ends the VM when [`Timer::Cause`] expires.
    likely_cause: Option<EndedBy>,
    cause: Option<EndedBy>,
    steps: Vec<StopStep>,
    exit: Option<Exit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProcessState {
    NotLaunched,
    Alive,
    Exited,
}

impl Lifecycle {
    /// The lifecycle of a VM with this launch plan.
    pub fn new(plan: Arc<LaunchPlan>, timing: Timing) -> Self {
        Self {
            processes: plan.processes.iter().map(|_| ProcessState::NotLaunched).collect(),
            plan,
            timing,
            phase: Phase::Created,
            timers: TimerTable::default(),
            launching: None,
            readiness_checks: 0,
            boot_steps: 0,
            actions: VecDeque::new(),
            status: VmStatus::Created,
            grace: timing.grace,
            last_reset: None,
            panic_seen: false,
            time_limit_hit: false,
            likely_cause: None,
            cause: None,
            steps: Vec::new(),
            exit: None,
        }
    }

    /// Accepts an event, or a request of the owner.
    ///
    /// # Errors
    ///
    /// At a second start, and at a stop or kill before the start. A stop or kill of a VM that is
    /// stopping or has ended is accepted; it may shorten the stop.
    #[expect(clippy::too_many_lines, reason = "one match shows the whole lifecycle")]
    pub fn handle_input(&mut self, now: Instant, input: Input) -> Result<(), InvalidState> {
        use Input as I;
        use Phase as P;

        self.record_exit(&input);
        match (self.phase, input) {
            // Requests of the owner.
            (P::Created, I::Start) => self.launch_next(now),
            (_, I::Start) => return Err(InvalidState::AlreadyStarted),
            (P::Created, I::Stop { .. } | I::Kill) => return Err(InvalidState::NotStarted),
            (P::StartingHelpers, I::Stop { .. } | I::Kill) => {
                self.end(now, EndedBy::Owner, P::KillingHelpers);
            }
            (P::StartingHypervisor | P::Booting, I::Stop { .. } | I::Kill) => {
                self.end(now, EndedBy::Owner, P::KillingHypervisor);
            }
            (P::Running, I::Stop { grace }) => {
                self.grace = grace;
                self.enter(now, P::ShutdownRequested);
            }
            // A second stop may shorten the grace period, never extend it.
            (P::ShutdownRequested, I::Stop { grace }) => {
                self.timers.shorten(Timer::Phase, now + grace);
            }
            (
                P::Running | P::ShutdownRequested | P::WaitingForExit | P::QuitRequested,
                I::Kill,
            ) => self.end(now, EndedBy::Owner, P::KillingHypervisor),
            (P::StoppingHelpers, I::Kill) => self.end(now, EndedBy::Owner, P::KillingHelpers),
            (
                P::WaitingForExit
                | P::QuitRequested
                | P::KillingHypervisor
                | P::StoppingHelpers
                | P::KillingHelpers
                | P::Ended,
                I::Stop { .. },
            )
            | (P::KillingHypervisor | P::KillingHelpers | P::Ended, I::Kill) => {}

            // Processes that start.
            (P::StartingHelpers | P::StartingHypervisor, I::LaunchFailed(id, cause)) => {
                let error = StartError::Launch { process: self.name(id).into(), cause };
                self.end(now, EndedBy::StartFailed { error }, P::KillingHelpers);
            }
            (P::StartingHelpers, I::Ready(id)) if Some(id) == self.launching => {
                self.launch_next(now);
            }
            (P::StartingHypervisor, I::Ready(id)) if Some(id) == self.launching => {
                self.boot_next(now);
            }
            (P::StartingHelpers | P::StartingHypervisor, I::Expired(Timer::Readiness)) => {
                self.check_readiness(now);
            }
            (P::StartingHelpers, I::HelperExited(id, exit)) => {
                self.end(now, self.helper_failed(id, exit), P::KillingHelpers);
            }
            // A helper that fails before the guest runs is the cause of the hypervisor's exit, not a
            // consequence of it.
            (P::StartingHypervisor | P::Booting, I::HelperExited(id, exit)) if exit.failed() => {
                self.end(now, self.helper_failed(id, exit), P::KillingHypervisor);
            }
            (P::StartingHypervisor | P::Booting, I::HypervisorExited(exit)) => {
                let process = self.hypervisor_name().into();
                let error = StartError::Exited { process, exit };
                self.end(now, EndedBy::StartFailed { error }, P::StoppingHelpers);
            }
            (P::StartingHelpers, I::Expired(Timer::Phase)) => {
                self.end(now, self.start_timed_out(), P::KillingHelpers);
            }
            (P::StartingHypervisor | P::Booting, I::Expired(Timer::Phase)) => {
                self.end(now, self.start_timed_out(), P::KillingHypervisor);
            }
            (P::StartingHypervisor | P::Booting, I::ControlLost) => {
                self.expect_end(now, self.start_failed("closed its control channel"));
            }
            (P::StartingHypervisor | P::Booting, I::EventsLost(why)) => {
                self.expect_end(now, self.start_failed(&format!("sent invalid events: {why}")));
            }

            // Boot messages.
            (P::Booting, I::Replied(message, outcome)) => self.boot_reply(now, &message, outcome),
            (P::Booting, I::Expired(Timer::Resend)) => self.send_boot_message(),

            // A guest that runs or is asked to power off.
            (P::Booting | P::Running | P::ShutdownRequested, I::Guest(GuestEvent::PoweredOff)) => {
                self.end(now, EndedBy::GuestPowerOff, P::WaitingForExit);
            }
            (P::Booting | P::Running | P::ShutdownRequested, I::Guest(GuestEvent::Reset)) => {
                self.guest_reset(now);
            }
            (P::Booting | P::Running | P::ShutdownRequested, I::Guest(GuestEvent::Panicked)) => {
                self.guest_crashed(now, EndedBy::GuestPanic);
            }
            (
                P::Booting | P::Running | P::ShutdownRequested,
                I::Guest(GuestEvent::ExternalQuit),
            ) => {
                let cause = self.hypervisor_lost("was stopped by another process");
                self.end(now, cause, P::WaitingForExit);
            }
            // The hypervisor may exit as after a power-off, or keep running with a guest that hangs.
            // So the cause is set now, and the hypervisor must quit.
            (P::Booting, I::Guest(GuestEvent::CpuFailed)) => {
                self.end(now, self.start_failed("reported a vCPU failure"), P::QuitRequested);
            }
            (P::Running | P::ShutdownRequested, I::Guest(GuestEvent::CpuFailed)) => {
                self.end(now, self.hypervisor_lost("reported a vCPU failure"), P::QuitRequested);
            }
            (P::Booting | P::Running | P::ShutdownRequested, I::ConsoleCrash(crash)) => {
                self.console_crash(now, crash);
            }
            (P::Running, I::Expired(Timer::TimeLimit)) => {
                self.time_limit_hit = true;
                self.grace = self.timing.grace;
                self.enter(now, P::ShutdownRequested);
            }
            (P::ShutdownRequested, I::Replied(message, outcome)) => {
                self.power_button_reply(now, &message, outcome);
            }
            (P::ShutdownRequested, I::Expired(Timer::Resend)) => self.press_power_button(),
            (P::ShutdownRequested, I::Expired(Timer::Phase)) => self.grace_ended(now),

            // A part that the VM needs is lost. Often the hypervisor's exit follows and explains it.
            (
                P::StartingHypervisor | P::Booting | P::Running | P::ShutdownRequested,
                I::HelperExited(id, exit),
            ) => {
                let reason = format!("{} {exit}", self.name(id));
                self.expect_end(now, EndedBy::HelperLost { reason });
            }
            (P::Running | P::ShutdownRequested, I::ControlLost) => {
                self.expect_end(now, self.hypervisor_lost("closed its control channel"));
            }
            (P::Running | P::ShutdownRequested, I::EventsLost(why)) => {
                let cause = self.hypervisor_lost(&format!("sent invalid events: {why}"));
                self.expect_end(now, cause);
            }
            (P::StartingHypervisor | P::Booting, I::Expired(Timer::Cause)) => {
                self.end_as_expected(now, P::KillingHypervisor);
            }
            (P::Running | P::ShutdownRequested, I::Expired(Timer::Cause)) => {
                self.end_as_expected(now, P::QuitRequested);
            }

            // The end of the processes.
            (
                P::Running
                | P::ShutdownRequested
                | P::WaitingForExit
                | P::QuitRequested
                | P::KillingHypervisor,
                I::HypervisorExited(exit),
            ) => self.end(now, self.cause_of_exit(&exit), P::StoppingHelpers),
            (P::WaitingForExit | P::QuitRequested, I::Expired(Timer::Phase)) => {
                self.enter(now, P::KillingHypervisor);
            }
            (P::KillingHypervisor, I::Expired(Timer::Phase)) => {
                self.record_step(StopStep::GaveUp);
                self.enter(now, P::KillingHelpers);
            }
            // The hypervisor may have survived SIGKILL until now.
            (
                P::StoppingHelpers | P::KillingHelpers,
                I::HelperExited(..) | I::HypervisorExited(_),
            ) => self.end_when_all_exited(now),
            (P::StoppingHelpers, I::Expired(Timer::Phase)) => self.enter(now, P::KillingHelpers),
            (P::KillingHelpers, I::Expired(Timer::Phase)) => {
                self.record_step(StopStep::GaveUp);
                self.enter(now, P::Ended);
            }

            // Text on the console proves nothing; it may explain an exit that follows.
            (_, I::ConsolePanic | I::Guest(GuestEvent::Panicked)) => self.note_panic(),

            // What comes too late, or too early, has no effect.
            (
                P::Created
                | P::StartingHelpers
                | P::StartingHypervisor
                | P::WaitingForExit
                | P::QuitRequested
                | P::KillingHypervisor
                | P::StoppingHelpers
                | P::KillingHelpers
                | P::Ended,
                I::Guest(_) | I::ConsoleCrash(_) | I::Replied(..),
            )
            | (
                P::Created
                | P::StartingHelpers
                | P::WaitingForExit
                | P::QuitRequested
                | P::KillingHypervisor
                | P::StoppingHelpers
                | P::KillingHelpers
                | P::Ended,
                I::ControlLost | I::EventsLost(_),
            )
            | (
                P::Created
                | P::WaitingForExit
                | P::QuitRequested
                | P::KillingHypervisor
                | P::Ended,
                I::HelperExited(..),
            )
            | (P::Created | P::StartingHelpers | P::Ended, I::HypervisorExited(_))
            | (P::Running, I::Replied(..))
            // These belong to a phase that has passed: the next one stops its timers and launches.
            | (_, I::Ready(_) | I::LaunchFailed(..) | I::Expired(_)) => {}
        }
        Ok(())
    }

    /// Passes every timer whose deadline has passed. May be called at any time.
    pub fn handle_timeout(&mut self, now: Instant) {
        for timer in Timer::ALL {
            if self.timers.take_expired(timer, now) {
                // Only requests of the owner can be invalid.
                let _ = self.handle_input(now, Input::Expired(timer));
            }
        }
    }

    /// The next action. Carry it out before any other input.
    pub fn poll_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front()?;
        if let Action::Launch(id) = action {
            self.processes[id.0] = ProcessState::Alive;
        }
        Some(action)
    }

    /// When to call [`Lifecycle::handle_timeout`]. In the past while actions are queued.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        if !self.actions.is_empty() {
            return Some(Deadline { at: Instant::ZERO, why: "queued actions" });
        }
        self.timers.next()
    }

    /// The status as last announced.
    pub const fn status(&self) -> &VmStatus {
        &self.status
    }

    /// The phase, for logs and tests.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// How the VM ended; `None` if it has not ended.
    pub fn report(&self) -> Option<StopReport> {
        (self.phase == Phase::Ended).then(|| StopReport {
            ended_by: self.cause.clone().unwrap_or(EndedBy::Owner),
            time_limit: self.time_limit_hit,
            steps: self.steps.clone(),
            exit: self.exit.clone(),
        })
    }

    fn hypervisor(&self) -> ProcessId {
        self.plan.hypervisor()
    }

    fn name(&self, id: ProcessId) -> &str {
        &self.plan.process(id).name
    }

    fn hypervisor_name(&self) -> &str {
        self.name(self.hypervisor())
    }

    fn restarts_on_reboot(&self) -> bool {
        self.plan.on_reboot == RebootPolicy::Restart
    }

    /// Only the console shows a guest crash.
    fn is_console_only(&self) -> bool {
        matches!(self.plan.crash_reporting, CrashReporting::ConsoleOnly { .. })
    }

    // Causes.

    fn start_failed(&self, reason: &str) -> EndedBy {
        let (process, reason) = (self.hypervisor_name().into(), reason.into());
        EndedBy::StartFailed { error: StartError::Failed { process, reason } }
    }

    fn boot_rejected(&self, reason: String) -> EndedBy {
        let step = self.plan.boot.get(self.boot_steps).map_or("boot", |message| message.purpose);
        let process = self.hypervisor_name().into();
        EndedBy::StartFailed { error: StartError::Rejected { process, step, reason } }
    }

    fn helper_failed(&self, id: ProcessId, exit: Exit) -> EndedBy {
        EndedBy::StartFailed { error: StartError::Exited { process: self.name(id).into(), exit } }
    }

    fn start_timed_out(&self) -> EndedBy {
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

    fn hypervisor_lost(&self, how: &str) -> EndedBy {
        EndedBy::HypervisorLost { reason: format!("{} {how}", self.hypervisor_name()) }
    }

    fn cause_of_exit(&self, exit: &Exit) -> EndedBy {
        if self.panic_seen {
            EndedBy::GuestPanic
        } else if exit.code == Some(0) {
            // A backend without events: an exit with status 0 without a stop is a power-off.
            EndedBy::GuestPowerOff
        } else {
            self.hypervisor_lost(&exit.to_string())
        }
    }

    fn cause_of_stop(&self) -> EndedBy {
        if self.time_limit_hit { EndedBy::TimeLimit } else { EndedBy::Owner }
    }

    // What an input does.

    fn record_exit(&mut self, input: &Input) {
        let (id, exit) = match input {
            Input::HypervisorExited(exit) => (self.hypervisor(), Some(exit)),
            Input::HelperExited(id, exit) => (*id, Some(exit)),
            Input::LaunchFailed(id, _) => (*id, None),
            _ => return,
        };
        self.processes[id.0] = ProcessState::Exited;
        if self.phase == Phase::Ended {
            return;
        }
        if let (Some(EndedBy::StartFailed { error }), Some(exit)) = (&mut self.cause, exit) {
            error.add_exit(&self.plan.process(id).name, exit);
        }
        if id == self.hypervisor() {
            self.exit = exit.cloned();
        }
    }

    fn check_readiness(&mut self, now: Instant) {
        let Some(id) = self.launching else { return };
        self.actions.push_back(Action::CheckReady(id));
        let pause = match self.readiness_checks {
            0..50 => 1,
            50..100 => 5,
            _ => 20,
        };
        self.readiness_checks += 1;
        let at = now + Duration::from_millis(pause);
        self.timers.set(Timer::Readiness, at, "check readiness");
    }

    fn boot_reply(&mut self, now: Instant, message: &Message, outcome: ReplyOutcome) {
        if self.plan.boot.get(self.boot_steps) != Some(message) {
            return;
        }
        match outcome {
            ReplyOutcome::Done => {
                self.boot_steps += 1;
                self.boot_next(now);
            }
            ReplyOutcome::Retry => {
                self.timers.set(Timer::Resend, now + RETRY_DELAY, "send the boot message again");
            }
            ReplyOutcome::Rejected(reason) => {
                self.end(now, self.boot_rejected(reason), Phase::KillingHypervisor);
            }
            // If the hypervisor is exiting, its exit is the better explanation.
            ReplyOutcome::Lost(reason) => self.expect_end(now, self.boot_rejected(reason)),
        }
    }

    fn power_button_reply(&mut self, now: Instant, message: &Message, outcome: ReplyOutcome) {
        if self.plan.power_button.as_ref() != Some(message) {
            return;
        }
        match outcome {
            ReplyOutcome::Done | ReplyOutcome::Retry => {
                let at = now + POWER_BUTTON_INTERVAL;
                self.timers.set(Timer::Resend, at, "press the power button again");
            }
            // A guest without a working power button needs no grace period.
            ReplyOutcome::Rejected(_) => self.grace_ended(now),
            // The guest may be off already: a hypervisor that exits closes the connection without
            // a reply.
            ReplyOutcome::Lost(_) => self.expect_end(now, self.cause_of_stop()),
        }
    }

    fn guest_reset(&mut self, now: Instant) {
        if !self.restarts_on_reboot() {
            let cause = if self.panic_seen { EndedBy::GuestPanic } else { EndedBy::GuestReboot };
            self.guest_crashed(now, cause);
        } else if self.last_reset.is_none_or(|last| last + self.plan.reset_debounce <= now) {
            self.last_reset = Some(now);
            self.actions.push_back(Action::AnnounceReboot);
        }
    }

    fn guest_crashed(&mut self, now: Instant, cause: EndedBy) {
        let exits_by_itself = self.plan.crash_reporting == CrashReporting::EventThenExit;
        let next = if exits_by_itself { Phase::WaitingForExit } else { Phase::QuitRequested };
        self.end(now, cause, next);
    }

    fn console_crash(&mut self, now: Instant, crash: ConsoleCrash) {
        match crash {
            _ if !self.is_console_only() => {}
            ConsoleCrash::Restart => self.guest_reset(now),
            ConsoleCrash::Panic if self.restarts_on_reboot() => {}
            ConsoleCrash::Panic => self.guest_crashed(now, EndedBy::GuestPanic),
        }
    }

    /// If the guest restarts, a panic before the restart does not explain a later exit. Not every
    /// hypervisor reports the reset in between.
    fn note_panic(&mut self) {
        self.panic_seen |= !self.restarts_on_reboot() && !self.is_console_only();
    }

    fn grace_ended(&mut self, now: Instant) {
        self.end(now, self.cause_of_stop(), Phase::QuitRequested);
    }

    /// The VM ends soon: when the hypervisor exits, or else when [`Timer::Cause`] expires.
    fn expect_end(&mut self, now: Instant, cause: EndedBy) {
        if self.likely_cause.is_none() {
            self.likely_cause = Some(cause);
            self.timers.set(Timer::Cause, now + CAUSE_DELAY, "the hypervisor may exit too");
        }
    }

    fn end_as_expected(&mut self, now: Instant, next: Phase) {
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

    fn end_when_all_exited(&mut self, now: Instant) {
        if !self.processes.contains(&ProcessState::Alive) {
            self.enter(now, Phase::Ended);
        }
    }

    /// Goes on to a phase that leads to the end. The first cause is kept; later ones are its
    /// consequences.
    fn end(&mut self, now: Instant, cause: EndedBy, next: Phase) {
        self.cause.get_or_insert(cause);
        self.enter(now, next);
    }

    fn launch_next(&mut self, now: Instant) {
        let next = self.processes.iter().position(|state| *state == ProcessState::NotLaunched);
        let next = next.map_or(self.hypervisor(), ProcessId);
        self.launching = Some(next);
        let phase = if next == self.hypervisor() {
            Phase::StartingHypervisor
        } else {
            Phase::StartingHelpers
        };
        self.enter(now, phase);
    }

    fn boot_next(&mut self, now: Instant) {
        let all_sent = self.boot_steps == self.plan.boot.len();
        self.enter(now, if all_sent { Phase::Running } else { Phase::Booting });
    }
}

#[cfg(test)]
mod diagram;
#[cfg(test)]
mod tests;
