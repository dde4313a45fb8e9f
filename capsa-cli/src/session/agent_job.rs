//! `run … -- COMMAND` by the guest agent: runs one command, and moves its standard streams.
//!
//! Standard input passes unless it is a terminal; with `-t` the command has a terminal of its own, and this
//! program's terminal is raw while it runs. Shares that the guest has not mounted are mounted before. Each
//! output is taken only when this program's output has accepted the bytes before, so that the command waits
//! for a slow reader and no byte is lost. At the end the agent shuts the guest down.
//!
//! An agent that does not answer within its limit is an error, whose text names the other route.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};
use std::{env, mem};

use capsa::embed::{
    AgentError, AgentEvent, CommandSpec, MountSpec, Operation, OperationEnd, OperationHandle,
    OutputStream, PowerAction, ReaderId, TerminalSize, Vm,
};
use capsa::{VmStatus, internal};
use rustix::termios::tcgetwinsize;

use super::job::{JobEnd, JobEvent, JobPlan, JobReport, OutputSink};
use crate::stdio::input::{InputTarget, StdinWriter};
use crate::stdio::output::OutputWriter;

/// Bytes of an output that are taken at once.
const CHUNK: usize = 64 << 10;

/// How long init may take to end the guest, as on the console.
const INIT_LIMIT: Duration = Duration::from_secs(10);

/// `errno` of Linux where the guest has no program of this name, and where it is not executable.
const NO_PROGRAM: i32 = 2;
const NOT_EXECUTABLE: i32 = 13;

/// What a shell adds to the number of the signal that ended a command.
const SIGNAL_STATUS: i32 = 128;

/// A command of the agent under way.
#[derive(Debug)]
pub(crate) struct AgentJob {
    plan: JobPlan,
    /// Reads the console, which nothing else reads: else its output would pause the guest.
    console: ReaderId,
    state: AgentJobState,
    stdout: OutputSink,
    stderr: OutputSink,
    truncated: bool,
    /// Standard input, while the command reads it.
    input: Option<StdinWriter>,
    /// The operation that shuts the guest down.
    shutdown: Option<OperationHandle>,
    /// When the guest is powered off without its init.
    power_off_at: Option<Instant>,
}

#[derive(Debug)]
enum AgentJobState {
    /// The VM is not running yet.
    Starting,
    /// Mounts the first of the shares that are left.
    Mounting(OperationHandle, VecDeque<MountSpec>),
    Running(OperationHandle),
    Finished(JobEnd),
}

impl AgentJob {
    /// A command whose outputs are `kept`, or go to standard output and standard error.
    pub(crate) fn new(plan: JobPlan, kept: bool, vm: &mut Vm) -> io::Result<Self> {
        let (stdout, stderr) = match kept {
            true => (OutputSink::Kept(Vec::new()), OutputSink::Kept(Vec::new())),
            false => (
                OutputSink::Stream(OutputWriter::new()?),
                OutputSink::Stream(OutputWriter::to_stderr()?),
            ),
        };
        Ok(Self {
            plan,
            console: vm.add_reader(),
            state: AgentJobState::Starting,
            stdout,
            stderr,
            truncated: false,
            input: None,
            shutdown: None,
            power_off_at: None,
        })
    }

    /// Standard input, while the command reads it.
    pub(crate) fn input(&self) -> Option<&StdinWriter> {
        self.input.as_ref()
    }

    /// The same, to move its bytes.
    pub(crate) fn input_mut(&mut self) -> Option<&mut StdinWriter> {
        self.input.as_mut()
    }

    /// The writer of an output, unless the output is kept.
    pub(crate) fn output(&self, stream: OutputStream) -> Option<&OutputWriter> {
        let sink = match stream {
            OutputStream::Stdout => &self.stdout,
            OutputStream::Stderr => &self.stderr,
        };
        sink.stream()
    }

    /// Writes to an output of this program, which is ready.
    pub(crate) fn on_writable(&mut self, stream: OutputStream) {
        let sink = match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        sink.on_writable();
    }

    /// Begins as soon as the VM is running.
    pub(crate) fn on_status(&mut self, vm: &mut Vm) -> Option<JobEvent> {
        if !matches!(self.state, AgentJobState::Starting) || vm.status() != VmStatus::Running {
            return None;
        }
        let shares = &internal::parts(vm.launch_plan()).shares;
        let mounts = shares.iter().map(|share| share.mount_spec()).collect();
        self.mount_or_run(vm, mounts)
    }

