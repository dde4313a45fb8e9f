//! [`Simulation`]: one schedule: what the processes, the guest, the network and the clock do.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::ScheduleOutcome;
use super::choices::{Chooser, Cuts};
use super::hypervisor::{Manner, Mark, SimHypervisor, SimLink, name};
use super::laws::Laws;
use super::owner::SimOwner;
use super::setup::{EventRoute, ScheduleBackend, Setup, Temper};
use super::trace::{Step, Trace};
use crate::backend::GuestEvent;
use crate::lifecycle::{Exit, StopStep, Timing};
use crate::plan::{CrashReporting, LaunchPlan, ProcessId, Protocol};
use crate::sim::{GuestSim, SimAction, SimulatedGuest};
use crate::spec::RebootPolicy;
use crate::time::{Deadline, Instant};
use crate::vm::{Channel, VmCore};

/// The steps of a schedule from the bytes of a fuzzer.
const MAX_STEPS: usize = 3000;

/// How many steps follow the release.
const STEPS_AFTER_THE_END: usize = 4;

/// What may wait in a stream before the process that writes blocks.
const STREAM_BUFFER: usize = 16 * 1024;

/// A terminal drops what a line has beyond this.
const TERMINAL_LINE: usize = 4096;

/// Fails the schedule if a condition does not hold.
macro_rules! law {
    ($sim:expr, $holds:expr, $($text:tt)+) => {
        if !$holds {
            $sim.trace.fail(format_args!($($text)+));
        }
    };
}
pub(super) use law;

/// A process, as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HostState {
    NotLaunched,
    Alive,
    /// It has exited, and the driver has not reaped it.
    Dead(Exit),
    Reaped,
}

/// A process of the plan.
#[derive(Debug, Clone)]
pub(super) struct HostProcess {
    pub(super) state: HostState,
    pub(super) killed: bool,
    pub(super) terminated: bool,
    /// How many checks find no socket.
    pub(super) checks_left: usize,
}

/// One schedule.
pub(super) struct Simulation<'a> {
    pub(super) core: VmCore,
    pub(super) plan: Arc<LaunchPlan>,
    pub(super) temper: Temper,
    pub(super) choose: Chooser<'a>,
    pub(super) cuts: Cuts,
    pub(super) trace: &'a mut Trace,
    pub(super) now: Instant,
    pub(super) processes: Vec<HostProcess>,
    pub(super) vmm: SimHypervisor,
    pub(super) control: SimLink,
    pub(super) console: SimLink,
    pub(super) events: SimLink,
    pub(super) stderr: Vec<SimLink>,
    guest: Box<dyn GuestSim>,
    guest_is_on: bool,
    /// The vCPUs do not run.
    pub(super) guest_is_paused: bool,
    /// Hypervisors that exit by themselves after a crash do so soon.
    exits_soon: bool,
    /// All console output that the core took.
    pub(super) passed: Vec<u8>,
    /// The guest printed something that is not in its script.
    pub(super) noise: u32,
    pub(super) owner: SimOwner,
    pub(super) laws: Laws,
    steps_left: usize,
}

