//! Runs one machine: carries out what the lifecycle machine wants, tells it what happened.
//!
//! Everything hangs on one descriptor and one deadline:
//!
//! 1. Wait until the descriptor ([`AsFd`]) is readable or [`Supervisor::next_timeout`] has passed.
//! 2. Call [`Supervisor::on_ready`]. Its work is bounded; calling it for nothing is harmless.
//! 3. Take events from [`Supervisor::poll_event`] until there are none.
//! 4. Ask `next_timeout` again before waiting: any call may have made it shorter. When a budget was
//!    spent it is zero, because an edge-triggered loop would not report the rest.
//!
//! There is no policy here. An `if` that decides something about a machine's life belongs in
//! [`capsa_proto::lifecycle`].

mod channels;
mod launch;
mod options;
mod simulation;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use capsa_proto::backend::HypervisorBackend;
use capsa_proto::lifecycle::{Action, Input, InvalidState, Lifecycle, StopReport, VmStatus};
use capsa_proto::plan::{LaunchPlan, ProcessId};
use capsa_proto::spec::ConsoleMode;
use capsa_proto::time::{Deadline, Instant};

use crate::clock::MonotonicClock;
use crate::console::{self, Console, Ended, ReaderId, WaitId, WaitKind};
use crate::control::ControlClient;
use crate::event_pipe::EventPipe;
use crate::process::{ChildProcess, ProcessKeys};
use crate::run_dir::RunDir;
use crate::sys::{Poll, ReadyEvents};
use crate::vsock::PortListener;
use launch::ReadinessCheck;
use options::Budgets;
use simulation::GuestSimulation;

pub use options::Options;

const CONTROL: usize = 0;
const CONSOLE: usize = 1;
const EVENTS: usize = 2;

const fn keys(id: ProcessId) -> ProcessKeys {
    ProcessKeys { exit: 3 + 2 * id.0, stderr: 4 + 2 * id.0 }
}

/// For how many whole budgets the exit of a hypervisor waits because there is more of its last words
/// to read. What was said before an exit is in the system's buffers, which this exceeds by far; more
/// than that comes from a child it left, which may go on for ever.
const MAX_EXIT_DELAYS: usize = 16;

/// How late a call may be before that is worth a word. A loop that is busy is late by less.
const LATE_CALL: Duration = Duration::from_secs(1);

/// What happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmEvent {
    /// Its status changed.
    Status(VmStatus),
    /// The hypervisor answers on its control channel. The guest is told to go next.
    ControlReady,
    /// The guest booted again.
    Rebooted,
    /// The console has output that was not there before. Said once until it is taken.
    ConsoleData,
    /// The console takes input again.
    ConsoleWritable,
    /// The console will say no more.
    ConsoleClosed,
    /// A conversation is over: take it with [`Supervisor::take_ended`].
    Ended(WaitId),
}

/// One machine and everything it needs.
#[derive(Debug)]
pub struct Supervisor {
    plan: LaunchPlan,
    backend: Arc<dyn HypervisorBackend>,
    lifecycle: Lifecycle,
    clock: MonotonicClock,
    poll: Poll,
    processes: Vec<Option<ChildProcess>>,
    control: ControlClient,
    console: Console,
    event_pipe: Option<EventPipe>,
    readiness: Option<ReadinessCheck>,
    run_dir: Option<RunDir>,
    events: VecDeque<VmEvent>,
    /// A budget was spent: there is more to do although nothing will be reported again.
    more: bool,
    /// Bytes that any call may read, and what this one still may.
    read_budget: usize,
    budgets: Budgets,
    /// How often the hypervisor's exit has waited for its last words.
    exit_delays: usize,
    /// It waits now.
    exit_delayed: bool,
    /// It was started, and nobody has called since.
    never_driven: bool,
    /// Who plays the guest, where no hypervisor runs it.
    simulation: Option<GuestSimulation>,
    ready: ReadyEvents,
    span: tracing::Span,
}

