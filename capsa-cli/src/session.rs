//! Runs one VM until it has ended, in one loop.
//!
//! 1. Wait with poll(2) for the VM, signals, standard input and output, vsock relays and control
//!    clients. (poll, because epoll rejects regular files and `/dev/null`.)
//! 2. Move bytes between them.
//! 3. Return when the VM has ended and its output is written.
//!
//! The rule: nothing here blocks except that poll.

mod agent_job;
mod command;
pub(crate) mod job;
pub(crate) mod outcome;
mod published;
pub(crate) mod recorder;
pub(crate) mod relay;
pub(crate) mod signals;

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use capsa::embed::DEFAULT_GRACE;
use capsa::embed::{OutputStream, Vm, VmEvent};
use capsa::{EndedBy, VmStatus};
use capsa_io::facts;
use capsa_io::run_dir::NameLock;
use nix::sys::signal::{Signal, raise};
use serde_json::json;

use self::command::GuestCommand;
use self::job::JobPlan;
use self::outcome::RunOutcome;
use self::published::RUN_DIR_CHECK;
use self::recorder::FileRecorder;
use self::relay::Relays;
use self::signals::{SignalRequest, Signals};
use crate::failure::{self, CliError, START};
use crate::print::print_message;
use crate::reporter::Reporter;
use crate::running::{ClientCommand, ControlServer, ControlSource};
use crate::stdio::Stdio;
use crate::stdio::escape::EscapeCommand;
use crate::stdio::input::StdinWriter;
use crate::stdio::output::OutputWriter;
use crate::stdio::poll_set::PollSet;
use crate::values::VsockRelay;

/// Signals within this time count as one: timeout(1) sends its signal to the program and then to
/// the program's process group.
const SIGNAL_WINDOW: Duration = Duration::from_secs(1);

/// How long standard output may accept nothing once a VM that was stopped on request has ended. The
/// time before the end counts too.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// The same after a request to kill the VM.
const STALL_TIMEOUT_KILLED: Duration = Duration::from_millis(100);

/// How long the output may take in all after the end of such a VM.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A VM that is stopping is not paused by a slow standard output before this many bytes wait for it, so
/// that the guest can power off.
const STOP_BUFFER: usize = 1 << 20;

/// The console output that is searched for the cause of a failure, in bytes.
const HINT_TAIL: usize = 64 << 10;

/// How long the shell of a job may take to shut the guest down before the power button is pressed.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(15);

/// The options of a run, beside its VM.
#[derive(Debug, Default)]
pub(crate) struct SessionPlan {
    /// The console is on standard input and output.
    pub(crate) stdio: bool,
    pub(crate) name: Option<String>,
    /// Reserves the name until it is published.
    pub(crate) name_lock: Option<NameLock>,
    pub(crate) grace: Option<Duration>,
    /// When the time limit ends, which counts from the start of this program.
    pub(crate) deadline: Option<Instant>,
    pub(crate) log: Option<PathBuf>,
    pub(crate) record: Option<PathBuf>,
    pub(crate) relays: Vec<VsockRelay>,
    pub(crate) job: Option<JobPlan>,
    /// Print the outcome on standard output as JSON.
    pub(crate) json: bool,
}

