//! Executes the lifecycle tables.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use super::plan_summary::PlanSummary;
use super::table::{self, EntryAction, Phase, StatusKind, Trigger};
use super::{Action, EndedBy, Exit, Input, InvalidState, StopReport, StopStep, Timing, VmStatus};
use crate::backend::ReplyOutcome;
use crate::console::ConsoleCrash;
use crate::plan::{CrashReporting, LaunchPlan, ProcessId, Signal, StopAction};
use crate::spec::RebootPolicy;
use crate::time::{Deadline, Instant};

/// The delay before a boot message is sent again.
const RETRY_DELAY: Duration = Duration::from_millis(20);

/// How often the power button is pressed during the grace period. A guest misses a press that comes
/// before it handles the button; a guest that is already powering off ignores further presses.
const POWER_BUTTON_INTERVAL: Duration = Duration::from_secs(5);

/// How long the end of a helper or of the control channel waits before it becomes the cause. Often it
/// is only a consequence of the hypervisor's exit, although it is noticed first.
const CAUSE_DELAY: Duration = Duration::from_millis(200);

/// The lifecycle of one VM. See the [module](super) for the loop and the invariants.
#[derive(Debug)]
pub struct Lifecycle {
    plan: PlanSummary,
    timing: Timing,
    phase: Phase,
    processes: Vec<ProcessState>,
    messages_done: usize,
    actions: VecDeque<Action>,
    status: VmStatus,

    phase_ends: Option<Deadline>,
    time_limit_ends: Option<Deadline>,
    send_again: Option<Deadline>,
    pending_cause: Option<(Deadline, EndedBy)>,
    last_reset: Option<Instant>,
    grace: Duration,

    cause: Option<EndedBy>,
    panic_seen: bool,
    time_limit_hit: bool,
    steps: Vec<StopStep>,
    exit: Option<Exit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProcessState {
    NotStarted,
    Alive,
    Exited,
}

impl Lifecycle {
    /// The lifecycle of a VM with this launch plan.
    pub fn new(plan: &LaunchPlan, timing: Timing) -> Self {
        Self {
            plan: PlanSummary::new(plan),
            timing,
            phase: Phase::Created,
            processes: plan.processes.iter().map(|_| ProcessState::NotStarted).collect(),
            messages_done: 0,
            actions: VecDeque::new(),
            status: VmStatus::Created,
            phase_ends: None,
            time_limit_ends: None,
            send_again: None,
            pending_cause: None,
            last_reset: None,
            grace: timing.grace,
            cause: None,
            panic_seen: false,
            time_limit_hit: false,
            steps: Vec::new(),
            exit: None,
        }
    }

    /// Accepts an event, or a request of the owner.
    ///
    /// Events that have no meaning in the current phase are ignored: they arrive too late.
    ///
    /// # Errors
    ///
    /// At a second start, and at a stop or kill before the start. A stop or kill of a VM that is
    /// stopping or has ended is accepted; it may shorten the stop.
    pub fn handle_input(&mut self, now: Instant, input: Input) -> Result<(), InvalidState> {
        match input {
            Input::Start if self.phase == Phase::Created => self.transition(now, Trigger::Start),
            Input::Start => return Err(InvalidState::AlreadyStarted),
            Input::Stop { .. } | Input::Kill if self.phase == Phase::Created => {
                return Err(InvalidState::NotStarted);
            }
            Input::Stop { grace } => self.stop(now, grace),
            Input::Kill => {
                self.set_cause(EndedBy::Owner);
                self.transition(now, Trigger::Kill);
            }
            Input::Spawned(id) => {
                self.processes[id.0] = ProcessState::Alive;
                self.actions.push_back(Action::AwaitReady(id));
            }
            Input::SpawnFailed(id, error) => {
                self.processes[id.0] = ProcessState::Exited;
                let reason = format!("cannot start {}: {error}", self.plan.names[id.0]);
                self.set_cause(EndedBy::StartFailed { reason });
                self.transition(now, Trigger::SpawnFailed);
            }
            Input::Ready(id) => self.ready(now, id),
            Input::Replied(outcome) => self.replied(now, outcome),
            Input::Exited(id, exit) if id == self.hypervisor() => self.hypervisor_exited(now, exit),
            Input::Exited(id, exit) => self.helper_exited(now, id, &exit),
            Input::ControlLost => self.channel_lost(now, "closed its control channel"),
            Input::EventsLost(why) => {
                self.channel_lost(now, &format!("sent invalid events: {why}"));
            }
            Input::GuestPoweredOff if self.guest_is_running() => {
                self.set_cause(EndedBy::GuestPowerOff);
                self.transition(now, Trigger::GuestPoweredOff);
            }
            Input::GuestReset if self.guest_is_running() => self.guest_reset(now),
            Input::GuestPanicked { certain: true } if self.guest_is_running() => {
                self.set_cause(EndedBy::GuestPanic);
                self.guest_crashed(now);
            }
            // If the guest restarts, a panic before the restart does not explain a later exit. Not every
            // hypervisor reports the reset in between.
            Input::GuestPanicked { .. } if self.restarts_on_reboot() || self.is_console_only() => {}
            Input::GuestPanicked { .. } => self.panic_seen = true,
            Input::ConsoleCrash(crash) if self.is_console_only() && self.guest_is_running() => {
                match crash {
                    ConsoleCrash::Restart => self.guest_reset(now),
                    ConsoleCrash::Panic if self.restarts_on_reboot() => {}
                    ConsoleCrash::Panic => {
                        self.set_cause(EndedBy::GuestPanic);
                        self.guest_crashed(now);
                    }
                }
            }
            Input::ConsoleCrash(_) => {}
            Input::ExternalQuit if self.guest_is_running() => {
                let name = &self.plan.names[self.hypervisor().0];
                let reason = format!("{name} was stopped by another process");
                self.set_cause(EndedBy::HypervisorLost { reason });
                self.transition(now, Trigger::GuestPoweredOff);
            }
            Input::CpuFailed if self.guest_is_running() => self.cpu_failed(now),
            Input::GuestPoweredOff | Input::GuestReset | Input::ExternalQuit | Input::CpuFailed => {
            }
            Input::Timeout => self.timeout(now),
        }
        Ok(())
    }