impl<'a> Simulation<'a> {
    pub(super) fn new(
        mut choose: Chooser<'a>,
        cuts: Cuts,
        trace: &'a mut Trace,
        keeps_results: bool,
    ) -> Self {
        let setup = Setup::choose(&mut choose);
        let console = setup.console();
        let plan = Arc::new(setup.plan);
        let backend = Arc::new(ScheduleBackend::default());
        let core = VmCore::new(Arc::clone(&plan), backend, console, Timing::default());
        let processes = plan.processes.iter().map(|_| HostProcess {
            state: HostState::NotLaunched,
            killed: false,
            terminated: false,
            checks_left: choose.one_of(&[0, 0, 1, 3, 60]),
        });
        let processes: Vec<HostProcess> = processes.collect();
        let steps_left = match choose {
            Chooser::Bytes { .. } => MAX_STEPS,
            Chooser::Random { .. } => 20 + choose.below(100),
        };
        let mut vmm = SimHypervisor::new(plan.control.protocol, setup.route);
        let refusals = choose.one_of(&[0, 1, 2, 5]);
        let is_polled = plan.is_polled(plan.hypervisor());
        vmm.refusals_left = if is_polled { refusals } else { 0 };
        Self {
            core,
            temper: setup.temper,
            choose,
            cuts,
            trace,
            now: Instant::from_micros(1_000_000),
            stderr: processes.iter().map(|_| SimLink::default()).collect(),
            processes,
            vmm,
            control: SimLink::default(),
            console: SimLink::default(),
            events: SimLink::default(),
            guest: SimulatedGuest::from(setup.guest).simulate(),
            guest_is_on: false,
            guest_is_paused: false,
            exits_soon: false,
            passed: Vec::new(),
            noise: 0,
            owner: SimOwner::new(keeps_results),
            laws: Laws::default(),
            plan,
            steps_left,
        }
    }

    /// Runs the schedule, and then kills the VM.
    pub(super) fn run(mut self) -> ScheduleOutcome {
        if self.choose.below(8) < 7 {
            self.start();
        }
        while self.steps_left > 0 && !self.choose.ran_out() {
            self.steps_left -= 1;
            self.step();
            let is_lazy = self.choose.chance(self.temper.laziness);
            if !is_lazy {
                self.pump();
            }
            if self.choose.chance(self.temper.brisk) {
                self.settle();
            }
            if self.temper.eager_owner {
                self.poll_events();
            }
            self.check_step();
            if self.laws.released {
                self.steps_left = self.steps_left.min(STEPS_AFTER_THE_END);
            }
        }
        self.end();
        self.outcome()
    }

    pub(super) fn hypervisor(&self) -> ProcessId {
        self.plan.hypervisor()
    }

    pub(super) fn hypervisor_is_alive(&self) -> bool {
        self.processes[self.hypervisor().0].state == HostState::Alive
    }

    pub(super) fn add_step(&mut self, step: Step) {
        self.trace.add(self.now, step);
    }

    fn step(&mut self) {
        if self.choose.chance(self.temper.failures) {
            return self.fail_something();
        }
        if self.choose.chance(self.temper.noise) {
            return self.print_noise();
        }
        match self.choose.below(64) {
            0..=9 => {
                let channel = self.some_channel();
                let bytes = 1 + self.choose.below(1024);
                self.deliver(channel, bytes);
            }
            10..=15 => {
                let channel = self.choose.one_of(&[Channel::Control, Channel::Console]);
                let bytes = 1 + self.choose.below(256);
                self.flush(channel, bytes);
            }
            16..=23 => self.answer(),
            24..=31 => self.run_guest(4),
            32..=41 => self.pass_time(),
            42..=58 => self.act_as_owner(),
            59..=60 => self.run_processes(),
            61 => self.request(),
            62 => {
                let id = ProcessId(self.choose.below(self.processes.len()));
                let text = self.choose.one_of(&["warning: x\n", "half a line", "\n", "\u{fc}\r\n"]);
                self.stderr[id.0].write(text.as_bytes());
            }
            _ => self.settle(),
        }
    }

    /// The driver types into the guest's console.
    pub(super) fn type_into_guest(&mut self, bytes: &[u8]) {
        if self.guest_is_on {
            let bytes = &bytes[..bytes.len().min(TERMINAL_LINE)];
            self.guest.handle_input(self.now, bytes);
        }
    }

    fn some_channel(&mut self) -> Channel {
        let id = ProcessId(self.choose.below(self.processes.len()));
        self.choose.one_of(&[
            Channel::Control,
            Channel::Control,
            Channel::Console,
            Channel::Console,
            Channel::Events,
            Channel::Stderr(id),
        ])
    }