/// Starts the VM and runs it until it has ended. Returns the exit code.
pub(crate) fn run(vm: Vm, mut plan: SessionPlan, reporter: &Reporter) -> Result<u8, CliError> {
    let wants_json = plan.json;
    let backend = vm.launch_plan().backend();
    let name_lock = plan.name_lock.take();
    let mut session = RunLoop::new(vm, plan, reporter)?;
    session.start()?;
    // The name is published now.
    drop(name_lock);
    reporter.status(Some(&format!("starting {backend}")));
    let driven = session.drive();
    reporter.clear();
    let mut report = session.vm.stop_report();
    if let Some(report) = &mut report {
        report.time_limit |= session.time_limit_hit;
    }
    if let Some(recorder) = &mut session.recorder {
        recorder.finish(&mut session.vm, report.as_ref(), reporter);
    }
    let ends_line = session.output().is_some_and(OutputWriter::is_mid_line);
    let unwritten = session.unwritten();
    let is_lossy = session.output().is_some_and(OutputWriter::is_lossy);
    let stall = session.stop.stall_timeout();
    let RunLoop { vm, stdio, signal, job, control, .. } = session;
    let console_was_shown = stdio.is_some();
    // Restores the terminal before the final messages.
    drop(stdio);
    let job = job.map(GuestCommand::into_report);
    driven.map_err(|error| {
        CliError::new(failure::HYPERVISOR, format!("cannot continue to run the VM: {error}"))
    })?;
    if unwritten > 0 {
        reporter.warn(&format!(
            "{unwritten} bytes of output are not written: standard output accepted none for too long"
        ));
    }
    if ends_line && io::stdout().is_terminal() && io::stderr().is_terminal() {
        print_message("\n");
    }
    let Some(report) = report else { return Ok(failure::HYPERVISOR) };
    let signal = signal.map(|(signal, _)| signal);
    let outcome = RunOutcome { report, signal, job };
    // Before this run's own output, which may fail or block.
    if let Some(control) = control {
        control.finish(&outcome.json());
    }
    let console_tail = (!console_was_shown).then(|| vm.scrollback().tail(4096));
    let start_error = match &outcome.report.ended_by {
        EndedBy::StartFailed { error } => Some(error.to_string()),
        _ => None,
    };
    if start_error.is_some()
        && let Some(cause) = failure::cause_of_start(facts::open_files_limits().1)
    {
        reporter.error(&cause);
    }
    let reported = outcome.report(reporter, console_tail, wants_json.then_some(stall));
    let hint = match start_error {
        Some(error) => failure::hint_of_start(&error),
        None if outcome.is_failure() => failure::hint_of_console(vm.scrollback().tail(HINT_TAIL)),
        None => None,
    };
    if let Some(hint) = hint {
        reporter.hint(hint);
    }
    reported?;
    Ok(match outcome.code() {
        failure::OK if is_lossy => failure::OUTPUT,
        code => code,
    })
}

/// A descriptor that the session polls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SessionSource {
    Signals,
    Vm,
    Input,
    Output,
    ErrorOutput,
    Log,
    Control(ControlSource),
    Relay(usize),
}

struct RunLoop<'r> {
    vm: Vm,
    signals: Signals,
    stdio: Option<Stdio>,
    recorder: Option<FileRecorder>,
    job: Option<GuestCommand>,
    control: Option<ControlServer>,
    relays: Relays,
    reporter: &'r Reporter,
    name: Option<String>,
    grace: Duration,
    spawn_reported: bool,
    /// It may be paused since then.
    has_run: bool,
    output_reported: bool,
    /// When the run directory was last checked; `None` once it was removed.
    run_dir_checked: Option<Instant>,
    /// The signal that made this run stop, and when it came.
    signal: Option<(u8, Instant)>,
    deadline: Option<Instant>,
    time_limit_hit: bool,
    /// When the job finished. The grace period counts from here.
    job_finished: Option<Instant>,
    /// Why the time for output is limited.
    stop: StopRequest,
}

/// The strongest request to end the VM that has come from outside the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum StopRequest {
    /// None, or only the end of the job.
    None,
    /// A signal, a key, a control client or the time limit.
    Stop,
    Kill,
}

impl StopRequest {
    /// How long standard output may accept nothing after the VM's end; `None` for any time.
    fn stall_timeout(self) -> Option<Duration> {
        match self {
            Self::None => None,
            Self::Stop => Some(STALL_TIMEOUT),
            Self::Kill => Some(STALL_TIMEOUT_KILLED),
        }
    }
}

impl<'r> RunLoop<'r> {
    fn new(mut vm: Vm, plan: SessionPlan, reporter: &'r Reporter) -> Result<Self, CliError> {
        let failed =
            |error: io::Error| CliError::new(START, format!("cannot start the VM: {error}"));
        let recorder = FileRecorder::create(plan.log.as_deref(), plan.record.as_deref(), &mut vm)?;
        let relays = Relays::listen(&plan.relays, &mut vm)?;
        // Before the terminal becomes raw, so that no signal ends this program while it is raw.
        let signals = Signals::install().map_err(failed)?;
        let job = plan.job.map(|job| GuestCommand::new(job, plan.json, &mut vm));
        let job = job.transpose().map_err(failed)?;
        let mut session = Self {
            vm,
            signals,
            stdio: None,
            recorder,
            job,
            control: None,
            relays,
            reporter,
            name: plan.name,
            grace: plan.grace.unwrap_or(DEFAULT_GRACE),
            spawn_reported: false,
            has_run: false,
            output_reported: false,
            run_dir_checked: Some(Instant::now()),
            signal: None,
            deadline: plan.deadline,
            time_limit_hit: false,
            job_finished: None,
            stop: StopRequest::None,
        };
        reporter.event("planned", json!({"backend": session.vm.launch_plan().backend()}));
        if let Some(recorder) = &mut session.recorder {
            recorder.begin(reporter);
        }
        if plan.stdio {
            let reader = session.vm.add_reader();
            session.stdio = Some(Stdio::new(reader, reporter).map_err(failed)?);
        }
        Ok(session)
    }

