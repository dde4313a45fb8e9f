//! Runs one VM: carries out the actions of the lifecycle and feeds events back as inputs.
//!
//! A VM has one descriptor and one deadline:
//!
//! 1. Wait until the descriptor ([`AsFd`]) is readable or [`Supervisor::next_timeout`] has passed.
//! 2. Call [`Supervisor::on_ready`]. Its work is bounded; spurious calls are harmless.
//! 3. Take events from [`Supervisor::poll_event`] until it returns `None`.
//! 4. Call `next_timeout` again before waiting: any call may have shortened it. It is zero when a
//!    budget was exhausted, because an edge-triggered loop gets no second report.
//!
//! This module contains no policy. A decision about a VM's lifecycle belongs in
//! [`capsa_proto::lifecycle`].

mod channels;
mod launch;
mod options;
mod simulation;

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use capsa_proto::backend::HypervisorBackend;
use capsa_proto::console::{ConsoleMux, Ended, ReaderId, WaitId, WaitKind};
use capsa_proto::lifecycle::{Action, Input, InvalidState, Lifecycle, StopReport, VmStatus};
use capsa_proto::plan::{LaunchPlan, ProcessId};
use capsa_proto::spec::ConsoleMode;
use capsa_proto::time::{Deadline, Instant};
use capsa_proto::vm::{EventQueue, VmEvent};

use crate::clock::MonotonicClock;
use crate::console::{self, ConsoleStream};
use crate::control::ControlChannel;
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

/// How many read budgets to spend on output that precedes the exit of a hypervisor, before the exit
/// is handled. Output from before the exit is in the system's buffers, which are far smaller than
/// this. A child that the hypervisor left behind may write without end.
const MAX_EXIT_DELAYS: usize = 16;

/// The delay of a call from which a warning is logged. A loaded host delays calls by less
/// than this.
const LATE_CALL: Duration = Duration::from_secs(1);

/// One VM with its processes, channels and console.
#[derive(Debug)]
pub struct Supervisor {
    plan: LaunchPlan,
    backend: Arc<dyn HypervisorBackend>,
    lifecycle: Lifecycle,
    clock: MonotonicClock,
    poll: Poll,
    processes: Vec<Option<ChildProcess>>,
    control: ControlChannel,
    console: ConsoleMux,
    console_stream: ConsoleStream,
    event_pipe: Option<EventPipe>,
    readiness: Option<ReadinessCheck>,
    /// `None` for a simulated guest, and after the end.
    run_dir: Option<RunDir>,
    events: EventQueue,
    /// A budget was exhausted: there is more work, although the poller may not report it again.
    more: bool,
    /// The bytes that each call may read of each kind; `budgets` holds what the current call may
    /// still read.
    read_budget: usize,
    budgets: Budgets,
    /// How often the hypervisor's exit was delayed by unread output.
    exit_delays: usize,
    /// The exit is delayed in the current call.
    exit_delayed: bool,
    /// The VM was started and `on_ready` was not called since.
    never_driven: bool,
    /// The simulated guest, if there is no hypervisor.
    simulation: Option<GuestSimulation>,
    ready: ReadyEvents,
    span: tracing::Span,
}

impl Supervisor {
    /// Creates a VM for `plan`, whose run directory is `run_dir`. Starts nothing.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left for a poller.
    pub fn new(
        plan: LaunchPlan,
        run_dir: RunDir,
        backend: Arc<dyn HypervisorBackend>,
        options: Options,
    ) -> io::Result<Self> {
        Self::with(plan, Some(run_dir), backend, options)
    }

