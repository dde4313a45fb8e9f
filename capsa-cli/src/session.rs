//! Runs a machine to its end, in one loop.
//!
//! 1. Wait with poll(2) for the machine, a signal, standard input and output, and whoever talks to
//!    this run, each only while it is wanted. (Files and `/dev/null` cannot be watched by epoll;
//!    poll takes them.)
//! 2. Move bytes.
//! 3. End when the machine has ended and its last byte was written.
//!
//! The rule: nothing here blocks but the one poll.

pub(crate) mod control;
pub(crate) mod end;
pub(crate) mod job;
pub(crate) mod relay;
pub(crate) mod signals;
pub(crate) mod tape;

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use capsa::embed::{Vm, VmEvent};
use capsa::run_dir::NameLock;
use capsa::{ConsoleMode, DEFAULT_GRACE, EndedBy, VmStatus};
use nix::sys::signal::{Signal, raise};
use serde_json::json;

use self::control::Control;
use self::end::Ending;
use self::job::{Job, JobPlan, Step};
use self::relay::Relays;
use self::signals::{Signals, Wish};
use self::tape::Tape;
use crate::failure::{self, Failure, START};
use crate::stdio::Stdio;
use crate::stdio::escape::Order;
use crate::stdio::output::Output;
use crate::stdio::watch::Watch;
use crate::values::VsockRelay;
use crate::voice::Voice;

/// Signals that come together are one wish: timeout(1) sends its signal to the program, and then to
/// the program's whole group.
const ONE_WISH: Duration = Duration::from_secs(1);

/// How long a reader of the last bytes may take for the next of them when there is no time.
const LAST_CHANCE: Duration = Duration::from_millis(100);

/// How long it may take when a signal ended the run: whoever sent it does not wait for ever for a
/// reader that stands still.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// How often a run that wakes looks whether others can find it, and how often one wakes for that.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What a run is, beside its machine.
#[derive(Debug, Default)]
pub(crate) struct SessionPlan {
    /// The console is on standard input and output.
    pub(crate) stdio: bool,
    pub(crate) name: Option<String>,
    /// The turn in which the name was found to be free.
    pub(crate) turn: Option<NameLock>,
    pub(crate) grace: Option<Duration>,
    pub(crate) log: Option<PathBuf>,
    pub(crate) record: Option<PathBuf>,
    pub(crate) relays: Vec<VsockRelay>,
    pub(crate) job: Option<JobPlan>,
    /// What was said of the end goes to standard output as JSON.
    pub(crate) json: bool,
}

/// Starts the machine, runs it to its end, and gives the exit code.
pub(crate) fn run(vm: Vm, mut plan: SessionPlan, voice: &Voice) -> Result<u8, Failure> {
    let wants_json = plan.json;
    let backend = vm.launch_plan().backend;
    let turn = plan.turn.take();
    let mut session = Session::new(vm, plan, voice)?;
    session.start()?;
    // The name is told of now, and nobody else's any more.
    drop(turn);
    voice.status(Some(&format!("starting {backend}")));
    let driven = session.drive();
    voice.clear();
    let report = session.vm.stop_report();
    if let Some(tape) = &mut session.tape {
        tape.carry(&mut session.vm, voice);
        tape.finish(report.as_ref(), voice);
    }
    let ends_line = session.output().is_some_and(Output::is_mid_line);
    let unwritten = session.output().map_or(0, Output::unwritten);
    let is_lossy = session.output().is_some_and(Output::is_lossy);
    let Session { vm, stdio, signal, job, control, .. } = session;
    let was_shown = stdio.is_some();
    // The terminal is given back before the last words.
    drop(stdio);
    driven.map_err(|error| {
        Failure::new(failure::HYPERVISOR, format!("cannot go on with the machine: {error}"))
    })?;
    if unwritten > 0 {
        voice.warn(&format!("nobody read standard output: {unwritten} bytes are not written"));
    }
    if ends_line && io::stdout().is_terminal() && io::stderr().is_terminal() {
        let _ = io::stderr().write_all(b"\n");
    }
    let Some(report) = report else { return Ok(failure::HYPERVISOR) };
    let signal = signal.map(|(signal, _)| signal);
    let ending = Ending { report, signal, job: job.map(Job::into_report) };
    let unseen = (!was_shown).then(|| vm.scrollback().tail(4096));
    let told = ending.tell(voice, unseen, wants_json);
    if let EndedBy::StartFailed { reason } = &ending.report.ended_by
        && let Some(hint) = failure::hint_of_start(reason)
    {
        voice.hint(hint);
    }
    // Whoever waits for the end is told of it, even where this run's own output cannot be written.
    if let Some(control) = control {
        control.finish(&ending.json());
    }
    told?;
    Ok(match ending.code() {
        failure::OK if is_lossy => failure::OUTPUT,
        code => code,
    })
}

