//! [`Laws`]: what a schedule has seen of the lifecycle, the control channel and the report, and the laws
//! that it must obey.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use core::fmt::Write as _;
use core::hash::Hasher as _;

use super::hypervisor::{SentReply, name};
use super::trace::Digest;
use super::world::{HostState, Simulation, law};
use crate::backend::{ControlReply, GuestEvent};
use crate::console::{DRAIN_LIMIT, WRITE_QUEUE};
use crate::lifecycle::{EndedBy, Exit, Phase, StartError, StopReport, StopStep, VmStatus};
use crate::plan::{
    CrashReporting, LaunchPlan, Message, ProcessId, Protocol, Readiness, Signal, StopAction,
};
use crate::spec::RebootPolicy;
use crate::time::Instant;
use crate::vm::{Channel, LogRecord, Output, VmEvent};

/// What happened, as far as it can be the reason of an end.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) panic_text: bool,
    pub(super) restart_text: bool,
    pub(super) launch_failed: bool,
    pub(super) channel_lost: bool,
    powered_off: bool,
    reset: bool,
    panicked: bool,
    external_quit: bool,
    cpu_failed: bool,
    helper_exited: bool,
    exit: Option<Exit>,
    stopped: bool,
    killed: bool,
}

/// The reason that a report must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decisive {
    PowerOff,
    Reboot,
    Panic,
    HypervisorLost,
    Owner,
    OwnerOrTimeLimit,
}

/// What a schedule has seen.
#[derive(Debug)]
pub(super) struct Laws {
    pub(super) started: bool,
    pub(super) released: bool,
    pub(super) phase: Phase,
    pub(super) facts: Facts,
    /// The replies that the core has read and not logged yet.
    pub(super) replies: VecDeque<(String, SentReply)>,
    pub(super) running_at: Option<Instant>,
    pub(super) was_paused: bool,
    /// The requests of the owner to pause or resume the guest.
    pub(super) pauses: u32,
    /// The first cause that ends a running VM immediately.
    decisive: Option<Decisive>,
    launched: usize,
    /// Requests of the owner after which nothing may be launched.
    ends: bool,
    sent: BTreeMap<&'static str, u32>,
    replied: BTreeMap<&'static str, u32>,
    status: Option<VmStatus>,
    control_ready: bool,
    console_closed: bool,
    digest: Digest,
}

impl Default for Laws {
    fn default() -> Self {
        Self {
            started: false,
            released: false,
            phase: Phase::Created,
            facts: Facts::default(),
            replies: VecDeque::new(),
            running_at: None,
            was_paused: false,
            pauses: 0,
            decisive: None,
            launched: 0,
            ends: false,
            sent: BTreeMap::new(),
            replied: BTreeMap::new(),
            status: None,
            control_ready: false,
            console_closed: false,
            digest: Digest::new(),
        }
    }
}

impl Laws {
    /// The core reads an event of the guest in this phase.
    pub(super) fn note_event(&mut self, phase: Phase, event: GuestEvent, plan: &LaunchPlan) {
        let facts = &mut self.facts;
        let cause = match event {
            GuestEvent::PoweredOff => {
                facts.powered_off = true;
                Decisive::PowerOff
            }
            GuestEvent::Reset => {
                facts.reset = true;
                if plan.on_reboot == RebootPolicy::Restart {
                    return;
                }
                if facts.panic_text || facts.panicked { Decisive::Panic } else { Decisive::Reboot }
            }
            GuestEvent::Panicked => {
                facts.panicked = true;
                Decisive::Panic
            }
            GuestEvent::ExternalQuit => {
                facts.external_quit = true;
                Decisive::HypervisorLost
            }
            GuestEvent::CpuFailed => {
                facts.cpu_failed = true;
                Decisive::HypervisorLost
            }
            GuestEvent::Paused | GuestEvent::Resumed | GuestEvent::ConsoleOpened => return,
        };
        self.decide(phase, cause);
    }

    pub(super) fn note_refused_button(&mut self, phase: Phase) {
        if phase == Phase::ShutdownRequested {
            self.decide(phase, Decisive::OwnerOrTimeLimit);
        }
    }

    pub(super) fn note_exit(&mut self, phase: Phase, is_hypervisor: bool, exit: &Exit) {
        if !is_hypervisor {
            self.facts.helper_exited = true;
            return;
        }
        self.facts.exit = Some(exit.clone());
        let may_be_panic = self.facts.panic_text || self.facts.panicked;
        match exit.code {
            _ if may_be_panic => {}
            Some(0) => self.decide(phase, Decisive::PowerOff),
            _ => self.decide(phase, Decisive::HypervisorLost),
        }
        // Without a decision here, what comes later does not decide either.
        self.decide(phase, Decisive::Panic);
    }