    /// Forwards the outputs while at most `buffer` bytes wait, and notices the end of the command.
    pub(crate) fn transfer_output(&mut self, vm: &mut Vm, buffer: usize) -> Option<JobEvent> {
        drop(vm.take(self.console));
        self.power_off_if_due(vm);
        let AgentJobState::Running(handle) = self.state else { return None };
        if let Some(input) = &mut self.input {
            input.transfer(vm);
        }
        if self.stdout.stream().is_some_and(OutputWriter::is_broken) {
            vm.cancel_operation(handle);
            return Some(self.finish(JobEnd::OutputClosed));
        }
        if self.stderr.stream().is_some_and(OutputWriter::is_broken) {
            vm.ignore_operation_output(handle, OutputStream::Stderr);
        }
        let mut event = None;
        let (mut chunk, mut is_drained) = (vec![0; CHUNK], true);
        for (stream, sink) in
            [(OutputStream::Stdout, &mut self.stdout), (OutputStream::Stderr, &mut self.stderr)]
        {
            if !sink.has_room(buffer) {
                is_drained = false;
                continue;
            }
            let length = vm.read_operation(handle, stream, &mut chunk);
            if length > 0 {
                is_drained = false;
                event = Some(JobEvent::Output);
                self.truncated |= !sink.put(chunk[..length].to_vec());
            }
        }
        match vm.operation_end(handle).filter(|_| is_drained) {
            Some(end) => {
                vm.drop_operation(handle);
                Some(self.on_command_end(end))
            }
            None => event,
        }
    }

    /// Takes an event of the agent.
    pub(crate) fn on_agent(&mut self, vm: &mut Vm, event: AgentEvent) -> Option<JobEvent> {
        match (event, &mut self.state) {
            (AgentEvent::Started(handle), AgentJobState::Running(command))
                if handle == *command =>
            {
                if self.has_input() {
                    match StdinWriter::new(InputTarget::Command(handle)) {
                        Ok(input) => self.input = Some(input),
                        Err(error) => {
                            vm.drop_operation(handle);
                            let reason = format!("cannot use standard input: {error}");
                            return Some(self.fail(reason));
                        }
                    }
                }
                Some(JobEvent::Begun)
            }
            (AgentEvent::Ended(handle), AgentJobState::Mounting(mount, left))
                if handle == *mount =>
            {
                let end = vm.operation_end(handle);
                vm.drop_operation(handle);
                let mut left = mem::take(left);
                let target = left.pop_front().map(|mount| mount.target).unwrap_or_default();
                let target = String::from_utf8_lossy(&target).into_owned();
                match end? {
                    Ok(OperationEnd::Done) => self.mount_or_run(vm, left),
                    Ok(OperationEnd::Failed(errno)) => {
                        let reason = format!("cannot mount {target} in the guest: error {errno}");
                        Some(self.fail(reason))
                    }
                    Ok(_) => Some(self.fail(format!("cannot mount {target} in the guest"))),
                    Err(error) => Some(self.on_error(error)),
                }
            }
            (AgentEvent::Ended(handle), _) if self.shutdown == Some(handle) => {
                self.shutdown = None;
                vm.drop_operation(handle);
                Some(JobEvent::ShutdownEnded)
            }
            _ => None,
        }
    }

    /// Sends a signal to the command. `false` if none runs.
    pub(crate) fn signal(&self, vm: &mut Vm, number: u8) -> bool {
        let AgentJobState::Running(handle) = self.state else { return false };
        if vm.command_pid(handle).is_none() {
            return false;
        }
        vm.signal_command(handle, number.into());
        true
    }

    /// Gives the command's terminal the size of this program's.
    pub(crate) fn resize(&self, vm: &mut Vm) {
        if let AgentJobState::Running(handle) = self.state
            && self.plan.on_terminal
        {
            vm.resize_command(handle, terminal_size());
        }
    }

    /// Begins to shut the guest down through the agent, which may take as long as `limit`. `false` where
    /// that is impossible.
    pub(crate) fn shut_down(&mut self, vm: &mut Vm, limit: Duration) -> bool {
        let AgentJobState::Finished(JobEnd::Exited(_) | JobEnd::OutputClosed) = &self.state else {
            return false;
        };
        let operation = Operation::PowerOff(PowerAction::Orderly);
        self.shutdown = vm.begin_operation(operation, Some(limit)).ok();
        self.power_off_at = self.shutdown.and(Instant::now().checked_add(limit.min(INIT_LIMIT)));
        self.shutdown.is_some()
    }