    /// The writer to standard output, of the console or of the job.
    fn output(&self) -> Option<&OutputWriter> {
        let of_job = || self.job.as_ref()?.output(OutputStream::Stdout);
        self.stdio.as_ref().map(|stdio| &stdio.output).or_else(of_job)
    }

    /// The writer to standard error, of the job.
    fn error_output(&self) -> Option<&OutputWriter> {
        self.job.as_ref()?.output(OutputStream::Stderr)
    }

    /// Starts the VM, and publishes it before the name lock is released.
    fn start(&mut self) -> Result<(), CliError> {
        let failed = |error: String| CliError::new(START, format!("cannot start the VM: {error}"));
        self.vm.start().map_err(|error| failed(error.to_string()))?;
        // Creates the run directory and spawns the first processes.
        self.vm.on_ready().map_err(|error| failed(error.to_string()))?;
        if !self.vm.status().is_terminal() {
            self.bind_control();
        }
        Ok(())
    }

    fn drive(&mut self) -> io::Result<()> {
        let (mut last_progress, mut ended) = (Instant::now(), None);
        loop {
            let has_ended = self.vm.status().is_terminal();
            if has_ended {
                ended.get_or_insert_with(Instant::now);
            }
            self.move_bytes();
            let outputs = [self.output(), self.error_output()];
            let is_written = outputs.into_iter().flatten().all(OutputWriter::is_empty);
            if is_written {
                last_progress = Instant::now();
            }
            let drain = ended.and_then(|ended| self.drain_time(ended, last_progress));
            if has_ended && (is_written || drain == Some(Duration::ZERO)) {
                return Ok(());
            }
            let ready = self.wait(has_ended, drain)?;
            for request in self.signals.take() {
                self.on_signal(request);
            }
            if [SessionSource::Output, SessionSource::ErrorOutput]
                .iter()
                .any(|it| ready.contains(it))
            {
                last_progress = Instant::now();
            }
            for source in ready {
                self.on_ready(source, has_ended);
            }
            if !has_ended
                && !self.time_limit_hit
                && self.deadline.is_some_and(|at| at <= Instant::now())
            {
                self.time_limit_hit = true;
                self.stop(self.grace);
            }
            if !has_ended {
                // Before the VM may end and remove its run directory itself.
                self.check_run_dir();
                self.vm.on_ready()?;
                self.report_spawn();
                while let Some(event) = self.vm.poll_event() {
                    self.on_event(event);
                }
            }
        }
    }

    /// Moves bytes that are buffered to where there is room.
    fn move_bytes(&mut self) {
        let is_stopping = self.vm.status() == VmStatus::Stopping;
        let buffer = if is_stopping { STOP_BUFFER } else { 0 };
        if let Some(stdio) = &mut self.stdio {
            stdio.transfer(&mut self.vm, buffer);
        }
        let event = self.job.as_mut().and_then(|job| job.transfer_output(&mut self.vm, buffer));
        self.on_job_event(event);
        if let Some(recorder) = &mut self.recorder {
            recorder.record_output(&mut self.vm, self.reporter);
        }
        if let Some(control) = &mut self.control {
            control.send_console_output(&mut self.vm);
            if !self.vm.is_pausing() {
                control.answer_pauses(&self.vm.status());
            }
        }
        self.reporter.draw();
    }

    /// Bytes that standard output has not accepted.
    fn unwritten(&mut self) -> usize {
        let buffered = self.output().map_or(0, OutputWriter::unwritten);
        buffered + self.stdio.as_ref().map_or(0, |stdio| stdio.untaken(&mut self.vm))
    }