    pub(super) fn note_stop(&mut self, phase: Phase) {
        self.facts.stopped = true;
        if matches!(phase, Phase::StartingHelpers | Phase::StartingHypervisor | Phase::Booting) {
            self.decisive.get_or_insert(Decisive::Owner);
            self.ends = true;
        }
    }

    pub(super) fn note_kill(&mut self, phase: Phase) {
        self.facts.killed = true;
        self.ends |= phase != Phase::Created;
        if matches!(phase, Phase::StartingHelpers | Phase::StartingHypervisor | Phase::Booting) {
            self.decisive.get_or_insert(Decisive::Owner);
        }
        self.decide(phase, Decisive::Owner);
    }

    fn decide(&mut self, phase: Phase, cause: Decisive) {
        if matches!(phase, Phase::Running | Phase::Paused | Phase::ShutdownRequested) {
            self.decisive.get_or_insert(cause);
        }
    }
}

impl Simulation<'_> {
    pub(super) fn check_output(&mut self, output: &Output) {
        law!(
            self,
            !self.laws.released || matches!(output, Output::Log(_)),
            "an output after the release: {output:?}"
        );
        match output {
            Output::Launch(id) => self.check_launch(*id),
            Output::Log(LogRecord::Sent(message)) => {
                *self.laws.sent.entry(name(message)).or_default() += 1;
            }
            Output::Log(LogRecord::Replied(message, reply)) => self.check_reply(message, reply),
            Output::Log(LogRecord::Status(VmStatus::Running)) => {
                self.laws.running_at.get_or_insert(self.now);
            }
            _ => {}
        }
    }

    /// When nothing is under way, the status of a VM is that of its guest.
    pub(super) fn check_pause(&mut self) {
        let times = |counts: &BTreeMap<&'static str, u32>| {
            [&self.plan.pause, &self.plan.resume].map(|message| counts.get(name(message)).copied())
        };
        let is_settled = times(&self.laws.sent) == times(&self.laws.replied)
            && self.control.inbound.is_empty()
            && self.events.inbound.is_empty()
            && self.stderr.iter().all(|link| link.inbound.is_empty())
            && !self.laws.facts.channel_lost
            && self.temper.failures == 0
            && self.hypervisor_is_alive();
        let phase = self.core.phase();
        if is_settled && matches!(phase, Phase::Running | Phase::Paused) {
            let paused = self.guest_is_paused;
            law!(self, (phase == Phase::Paused) == paused, "{phase:?}, paused is {paused}");
        }
    }

    fn check_launch(&mut self, id: ProcessId) {
        law!(self, id.0 == self.laws.launched, "{id} is launched out of turn");
        law!(self, !self.laws.ends, "{id} is launched after a kill");
        self.laws.launched += 1;
        let helper = id.0.checked_sub(1).map(|before| &self.processes[before]);
        let is_ready = helper.is_none_or(|helper| {
            let before = &self.plan.processes[id.0 - 1];
            helper.checks_left == 0 || before.ready == Readiness::Immediate
        });
        law!(self, is_ready, "{id} is launched before the helper is ready");
    }

    fn check_reply(&mut self, message: &Message, reply: &ControlReply) {
        let name = name(message);
        let replied = self.laws.replied.entry(name).or_default();
        *replied += 1;
        let (replied, sent) = (*replied, self.laws.sent.get(name).copied().unwrap_or(0));
        law!(self, replied <= sent, "{name} was sent {sent} times and answered {replied} times");
        if let ControlReply::Broken(_) = reply {
            let is_qmp = self.plan.control.protocol == Protocol::Qmp;
            law!(self, !is_qmp || !self.control.open, "{name} failed on a channel that is open");
            return;
        }
        let answer = self.laws.replies.pop_front();
        let is_counted = answer.as_ref().is_some_and(|(to, sent)| to == name && sent.is(reply));
        law!(self, is_counted, "{reply:?} is counted for {name}; the hypervisor sent {answer:?}");
    }

    pub(super) fn check_signal(&mut self, id: ProcessId, signal: Signal) {
        let vmm = &self.processes[self.hypervisor().0];
        let process = &self.processes[id.0];
        let is_alive = matches!(process.state, HostState::Alive | HostState::Dead(_));
        law!(self, is_alive, "{signal:?} to {id}, which is {:?}", process.state);
        let vmm_is_gone = matches!(vmm.state, HostState::NotLaunched | HostState::Reaped);
        law!(
            self,
            id == self.hypervisor() || vmm_is_gone || vmm.killed,
            "{signal:?} to {id} before the hypervisor has exited or was killed"
        );
    }

    pub(super) fn check_release(&mut self) {
        law!(self, !self.laws.released, "released twice");
        let status = self.core.status();
        law!(self, status.is_terminal(), "released in status {status:?}");
        for (id, process) in self.processes.iter().enumerate() {
            let is_gone = matches!(process.state, HostState::NotLaunched | HostState::Reaped);
            law!(self, is_gone || process.killed, "process {id} is left, {:?}", process.state);
        }
    }

    /// An event, in the order in which the owner takes them.
    pub(super) fn check_event(&mut self, event: &VmEvent) {
        let rank = |status: &VmStatus| match status {
            VmStatus::Created => 0,
            VmStatus::Starting => 1,
            VmStatus::Running | VmStatus::Paused => 2,
            VmStatus::Stopping => 3,
            VmStatus::Stopped { .. } | VmStatus::Failed { .. } => 4,
        };
        let last = self.laws.status.as_ref().map_or(0, rank);
        match event {
            VmEvent::Status(status) => {
                let resumes = rank(status) == 2 && last == 2;
                let is_new = self.laws.status.as_ref() != Some(status);
                let in_order = rank(status) > last || resumes && is_new;
                law!(self, in_order, "{status:?} after {:?}", self.laws.status);
                let was_running = last == 2 || *status != VmStatus::Paused;
                law!(self, was_running, "{status:?} after {:?}", self.laws.status);
                self.laws.was_paused |= *status == VmStatus::Paused;
                if status.is_terminal() {
                    let current = self.core.status();
                    law!(self, status == current, "{status:?} was announced, it is {current:?}");
                }
                self.laws.status = Some(status.clone());
            }
            VmEvent::ControlReady => {
                law!(self, last == 1 && !self.laws.control_ready, "ControlReady after {last}");
                self.laws.control_ready = true;
            }
            VmEvent::Rebooted => {
                law!(self, (1..=3).contains(&last), "Rebooted after {:?}", self.laws.status);
            }
            VmEvent::ConsoleClosed => {
                law!(self, !self.laws.console_closed, "the console is closed twice");
                law!(self, self.core.console().is_closed(), "the console is open");
                self.laws.console_closed = true;
            }
            VmEvent::ConsoleData | VmEvent::ConsoleWritable | VmEvent::Ended(_) => return,
            VmEvent::PauseRejected { .. } => {
                law!(self, self.laws.pauses > 0, "{event:?} without a request");
            }
            VmEvent::DiskError(_) | VmEvent::Agent(_) => {}
        }
        let _ = write!(self.laws.digest, "{event:?}");
    }

    /// After each step.
    pub(super) fn check_step(&mut self) {
        // At the release the driver has closed the channels.
        let released = self.laws.released;
        for channel in [Channel::Control, Channel::Console].into_iter().filter(|_| !released) {
            let link_is_open = self.link(channel).open;
            let was_closed = channel == Channel::Control || self.core.console().is_closed();
            let waiting = self.core.outgoing(channel).map_or(0, |bytes| bytes.len());
            law!(
                self,
                waiting == 0 || link_is_open || !was_closed,
                "{waiting} bytes wait for {channel:?}, which is closed"
            );
            let limit = WRITE_QUEUE + 4096 * (1 + self.owner.waits.len());
            law!(self, waiting <= limit, "{waiting} bytes wait for {channel:?}");
        }
        if let Some(terminal) = self.laws.status.as_ref().filter(|status| status.is_terminal()) {
            let status = self.core.status();
            law!(self, status == terminal, "{terminal:?} became {status:?}");
        }
        let scrollback = self.core.console().scrollback();
        let (end, passed) = (scrollback.end(), self.passed.len());
        law!(self, end == passed as u64, "{passed} bytes were passed, the scrollback has {end}");
        let (live, most) = (scrollback.since(0).len(), scrollback.capacity());
        law!(self, live <= most, "{live} bytes are kept, at most {most} may be");
        law!(self, most <= (1 << 20) + 12 * DRAIN_LIMIT, "a scrollback of {most} bytes");
        self.check_window();
    }

    // The report.

    pub(super) fn check_end(&mut self) {
        let Some(report) = self.core.report() else {
            self.trace.fail(format_args!("an end without a report"));
        };
        let status = self.core.status();
        law!(self, *status == report.status(), "{status:?} does not follow from {report:?}");
        let announced = self.laws.status.as_ref() == Some(status);
        law!(self, announced, "{status:?} was not announced, but {:?}", self.laws.status);
        law!(self, self.laws.console_closed || self.core.console().is_closed(), "an open console");
        self.check_reason(&report);
        self.check_ladder(&report);
        self.check_console_at_end();
    }

    fn check_reason(&self, report: &StopReport) {
        let facts = &self.laws.facts;
        let is_console_only =
            matches!(self.plan.crash_reporting, CrashReporting::ConsoleOnly { .. });
        let time_limit = self.plan.time_limit.zip(self.laws.running_at);
        let time_is_over = time_limit.is_some_and(|(limit, from)| self.now >= from + limit);
        let exit_code = facts.exit.as_ref().and_then(|exit| exit.code);
        let is_possible = match &report.ended_by {
            EndedBy::GuestPowerOff => facts.powered_off || exit_code == Some(0),
            EndedBy::GuestReboot => facts.reset || (is_console_only && facts.restart_text),
            EndedBy::GuestPanic => facts.panicked || facts.panic_text,
            EndedBy::Owner => facts.stopped || facts.killed,
            EndedBy::TimeLimit => time_is_over,
            EndedBy::StartFailed { error } => {
                let is_launch = matches!(error, StartError::Launch { .. });
                self.laws.running_at.is_none() && (facts.launch_failed || !is_launch)
            }
            EndedBy::HelperLost { .. } => facts.helper_exited,
            EndedBy::HypervisorLost { .. } => {
                let exit_is_bad = facts.exit.is_some() && exit_code != Some(0);
                exit_is_bad || facts.channel_lost || facts.external_quit || facts.cpu_failed
            }
        };
        law!(self, is_possible, "{report:?} does not follow from {facts:?}");
        law!(self, !report.time_limit || time_is_over, "a time limit that is not over");
        let is_expected = match self.laws.decisive {
            None => true,
            Some(Decisive::PowerOff) => report.ended_by == EndedBy::GuestPowerOff,
            Some(Decisive::Reboot) => report.ended_by == EndedBy::GuestReboot || facts.panic_text,
            // Whether a panic on the console explains an end depends on the plan and on the order.
            Some(Decisive::Panic) => true,
            Some(Decisive::HypervisorLost) => {
                matches!(report.ended_by, EndedBy::HypervisorLost { .. })
            }
            Some(Decisive::Owner) => report.ended_by == EndedBy::Owner,
            Some(Decisive::OwnerOrTimeLimit) => {
                matches!(report.ended_by, EndedBy::Owner | EndedBy::TimeLimit)
            }
        };
        let decisive = self.laws.decisive;
        law!(self, is_expected, "{report:?}, but {decisive:?} came first");
        law!(
            self,
            report.exit == facts.exit.clone().map(|exit| self.with_stderr(exit, report)),
            "the report has {:?}, the hypervisor's exit was {:?}",
            report.exit,
            facts.exit
        );
    }

    /// The exit with the text that the core added.
    fn with_stderr(&self, exit: Exit, report: &StopReport) -> Exit {
        let stderr_tail = report.exit.as_ref().map(|exit| exit.stderr_tail.clone());
        Exit { stderr_tail: stderr_tail.unwrap_or_default(), ..exit }
    }

    fn check_ladder(&self, report: &StopReport) {
        let vmm = &self.processes[self.hypervisor().0];
        let was_sent = |message: &Message| self.laws.sent.contains_key(name(message));
        let button = self.plan.power_button.as_ref().is_some_and(was_sent);
        let quit = match &self.plan.quit {
            StopAction::Control(message) => was_sent(message),
            StopAction::Signal(_) => vmm.terminated,
        };
        let cut = match &self.plan.crash_reporting {
            CrashReporting::ConsoleOnly { power_off } => was_sent(power_off),
            _ => false,
        };
        let is_reaped = vmm.state == HostState::Reaped;
        let left = self
            .processes
            .iter()
            .any(|process| matches!(process.state, HostState::Alive | HostState::Dead(_)));
        for (step, happened) in [
            (StopStep::PowerButton, button),
            (StopStep::Quit, quit || cut),
            (StopStep::Killed, vmm.killed),
            (StopStep::GaveUp, left),
        ] {
            let reported = report.steps.contains(&step);
            // A step is taken by then, even if an exit makes it needless before the driver takes it. A
            // process that exits between the last look and the release was given up all the same.
            let may_differ = reported && (step == StopStep::GaveUp || is_reaped);
            law!(
                self,
                reported == happened || may_differ,
                "{step:?} is {reported} in {report:?}, and {happened} in fact"
            );
        }
    }

    fn check_console_at_end(&mut self) {
        let scrollback = self.core.console().scrollback();
        let (end, passed) = (scrollback.end(), self.passed.len() as u64);
        law!(self, end == passed, "{passed} bytes were passed, the scrollback has {end}");
        self.end_owner();
    }

    /// A digest of what the owner sees, whatever the cuts are.
    pub(super) fn result_digest(&self, report: &StopReport) -> u64 {
        let mut digest = self.laws.digest;
        let _ = write!(digest, "{report:?}");
        digest.write(&self.passed);
        self.owner.digest(&mut digest);
        digest.finish()
    }
}