impl Supervisor {
    /// A machine that will follow `plan`. Nothing is started.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left for a poller.
    pub fn new(
        plan: LaunchPlan,
        backend: Arc<dyn HypervisorBackend>,
        options: Options,
    ) -> io::Result<Self> {
        let name = Path::new(plan.run_dir.as_str()).file_name().unwrap_or_default();
        let span = tracing::info_span!("vm", id = %name.display(), backend = plan.backend);
        // A budget of nothing would be spent before it is begun, for ever.
        let read_budget = options.read_budget.max(1);
        Ok(Self {
            lifecycle: Lifecycle::new(&plan, options.timing),
            backend,
            clock: MonotonicClock::new(),
            poll: Poll::new()?,
            processes: plan.processes.iter().map(|_| None).collect(),
            control: ControlClient::new(plan.control.clone(), CONTROL),
            console: match plan.console.mode() {
                ConsoleMode::Disabled => Console::none(),
                _ => Console::new(options.scrollback, options.overflow),
            },
            event_pipe: None,
            readiness: None,
            run_dir: None,
            events: VecDeque::new(),
            more: false,
            read_budget,
            budgets: Budgets::at_most(read_budget),
            exit_delays: 0,
            exit_delayed: false,
            never_driven: false,
            simulation: None,
            ready: ReadyEvents::new(),
            plan,
            span,
        })
    }

    /// Wants it to run. The spawning happens in [`Supervisor::on_ready`].
    ///
    /// # Errors
    ///
    /// When it was started before.
    pub fn start(&mut self) -> Result<(), InvalidState> {
        self.request(Input::Start)?;
        self.never_driven = true;
        Ok(())
    }

    /// Wants the guest to power off, and its power cut after `grace`.
    ///
    /// # Errors
    ///
    /// When it was never started.
    pub fn stop(&mut self, grace: Duration) -> Result<(), InvalidState> {
        self.request(Input::Stop { grace })
    }

    /// Wants it gone.
    ///
    /// # Errors
    ///
    /// When it was never started.
    pub fn kill(&mut self) -> Result<(), InvalidState> {
        self.request(Input::Kill)
    }

    fn request(&mut self, input: Input) -> Result<(), InvalidState> {
        self.lifecycle.handle_input(self.clock.now(), input)
    }

    /// Its status.
    pub fn status(&self) -> &VmStatus {
        self.lifecycle.status()
    }

    /// How it ended, once it has.
    pub fn report(&self) -> Option<StopReport> {
        self.lifecycle.report()
    }

    /// What it follows.
    pub fn plan(&self) -> &LaunchPlan {
        &self.plan
    }

    /// The hypervisor's process id while it runs.
    pub fn hypervisor_pid(&self) -> Option<u32> {
        self.processes.last()?.as_ref().map(ChildProcess::pid)
    }

    /// Its console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Its console, to read and write.
    pub fn console_mut(&mut self) -> &mut Console {
        &mut self.console
    }

    /// Begins a conversation with the console. [`VmEvent::Ended`] says when it is over, also when
    /// that is at once. `make` gets the present time, which conversations count from.
    pub fn begin(&mut self, reader: ReaderId, make: impl FnOnce(Instant) -> WaitKind) -> WaitId {
        let Ok(id) = self.try_begin(reader, |now| Ok::<_, Infallible>(make(now)));
        id
    }

    /// As [`Supervisor::begin`], where making the conversation can fail.
    ///
    /// # Errors
    ///
    /// Those of `make`; then nothing is begun.
    pub fn try_begin<E>(
        &mut self,
        reader: ReaderId,
        make: impl FnOnce(Instant) -> Result<WaitKind, E>,
    ) -> Result<WaitId, E> {
        let now = self.clock.now();
        let (id, over) = self.console.begin(now, reader, make(now)?);
        if over {
            self.events.push_back(VmEvent::Ended(id));
        }
        Ok(id)
    }

    /// Listens to what the guest says on this port of the host. `None` when the machine does not serve
    /// it, or has ended. It may come before the start: the run directory is made for it.
    ///
    /// # Errors
    ///
    /// `AddrInUse` when there is a listener already, and when the run directory cannot be made.
    pub fn vsock_listen(&mut self, port: u32) -> io::Result<Option<PortListener>> {
        let socket = self.plan.vsock.as_ref().and_then(|vsock| vsock.listener(port));
        let Some(socket) = socket.filter(|_| !self.status().is_terminal()) else {
            return Ok(None);
        };
        self.make_run_dir()?;
        PortListener::bind(&socket).map(Some)
    }

    /// Nobody wants it any more: kills what runs without waiting for its end, and takes the run
    /// directory away. Whoever goes on calling [`Supervisor::on_ready`] reaps.
    pub fn abandon(&mut self) {
        if self.status().is_alive() {
            let _ = self.kill();
            self.act();
        }
        self.run_dir = None;
    }

    /// Takes what a conversation that streams brought since this was called last.
    pub fn take_output(&mut self, id: WaitId) -> Vec<u8> {
        let (bytes, over) = self.console.take_output(self.clock.now(), id);
        if over {
            self.events.push_back(VmEvent::Ended(id));
        }
        bytes
    }