    /// Moves all bytes, lets the hypervisor, its guest and the other processes act, until there is
    /// nothing left to do at this time.
    pub(super) fn settle(&mut self) {
        for _ in 0..30 {
            let before = self.trace.steps();
            self.flush(Channel::Control, usize::MAX);
            self.flush(Channel::Console, usize::MAX);
            while !self.vmm.commands.is_empty() && self.hypervisor_is_alive() {
                let commands = self.vmm.commands.len();
                self.answer();
                if self.vmm.commands.len() == commands {
                    break;
                }
            }
            self.run_guest(16);
            self.deliver_all();
            self.run_processes();
            self.pump();
            if self.trace.steps() == before {
                self.check_pause();
                break;
            }
        }
    }

    /// Time passes: up to the next deadline, beyond it, or by an hour.
    fn pass_time(&mut self) {
        let deadline = Deadline::earliest(self.core.poll_timeout(), self.guest.poll_timeout());
        let due = deadline.map_or(self.now, |deadline| deadline.at.max(self.now));
        self.now = match self.choose.below(16) {
            0..=8 => due,
            9 | 10 => due + self.choose.span(Duration::from_millis(1)),
            11 | 12 => self.now + self.choose.span(Duration::from_micros(50)),
            13 | 14 => self.now + self.choose.span(Duration::from_millis(4)),
            _ => {
                let jump = self.choose.one_of(&[1, 6, 11, 3600]);
                self.now + Duration::from_secs(jump)
            }
        };
    }

    // The hypervisor.

    /// Answers a command, and does what it says.
    fn answer(&mut self) {
        if self.vmm.commands.is_empty() || !self.hypervisor_is_alive() {
            return;
        }
        if self.choose.chance(self.temper.deafness) {
            return;
        }
        let manner = if self.choose.chance(self.temper.refusals) {
            self.choose.one_of(&[Manner::Refuse, Manner::RefuseWithoutId, Manner::NotYet])
        } else {
            Manner::Accept
        };
        let place = match self.choose.below(4) {
            0 => self.choose.below(self.vmm.commands.len()),
            _ => 0,
        };
        if manner == Manner::Accept {
            self.obey_pause(place);
        }
        let command = self.vmm.answer(&mut self.control, place, manner);
        self.add_step(Step::Answered(manner == Manner::Accept));
        let is_button = self.plan.power_button.as_ref().is_some_and(|m| name(m) == command);
        if is_button && matches!(manner, Manner::Refuse | Manner::RefuseWithoutId) {
            self.control.mark(Mark::ButtonRefused);
        }
        if self.plan.control.protocol == Protocol::Http && self.choose.below(2) == 0 {
            self.control.ended = true;
        }
        if manner == Manner::Accept {
            self.obey(&command, is_button);
        }
    }

    /// Pauses or resumes the guest, if that is the command. Its event precedes the reply.
    fn obey_pause(&mut self, place: usize) {
        let Some(command) = self.vmm.commands.get(place) else { return };
        if command.execute == name(&self.plan.pause) {
            self.set_paused(true);
        } else if command.execute == name(&self.plan.resume) {
            self.set_paused(false);
        }
    }

    /// A hypervisor with events on the control channel reports the change.
    fn set_paused(&mut self, paused: bool) {
        if self.guest_is_paused == paused {
            return;
        }
        self.guest_is_paused = paused;
        if self.vmm.route == EventRoute::Control {
            self.report(if paused { GuestEvent::Paused } else { GuestEvent::Resumed });
        }
    }

    fn obey(&mut self, command: &str, is_button: bool) {
        if self.plan.boot.last().is_some_and(|message| name(message) == command) {
            self.turn_on();
        } else if is_button {
            if self.guest_is_on {
                self.guest.handle_power_button(self.now);
            }
        } else if ["quit", "cut", "/vmm.shutdown", "/vm.cut"].contains(&command)
            && !self.choose.chance(self.temper.deafness)
        {
            self.die(self.hypervisor(), Exit::with_code(0));
        }
    }

    fn turn_on(&mut self) {
        if !self.guest_is_on {
            self.guest_is_on = true;
            self.guest.begin(self.now);
        }
    }