/// Who is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Signals,
    Machine,
    Input,
    Output,
    Control(control::Peer),
    Relay(usize),
}

struct Session<'v> {
    vm: Vm,
    signals: Signals,
    stdio: Option<Stdio>,
    tape: Option<Tape>,
    job: Option<Job>,
    control: Option<Control>,
    relays: Relays,
    voice: &'v Voice,
    name: Option<String>,
    grace: Duration,
    was_spawned: bool,
    has_spoken: bool,
    /// When it looked whether others can find it; `None` once they cannot.
    looked: Option<Instant>,
    /// The signal that made it end, and when it came.
    signal: Option<(u8, Instant)>,
    /// Signals made it cut the power: whoever sent them does not wait for a slow reader either.
    hurry: bool,
}

impl<'v> Session<'v> {
    fn new(mut vm: Vm, plan: SessionPlan, voice: &'v Voice) -> Result<Self, Failure> {
        let broken =
            |error: io::Error| Failure::new(START, format!("cannot start the machine: {error}"));
        let tape = Tape::new(plan.log.as_deref(), plan.record.as_deref(), &mut vm)?;
        let relays = Relays::listen(&plan.relays, &mut vm)?;
        // Before the terminal is raw, so that no signal can end this program while it is.
        let signals = Signals::install().map_err(broken)?;
        let job = plan.job.map(|job| Job::new(job, plan.json, &mut vm));
        let job = job.transpose().map_err(broken)?;
        let mut session = Self {
            vm,
            signals,
            stdio: None,
            tape,
            job,
            control: None,
            relays,
            voice,
            name: plan.name,
            grace: plan.grace.unwrap_or(DEFAULT_GRACE),
            was_spawned: false,
            has_spoken: false,
            looked: Some(Instant::now()),
            signal: None,
            hurry: false,
        };
        voice.event("planned", json!({"backend": session.vm.launch_plan().backend}));
        if let Some(tape) = &mut session.tape {
            tape.begin(voice);
        }
        if plan.stdio {
            let reader = session.vm.add_reader();
            session.stdio = Some(Stdio::new(reader, voice).map_err(broken)?);
        }
        Ok(session)
    }

    /// Standard output, where the guest has it.
    fn output(&self) -> Option<&Output> {
        let of_job = || self.job.as_ref().and_then(Job::output);
        self.stdio.as_ref().map(|stdio| &stdio.output).or_else(of_job)
    }

    /// Starts the machine, and tells of it before anybody else has a turn.
    fn start(&mut self) -> Result<(), Failure> {
        let failed =
            |error: String| Failure::new(START, format!("cannot start the machine: {error}"));
        self.vm.start().map_err(|error| failed(error.to_string()))?;
        // Makes the run directory, and begins the processes.
        self.vm.on_ready().map_err(|error| failed(error.to_string()))?;
        if !self.vm.status().is_terminal() {
            self.begin_control();
        }
        Ok(())
    }

    fn drive(&mut self) -> io::Result<()> {
        let mut moved = Instant::now();
        loop {
            let over = self.vm.status().is_terminal();
            self.move_bytes();
            if over && self.output().is_none_or(Output::is_empty) {
                return Ok(());
            }
            let ready = self.wait(over, moved)?;
            for wish in self.signals.take() {
                self.grant(wish);
                self.hurry |= over && self.signal.is_some();
            }
            if !over || ready.contains(&Who::Output) {
                moved = Instant::now();
            } else if self.patience().is_some_and(|patience| moved.elapsed() >= patience) {
                return Ok(());
            }
            for who in ready {
                self.on_ready(who, over);
            }
            if !over {
                // Before the machine may end, and take its directory away itself.
                self.look_for_directory();
                self.vm.on_ready()?;
                self.look_for_spawn();
                while let Some(event) = self.vm.poll_event() {
                    self.on_event(event);
                }
            }
        }
    }