    /// How long standard output may still block after the VM's end; `None` for any time.
    fn drain_time(&self, ended: Instant, last_progress: Instant) -> Option<Duration> {
        let stall = self.stop.stall_timeout()?.saturating_sub(last_progress.elapsed());
        Some(stall.min(DRAIN_TIMEOUT.saturating_sub(ended.elapsed())))
    }

    /// Waits for descriptors that are ready, or for at most `drain` once the VM has ended.
    fn wait(&self, has_ended: bool, drain: Option<Duration>) -> io::Result<Vec<SessionSource>> {
        let stdin = io::stdin();
        let mut poll_set = PollSet::new();
        poll_set.readable(SessionSource::Signals, self.signals.as_fd());
        if !has_ended {
            poll_set.readable(SessionSource::Vm, self.vm.as_fd());
            self.relays.register(&mut poll_set, SessionSource::Relay);
        }
        let input = self.stdio.as_ref().map(|stdio| &stdio.input);
        let input = input.or_else(|| self.job.as_ref()?.input());
        if let Some(input) = input.filter(|_| !has_ended) {
            input.register(&mut poll_set, &stdin, SessionSource::Input);
        }
        if let Some(output) = self.output().filter(|output| !output.is_empty()) {
            poll_set.writable(SessionSource::Output, output.as_fd());
        }
        if let Some(output) = self.error_output().filter(|output| !output.is_empty()) {
            poll_set.writable(SessionSource::ErrorOutput, output.as_fd());
        }
        if let Some(recorder) = self.recorder.as_ref().filter(|_| !has_ended) {
            recorder.register(&mut poll_set, SessionSource::Log);
        }
        if let Some(control) = self.control.as_ref().filter(|_| !has_ended) {
            control.register(&mut poll_set, SessionSource::Control);
        }
        let timeout = match has_ended {
            false => {
                let check = self.run_dir_checked;
                let check = check.map(|at| RUN_DIR_CHECK.1.saturating_sub(at.elapsed()));
                let terminal = input.and_then(StdinWriter::next_check);
                let deadline = self.deadline.filter(|_| !self.time_limit_hit);
                let deadline = deadline.map(|at| at.saturating_duration_since(Instant::now()));
                let of_vm = [self.vm.next_timeout(), deadline];
                let job = self.job.as_ref().and_then(GuestCommand::next_check);
                let timeouts = [self.reporter.next_draw(), check, terminal, job];
                of_vm.into_iter().chain(timeouts).flatten().min()
            }
            true => drain,
        };
        poll_set.wait(timeout)
    }

    fn on_ready(&mut self, source: SessionSource, has_ended: bool) {
        match source {
            SessionSource::Signals | SessionSource::Vm | SessionSource::Log => {}
            SessionSource::Output => {
                if let Some(stdio) = &mut self.stdio {
                    stdio.output.on_writable();
                } else if let Some(job) = &mut self.job {
                    job.on_writable(OutputStream::Stdout);
                }
            }
            SessionSource::ErrorOutput => {
                if let Some(job) = &mut self.job {
                    job.on_writable(OutputStream::Stderr);
                }
            }
            SessionSource::Input if has_ended => {}
            SessionSource::Input => {
                let Some(input) = input_of(&mut self.stdio, &mut self.job) else { return };
                let input = input.read(&mut self.vm);
                if let Some(recorder) = &mut self.recorder
                    && !input.bytes.is_empty()
                {
                    recorder.record_input(&input.bytes, self.reporter);
                }
                for command in input.commands {
                    match command {
                        EscapeCommand::Stop => self.stop(self.grace),
                        EscapeCommand::Kill => self.kill(),
                    }
                }
            }
            SessionSource::Relay(n) => self.relays.on_ready(n, &self.vm, self.reporter),
            SessionSource::Control(source) => self.on_control_ready(source),
        }
    }

    fn on_control_ready(&mut self, source: ControlSource) {
        let input_is_free =
            self.stdio.as_ref().is_none_or(|stdio| !stdio.input.is_open()) && self.job.is_none();
        let Some(control) = &mut self.control else { return };
        for command in control.on_ready(source, &mut self.vm, input_is_free) {
            match command {
                ClientCommand::Stop(grace) => self.stop(grace.unwrap_or(self.grace)),
                ClientCommand::Kill => self.kill(),
                ClientCommand::Input(bytes) => {
                    if let Some(recorder) = &mut self.recorder {
                        recorder.record_input(&bytes, self.reporter);
                    }
                }
            }
        }
    }

