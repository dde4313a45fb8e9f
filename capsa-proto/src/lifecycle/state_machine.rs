//! The walk through the tables.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::table::{self, EntryAction, Phase, StatusKind, Trigger};
use super::{Action, EndedBy, Exit, Input, InvalidState, StopReport, StopStep, Timing, VmStatus};
use crate::backend::ReplyOutcome;
use crate::console::ConsoleCrash;
use crate::plan::{CrashReporting, LaunchPlan, Message, ProcessId, Signal, StopAction};
use crate::spec::RebootPolicy;
use crate::time::{Deadline, Instant};

/// How long the pause is before a boot message is sent again.
const RETRY_DELAY: Duration = Duration::from_millis(20);

/// A guest that is asked before it listens to its power button does not hear it, so it is asked again
/// as long as its grace lasts. One that is on its way out ignores that.
const POWER_BUTTON_INTERVAL: Duration = Duration::from_secs(5);

/// A helper or the control channel often ends *because* the hypervisor does, and may be seen to end
/// first. This long the hypervisor's own end is waited for before the part is blamed.
const CAUSE_DELAY: Duration = Duration::from_millis(200);

/// The lifecycle of one machine. See the [module](super) for the loop and the laws.
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
    time_ends: Option<Deadline>,
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

/// The parts of a plan that the machine acts on.
#[derive(Debug)]
struct PlanSummary {
    names: Vec<String>,
    ends_by_itself: Vec<bool>,
    boot: Vec<Message>,
    power_button: Option<Message>,
    quit: StopAction,
    crash_reporting: CrashReporting,
    reset_debounce: Duration,
    on_reboot: RebootPolicy,
    time_limit: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProcessState {
    NotStarted,
    Alive,
    Exited,
}

impl Lifecycle {
    /// A machine that will walk through `plan`.
    pub fn new(plan: &LaunchPlan, timing: Timing) -> Self {
        Self {
            plan: PlanSummary {
                names: plan.processes.iter().map(|p| p.name.clone()).collect(),
                ends_by_itself: plan.processes.iter().map(|p| p.ends_with_hypervisor).collect(),
                boot: plan.boot.clone(),
                power_button: plan.power_button.clone(),
                quit: plan.quit.clone(),
                crash_reporting: plan.crash_reporting.clone(),
                reset_debounce: plan.reset_debounce,
                on_reboot: plan.on_reboot,
                time_limit: plan.time_limit,
            },
            timing,
            phase: Phase::Created,
            processes: plan.processes.iter().map(|_| ProcessState::NotStarted).collect(),
            messages_done: 0,
            actions: VecDeque::new(),
            status: VmStatus::Created,
            phase_ends: None,
            time_ends: None,
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

    /// Takes what happened, or what is wished for.
    ///
    /// Inputs that mean nothing in the present phase are ignored: they are late news.
    ///
    /// # Errors
    ///
    /// When a wish cannot be granted: a second start, a stop or kill before the start. A stop or
    /// kill of a machine that is ending or has ended is granted; it changes nothing or hurries.
    pub fn handle_input(&mut self, now: Instant, input: Input) -> Result<(), InvalidState> {
        match input {
            Input::Start if self.phase == Phase::Created => self.go(now, Trigger::Start),
            Input::Start => return Err(InvalidState::AlreadyStarted),
            Input::Stop { .. } | Input::Kill if self.phase == Phase::Created => {
                return Err(InvalidState::NotStarted);
            }
            Input::Stop { grace } => self.stop(now, grace),
            Input::Kill => {
                self.set_cause(EndedBy::Owner);
                self.go(now, Trigger::Kill);
            }
            Input::Spawned(id) => {
                self.processes[id.0] = ProcessState::Alive;
                self.actions.push_back(Action::AwaitReady(id));
            }
            Input::SpawnFailed(id, error) => {
                self.processes[id.0] = ProcessState::Exited;
                let reason = format!("cannot start {}: {error}", self.plan.names[id.0]);
                self.set_cause(EndedBy::StartFailed { reason });
                self.go(now, Trigger::SpawnFailed);
            }
            Input::Ready(id) => self.ready(now, id),
            Input::Replied(verdict) => self.replied(now, verdict),
            Input::Exited(id, exit) if id == self.hypervisor() => self.hypervisor_exited(now, exit),
            Input::Exited(id, exit) => self.helper_exited(now, id, &exit),
            Input::ControlLost => self.channel_lost(now, "closed its control channel"),
            Input::EventsLost(why) => {
                self.channel_lost(now, &format!("tells events that make no sense: {why}"));
            }
            Input::GuestPoweredOff if self.guest_is_running() => {
                self.set_cause(EndedBy::GuestPowerOff);
                self.go(now, Trigger::GuestPoweredOff);
            }
            Input::GuestReset if self.guest_is_running() => self.guest_reset(now),
            Input::GuestPanicked { certain: true } if self.guest_is_running() => {
                self.set_cause(EndedBy::GuestPanic);
                self.guest_crashed(now);
            }
            // Where the guest boots again, what it printed in an earlier life explains no later end. Not
            // every hypervisor tells of the reset in between.
            Input::GuestPanicked { .. } if self.restarts_on_reboot() || self.is_console_only() => {}
            Input::GuestPanicked { .. } => self.panic_seen = true,
            Input::ConsoleCrash(word) if self.is_console_only() && self.guest_is_running() => {
                match word {
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
                let reason = format!("{name} was told to quit by another process");
                self.set_cause(EndedBy::HypervisorLost { reason });
                self.go(now, Trigger::GuestPoweredOff);
            }
            Input::CpuFailed if self.guest_is_running() => self.cpu_failed(now),
            Input::GuestPoweredOff | Input::GuestReset | Input::ExternalQuit | Input::CpuFailed => {
            }
            Input::Timeout => self.timeout(now),
        }
        Ok(())
    }

    /// The next thing to do. Carry it out, and answer it, before handing in anything else.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When the machine wants [`Input::Timeout`]. In the past while actions wait to be polled.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        if !self.actions.is_empty() {
            return Some(Deadline { at: Instant::ZERO, why: "queued actions" });
        }
        let blame = self.pending_cause.as_ref().map(|(deadline, _)| *deadline);
        [self.phase_ends, self.time_ends, self.send_again, blame]
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

    /// How it ended; `None` while it has not.
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

    /// The first cause is the cause; what follows are its consequences.
    fn set_cause(&mut self, cause: EndedBy) {
        if self.cause.is_none() && self.phase != Phase::Ended {
            self.cause = Some(cause);
        }
    }

    fn stop(&mut self, now: Instant, grace: Duration) {
        match self.phase {
            Phase::Running => {
                self.grace = grace;
                self.go(now, Trigger::Stop);
            }
            // A second stop may shorten the grace, never lengthen it.
            Phase::ShutdownRequested => {
                let ends = Deadline { at: now + grace, why: "grace period" };
                self.phase_ends = Deadline::earliest(self.phase_ends, Some(ends));
            }
            Phase::StartingHelpers | Phase::StartingHypervisor | Phase::Booting => {
                self.set_cause(EndedBy::Owner);
                self.go(now, Trigger::Stop);
            }
            _ => {}
        }
    }

    fn ready(&mut self, now: Instant, id: ProcessId) {
        match self.phase {
            Phase::StartingHypervisor if id == self.hypervisor() => {
                self.go(now, Trigger::ControlReady)
            }
            Phase::StartingHelpers if id != self.hypervisor() => match self.next_helper() {
                Some(_) => self.go(now, Trigger::NextHelper),
                None => self.go(now, Trigger::HelpersReady),
            },
            _ => {}
        }
    }

    /// The helper that is to come up: the last that was started.
    fn starting_helper(&self) -> Option<&str> {
        let next = self.next_helper().unwrap_or(self.hypervisor());
        let is_awaited = self.phase == Phase::StartingHelpers;
        next.0.checked_sub(1).filter(|_| is_awaited).map(|n| self.plan.names[n].as_str())
    }

    fn next_helper(&self) -> Option<ProcessId> {
        let helpers = &self.processes[..self.hypervisor().0];
        helpers.iter().position(|p| *p == ProcessState::NotStarted).map(ProcessId)
    }

    fn replied(&mut self, now: Instant, verdict: ReplyOutcome) {
        match (self.phase, verdict) {
            (Phase::Booting, ReplyOutcome::Done) => {
                self.messages_done += 1;
                if self.messages_done < self.plan.boot.len() {
                    self.go(now, Trigger::NextMessage);
                } else {
                    self.go(now, Trigger::Booted);
                }
            }
            (Phase::Booting, ReplyOutcome::Retry) => {
                self.send_again = Some(Deadline { at: now + RETRY_DELAY, why: "ask again" });
            }
            (Phase::Booting, ReplyOutcome::Rejected(said)) => {
                let name = &self.plan.names[self.hypervisor().0];
                let message = self.plan.boot.get(self.messages_done).map_or("boot", |m| m.purpose);
                let reason = format!("{name} refused to {message}: {said}");
                self.set_cause(EndedBy::StartFailed { reason });
                self.go(now, Trigger::BootRejected);
            }
            // The hypervisor's own end, if that is what it is, says more.
            (Phase::Booting, ReplyOutcome::Lost(what)) => {
                let name = &self.plan.names[self.hypervisor().0];
                let message = self.plan.boot.get(self.messages_done).map_or("boot", |m| m.purpose);
                let reason = format!("{name} did not {message}: {what}");
                self.dependency_lost(now, EndedBy::StartFailed { reason });
            }
            (Phase::ShutdownRequested, ReplyOutcome::Done | ReplyOutcome::Retry) => {
                self.send_again =
                    Some(Deadline { at: now + POWER_BUTTON_INTERVAL, why: "ask the guest again" });
            }
            // A guest that cannot be asked needs no grace to answer.
            (Phase::ShutdownRequested, ReplyOutcome::Rejected(_)) => self.phase_timeout(now),
            // Or it is off already: one that is asked again on its way out takes the connection
            // with it.
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
        let leaves = self.plan.crash_reporting == CrashReporting::EventThenExit;
        self.go(now, if leaves { Trigger::GuestPoweredOff } else { Trigger::GuestCrashed });
    }

    fn restarts_on_reboot(&self) -> bool {
        self.plan.on_reboot == RebootPolicy::Restart
    }

    /// Nobody but the guest itself tells that it fell.
    fn is_console_only(&self) -> bool {
        matches!(self.plan.crash_reporting, CrashReporting::ConsoleOnly { .. })
    }

    fn quit(&self) -> StopAction {
        match (&self.cause, &self.plan.crash_reporting) {
            (
                Some(EndedBy::GuestPanic | EndedBy::GuestReboot),
                CrashReporting::ConsoleOnly { power_off },
            ) => StopAction::Control(power_off.clone()),
            _ => self.plan.quit.clone(),
        }
    }

    /// What the hypervisor does next is anybody's guess: it may leave as after a power-off, or stay
    /// with a guest that does nothing.
    fn cpu_failed(&mut self, now: Instant) {
        let reason =
            format!("{} cannot go on with a virtual CPU", self.plan.names[self.hypervisor().0]);
        self.set_cause(match self.phase {
            Phase::Booting => EndedBy::StartFailed { reason },
            _ => EndedBy::HypervisorLost { reason },
        });
        self.go(now, Trigger::GuestCrashed);
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
            // A backend without events: a clean exit that nobody asked for is the guest's.
            _ if exit.code == Some(0) => EndedBy::GuestPowerOff,
            _ => EndedBy::HypervisorLost { reason: format!("{name} {exit}") },
        };
        self.set_cause(cause);
        self.exit = Some(exit);
        self.go(now, Trigger::HypervisorExited);
    }

    fn helper_exited(&mut self, now: Instant, id: ProcessId, exit: &Exit) {
        self.processes[id.0] = ProcessState::Exited;
        let reason = format!("{} {exit}", self.plan.names[id.0]);
        match self.phase {
            // One that fails so early has not left because the hypervisor did: it is why that one will.
            phase
                if phase == Phase::StartingHelpers || (phase < Phase::Running && exit.failed()) =>
            {
                self.set_cause(EndedBy::StartFailed { reason });
                self.go(now, Trigger::DependencyLost);
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
            let deadline = Deadline { at, why: "the hypervisor may be leaving too" };
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
            // The start may have been over before anybody was blamed.
            self.set_cause(match (self.phase, cause) {
                (Phase::Running | Phase::ShutdownRequested, EndedBy::StartFailed { reason }) => {
                    EndedBy::HypervisorLost { reason }
                }
                (_, cause) => cause,
            });
            self.go(now, Trigger::DependencyLost);
        }
        if due(&self.time_ends) {
            self.time_ends = None;
            self.time_limit_hit = true;
            self.grace = self.timing.grace;
            self.go(now, Trigger::TimeLimit);
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
                let (why, limit) = waited.unwrap_or(("it starts", Duration::ZERO));
                let why = match self.starting_helper() {
                    Some(name) => format!("{name} is up"),
                    None => why.into(),
                };
                let reason = format!("gave up after {limit:?}, waiting until {why}");
                self.set_cause(EndedBy::StartFailed { reason });
            }
            Phase::ShutdownRequested if self.time_limit_hit => self.set_cause(EndedBy::TimeLimit),
            Phase::ShutdownRequested => self.set_cause(EndedBy::Owner),
            Phase::KillingHypervisor | Phase::KillingHelpers => self.step(StopStep::GaveUp),
            _ => {}
        }
        self.go(now, Trigger::Timeout);
    }

    fn go(&mut self, now: Instant, trigger: Trigger) {
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
        self.time_ends = match (phase, self.plan.time_limit) {
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
        self.act(now, row.entry);
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

    fn act(&mut self, now: Instant, entry: EntryAction) {
        let hypervisor = self.hypervisor();
        match entry {
            EntryAction::Nothing => {}
            EntryAction::SpawnHelper => match self.next_helper() {
                Some(helper) => self.actions.push_back(Action::Spawn(helper)),
                None => self.go(now, Trigger::HelpersReady),
            },
            EntryAction::SpawnHypervisor => self.actions.push_back(Action::Spawn(hypervisor)),
            EntryAction::SendBoot if self.plan.boot.is_empty() => self.go(now, Trigger::Booted),
            EntryAction::SendBoot => self.send_boot_message(),
            EntryAction::RequestShutdown if self.plan.power_button.is_none() => {
                self.phase_timeout(now)
            }
            EntryAction::RequestShutdown => {
                self.step(StopStep::PowerButton);
                self.press_power_button();
            }
            EntryAction::Quit => {
                self.step(StopStep::Quit);
                self.actions.push_back(match self.quit() {
                    StopAction::Control(message) => Action::Control(message),
                    StopAction::Signal(signal) => Action::Signal(hypervisor, signal),
                });
            }
            EntryAction::KillHypervisor => {
                self.cancel_spawns();
                if self.processes[hypervisor.0] == ProcessState::Alive {
                    self.step(StopStep::Killed);
                    self.actions.push_back(Action::Signal(hypervisor, Signal::Kill));
                } else {
                    self.go(now, Trigger::HypervisorExited);
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

    /// A spawn that nobody has carried out yet need not be carried out any more.
    fn cancel_spawns(&mut self) {
        self.actions.retain(|action| !matches!(action, Action::Spawn(_) | Action::AwaitReady(_)));
    }

    fn check_all_exited(&mut self, now: Instant) {
        // In `KillingHelpers` a hypervisor that did not die of SIGKILL is waited for once more.
        if !self.processes.contains(&ProcessState::Alive) {
            self.go(now, Trigger::AllExited);
        }
    }

    fn step(&mut self, step: StopStep) {
        if !self.steps.contains(&step) {
            self.steps.push(step);
        }
    }
}

#[cfg(test)]
mod tests;