    /// Hands on what waits.
    fn move_bytes(&mut self) {
        if let Some(stdio) = &mut self.stdio {
            stdio.refill(&mut self.vm);
        }
        let step = self.job.as_mut().and_then(|job| job.refill(&mut self.vm));
        self.on_step(step);
        if let Some(tape) = &mut self.tape {
            tape.carry(&mut self.vm, self.voice);
        }
        if let Some(control) = &mut self.control {
            control.refill(&mut self.vm);
        }
        self.voice.draw();
    }

    /// How long standard output may take for its next bytes when the machine is over.
    fn patience(&self) -> Option<Duration> {
        match self.hurry {
            true => Some(LAST_CHANCE),
            false => self.signal.is_some().then_some(LAST_PATIENCE),
        }
    }

    /// Waits for whoever is ready. `moved` is when bytes last went out, of a machine that is `over`.
    fn wait(&self, over: bool, moved: Instant) -> io::Result<Vec<Who>> {
        let stdin = io::stdin();
        let mut watch = Watch::new();
        watch.readable(Who::Signals, self.signals.as_fd());
        if !over {
            watch.readable(Who::Machine, self.vm.as_fd());
            self.relays.watch(&mut watch, Who::Relay);
        }
        if let Some(stdio) = &self.stdio {
            stdio.watch(&mut watch, &stdin, (!over).then_some(Who::Input));
        }
        if let Some(output) = self.output().filter(|output| !output.is_empty()) {
            watch.writable(Who::Output, output.as_fd());
        }
        if let Some(control) = self.control.as_ref().filter(|_| !over) {
            control.watch(&mut watch, Who::Control);
        }
        let timeout = match over {
            false => {
                let look = self.looked.map(|looked| LOOK.1.saturating_sub(looked.elapsed()));
                let timeouts = [self.vm.next_timeout(), self.voice.next_draw(), look];
                timeouts.into_iter().flatten().min()
            }
            true => self.patience().map(|patience| patience.saturating_sub(moved.elapsed())),
        };
        watch.wait(timeout)
    }

    fn on_ready(&mut self, who: Who, over: bool) {
        match who {
            Who::Signals | Who::Machine => {}
            Who::Output => {
                if let Some(stdio) = &mut self.stdio {
                    stdio.output.on_writable();
                } else if let Some(job) = &mut self.job {
                    job.on_writable();
                }
            }
            Who::Input if over => {}
            Who::Input => {
                let Some(stdio) = &mut self.stdio else { return };
                let typed = stdio.read_input(&mut self.vm);
                if let Some(tape) = &mut self.tape
                    && !typed.bytes.is_empty()
                {
                    tape.typed(&typed.bytes, self.voice);
                }
                typed.orders.into_iter().for_each(|order| self.give(order));
            }
            Who::Relay(n) => self.relays.on_ready(n, &self.vm, self.voice),
            Who::Control(peer) => {
                let may_type =
                    self.stdio.as_ref().is_none_or(|stdio| !stdio.types()) && self.job.is_none();
                let Some(control) = &mut self.control else { return };
                for order in control.on_ready(peer, &mut self.vm, may_type) {
                    match order {
                        control::Order::Stop(grace) => {
                            let _ = self.vm.stop_with_timeout(grace.unwrap_or(self.grace));
                        }
                        control::Order::Kill => {
                            let _ = self.vm.kill();
                        }
                        control::Order::Typed(bytes) => {
                            if let Some(tape) = &mut self.tape {
                                tape.typed(&bytes, self.voice);
                            }
                        }
                    }
                }
            }
        }
    }

    /// The hypervisor's start has no event of its own.
    fn look_for_spawn(&mut self) {
        if !self.was_spawned
            && let Some(pid) = self.vm.hypervisor_pid()
        {
            self.was_spawned = true;
            self.voice.event("spawned", json!({"pid": pid}));
            if let Some(control) = &mut self.control {
                control.tell(&self.vm);
            }
        }
    }