    /// The result. A command that has not finished was ended with the VM.
    pub(crate) fn into_report(self) -> JobReport {
        let end = match self.state {
            AgentJobState::Finished(end) => end,
            AgentJobState::Starting | AgentJobState::Mounting(..) => {
                JobEnd::Failed("the VM ended before the command was run".into())
            }
            AgentJobState::Running(_) => {
                JobEnd::Failed("the VM ended before the command finished".into())
            }
        };
        let (output, error_output) = (self.stdout.into_kept(), self.stderr.into_kept());
        JobReport { end, output, error_output, truncated: self.truncated }
    }

    /// How long until the guest is powered off without its init.
    pub(crate) fn next_check(&self) -> Option<Duration> {
        self.power_off_at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn power_off_if_due(&mut self, vm: &mut Vm) {
        if self.power_off_at.take_if(|at| *at <= Instant::now()).is_some() {
            // The power button follows, whether this works or not.
            let _ = vm.begin_operation(Operation::PowerOff(PowerAction::Now), None);
        }
    }

    fn has_input(&self) -> bool {
        self.plan.on_terminal || !io::stdin().is_terminal()
    }

    /// Mounts the first of `mounts`, or runs the command.
    fn mount_or_run(&mut self, vm: &mut Vm, mounts: VecDeque<MountSpec>) -> Option<JobEvent> {
        let operation = match mounts.front() {
            Some(mount) => Operation::Mount(mount.clone()),
            None => Operation::Run(self.command()),
        };
        match vm.begin_operation(operation, None) {
            Ok(handle) => {
                self.state = match mounts.is_empty() {
                    true => AgentJobState::Running(handle),
                    false => AgentJobState::Mounting(handle, mounts),
                };
                None
            }
            Err(error) => Some(self.fail(format!("cannot run the command: {error}"))),
        }
    }

    fn command(&self) -> CommandSpec {
        let term = env::var("TERM").unwrap_or_else(|_| "dumb".into());
        let env = [(b"TERM".to_vec(), term.into_bytes())];
        CommandSpec {
            args: self.plan.words.iter().map(|word| word.clone().into_bytes()).collect(),
            env: if self.plan.on_terminal { env.into() } else { Vec::new() },
            user: self.plan.named_user.as_ref().map(|user| user.clone().into_bytes()),
            terminal: self.plan.on_terminal.then(terminal_size),
            has_input: self.has_input(),
            ..CommandSpec::default()
        }
    }

    fn on_command_end(&mut self, end: Result<OperationEnd, AgentError>) -> JobEvent {
        let program = &self.plan.words[0];
        let exited = |status: i32| JobEnd::Exited(u8::try_from(status).unwrap_or(u8::MAX));
        let end = match end {
            Ok(OperationEnd::Exited(status)) => exited(status),
            Ok(OperationEnd::Signaled(number)) => exited(SIGNAL_STATUS + number),
            Ok(OperationEnd::Failed(errno @ (NO_PROGRAM | NOT_EXECUTABLE))) => {
                let (status, what) = match errno {
                    NO_PROGRAM => (127, "not found"),
                    _ => (126, "permission denied"),
                };
                let text = format!("capsa: {program}: {what} in the guest\n");
                self.stderr.put(text.into_bytes());
                JobEnd::Exited(status)
            }
            Ok(OperationEnd::Failed(errno)) => {
                JobEnd::Failed(format!("cannot run {program} in the guest: error {errno}"))
            }
            Ok(OperationEnd::Done | OperationEnd::Cancelled) => {
                JobEnd::Failed(format!("the agent ended {program}"))
            }
            Err(error) => return self.on_error(error),
        };
        self.finish(end)
    }

    /// The agent did not answer, or ended.
    fn on_error(&mut self, error: AgentError) -> JobEvent {
        let has_run_nothing =
            matches!(error, AgentError::NoAnswer { .. } | AgentError::NotReady { .. });
        let hint = if has_run_nothing { "; `--via console` needs no agent" } else { "" };
        self.fail(format!("cannot run the command: {error}{hint}"))
    }

    fn fail(&mut self, reason: String) -> JobEvent {
        self.finish(JobEnd::Failed(reason))
    }

    /// Ends the job, and restores the terminal.
    fn finish(&mut self, end: JobEnd) -> JobEvent {
        self.input = None;
        self.state = AgentJobState::Finished(end);
        JobEvent::Finished
    }
}

/// The size of the terminal at standard input.
fn terminal_size() -> TerminalSize {
    let size = tcgetwinsize(io::stdin()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
    size.map_or(TerminalSize { rows: 24, columns: 80 }, |size| TerminalSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}