    fn with(
        plan: LaunchPlan,
        run_dir: Option<RunDir>,
        backend: Arc<dyn HypervisorBackend>,
        options: Options,
    ) -> io::Result<Self> {
        let name = Path::new(plan.run_dir.as_str()).file_name().unwrap_or_default();
        let span = tracing::info_span!("vm", id = %name.display(), backend = plan.backend);
        // With a budget of zero no call would make progress.
        let read_budget = options.read_budget.max(1);
        Ok(Self {
            lifecycle: Lifecycle::new(&plan, options.timing),
            backend,
            clock: MonotonicClock::new(),
            poll: Poll::new()?,
            processes: plan.processes.iter().map(|_| None).collect(),
            control: ControlChannel::new(plan.control.clone(), CONTROL),
            console: match plan.console.mode() {
                ConsoleMode::Disabled => ConsoleMux::disabled(),
                _ => ConsoleMux::new(options.scrollback, options.overflow),
            },
            console_stream: ConsoleStream::default(),
            event_pipe: None,
            readiness: None,
            run_dir,
            events: EventQueue::default(),
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

    /// Requests the start. [`Supervisor::on_ready`] starts the processes.
    ///
    /// # Errors
    ///
    /// When the VM was started before.
    pub fn start(&mut self) -> Result<(), InvalidState> {
        self.request(Input::Start)?;
        self.never_driven = true;
        Ok(())
    }

    /// Requests that the guest powers off, and is killed after `grace`.
    ///
    /// # Errors
    ///
    /// When the VM was never started.
    pub fn stop(&mut self, grace: Duration) -> Result<(), InvalidState> {
        self.request(Input::Stop { grace })
    }

    /// Requests that the VM is killed.
    ///
    /// # Errors
    ///
    /// When the VM was never started.
    pub fn kill(&mut self) -> Result<(), InvalidState> {
        self.request(Input::Kill)
    }

    fn request(&mut self, input: Input) -> Result<(), InvalidState> {
        self.lifecycle.handle_input(self.clock.now(), input)
    }

    /// The current status.
    pub fn status(&self) -> &VmStatus {
        self.lifecycle.status()
    }

    /// How the VM ended; `None` before the end.
    pub fn report(&self) -> Option<StopReport> {
        self.lifecycle.report()
    }

    /// The launch plan.
    pub fn plan(&self) -> &LaunchPlan {
        &self.plan
    }

    /// The process id of the hypervisor while it runs.
    pub fn hypervisor_pid(&self) -> Option<u32> {
        self.processes.last()?.as_ref().map(ChildProcess::pid)
    }

    /// The time on the VM's clock, which starts when the supervisor is created.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The console.
    pub fn console(&self) -> &ConsoleMux {
        &self.console
    }

    /// Lets `change` read, write or wait on the console, with the current time and the queue for
    /// events, and moves bytes afterwards.
    pub fn with_console<T>(
        &mut self,
        change: impl FnOnce(&mut ConsoleMux, Instant, &mut EventQueue) -> T,
    ) -> T {
        let result = change(&mut self.console, self.clock.now(), &mut self.events);
        self.console_stream.sync(&mut self.console);
        result
    }

    /// Begins a wait on the console. [`VmEvent::Ended`] reports its end, even if it ends at once.
    /// `make` receives the current time, from which its deadline counts.
    pub fn begin(&mut self, reader: ReaderId, make: impl FnOnce(Instant) -> WaitKind) -> WaitId {
        let Ok(id) = self.try_begin(reader, |now| Ok::<_, Infallible>(make(now)));
        id
    }

    /// Like [`Supervisor::begin`], if creating the wait can fail.
    ///
    /// # Errors
    ///
    /// Those of `make`; nothing is begun then.
    pub fn try_begin<E>(
        &mut self,
        reader: ReaderId,
        make: impl FnOnce(Instant) -> Result<WaitKind, E>,
    ) -> Result<WaitId, E> {
        let kind = make(self.clock.now())?;
        Ok(self.with_console(|console, now, events| console.begin(now, reader, kind, events)))
    }

    /// Listens on a vsock port of the host. `None` when the VM has no such port or has ended.
    ///
    /// # Errors
    ///
    /// `AddrInUse` when the port has a listener already; also when the run directory was removed.
    pub fn vsock_listen(&mut self, port: u32) -> io::Result<Option<PortListener>> {
        let socket = self.plan.vsock.as_ref().and_then(|vsock| vsock.listener(port));
        let Some(socket) = socket.filter(|_| !self.status().is_terminal()) else {
            return Ok(None);
        };
        PortListener::bind(&socket).map(Some)
    }

    /// Kills the VM without waiting for its end, and removes the run directory. Further calls of
    /// [`Supervisor::on_ready`] reap the processes.
    pub fn abandon(&mut self) {
        if self.status().is_alive() {
            let _ = self.kill();
            self.act();
        }
        self.run_dir = None;
    }

    /// Takes the output of a streaming wait since the last call.
    pub fn take_output(&mut self, id: WaitId) -> Vec<u8> {
        self.with_console(|console, now, events| console.take_output(now, id, events))
    }

    /// Takes the result of a wait that has ended.
    pub fn take_ended(&mut self, id: WaitId) -> Option<Ended> {
        self.console.take_ended(id)
    }

    /// The longest time to wait for the descriptor. `None`: no deadline. Zero: call
    /// [`Supervisor::on_ready`] now.
    pub fn next_timeout(&self) -> Option<Duration> {
        if self.more || !self.events.is_empty() || self.poll.has_interest_changed() {
            return Some(Duration::ZERO);
        }
        self.deadline().map(|deadline| self.clock.until(deadline))
    }

    /// The next event; `None` when there is none.
    pub fn poll_event(&mut self) -> Option<VmEvent> {
        self.events.pop()
    }

    /// Does the pending work, bounded: at most [`READ_BUDGET`](crate::console::READ_BUDGET) bytes
    /// of console output, 64 KiB of control traffic, 64 KiB of events and 64 KiB of standard error
    /// per process; of each at most [`Options::read_budget`].
    ///
    /// # Errors
    ///
    /// In a forked child of the program, and when the poller fails. All other failures change the
    /// status of the VM.
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

        // Read the channels before handling exits: output explains an exit.
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
        // The hypervisor before its helper processes, which exit because it did.
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
        let readiness = self.readiness.map(|a| Deadline { at: a.next, why: "check readiness" });
        let simulation = self.simulation_timeout();
        [self.lifecycle.poll_timeout(), readiness, self.console.poll_timeout(), simulation]
            .into_iter()
            .fold(None, Deadline::earliest)
    }

    fn input(&mut self, input: Input) {
        tracing::trace!(?input, "input");
        // Only requests of the owner can be invalid, and they do not come through here.
        let _ = self.lifecycle.handle_input(self.clock.now(), input);
    }

    fn console_ready(&mut self) {
        let now = self.clock.now();
        let Self { console, console_stream, budgets, events, .. } = self;
        let activity = console_stream.on_ready(console, now, &mut budgets.console, events);
        self.more |= activity.more;
        if activity.panic {
            self.input(Input::GuestPanicked { certain: false });
        }
    }

    fn exit_ready(&mut self, id: ProcessId) {
        if id == self.plan.hypervisor() {
            // Read the hypervisor's last output on every channel. While there is more, the exit is
            // delayed: its descriptor stays readable.
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

    /// Whether an exit is delayed because there may be unread output from before it.
    fn must_delay_exit(&mut self) -> bool {
        let calls = MAX_EXIT_DELAYS * console::READ_BUDGET.div_ceil(self.read_budget);
        let waits = self.more && self.exit_delays < calls;
        self.exit_delays += usize::from(waits);
        waits
    }

    /// Logs a warning if the caller missed a deadline.
    fn warn_if_late(&mut self) {
        self.never_driven = false;
        let Some(deadline) = self.lifecycle.poll_timeout().filter(|d| d.at > Instant::ZERO) else {
            return;
        };
        let late = self.clock.now().since(deadline.at);
        if late > LATE_CALL {
            let why = deadline.why;
            tracing::warn!(
                ?late,
                why,
                "on_ready called long after its deadline: does the loop use next_timeout?"
            );
        }
    }

    fn handle_timeouts(&mut self) {
        let now = self.clock.now();
        if self.readiness.is_some_and(|a| a.next <= now) {
            self.check_readiness();
        }
        // The lifecycle's deadlines do not apply while this call delays the hypervisor's exit.
        if !self.exit_delayed && self.lifecycle.poll_timeout().is_some_and(|d| d.at <= now) {
            self.input(Input::Timeout);
        }
        if self.console.poll_timeout().is_some_and(|d| d.at <= now) {
            let crash = self.with_console(|console, _, events| console.handle_timeout(now, events));
            if let Some(crash) = crash {
                self.input(Input::ConsoleCrash(crash));
            }
        }
    }

    /// Carries out all actions. The lifecycle bounds their number.
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
                        self.console.handle_power_button(self.clock.now());
                    }
                    if self.send_to_simulation(&message) {
                        continue;
                    }
                    self.control.send(message, &self.poll);
                    self.handle_control_events();
                }
                Action::Signal(id, signal) => {
                    tracing::info!(process = %self.plan.process(id).name, ?signal, "signal");
                    if self.signal_simulation(signal) {
                        continue;
                    }
                    if id == self.plan.hypervisor() {
                        self.with_console(|console, _, _| console.release_back_pressure());
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
                    self.events.push(VmEvent::Status(status));
                }
                Action::AnnounceReboot => {
                    self.events.push(VmEvent::Rebooted);
                    self.with_console(|console, now, events| console.handle_reboot(now, events));
                }
                Action::Release => self.release(),
            }
        }
    }

    fn release(&mut self) {
        for process in self.processes.iter_mut().rev().filter_map(Option::take) {
            // Only a process that survived SIGKILL is left here. Waiting for it could block
            // forever; the watchdog keeps it in its list.
            tracing::error!(pid = process.pid(), "process survived SIGKILL");
            std::mem::forget(process);
        }
        let now = self.clock.now();
        self.console_stream.close(&mut self.console, now, &mut self.events);
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
    /// Kills the remaining processes, the hypervisor before its helpers, and waits for them:
    /// milliseconds.
    fn drop(&mut self) {
        if !self.poll.is_same_process() {
            return;
        }
        if self.never_driven && !std::thread::panicking() {
            let _entered = self.span.enter();
            tracing::warn!("started VM was dropped without a call of on_ready");
        }
        self.console_stream.detach();
        for process in self.processes.iter_mut().rev() {
            *process = None;
        }
    }
}
