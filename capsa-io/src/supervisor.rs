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

mod hear;
mod launch;
mod options;
mod play;

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

use crate::clock::Clock;
use crate::console::{self, Console, Conversation, Ended, ReaderId, WaitId};
use crate::control::Control;
use crate::event_pipe::EventPipe;
use crate::process::{Keys, Process};
use crate::run_dir::RunDir;
use crate::sys::{Poll, Ready};
use crate::vsock::PortListener;
use launch::Awaiting;
use options::Budgets;
use play::Player;

pub use options::Options;

const CONTROL: usize = 0;
const CONSOLE: usize = 1;
const EVENTS: usize = 2;

const fn keys(id: ProcessId) -> Keys {
    Keys { exit: 3 + 2 * id.0, stderr: 4 + 2 * id.0 }
}

/// For how many whole budgets the exit of a hypervisor waits because there is more of its last words
/// to read. What was said before an exit is in the system's buffers, which this exceeds by far; more
/// than that comes from a child it left, which may go on for ever.
const LAST_WORDS: usize = 16;

/// How late a call may be before that is worth a word. A loop that is busy is late by less.
const LATE: Duration = Duration::from_secs(1);

/// What happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
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
    clock: Clock,
    poll: Poll,
    processes: Vec<Option<Process>>,
    control: Control,
    console: Console,
    event_pipe: Option<EventPipe>,
    awaiting: Option<Awaiting>,
    run_dir: Option<RunDir>,
    events: VecDeque<Event>,
    /// A budget was spent: there is more to do although nothing will be reported again.
    more: bool,
    /// Bytes that any call may read, and what this one still may.
    read_budget: usize,
    budgets: Budgets,
    /// How often the hypervisor's exit has waited for its last words.
    last_words: usize,
    /// It waits now.
    exit_waits: bool,
    /// It was started, and nobody has called since.
    neglected: bool,
    /// Who plays the guest, where no hypervisor runs it.
    player: Option<Player>,
    ready: Ready,
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
            clock: Clock::new(),
            poll: Poll::new()?,
            processes: plan.processes.iter().map(|_| None).collect(),
            control: Control::new(plan.control.clone(), CONTROL),
            console: match plan.console.mode() {
                ConsoleMode::Disabled => Console::none(),
                _ => Console::new(options.scrollback, options.overflow),
            },
            event_pipe: None,
            awaiting: None,
            run_dir: None,
            events: VecDeque::new(),
            more: false,
            read_budget,
            budgets: Budgets::at_most(read_budget),
            last_words: 0,
            exit_waits: false,
            neglected: false,
            player: None,
            ready: Ready::new(),
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
        self.wish(Input::Start)?;
        self.neglected = true;
        Ok(())
    }

    /// Wants the guest to power off, and its power cut after `grace`.
    ///
    /// # Errors
    ///
    /// When it was never started.
    pub fn stop(&mut self, grace: Duration) -> Result<(), InvalidState> {
        self.wish(Input::Stop { grace })
    }

    /// Wants it gone.
    ///
    /// # Errors
    ///
    /// When it was never started.
    pub fn kill(&mut self) -> Result<(), InvalidState> {
        self.wish(Input::Kill)
    }

    fn wish(&mut self, input: Input) -> Result<(), InvalidState> {
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
        self.processes.last()?.as_ref().map(Process::pid)
    }

    /// Its console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Its console, to read and write.
    pub fn console_mut(&mut self) -> &mut Console {
        &mut self.console
    }

    /// Begins a conversation with the console. [`Event::Ended`] says when it is over, also when
    /// that is at once. `make` gets the present time, which conversations count from.
    pub fn begin(
        &mut self,
        reader: ReaderId,
        make: impl FnOnce(Instant) -> Conversation,
    ) -> WaitId {
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
        make: impl FnOnce(Instant) -> Result<Conversation, E>,
    ) -> Result<WaitId, E> {
        let now = self.clock.now();
        let (id, over) = self.console.begin(now, reader, make(now)?);
        if over {
            self.events.push_back(Event::Ended(id));
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
            self.events.push_back(Event::Ended(id));
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
        if self.more || !self.events.is_empty() || self.poll.is_stirred() {
            return Some(Duration::ZERO);
        }
        self.deadline().map(|deadline| self.clock.until(deadline))
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
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
        self.look_at_the_clock();
        self.more = false;
        self.exit_waits = false;
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
        self.play_on();
        for n in 0..self.processes.len() {
            if self.ready.has(keys(ProcessId(n)).stderr) {
                self.stderr_ready(ProcessId(n));
            }
        }
        // The hypervisor before its helpers, which end because it does.
        for n in (0..self.processes.len()).rev() {
            if self.ready.has(keys(ProcessId(n)).exit) && !self.is_played() {
                self.exit_ready(ProcessId(n));
            }
        }
        self.time_passed();
        self.act();
        Ok(())
    }

    fn deadline(&self) -> Option<Deadline> {
        let awaiting = self.awaiting.map(|a| Deadline { at: a.next, why: "look for its socket" });
        let play = self.play_timeout();
        [self.lifecycle.poll_timeout(), awaiting, self.console.poll_timeout(), play]
            .into_iter()
            .fold(None, Deadline::earliest)
    }

    fn tell(&mut self, input: Input) {
        tracing::trace!(?input, "input");
        // Only wishes are ever refused.
        let _ = self.lifecycle.handle_input(self.clock.now(), input);
    }

    fn console_ready(&mut self) {
        let mut ended = Vec::new();
        let news = self.console.on_ready(self.clock.now(), &mut self.budgets.console, &mut ended);
        self.more |= news.more;
        if news.data {
            self.say_once(Event::ConsoleData);
        }
        if news.writable {
            self.say_once(Event::ConsoleWritable);
        }
        if news.closed {
            self.events.push_back(Event::ConsoleClosed);
        }
        self.events.extend(ended.into_iter().map(Event::Ended));
        if news.panic {
            self.tell(Input::GuestPanicked { certain: false });
        }
    }

    fn say_once(&mut self, event: Event) {
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
            self.exit_waits = self.more_last_words();
            if self.exit_waits {
                return;
            }
        }
        let Some(process) = &mut self.processes[id.0] else { return };
        if let Some(exit) = process.try_reap() {
            tracing::info!(process = %self.plan.process(id).name, %exit, "exited");
            self.processes[id.0] = None;
            self.tell(Input::Exited(id, exit));
        }
    }

    /// Whether an exit has to wait, because there may be more that was said before it.
    fn more_last_words(&mut self) -> bool {
        let calls = LAST_WORDS * console::READ_BUDGET.div_ceil(self.read_budget);
        let waits = self.more && self.last_words < calls;
        self.last_words += usize::from(waits);
        waits
    }

    /// A caller who forgot the deadline, or to call at all, can see that in the log.
    fn look_at_the_clock(&mut self) {
        self.neglected = false;
        let Some(deadline) = self.lifecycle.poll_timeout().filter(|d| d.at > Instant::ZERO) else {
            return;
        };
        let late = self.clock.now().since(deadline.at);
        if late > LATE {
            let why = deadline.why;
            tracing::warn!(?late, why, "called long after its deadline: is next_timeout asked?");
        }
    }

    fn time_passed(&mut self) {
        let now = self.clock.now();
        if self.awaiting.is_some_and(|a| a.next <= now) {
            self.look_for_readiness();
        }
        // Nothing is late while we alone hold up the news of the hypervisor's end.
        if !self.exit_waits && self.lifecycle.poll_timeout().is_some_and(|d| d.at <= now) {
            self.tell(Input::Timeout);
        }
        if self.console.poll_timeout().is_some_and(|d| d.at <= now) {
            let mut ended = Vec::new();
            self.console.on_time(now, &mut ended);
            if let Some(word) = self.console.last_word(now) {
                self.tell(Input::GuestPrintedLast(word));
            }
            self.events.extend(ended.into_iter().map(Event::Ended));
        }
    }

    /// Carries out every action. The machine's own bounds make this end.
    fn act(&mut self) {
        if !self.poll.is_ours() {
            return;
        }
        while let Some(action) = self.lifecycle.poll_action() {
            match action {
                Action::Spawn(id) => {
                    let input = match self.spawn(id) {
                        Ok(()) => Input::Spawned(id),
                        Err(error) => Input::SpawnFailed(id, error.to_string()),
                    };
                    self.tell(input);
                }
                Action::AwaitReady(id) => {
                    self.awaiting = Some(Awaiting { id, tries: 0, next: self.clock.now() });
                    self.look_for_readiness();
                }
                Action::Control(message) => {
                    tracing::debug!(message = message.purpose, "control message");
                    if self.plan.power_button.as_ref() == Some(&message) {
                        self.console.power_button();
                    }
                    if self.message_to_play(&message) {
                        continue;
                    }
                    if let Some(heard) = self.control.send(message, &self.poll) {
                        self.heard(heard);
                    }
                }
                Action::Signal(id, signal) => {
                    tracing::info!(process = %self.plan.process(id).name, ?signal, "signal");
                    if self.signal_to_play(signal) {
                        continue;
                    }
                    if id == self.plan.hypervisor() {
                        self.console.let_go();
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
                        self.awaiting = None;
                    }
                    self.events.push_back(Event::Status(status));
                }
                Action::AnnounceReboot => {
                    self.events.push_back(Event::Rebooted);
                    let mut ended = Vec::new();
                    self.console.rebooted(self.clock.now(), &mut ended);
                    self.events.extend(ended.into_iter().map(Event::Ended));
                }
                Action::Release => self.release(),
            }
        }
    }

    fn release(&mut self) {
        for process in self.processes.iter_mut().rev().filter_map(Option::take) {
            // Only one that did not die of SIGKILL is left here. Waiting for it could take for ever;
            // the guardian keeps it in mind.
            tracing::error!(pid = process.pid(), "left a process behind that does not die");
            std::mem::forget(process);
        }
        let mut ended = Vec::new();
        if self.console.close(self.clock.now(), &mut ended) {
            self.events.push_back(Event::ConsoleClosed);
        }
        self.events.extend(ended.into_iter().map(Event::Ended));
        self.awaiting = None;
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
        if !self.poll.is_ours() {
            return;
        }
        if self.neglected && !std::thread::panicking() {
            let _entered = self.span.enter();
            tracing::warn!("dropped without having been driven: nobody called on_ready");
        }
        self.console.hang_up();
        for process in self.processes.iter_mut().rev() {
            *process = None;
        }
    }
}