    /// Reports the hypervisor's start, for which the VM has no event.
    fn report_spawn(&mut self) {
        if !self.spawn_reported
            && let Some(pid) = self.vm.hypervisor_pid()
        {
            self.spawn_reported = true;
            self.reporter.event("spawned", json!({"pid": pid}));
            self.publish();
        }
    }

    fn on_event(&mut self, event: VmEvent) {
        match event {
            VmEvent::ControlReady => self.reporter.event("control-ready", json!({})),
            VmEvent::Status(status) => {
                if let Some(control) = &mut self.control {
                    control.answer_pauses(&status);
                }
                match status {
                    VmStatus::Running => {
                        self.reporter.event("running", json!({}));
                        if !std::mem::replace(&mut self.has_run, true) {
                            self.reporter.status(Some(self.running_text()));
                        }
                    }
                    VmStatus::Paused => {
                        self.reporter.event("paused", json!({}));
                        self.reporter.info("the guest is paused; `capsa resume` continues it");
                    }
                    VmStatus::Stopping => {
                        self.reporter.event("stopping", json!({}));
                        self.reporter.status(self.stdio.is_none().then_some("stopping"));
                    }
                    _ => {}
                }
                self.publish();
                let event = self.job.as_mut().and_then(|job| job.on_status(&mut self.vm));
                self.on_job_event(event);
            }
            VmEvent::ConsoleData if !self.output_reported => {
                self.output_reported = true;
                self.reporter.event("first-output", json!({}));
                if self.stdio.is_some() {
                    self.reporter.status(None);
                }
            }
            VmEvent::PauseRejected { request, reason } => {
                if let Some(control) = &mut self.control {
                    control.reject_pauses(request, &reason);
                }
            }
            VmEvent::DiskError(error) => {
                self.reporter.event("disk-error", json!({"error": error}));
                self.reporter.warn(&error.to_string());
                self.publish();
            }
            VmEvent::Ended(wait) => {
                let event = self.job.as_mut().and_then(|job| job.on_ended(&mut self.vm, wait));
                self.on_job_event(event);
            }
            VmEvent::Agent(event) => {
                let event = self.job.as_mut().and_then(|job| job.on_agent(&mut self.vm, event));
                self.on_job_event(event);
            }
            _ => {}
        }
    }

    fn on_signal(&mut self, request: SignalRequest) {
        match request {
            SignalRequest::Stop(signal) => match self.signal {
                None => {
                    self.signal = Some((signal, Instant::now()));
                    if !self.job.as_ref().is_some_and(|job| job.signal(&mut self.vm, signal)) {
                        self.stop(self.grace);
                    }
                }
                Some((_, first)) if first.elapsed() < SIGNAL_WINDOW => {}
                Some(_) => self.kill(),
            },
            SignalRequest::Kill(signal) => {
                self.signal.get_or_insert((signal, Instant::now()));
                self.kill();
            }
            SignalRequest::Resize => {
                if let Some(job) = &self.job {
                    job.resize(&mut self.vm);
                }
            }
            SignalRequest::Suspend => {
                self.reporter.clear();
                if let Some(input) = input_of(&mut self.stdio, &mut self.job) {
                    input.suspend();
                }
                // Returns at SIGCONT, which is then read as a signal of its own.
                let _ = raise(Signal::SIGSTOP);
            }
            SignalRequest::Resume => {
                if let Some(input) = input_of(&mut self.stdio, &mut self.job) {
                    input.resume();
                }
            }
        }
    }

    // Both requests fail only for a VM that was never started, and this one was.
    fn stop(&mut self, grace: Duration) {
        self.stop = self.stop.max(StopRequest::Stop);
        let _ = self.vm.stop_with_timeout(grace);
    }

    fn kill(&mut self) {
        self.stop = StopRequest::Kill;
        let _ = self.vm.kill();
    }
}

/// Standard input, if the guest has it.
fn input_of<'a>(
    stdio: &'a mut Option<Stdio>,
    job: &'a mut Option<GuestCommand>,
) -> Option<&'a mut StdinWriter> {
    let of_job = job.as_mut().and_then(GuestCommand::input_mut);
    stdio.as_mut().map(|stdio| &mut stdio.input).or(of_job)
}