    /// Takes the outcome of a conversation that is over.
    pub fn take_ended(&mut self, id: WaitId) -> Option<Ended> {
        self.console.take_ended(id)
    }

    /// How long to wait for the descriptor at most. `None`: only the descriptor matters. Zero:
    /// call [`Supervisor::on_ready`] now.
    pub fn next_timeout(&self) -> Option<Duration> {
        if self.more || !self.events.is_empty() || self.poll.has_interest_changed() {
            return Some(Duration::ZERO);
        }
        self.deadline().map(|deadline| self.clock.until(deadline))
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<VmEvent> {
        self.events.pop_front()
    }

    /// Does what there is to do, with bounded work: at most
    /// [`READ_BUDGET`](crate::console::READ_BUDGET) bytes of console output, 64 KiB of control
    /// traffic, 64 KiB of events, 64 KiB of standard error per process; of each no more than
    /// [`Options::read_budget`].
    ///
    /// # Errors
    ///
    /// In a forked copy of the program, and when the poller itself fails. Everything else that goes
    /// wrong is the machine's, and shows in its status.
    pub fn on_ready(&mut self) -> io::Result<()> {
        let span = self.span.clone();
        let _entered = span.enter();
        self.warn_if_late();
        self.more = false;
        self.exit_delayed = false;
        self.budgets = Budgets::at_most(self.read_budget);
        for process in self.processes.iter_mut().flatten() {
            process.allow(self.budgets.stderr);
        }
        self.poll.wait(Some(Duration::ZERO), &mut self.ready)?;

        // What was said comes before who left: an exit is explained by the words before it.
        if self.ready.has(CONTROL) {
            self.control_ready();
        }
        if self.ready.has(EVENTS) {
            self.events_ready();
        }
        if self.ready.has(CONSOLE) {
            self.console_ready();
        }
        self.run_simulation();
        for n in 0..self.processes.len() {
            if self.ready.has(keys(ProcessId(n)).stderr) {
                self.stderr_ready(ProcessId(n));
            }
        }
        // The hypervisor before its helpers, which end because it does.
        for n in (0..self.processes.len()).rev() {
            if self.ready.has(keys(ProcessId(n)).exit) && !self.is_simulated() {
                self.exit_ready(ProcessId(n));
            }
        }
        self.handle_timeouts();
        self.act();
        Ok(())
    }

    fn deadline(&self) -> Option<Deadline> {
        let readiness = self.readiness.map(|a| Deadline { at: a.next, why: "look for its socket" });
        let simulation = self.simulation_timeout();
        [self.lifecycle.poll_timeout(), readiness, self.console.poll_timeout(), simulation]
            .into_iter()
            .fold(None, Deadline::earliest)
    }

    fn input(&mut self, input: Input) {
        tracing::trace!(?input, "input");
        // Only wishes are ever refused.
        let _ = self.lifecycle.handle_input(self.clock.now(), input);
    }

    fn console_ready(&mut self) {
        let mut ended = Vec::new();
        let activity =
            self.console.on_ready(self.clock.now(), &mut self.budgets.console, &mut ended);
        self.more |= activity.more;
        if activity.data {
            self.push_event_once(VmEvent::ConsoleData);
        }
        if activity.writable {
            self.push_event_once(VmEvent::ConsoleWritable);
        }
        if activity.closed {
            self.events.push_back(VmEvent::ConsoleClosed);
        }
        self.events.extend(ended.into_iter().map(VmEvent::Ended));
        if activity.panic {
            self.input(Input::GuestPanicked { certain: false });
        }
    }

    fn push_event_once(&mut self, event: VmEvent) {
        if !self.events.contains(&event) {
            self.events.push_back(event);
        }
    }

    fn exit_ready(&mut self, id: ProcessId) {
        if id == self.plan.hypervisor() {
            // Its last words, on every channel. While there is more to read, its exit waits: the
            // descriptor stays readable.
            self.control_ready();
            self.events_ready();
            self.console_ready();
            self.stderr_ready(id);
            self.exit_delayed = self.must_delay_exit();
            if self.exit_delayed {
                return;
            }
        }
        let Some(process) = &mut self.processes[id.0] else { return };
        if let Some(exit) = process.try_reap() {
            tracing::info!(process = %self.plan.process(id).name, %exit, "exited");
            self.processes[id.0] = None;
            self.input(Input::Exited(id, exit));
        }
    }

    /// Whether an exit has to wait, because there may be more that was said before it.
    fn must_delay_exit(&mut self) -> bool {
        let calls = MAX_EXIT_DELAYS * console::READ_BUDGET.div_ceil(self.read_budget);
        let waits = self.more && self.exit_delays < calls;
        self.exit_delays += usize::from(waits);
        waits
    }

    /// A caller who forgot the deadline, or to call at all, can see that in the log.
    fn warn_if_late(&mut self) {
        self.never_driven = false;
        let Some(deadline) = self.lifecycle.poll_timeout().filter(|d| d.at > Instant::ZERO) else {
            return;
        };
        let late = self.clock.now().since(deadline.at);
        if late > LATE_CALL {
            let why = deadline.why;
            tracing::warn!(?late, why, "called long after its deadline: is next_timeout asked?");
        }
    }

    fn handle_timeouts(&mut self) {
        let now = self.clock.now();
        if self.readiness.is_some_and(|a| a.next <= now) {
            self.check_readiness();
        }
        // Nothing is late while we alone hold up the news of the hypervisor's end.
        if !self.exit_delayed && self.lifecycle.poll_timeout().is_some_and(|d| d.at <= now) {
            self.input(Input::Timeout);
        }
        if self.console.poll_timeout().is_some_and(|d| d.at <= now) {
            let mut ended = Vec::new();
            self.console.on_time(now, &mut ended);
            if let Some(word) = self.console.last_word(now) {
                self.input(Input::GuestPrintedLast(word));
            }
            self.events.extend(ended.into_iter().map(VmEvent::Ended));
        }
    }

    /// Carries out every action. The machine's own bounds make this end.
    fn act(&mut self) {
        if !self.poll.is_same_process() {
            return;
        }
        while let Some(action) = self.lifecycle.poll_action() {
            match action {
                Action::Spawn(id) => {
                    let input = match self.spawn(id) {
                        Ok(()) => Input::Spawned(id),
                        Err(error) => Input::SpawnFailed(id, error.to_string()),
                    };
                    self.input(input);
                }
                Action::AwaitReady(id) => {
                    self.readiness = Some(ReadinessCheck { id, tries: 0, next: self.clock.now() });
                    self.check_readiness();
                }
                Action::Control(message) => {
                    tracing::debug!(message = message.purpose, "control message");
                    if self.plan.power_button.as_ref() == Some(&message) {
                        self.console.power_button();
                    }
                    if self.send_to_simulation(&message) {
                        continue;
                    }
                    if let Some(event) = self.control.send(message, &self.poll) {
                        self.handle_control_event(event);
                    }
                }
                Action::Signal(id, signal) => {
                    tracing::info!(process = %self.plan.process(id).name, ?signal, "signal");
                    if self.signal_simulation(signal) {
                        continue;
                    }
                    if id == self.plan.hypervisor() {
                        self.console.release_back_pressure();
                    }
                    if let Some(process) = &self.processes[id.0]
                        && let Err(error) = process.signal(signal)
                    {
                        tracing::warn!("cannot signal {}: {error}", self.plan.process(id).name);
                    }
                }
                Action::Announce(status) => {
                    tracing::info!(%status, "status");
                    if !matches!(status, VmStatus::Starting) {
                        self.readiness = None;
                    }
                    self.events.push_back(VmEvent::Status(status));
                }
                Action::AnnounceReboot => {
                    self.events.push_back(VmEvent::Rebooted);
                    let mut ended = Vec::new();
                    self.console.rebooted(self.clock.now(), &mut ended);
                    self.events.extend(ended.into_iter().map(VmEvent::Ended));
                }
                Action::Release => self.release(),
            }
        }
    }

    fn release(&mut self) {
        for process in self.processes.iter_mut().rev().filter_map(Option::take) {
            // Only one that did not die of SIGKILL is left here. Waiting for it could take for ever;
            // the watchdog keeps it in mind.
            tracing::error!(pid = process.pid(), "left a process behind that does not die");
            std::mem::forget(process);
        }
        let mut ended = Vec::new();
        if self.console.close(self.clock.now(), &mut ended) {
            self.events.push_back(VmEvent::ConsoleClosed);
        }
        self.events.extend(ended.into_iter().map(VmEvent::Ended));
        self.readiness = None;
        self.event_pipe = None;
        self.run_dir = None;
    }
}

impl AsFd for Supervisor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }
}

impl Drop for Supervisor {
    /// Ends what still runs, the hypervisor before its helpers, and waits for it: milliseconds.
    fn drop(&mut self) {
        if !self.poll.is_same_process() {
            return;
        }
        if self.never_driven && !std::thread::panicking() {
            let _entered = self.span.enter();
            tracing::warn!("dropped without having been driven: nobody called on_ready");
        }
        self.console.detach();
        for process in self.processes.iter_mut().rev() {
            *process = None;
        }
    }
}