    /// Its run directory may be removed from under it, by hand or by who cleans `/tmp`. The machine
    /// goes on; what others would do with it cannot be had back.
    fn look_for_directory(&mut self) {
        let (Some(control), Some(looked)) = (&self.control, self.looked) else { return };
        if looked.elapsed() < LOOK.0 {
            return;
        }
        self.looked = control.can_be_found().then(Instant::now);
        if self.looked.is_none() {
            let (dir, pid) = (&self.vm.launch_plan().run_dir, std::process::id());
            self.voice.warn(&format!(
                "{dir} was removed: `capsa ps`, `stop` and `console` do not find this machine any \
                 more; `kill {pid}` ends it"
            ));
        }
    }

    fn on_event(&mut self, event: VmEvent) {
        match event {
            VmEvent::ControlReady => self.voice.event("control-ready", json!({})),
            VmEvent::Status(status) => {
                match status {
                    VmStatus::Running => {
                        self.voice.event("running", json!({}));
                        self.voice.status(Some(match self.job {
                            Some(_) => "waiting for the guest's shell",
                            None if self.stdio.is_some() => "waiting for the guest to speak",
                            None if self.vm.launch_plan().console.mode()
                                == ConsoleMode::Disabled =>
                            {
                                "running without a console, Ctrl-C asks the guest to power off"
                            }
                            None => "running, Ctrl-C asks the guest to power off",
                        }));
                    }
                    VmStatus::Stopping => {
                        self.voice.event("stopping", json!({}));
                        self.voice.status(self.stdio.is_none().then_some("stopping"));
                    }
                    _ => {}
                }
                let step = self.job.as_mut().and_then(|job| job.on_status(&mut self.vm));
                self.on_step(step);
            }
            VmEvent::ConsoleData if !self.has_spoken => {
                self.has_spoken = true;
                self.voice.event("first-output", json!({}));
                if self.stdio.is_some() {
                    self.voice.status(None);
                }
            }
            VmEvent::Ended(wait) => {
                let step = self.job.as_mut().and_then(|job| job.on_ended(&mut self.vm, wait));
                self.on_step(step);
            }
            _ => {}
        }
    }

    fn on_step(&mut self, step: Option<Step>) {
        match step {
            None => {}
            Some(Step::LoggedIn) => {
                self.voice.event("prompt", json!({}));
                self.voice.status(Some("running the command"));
            }
            Some(Step::Spoke) => self.voice.status(None),
            Some(Step::Over) => self.give(Order::Stop),
        }
    }

    /// From now on `capsa ps` finds this run. Where it cannot, the machine runs all the same.
    fn begin_control(&mut self) {
        match Control::begin(&self.vm, self.name.as_deref()) {
            Ok(control) => self.control = Some(control),
            Err(error) => self.voice.warn(&format!("`capsa ps` will not show this: {error}")),
        }
    }

    fn grant(&mut self, wish: Wish) {
        match wish {
            Wish::End(signal) => match self.signal {
                None => {
                    self.signal = Some((signal, Instant::now()));
                    self.give(Order::Stop);
                }
                Some((_, first)) if first.elapsed() < ONE_WISH => {}
                Some(_) => self.kill(),
            },
            Wish::Kill(signal) => {
                self.signal.get_or_insert((signal, Instant::now()));
                self.kill();
            }
            Wish::Suspend => {
                self.voice.clear();
                if let Some(stdio) = &self.stdio {
                    stdio.suspend();
                }
                // SIGCONT ends this call, and comes as a wish of its own.
                let _ = raise(Signal::SIGSTOP);
            }
            Wish::Resume => {
                if let Some(stdio) = &self.stdio {
                    stdio.resume();
                }
            }
        }
    }

    fn kill(&mut self) {
        self.hurry = true;
        self.give(Order::Kill);
    }

    /// Only a machine that was never started refuses, and this one was.
    fn give(&mut self, order: Order) {
        let _ = match order {
            Order::Stop => self.vm.stop_with_timeout(self.grace),
            Order::Kill => self.vm.kill(),
        };
    }
}
