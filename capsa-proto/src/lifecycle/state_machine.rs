//! [`Lifecycle`]: what an input means in a phase, and what a phase does on entry.

mod deadlines;
mod ending;
mod pausing;

use alloc::collections::VecDeque;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::timer::TimerTable;
use super::{
    Action, EndedBy, Exit, Input, InvalidState, LifecycleTimer, PauseRequest, Phase, StartError,
    StopLimits, StopReport, StopStep, Timing, VmStatus,
};
use crate::backend::{GuestEvent, ReplyOutcome};
use crate::plan::{LaunchPlan, Message, ProcessId, Signal};
use crate::time::{Deadline, Instant};

/// The delay before a boot message is sent again.
const RETRY_DELAY: Duration = Duration::from_millis(20);

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

    /// The requests to pause or resume the guest that have no reply yet, oldest first.
    pause_requests: VecDeque<PauseRequest>,

    grace: Duration,
    /// When the grace period of the stop ends, if one was requested.
    stop_by: Option<Instant>,
    last_reset: Option<Instant>,
    /// The console shows the text of a panic.
    panic_seen: bool,
    /// The hypervisor reported a panic, in a phase where that does not end the VM.
    panic_reported: bool,
    time_limit_hit: bool,
    /// What ends the VM when [`LifecycleTimer::Cause`] expires.
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
            pause_requests: VecDeque::new(),
            grace: timing.grace,
            stop_by: None,
            last_reset: None,
            panic_seen: false,
            panic_reported: false,
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
    /// At a second start, at a stop or kill before the start, and at a pause or resume of a VM that does
    /// not run. A stop or kill of a VM that is stopping or has ended is accepted; it may shorten the stop.
    #[expect(clippy::too_many_lines, reason = "one match shows the whole lifecycle")]
    pub(crate) fn handle_input(&mut self, now: Instant, input: Input) -> Result<(), InvalidState> {
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
            (P::Running | P::Paused, I::Stop { grace }) => {
                self.grace = grace;
                self.enter(now, P::ShutdownRequested);
            }
            // A second stop may shorten the grace period, never extend it.
            (P::ShutdownRequested, I::Stop { grace }) => {
                self.timers.shorten(LifecycleTimer::Phase, now + grace);
                self.stop_by = self.stop_by.map(|at| at.min(now + grace));
            }
            (P::WaitingForExit | P::QuitRequested, I::Stop { grace }) => {
                self.timers.shorten(LifecycleTimer::Phase, now + grace + self.timing.quit);
            }
            (
                P::Running
                | P::Paused
                | P::ShutdownRequested
                | P::WaitingForExit
                | P::QuitRequested,
                I::Kill,
            ) => self.end(now, EndedBy::Owner, P::KillingHypervisor),
            (P::StoppingHelpers, I::Kill) => self.end(now, EndedBy::Owner, P::KillingHelpers),
            (
                P::KillingHypervisor | P::StoppingHelpers | P::KillingHelpers | P::Ended,
                I::Stop { .. },
            )
            | (P::KillingHypervisor | P::KillingHelpers | P::Ended, I::Kill) => {}

            // A guest that is paused and resumed. The hypervisor reports it with an event, or only replies.
            (P::Running | P::Paused, I::Pause) => self.request_pause(now, PauseRequest::Pause),
            (P::Running | P::Paused, I::Resume) => self.request_pause(now, PauseRequest::Resume),
            (_, I::Pause | I::Resume) => return Err(InvalidState::NotRunning),
            (P::Running | P::Paused, I::Guest(GuestEvent::Paused)) => self.enter(now, P::Paused),
            (P::Running | P::Paused, I::Guest(GuestEvent::Resumed)) => self.enter(now, P::Running),
            (P::Running | P::Paused, I::Replied(message, outcome)) => {
                self.pause_reply(now, &message, outcome);
            }
            (P::Running | P::Paused, I::Expired(LifecycleTimer::PauseRequest)) => {
                self.pause_timed_out();
            }

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
            (P::StartingHelpers | P::StartingHypervisor, I::Expired(LifecycleTimer::Readiness)) => {
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
            (P::StartingHelpers, I::Expired(LifecycleTimer::Phase)) => {
                self.end(now, self.start_timed_out(), P::KillingHelpers);
            }
            (P::StartingHypervisor | P::Booting, I::Expired(LifecycleTimer::Phase)) => {
                self.end(now, self.start_timed_out(), P::KillingHypervisor);
            }
            (P::StartingHypervisor, I::ControlLost) => {
                self.expect_end(now, self.start_failed("closed its control channel"));
            }
            (P::Booting, I::ControlLost) => {
                self.expect_end(now, self.boot_rejected("it closed its control channel".into()));
            }
            (P::StartingHypervisor | P::Booting, I::EventsLost(why)) => {
                self.expect_end(now, self.start_failed(&format!("sent invalid events: {why}")));
            }

            // Boot messages.
            (P::Booting, I::Replied(message, outcome)) => self.boot_reply(now, &message, outcome),
            (P::Booting, I::Expired(LifecycleTimer::Resend)) => self.send_boot_message(),

            // A guest that runs or is asked to power off.
            (P::Booting | P::Running | P::Paused | P::ShutdownRequested, I::Guest(GuestEvent::PoweredOff)) => {
                self.end(now, EndedBy::GuestPowerOff, P::WaitingForExit);
            }
            (P::Booting | P::Running | P::Paused | P::ShutdownRequested, I::Guest(GuestEvent::Reset)) => {
                self.guest_reset(now);
            }
            (P::Booting | P::Running | P::Paused | P::ShutdownRequested, I::Guest(GuestEvent::Panicked)) => {
                self.guest_crashed(now, EndedBy::GuestPanic);
            }
            (
                P::Booting | P::Running | P::Paused | P::ShutdownRequested,
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
            (P::Running | P::Paused | P::ShutdownRequested, I::Guest(GuestEvent::CpuFailed)) => {
                self.end(now, self.hypervisor_lost("reported a vCPU failure"), P::QuitRequested);
            }
            (P::Booting | P::Running | P::Paused | P::ShutdownRequested, I::ConsoleCrash(crash)) => {
                self.console_crash(now, crash);
            }
            (P::Running | P::Paused, I::Expired(LifecycleTimer::TimeLimit)) => {
                self.time_limit_hit = true;
                self.grace = self.timing.grace;
                self.enter(now, P::ShutdownRequested);
            }
            (P::ShutdownRequested, I::Replied(message, outcome)) => {
                self.power_button_reply(now, &message, outcome);
            }
            (P::ShutdownRequested, I::Expired(LifecycleTimer::Resend)) => self.press_power_button(),
            (P::ShutdownRequested, I::Expired(LifecycleTimer::Phase)) => self.grace_ended(now),

            // A part that the VM needs is lost. Often the hypervisor's exit follows and explains it.
            (
                P::StartingHypervisor | P::Booting | P::Running | P::Paused | P::ShutdownRequested,
                I::HelperExited(id, exit),
            ) => {
                let reason = format!("{} {exit}", self.name(id));
                self.expect_end(now, EndedBy::HelperLost { reason });
            }
            (P::Running | P::Paused | P::ShutdownRequested, I::ControlLost) => {
                self.expect_end(now, self.hypervisor_lost("closed its control channel"));
            }
            (P::Running | P::Paused | P::ShutdownRequested, I::EventsLost(why)) => {
                let cause = self.hypervisor_lost(&format!("sent invalid events: {why}"));
                self.expect_end(now, cause);
            }
            (P::StartingHypervisor | P::Booting, I::Expired(LifecycleTimer::Cause)) => {
                self.end_as_expected(now, P::KillingHypervisor);
            }
            (P::Running | P::Paused | P::ShutdownRequested, I::Expired(LifecycleTimer::Cause)) => {
                self.end_as_expected(now, P::QuitRequested);
            }

            // The end of the processes.
            (
                P::Running
                | P::Paused
                | P::ShutdownRequested
                | P::WaitingForExit
                | P::QuitRequested
                | P::KillingHypervisor,
                I::HypervisorExited(exit),
            ) => self.end(now, self.cause_of_exit(&exit), P::StoppingHelpers),
            (P::WaitingForExit | P::QuitRequested, I::Expired(LifecycleTimer::Phase)) => {
                self.enter(now, P::KillingHypervisor);
            }
            (P::KillingHypervisor, I::Expired(LifecycleTimer::Phase)) => {
                self.record_step(StopStep::GaveUp);
                self.enter(now, P::KillingHelpers);
            }
            // The hypervisor may have survived SIGKILL until now.
            (
                P::StoppingHelpers | P::KillingHelpers,
                I::HelperExited(..) | I::HypervisorExited(_),
            ) => self.end_when_all_exited(now),
            (P::StoppingHelpers, I::Expired(LifecycleTimer::Phase)) => self.enter(now, P::KillingHelpers),
            (P::KillingHelpers, I::Expired(LifecycleTimer::Phase)) => {
                self.record_step(StopStep::GaveUp);
                self.enter(now, P::Ended);
            }

            // Text on the console proves nothing; it may explain an exit that follows.
            (_, I::ConsolePanic) => self.panic_seen |= self.panic_is_cause(),
            (_, I::Guest(GuestEvent::Panicked)) => self.panic_reported |= self.panic_is_cause(),
            (_, I::ConsoleNoPanic) => self.panic_seen = false,

            // It concerns the waits on the console alone.
            (_, I::Guest(GuestEvent::ConsoleOpened)) => {}

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
            // The phases of a start and a stop do not depend on it.
            | (
                P::Booting | P::ShutdownRequested,
                I::Guest(GuestEvent::Paused | GuestEvent::Resumed),
            )
            // These belong to a phase that has passed: the next one stops its timers and launches.
            | (_, I::Ready(_) | I::LaunchFailed(..) | I::Expired(_)) => {}
        }
        Ok(())
    }

    /// Passes the timers whose deadlines have passed. May be called at any time.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        for timer in LifecycleTimer::ALL {
            if self.timers.take_expired(timer, now) {
                // Only requests of the owner can be invalid.
                let _ = self.handle_input(now, Input::Expired(timer));
                // If the call is late, the process may have become ready before the limit, which
                // therefore expires in the next call.
                if timer == LifecycleTimer::Readiness {
                    return;
                }
            }
        }
    }

    /// The next action. Carry it out before any other input.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front()?;
        if let Action::Launch(id) = action {
            self.processes[id.0] = ProcessState::Alive;
        }
        Some(action)
    }

    /// When to call `Lifecycle::handle_timeout`. In the past while actions are queued.
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
    pub(crate) const fn phase(&self) -> Phase {
        self.phase
    }

    /// How the VM ended; `None` if it has not ended.
    pub(crate) fn report(&self) -> Option<StopReport> {
        (self.phase == Phase::Ended).then(|| StopReport {
            ended_by: self.cause.clone().unwrap_or(EndedBy::Owner),
            time_limit: self.time_limit_hit,
            steps: self.steps.clone(),
            limits: StopLimits {
                grace: self.grace,
                quit: self.timing.quit,
                helpers: self.timing.drain,
                kill: self.timing.kill,
            },
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

    // What an input does.

    fn record_exit(&mut self, input: &Input) {
        let (id, exit) = match input {
            Input::HypervisorExited(exit) => (self.hypervisor(), Some(exit)),
            Input::HelperExited(id, exit) => (*id, Some(exit)),
            Input::LaunchFailed(id, _) => (*id, None),
            _ => return,
        };
        self.processes[id.0] = ProcessState::Exited;
        self.cancel_signals(id);
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
        if !self.plan.is_polled(id) {
            return;
        }
        let pause = match self.readiness_checks {
            0..50 => 1,
            50..100 => 5,
            _ => 20,
        };
        self.readiness_checks += 1;
        let at = now + Duration::from_millis(pause);
        self.timers.set(LifecycleTimer::Readiness, at, "check readiness");
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
                self.timers.set(
                    LifecycleTimer::Resend,
                    now + RETRY_DELAY,
                    "send the boot message again",
                );
            }
            ReplyOutcome::Rejected(reason) => {
                self.end(now, self.boot_rejected(reason), Phase::KillingHypervisor);
            }
            // If the hypervisor is exiting, its exit is the better explanation.
            ReplyOutcome::Lost(reason) => self.expect_end(now, self.boot_rejected(reason)),
        }
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

    // What a phase does on entry.

    fn enter(&mut self, now: Instant, phase: Phase) {
        if phase == Phase::ShutdownRequested {
            self.resume_for_stop();
        }
        if phase == Phase::Ended && self.cause == Some(EndedBy::GuestReboot) && self.panic_seen {
            self.cause = Some(EndedBy::GuestPanic);
        }
        self.phase = phase;
        self.reset_timers(now);
        self.announce();
        match phase {
            Phase::Created | Phase::Running | Phase::Paused | Phase::WaitingForExit => {}
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

    fn press_power_button(&mut self) {
        self.actions.extend(self.plan.power_button.clone().map(Action::Send));
    }

    fn send_boot_message(&mut self) {
        self.actions.extend(self.plan.boot.get(self.boot_steps).cloned().map(Action::Send));
    }

    /// Removes launches that are still queued.
    fn cancel_launches(&mut self) {
        self.actions.retain(|action| !matches!(action, Action::Launch(_) | Action::CheckReady(_)));
    }
}

#[cfg(test)]
mod tests;