    /// A process that was launched runs.
    pub(super) fn launch(&mut self, id: ProcessId) {
        self.processes[id.0].state = HostState::Alive;
        self.stderr[id.0] = SimLink::opened();
        if id == self.hypervisor() && self.plan.boot.is_empty() {
            self.turn_on();
        }
    }

    /// A process ends.
    pub(super) fn die(&mut self, id: ProcessId, exit: Exit) {
        if self.processes[id.0].state != HostState::Alive {
            return;
        }
        self.add_step(Step::Died(id, exit.code));
        self.processes[id.0].state = HostState::Dead(exit);
        self.stderr[id.0].ended = true;
        if id == self.hypervisor() {
            self.guest_is_on = false;
            self.control.ended = true;
            self.console.ended = true;
            self.events.ended = true;
        }
    }

    /// Signals take effect, helpers exit after the hypervisor, and exits are noticed.
    pub(super) fn run_processes(&mut self) {
        for id in (0..self.processes.len()).rev().map(ProcessId) {
            if self.processes[id.0].state == HostState::Alive {
                self.run_process(id);
            }
            if matches!(self.processes[id.0].state, HostState::Dead(_)) && self.choose.below(8) > 0
            {
                self.reap(id);
            }
        }
    }

    fn run_process(&mut self, id: ProcessId) {
        let is_hypervisor = id == self.hypervisor();
        let HostProcess { killed, terminated, .. } = self.processes[id.0];
        let follows = !is_hypervisor
            && self.plan.process(id).ends_with_hypervisor
            && !matches!(
                self.processes[self.hypervisor().0].state,
                HostState::Alive | HostState::NotLaunched
            );
        let wants_exit = killed || terminated || follows || (is_hypervisor && self.exits_soon);
        if wants_exit && !self.choose.chance(self.temper.deafness) {
            let by_kill = Exit::new(None, Some(9));
            self.die(id, if killed { by_kill } else { Exit::with_code(0) });
        }
    }

    // The guest.

    /// Lets the guest act, at most this many times.
    fn run_guest(&mut self, actions: usize) {
        for _ in 0..actions {
            let blocks = self.guest_is_paused || self.console.inbound.len() > STREAM_BUFFER;
            if !self.guest_is_on || blocks {
                return;
            }
            match self.guest.poll_action(self.now) {
                Some(SimAction::Output(bytes)) => self.print(&bytes),
                Some(SimAction::Event(event)) => self.report(event),
                Some(SimAction::Exit(exit)) => self.die(self.hypervisor(), exit),
                None => return,
            }
        }
    }

    pub(super) fn print(&mut self, bytes: &[u8]) {
        self.add_step(Step::Printed(bytes.len()));
        let has = |text: &[u8]| memchr::memmem::find(bytes, text).is_some();
        self.laws.facts.panic_text |= has(b"Kernel panic");
        self.laws.facts.restart_text |= has(b"Restarting system");
        self.console.write(bytes);
    }

    /// The hypervisor reports an event, if it reports any.
    fn report(&mut self, event: GuestEvent) {
        let is_pause = matches!(event, GuestEvent::Paused | GuestEvent::Resumed);
        if matches!(self.plan.crash_reporting, CrashReporting::ConsoleOnly { .. }) && !is_pause {
            if event == GuestEvent::Reset {
                self.print(b"[    9.500000] reboot: Restarting system\r\n");
            }
            return;
        }
        self.add_step(Step::SentEvent(event.into()));
        let stderr = &mut self.stderr[self.plan.hypervisor().0];
        self.vmm.send_event(&mut self.control, &mut self.events, stderr, event);
        let ends = match event {
            GuestEvent::Reset => self.plan.on_reboot == RebootPolicy::End,
            GuestEvent::Panicked => true,
            _ => false,
        };
        self.exits_soon |= ends && self.plan.crash_reporting == CrashReporting::EventThenExit;
    }