    /// The next action. Carry it out, and pass its result, before any other input.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to pass [`Input::Timeout`]. In the past while actions are queued.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        if !self.actions.is_empty() {
            return Some(Deadline { at: Instant::ZERO, why: "queued actions" });
        }
        let cause_delay = self.pending_cause.as_ref().map(|(deadline, _)| *deadline);
        [self.phase_ends, self.time_limit_ends, self.send_again, cause_delay]
            .into_iter()
            .fold(None, Deadline::earliest)
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
        ProcessId(self.processes.len() - 1)
    }

    fn guest_is_running(&self) -> bool {
        matches!(self.phase, Phase::Booting | Phase::Running | Phase::ShutdownRequested)
    }

    /// Sets the cause of the end. The first cause is kept; later ones are its consequences.
    fn set_cause(&mut self, cause: EndedBy) {
        if self.cause.is_none() && self.phase != Phase::Ended {
            self.cause = Some(cause);
        }
    }

    fn stop(&mut self, now: Instant, grace: Duration) {
        match self.phase {
            Phase::Running => {
                self.grace = grace;
                self.transition(now, Trigger::Stop);
            }
            // A second stop may shorten the grace period, never extend it.
            Phase::ShutdownRequested => {
                let ends = Deadline { at: now + grace, why: "grace period" };
                self.phase_ends = Deadline::earliest(self.phase_ends, Some(ends));
            }
            Phase::StartingHelpers | Phase::StartingHypervisor | Phase::Booting => {
                self.set_cause(EndedBy::Owner);
                self.transition(now, Trigger::Stop);
            }
            _ => {}
        }
    }

    fn ready(&mut self, now: Instant, id: ProcessId) {
        match self.phase {
            Phase::StartingHypervisor if id == self.hypervisor() => {
                self.transition(now, Trigger::ControlReady)
            }
            Phase::StartingHelpers if id != self.hypervisor() => match self.next_helper() {
                Some(_) => self.transition(now, Trigger::NextHelper),
                None => self.transition(now, Trigger::HelpersReady),
            },
            _ => {}
        }
    }

    /// The helper that is starting: the last one that was spawned.
    fn starting_helper(&self) -> Option<&str> {
        let next = self.next_helper().unwrap_or(self.hypervisor());
        let is_starting = self.phase == Phase::StartingHelpers;
        next.0.checked_sub(1).filter(|_| is_starting).map(|n| self.plan.names[n].as_str())
    }

    fn next_helper(&self) -> Option<ProcessId> {
        let helpers = &self.processes[..self.hypervisor().0];
        helpers.iter().position(|p| *p == ProcessState::NotStarted).map(ProcessId)
    }

    fn replied(&mut self, now: Instant, outcome: ReplyOutcome) {
        match (self.phase, outcome) {
            (Phase::Booting, ReplyOutcome::Done) => {
                self.messages_done += 1;
                if self.messages_done < self.plan.boot.len() {
                    self.transition(now, Trigger::NextMessage);
                } else {
                    self.transition(now, Trigger::Booted);
                }
            }
            (Phase::Booting, ReplyOutcome::Retry) => {
                self.send_again =
                    Some(Deadline { at: now + RETRY_DELAY, why: "send the boot message again" });
            }
            (Phase::Booting, ReplyOutcome::Rejected(error)) => {
                let name = &self.plan.names[self.hypervisor().0];
                let message = self.plan.boot.get(self.messages_done).map_or("boot", |m| m.purpose);
                let reason = format!("{name} failed to {message}: {error}");
                self.set_cause(EndedBy::StartFailed { reason });
                self.transition(now, Trigger::BootRejected);
            }
            // If the hypervisor is exiting, its exit is the better explanation.
            (Phase::Booting, ReplyOutcome::Lost(error)) => {
                let name = &self.plan.names[self.hypervisor().0];
                let message = self.plan.boot.get(self.messages_done).map_or("boot", |m| m.purpose);
                let reason = format!("{name} failed to {message}: {error}");
                self.dependency_lost(now, EndedBy::StartFailed { reason });
            }
            (Phase::ShutdownRequested, ReplyOutcome::Done | ReplyOutcome::Retry) => {
                let at = now + POWER_BUTTON_INTERVAL;
                self.send_again = Some(Deadline { at, why: "press the power button again" });
            }
            // A guest without a working power button needs no grace period.
            (Phase::ShutdownRequested, ReplyOutcome::Rejected(_)) => self.phase_timeout(now),
            // The guest may be off already: a hypervisor that exits closes the connection without
            // a reply.
            (Phase::ShutdownRequested, ReplyOutcome::Lost(_)) => {
                let cause = if self.time_limit_hit { EndedBy::TimeLimit } else { EndedBy::Owner };
                self.dependency_lost(now, cause);
            }
            _ => {}
        }
    }

    fn guest_reset(&mut self, now: Instant) {
        if self.restarts_on_reboot() {
            if self.last_reset.is_none_or(|last| last + self.plan.reset_debounce <= now) {
                self.last_reset = Some(now);
                self.actions.push_back(Action::AnnounceReboot);
            }
            return;
        }
        self.set_cause(if self.panic_seen { EndedBy::GuestPanic } else { EndedBy::GuestReboot });
        self.guest_crashed(now);
    }

    fn guest_crashed(&mut self, now: Instant) {
        let vmm_exits = self.plan.crash_reporting == CrashReporting::EventThenExit;
        self.transition(
            now,
            if vmm_exits { Trigger::GuestPoweredOff } else { Trigger::GuestCrashed },
        );
    }

    fn restarts_on_reboot(&self) -> bool {
        self.plan.on_reboot == RebootPolicy::Restart
    }

    /// Only the console shows a guest crash.
    fn is_console_only(&self) -> bool {
        matches!(self.plan.crash_reporting, CrashReporting::ConsoleOnly { .. })
    }

    fn quit_action(&self) -> StopAction {
        match (&self.cause, &self.plan.crash_reporting) {
            (
                Some(EndedBy::GuestPanic | EndedBy::GuestReboot),
                CrashReporting::ConsoleOnly { power_off },
            ) => StopAction::Control(power_off.clone()),
            _ => self.plan.quit.clone(),
        }
    }

    /// The hypervisor may exit as after a power-off, or keep running with a guest that hangs. So the
    /// cause is set now, and the hypervisor must quit.
    fn cpu_failed(&mut self, now: Instant) {
        let reason = format!("{} reported a vCPU failure", self.plan.names[self.hypervisor().0]);
        self.set_cause(match self.phase {
            Phase::Booting => EndedBy::StartFailed { reason },
            _ => EndedBy::HypervisorLost { reason },
        });
        self.transition(now, Trigger::GuestCrashed);
    }

    fn hypervisor_exited(&mut self, now: Instant, exit: Exit) {
        let id = self.hypervisor();
        self.processes[id.0] = ProcessState::Exited;
        let name = &self.plan.names[id.0];
        let cause = match self.phase {
            Phase::StartingHypervisor | Phase::Booting => {
                EndedBy::StartFailed { reason: format!("{name} {exit}") }
            }
            _ if self.panic_seen => EndedBy::GuestPanic,
            // A backend without events: an exit with status 0 without a stop is a power-off.
            _ if exit.code == Some(0) => EndedBy::GuestPowerOff,
            _ => EndedBy::HypervisorLost { reason: format!("{name} {exit}") },
        };
        self.set_cause(cause);
        self.exit = Some(exit);
        self.transition(now, Trigger::HypervisorExited);
    }

    fn helper_exited(&mut self, now: Instant, id: ProcessId, exit: &Exit) {
        self.processes[id.0] = ProcessState::Exited;
        let reason = format!("{} {exit}", self.plan.names[id.0]);
        match self.phase {
            // A helper that fails before the guest runs is the cause of the hypervisor's exit, not a
            // consequence of it.
            phase
                if phase == Phase::StartingHelpers || (phase < Phase::Running && exit.failed()) =>
            {
                self.set_cause(EndedBy::StartFailed { reason });
                self.transition(now, Trigger::DependencyLost);
            }
            Phase::StartingHypervisor
            | Phase::Booting
            | Phase::Running
            | Phase::ShutdownRequested => {
                self.dependency_lost(now, EndedBy::HelperLost { reason });
            }
            _ => self.check_all_exited(now),
        }
    }

    fn channel_lost(&mut self, now: Instant, how: &str) {
        let reason = format!("{} {how}", self.plan.names[self.hypervisor().0]);
        match self.phase {
            Phase::StartingHypervisor | Phase::Booting => {
                self.dependency_lost(now, EndedBy::StartFailed { reason });
            }
            Phase::Running | Phase::ShutdownRequested => {
                self.dependency_lost(now, EndedBy::HypervisorLost { reason });
            }
            _ => {}
        }
    }

    fn dependency_lost(&mut self, now: Instant, cause: EndedBy) {
        if self.pending_cause.is_none() {
            let at = now + CAUSE_DELAY;
            let deadline = Deadline { at, why: "the hypervisor may exit too" };
            self.pending_cause = Some((deadline, cause));
        }
    }

    fn timeout(&mut self, now: Instant) {
        let due = |deadline: &Option<Deadline>| deadline.is_some_and(|d| d.at <= now);
        if due(&self.send_again) {
            self.send_again = None;
            match self.phase {
                Phase::ShutdownRequested => self.press_power_button(),
                _ => self.send_boot_message(),
            }
        }
        if self.pending_cause.as_ref().is_some_and(|(deadline, _)| deadline.at <= now)
            && let Some((_, cause)) = self.pending_cause.take()
        {
            // The start may have succeeded during the delay.
            self.set_cause(match (self.phase, cause) {
                (Phase::Running | Phase::ShutdownRequested, EndedBy::StartFailed { reason }) => {
                    EndedBy::HypervisorLost { reason }
                }
                (_, cause) => cause,
            });
            self.transition(now, Trigger::DependencyLost);
        }
        if due(&self.time_limit_ends) {
            self.time_limit_ends = None;
            self.time_limit_hit = true;
            self.grace = self.timing.grace;
            self.transition(now, Trigger::TimeLimit);
        }
        if due(&self.phase_ends) {
            self.phase_timeout(now);
        }
    }

    fn phase_timeout(&mut self, now: Instant) {
        let row = table::phase(self.phase);
        match self.phase {
            Phase::StartingHelpers | Phase::StartingHypervisor | Phase::Booting => {
                let waited = row.limit.map(|(limit, why)| (why, limit(&self.timing)));
                let (why, limit) = waited.unwrap_or(("the phase ends", Duration::ZERO));
                let why = match self.starting_helper() {
                    Some(name) => format!("{name} is ready"),
                    None => why.into(),
                };
                let reason = format!("timed out after {limit:?}, waiting until {why}");
                self.set_cause(EndedBy::StartFailed { reason });
            }
            Phase::ShutdownRequested if self.time_limit_hit => self.set_cause(EndedBy::TimeLimit),
            Phase::ShutdownRequested => self.set_cause(EndedBy::Owner),
            Phase::KillingHypervisor | Phase::KillingHelpers => self.record_step(StopStep::GaveUp),
            _ => {}
        }
        self.transition(now, Trigger::Timeout);
    }

    fn transition(&mut self, now: Instant, trigger: Trigger) {
        if let Some(to) = table::next(self.phase, trigger) {
            self.enter(now, to);
        }
    }

    fn enter(&mut self, now: Instant, phase: Phase) {
        let row = table::phase(phase);
        self.phase = phase;
        self.phase_ends = row.limit.map(|(limit, why)| {
            let limit =
                if phase == Phase::ShutdownRequested { self.grace } else { limit(&self.timing) };
            Deadline { at: now + limit, why }
        });
        self.send_again = None;
        self.time_limit_ends = match (phase, self.plan.time_limit) {
            (Phase::Running, Some(limit)) => Some(Deadline { at: now + limit, why: "time limit" }),
            _ => None,
        };
        if !matches!(
            phase,
            Phase::StartingHypervisor | Phase::Booting | Phase::Running | Phase::ShutdownRequested
        ) {
            self.pending_cause = None;
        }
        self.announce(row.status);
        self.run_entry_action(now, row.entry);
    }

    fn announce(&mut self, kind: StatusKind) {
        let status = match kind {
            StatusKind::Created => VmStatus::Created,
            StatusKind::Starting => VmStatus::Starting,
            StatusKind::Running => VmStatus::Running,
            StatusKind::Stopping => VmStatus::Stopping,
            StatusKind::Terminal => match self.report() {
                Some(report) => report.status(),
                None => return,
            },
        };
        if status != self.status {
            self.status = status.clone();
            self.actions.push_back(Action::Announce(status));
        }
    }

    fn run_entry_action(&mut self, now: Instant, entry: EntryAction) {
        let hypervisor = self.hypervisor();
        match entry {
            EntryAction::Nothing => {}
            EntryAction::SpawnHelper => match self.next_helper() {
                Some(helper) => self.actions.push_back(Action::Spawn(helper)),
                None => self.transition(now, Trigger::HelpersReady),
            },
            EntryAction::SpawnHypervisor => self.actions.push_back(Action::Spawn(hypervisor)),
            EntryAction::SendBoot if self.plan.boot.is_empty() => {
                self.transition(now, Trigger::Booted)
            }
            EntryAction::SendBoot => self.send_boot_message(),
            EntryAction::RequestShutdown if self.plan.power_button.is_none() => {
                self.phase_timeout(now)
            }
            EntryAction::RequestShutdown => {
                self.record_step(StopStep::PowerButton);
                self.press_power_button();
            }
            EntryAction::Quit => {
                self.record_step(StopStep::Quit);
                self.actions.push_back(match self.quit_action() {
                    StopAction::Control(message) => Action::Control(message),
                    StopAction::Signal(signal) => Action::Signal(hypervisor, signal),
                });
            }
            EntryAction::KillHypervisor => {
                self.cancel_spawns();
                if self.processes[hypervisor.0] == ProcessState::Alive {
                    self.record_step(StopStep::Killed);
                    self.actions.push_back(Action::Signal(hypervisor, Signal::Kill));
                } else {
                    self.transition(now, Trigger::HypervisorExited);
                }
            }
            EntryAction::TerminateHelpers => {
                self.signal_helpers(Signal::Term, |lifecycle, n| !lifecycle.plan.ends_by_itself[n]);
                self.check_all_exited(now);
            }
            EntryAction::KillHelpers => {
                self.cancel_spawns();
                self.signal_helpers(Signal::Kill, |_, _| true);
                self.check_all_exited(now);
            }
            EntryAction::Release => self.actions.push_back(Action::Release),
        }
    }

    fn signal_helpers(&mut self, signal: Signal, which: impl Fn(&Self, usize) -> bool) {
        for id in 0..self.hypervisor().0 {
            if self.processes[id] == ProcessState::Alive && which(self, id) {
                self.actions.push_back(Action::Signal(ProcessId(id), signal));
            }
        }
    }

    fn press_power_button(&mut self) {
        self.actions.extend(self.plan.power_button.clone().map(Action::Control));
    }

    fn send_boot_message(&mut self) {
        if let Some(message) = self.plan.boot.get(self.messages_done) {
            self.actions.push_back(Action::Control(message.clone()));
        }
    }

    /// Removes spawns that are still queued.
    fn cancel_spawns(&mut self) {
        self.actions.retain(|action| !matches!(action, Action::Spawn(_) | Action::AwaitReady(_)));
    }

    fn check_all_exited(&mut self, now: Instant) {
        // This includes the hypervisor: in `KillingHelpers` it may have survived SIGKILL so far.
        if !self.processes.contains(&ProcessState::Alive) {
            self.transition(now, Trigger::AllExited);
        }
    }

    fn record_step(&mut self, step: StopStep) {
        if !self.steps.contains(&step) {
            self.steps.push(step);
        }
    }
}

#[cfg(test)]
mod tests;
