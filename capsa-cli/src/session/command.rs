//! [`GuestCommand`]: the command of `run … -- COMMAND`, which the agent or the console runs, and how the
//! session follows it.

use std::io;
use std::time::{Duration, Instant};

use capsa::embed::{AgentEvent, OutputStream, Vm, WaitId};
use capsa::{ConsoleMode, VmStatus};
use serde_json::json;

use super::agent_job::AgentJob;
use super::job::{Job, JobEvent, JobPlan, JobReport};
use super::{RunLoop, SHUTDOWN_TIMEOUT};
use crate::settings::CommandRoute;
use crate::stdio::input::StdinWriter;
use crate::stdio::output::OutputWriter;

/// A command of the guest under way.
#[derive(Debug)]
pub(crate) enum GuestCommand {
    /// By the guest agent.
    Agent(AgentJob),
    /// By the shell on the console.
    Console(Job),
}

impl GuestCommand {
    /// A command whose output is `kept`, or goes to standard output.
    pub(super) fn new(plan: JobPlan, kept: bool, vm: &mut Vm) -> io::Result<Self> {
        match vm.agent_state() {
            Ok(_) if plan.route != Some(CommandRoute::Console) => {
                AgentJob::new(plan, kept, vm).map(Self::Agent)
            }
            _ => Job::new(plan, kept, vm).map(Self::Console),
        }
    }

    pub(super) fn input(&self) -> Option<&StdinWriter> {
        match self {
            Self::Agent(job) => job.input(),
            Self::Console(job) => job.input(),
        }
    }

    pub(super) fn input_mut(&mut self) -> Option<&mut StdinWriter> {
        match self {
            Self::Agent(job) => job.input_mut(),
            Self::Console(job) => job.input_mut(),
        }
    }

    /// The writer to standard output or standard error, if the command has it.
    pub(super) fn output(&self, stream: OutputStream) -> Option<&OutputWriter> {
        match (self, stream) {
            (Self::Agent(job), stream) => job.output(stream),
            (Self::Console(job), OutputStream::Stdout) => job.output(),
            (Self::Console(_), OutputStream::Stderr) => None,
        }
    }

    pub(super) fn on_writable(&mut self, stream: OutputStream) {
        match self {
            Self::Agent(job) => job.on_writable(stream),
            Self::Console(job) => job.on_writable(),
        }
    }

    pub(super) fn transfer_output(&mut self, vm: &mut Vm, buffer: usize) -> Option<JobEvent> {
        match self {
            Self::Agent(job) => job.transfer_output(vm, buffer),
            Self::Console(job) => job.transfer_output(vm, buffer),
        }
    }

    pub(super) fn on_status(&mut self, vm: &mut Vm) -> Option<JobEvent> {
        match self {
            Self::Agent(job) => job.on_status(vm),
            Self::Console(job) => job.on_status(vm),
        }
    }

    pub(super) fn on_ended(&mut self, vm: &mut Vm, wait: WaitId) -> Option<JobEvent> {
        match self {
            Self::Agent(_) => None,
            Self::Console(job) => job.on_ended(vm, wait),
        }
    }

    pub(super) fn on_agent(&mut self, vm: &mut Vm, event: AgentEvent) -> Option<JobEvent> {
        match self {
            Self::Agent(job) => job.on_agent(vm, event),
            Self::Console(_) => None,
        }
    }

    /// Sends a signal to the command. `false` if it runs on the console, or does not run.
    pub(super) fn signal(&self, vm: &mut Vm, number: u8) -> bool {
        matches!(self, Self::Agent(job) if job.signal(vm, number))
    }

    /// This program's terminal has another size.
    pub(super) fn resize(&self, vm: &mut Vm) {
        if let Self::Agent(job) = self {
            job.resize(vm);
        }
    }

    /// When to call [`transfer_output`](Self::transfer_output) again although nothing is ready.
    pub(super) fn next_check(&self) -> Option<Duration> {
        match self {
            Self::Agent(job) => job.next_check(),
            Self::Console(_) => None,
        }
    }

    pub(super) fn into_report(self) -> JobReport {
        match self {
            Self::Agent(job) => job.into_report(),
            Self::Console(job) => job.into_report(),
        }
    }

    fn shut_down(&mut self, vm: &mut Vm, limit: Duration) -> bool {
        match self {
            Self::Agent(job) => job.shut_down(vm, limit),
            Self::Console(job) => job.shut_down(vm, limit),
        }
    }
}

impl RunLoop<'_> {
    /// The status line of a VM that has just begun to run.
    pub(super) fn running_text(&self) -> &'static str {
        let console = self.vm.launch_plan().console();
        match self.job {
            Some(GuestCommand::Agent(_)) => "waiting for the guest",
            Some(GuestCommand::Console(_)) => "waiting for the guest's shell",
            None if self.stdio.is_some() => "waiting for console output",
            None if console == ConsoleMode::Disabled => {
                "running without a console; Ctrl-C asks the guest to power off"
            }
            None => "running; Ctrl-C asks the guest to power off",
        }
    }

    pub(super) fn on_job_event(&mut self, event: Option<JobEvent>) {
        match event {
            None => {}
            Some(JobEvent::LoggedIn) => {
                self.reporter.event("prompt", json!({}));
                self.reporter.status(Some("running the command"));
            }
            Some(JobEvent::Begun) => {
                self.reporter.event("command-started", json!({}));
                self.reporter.status(Some("running the command"));
            }
            Some(JobEvent::Output) => self.reporter.status(None),
            Some(JobEvent::Finished) => {
                self.job_finished = Some(Instant::now());
                self.reporter.status(Some("stopping"));
                let limit = SHUTDOWN_TIMEOUT.min(self.grace / 2);
                let job = self.job.as_mut().filter(|_| self.vm.status() == VmStatus::Running);
                if !job.is_some_and(|job| job.shut_down(&mut self.vm, limit)) {
                    self.on_job_event(Some(JobEvent::ShutdownEnded));
                }
            }
            Some(JobEvent::ShutdownEnded) => {
                let elapsed = self.job_finished.map_or(Duration::ZERO, |at| at.elapsed());
                // Fails only for a VM that was never started, and this one was.
                let _ = self.vm.stop_with_timeout(self.grace.saturating_sub(elapsed));
            }
        }
    }
}