    /// The guest prints something that looks like what a wait expects, or like nothing.
    fn print_noise(&mut self) {
        if !self.guest_is_on || self.console.inbound.len() > STREAM_BUFFER {
            return;
        }
        self.noise += 1;
        let texts: [&[u8]; 16] = [
            b"login: ",
            b"Password: ",
            b"# ",
            b"\r\n$ ",
            b"[    1.234567] usb 1-1: new device\r\n",
            b"Kernel panic - not syncing: noise\r\n",
            b"[    2.5] reboot: Restarting system\r\n",
            b"Login incorrect\r\n",
            b"You are in emergency mode.\r\n",
            b"\xff\xfe\x00\x1b[2J\x07",
            b"\xf0\x9f",
            b"capsa:end:0000000000000001:0;\r\n",
            b"capsa:begin:",
            b"Linux version 6.1.0\r\n",
            b"\r\r\n\n",
            b"x",
        ];
        let text = self.choose.one_of(&texts);
        let times = self.choose.one_of(&[1, 1, 1, 2, 300]);
        for _ in 0..times {
            self.print(text);
        }
    }

    /// Something fails, or happens without a reason.
    fn fail_something(&mut self) {
        let vmm = self.hypervisor();
        if !self.hypervisor_is_alive() {
            return self.fail_helper();
        }
        let signal = |signal| Exit::new(None, Some(signal));
        match self.choose.below(20) {
            0 => {
                self.stderr[vmm.0].write(b"fatal: no\n");
                self.die(vmm, Exit::with_code(1));
            }
            1 => self.die(vmm, signal(11)),
            2 => self.die(vmm, Exit::with_code(0)),
            3 | 4 => self.fail_helper(),
            5 => self.lose(Channel::Control),
            6 => self.lose(Channel::Console),
            7 => self.control.ended = true,
            8 => self.console.ended = true,
            9 => self.send_garbage(Channel::Control),
            10 => self.send_garbage(Channel::Events),
            11 => self.vmm.answer_nothing(&mut self.control),
            12 => self.report(GuestEvent::PoweredOff),
            13 => self.report(GuestEvent::Reset),
            14 => self.report(GuestEvent::Panicked),
            15 => self.report(GuestEvent::ExternalQuit),
            16 => self.report(GuestEvent::CpuFailed),
            17 => self.vmm.has_dropped |= self.vmm.commands.pop_front().is_some(),
            // A disk error.
            18 if self.vmm.route == EventRoute::Control && self.guest_is_on => {
                self.set_paused(true)
            }
            18 => self.run_processes(),
            _ => self.exits_soon = true,
        }
    }

    fn fail_helper(&mut self) {
        let id = ProcessId(self.choose.below(self.processes.len()));
        if id != self.hypervisor() {
            let code = self.choose.one_of(&[0, 1]);
            self.die(id, Exit::with_code(code));
        }
    }

    fn send_garbage(&mut self, channel: Channel) {
        self.laws.facts.channel_lost = true;
        let link = match channel {
            Channel::Control => &mut self.control,
            _ => &mut self.events,
        };
        link.write(b"nonsense\r\n\r\n");
        link.mark(Mark::Garbage);
        self.add_step(Step::SentGarbage(channel));
    }

    // The end.

    fn outcome(self) -> ScheduleOutcome {
        let report = self.core.report().expect("the VM has ended");
        let result = self.result_digest(&report);
        ScheduleOutcome {
            was_running: self.laws.running_at.is_some(),
            was_paused: self.laws.was_paused,
            gave_up: report.steps.contains(&StopStep::GaveUp),
            is_http: self.plan.control.protocol == Protocol::Http,
            waits_met: self.owner.met,
            waits_failed: self.owner.failed,
            waits_cancelled: self.owner.cancelled,
            console_bytes: self.passed.len() as u64,
            has_dropped: self.core.console().scrollback().dropped() > 0,
            ended_by: report.ended_by,
            result,
        }
    }
}
