//! `run … -- COMMAND`: logs in on the console, runs one command, and forwards its output.
//!
//! A guest that boots to a root shell, such as an initramfs, needs no login. Shares that the guest has not
//! mounted are mounted before the command. The command has its words as given and `/dev/null` as
//! standard input.
//!
//! Output goes to standard output as it arrives. If standard output is closed, the command is
//! interrupted. With `-t` the command has the guest's terminal, and this program's terminal is raw while it
//! runs. Then the shell shuts the guest down, because many guests ignore the power button, which
//! the session presses if the guest still runs after a while. With `--json` the output is kept for the JSON document at the end.

use std::time::Duration;
use std::{env, io};

use capsa::console::SHUTDOWN_COMMAND;
use capsa::embed::{Ended, ReaderId, Vm, WaitId};
use capsa::{Error, VmStatus};
use rustix::termios::tcgetwinsize;

use crate::commands::Subcommand;
use crate::failure::CliError;
use crate::flags::usage;
use crate::settings::CommandRoute;
use crate::stdio::input::{InputTarget, StdinWriter};
use crate::stdio::output::OutputWriter;

/// Output beyond this is left out of the JSON document.
const MAX_KEPT: usize = 16 << 20;

/// The command to run, and the user to log in as.
#[derive(Debug)]
pub(crate) struct JobPlan {
    pub(super) words: Vec<String>,
    /// The words as a line for a shell.
    line: String,
    /// The user, if one was named.
    pub(super) named_user: Option<String>,
    password: Option<String>,
    /// The command has a terminal.
    pub(super) on_terminal: bool,
    /// How the command must run, if that was given.
    pub(super) route: Option<CommandRoute>,
}

impl JobPlan {
    /// A plan for the command with these words.
    pub(crate) fn new(
        words: &[std::ffi::OsString],
        user: Option<&str>,
        password: Option<String>,
        on_terminal: bool,
        route: Option<CommandRoute>,
    ) -> Result<Self, CliError> {
        let invalid = |what: &str| usage(what, Some(Subcommand::Run));
        let words: Option<Vec<&str>> = words.iter().map(|word| word.to_str()).collect();
        let words = words.ok_or_else(|| invalid("the command after -- is not UTF-8"))?;
        if words.is_empty() {
            return Err(invalid("missing the command after --"));
        }
        Ok(Self {
            line: shell_words::join(&words),
            words: words.into_iter().map(ToOwned::to_owned).collect(),
            named_user: user.map(ToOwned::to_owned),
            password,
            on_terminal,
            route,
        })
    }

    /// The command in the guest's terminal. It first prints [`BEGIN`]; then it reads what is typed. The
    /// traps let the command handle its signals: without them the shell would end before it.
    fn line_on_terminal(&self) -> String {
        let term = env::var("TERM").unwrap_or_else(|_| "dumb".into());
        let size = match tcgetwinsize(io::stdin()) {
            Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
                format!("stty rows {} cols {} 2>/dev/null;", size.ws_row, size.ws_col)
            }
            _ => String::new(),
        };
        let term = shell_words::quote(&term);
        format!("printf '\\036';trap : 2 3;{size}TERM={term};export TERM;{}", self.line)
    }
}

/// The first byte of a command on the terminal: it may read what is typed.
const BEGIN: u8 = 0x1e;

/// How a job ended.
#[derive(Debug)]
pub(crate) enum JobEnd {
    /// The command's exit status.
    Exited(u8),
    /// Standard output was closed.
    OutputClosed,
    /// Why the command did not run, or has no status.
    Failed(String),
}

/// The result of a job.
#[derive(Debug)]
pub(crate) struct JobReport {
    pub(crate) end: JobEnd,
    /// The standard output, with `--json`; of a command on the console, both outputs.
    pub(crate) output: Option<Vec<u8>>,
    /// The standard error, with `--json`, if it is apart.
    pub(crate) error_output: Option<Vec<u8>>,
    /// Some of the output is lost.
    pub(crate) truncated: bool,
}

/// A job under way.
#[derive(Debug)]
pub(crate) struct Job {
    plan: JobPlan,
    reader: ReaderId,
    state: JobState,
    sink: OutputSink,
    truncated: bool,
    /// Whether the output begins with [`BEGIN`].
    begin_expected: bool,
    /// Standard input, while the command has the guest's terminal.
    input: Option<StdinWriter>,
    /// The command that shuts the guest down.
    shutdown: Option<WaitId>,
}

#[derive(Debug)]
enum JobState {
    /// The VM is not running yet.
    Starting,
    LoggingIn(WaitId),
    /// Mounts the shares that the guest has not mounted.
    Mounting(WaitId),
    Running(WaitId),
    Finished(JobEnd),
}

/// Where an output goes.
#[derive(Debug)]
pub(super) enum OutputSink {
    Stream(OutputWriter),
    Kept(Vec<u8>),
}

impl OutputSink {
    pub(super) fn stream(&self) -> Option<&OutputWriter> {
        match self {
            Self::Stream(output) => Some(output),
            Self::Kept(_) => None,
        }
    }

    pub(super) fn on_writable(&mut self) {
        if let Self::Stream(output) = self {
            output.on_writable();
        }
    }

    /// Whether at most `buffer` bytes wait for a slow reader.
    pub(super) fn has_room(&self, buffer: usize) -> bool {
        self.stream().is_none_or(|output| output.unwritten() <= buffer)
    }

    /// Adds bytes. `false` if some are lost, because no more are kept.
    pub(super) fn put(&mut self, bytes: Vec<u8>) -> bool {
        match self {
            Self::Stream(output) => {
                output.put(bytes);
                true
            }
            Self::Kept(kept) => {
                let room = MAX_KEPT.saturating_sub(kept.len()).min(bytes.len());
                kept.extend_from_slice(&bytes[..room]);
                room == bytes.len()
            }
        }
    }

    pub(super) fn into_kept(self) -> Option<Vec<u8>> {
        match self {
            Self::Kept(bytes) => Some(bytes),
            Self::Stream(_) => None,
        }
    }
}

/// Progress of a job, for the reporter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobEvent {
    LoggedIn,
    /// The agent has started the command.
    Begun,
    Output,
    Finished,
    /// The command that shuts the guest down has ended. The guest may still run.
    ShutdownEnded,
}

impl Job {
    /// A job whose output is `kept`, or goes to standard output.
    pub(crate) fn new(plan: JobPlan, kept: bool, vm: &mut Vm) -> io::Result<Self> {
        let sink = if kept {
            OutputSink::Kept(Vec::new())
        } else {
            OutputSink::Stream(OutputWriter::new()?)
        };
        let reader = vm.add_reader();
        Ok(Self {
            begin_expected: plan.on_terminal,
            plan,
            reader,
            state: JobState::Starting,
            sink,
            truncated: false,
            input: None,
            shutdown: None,
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

    /// The writer to standard output, unless the output is kept.
    pub(crate) fn output(&self) -> Option<&OutputWriter> {
        self.sink.stream()
    }

    /// Writes to standard output, which is ready.
    pub(crate) fn on_writable(&mut self) {
        self.sink.on_writable();
    }

    /// Forwards the command's output while at most `buffer` bytes wait for standard output. Otherwise
    /// the guest waits.
    pub(crate) fn transfer_output(&mut self, vm: &mut Vm, buffer: usize) -> Option<JobEvent> {
        if matches!(self.state, JobState::Finished(_)) && self.shutdown.is_none() {
            // So that messages of the shutdown do not pause the guest.
            vm.take(self.reader);
        }
        let JobState::Running(run) = self.state else { return None };
        if let Some(input) = &mut self.input {
            input.transfer(vm);
        }
        if self.sink.stream().is_some_and(OutputWriter::is_broken) {
            vm.cancel(run);
            return self.finish(JobEnd::OutputClosed);
        }
        if !self.sink.has_room(buffer) {
            return None;
        }
        let bytes = vm.take_output(run);
        if bytes.is_empty() {
            return None;
        }
        self.put(bytes);
        if self.plan.on_terminal && self.input.is_none() {
            match StdinWriter::new(InputTarget::Console) {
                Ok(input) => self.input = Some(input),
                Err(error) => {
                    vm.cancel(run);
                    return self.fail(format!("cannot use the terminal: {error}"));
                }
            }
        }
        Some(JobEvent::Output)
    }

    /// Begins to shut the guest down through the shell, which may take as long as `limit`. `false` where
    /// no shell is available.
    pub(crate) fn shut_down(&mut self, vm: &mut Vm, limit: Duration) -> bool {
        let JobState::Finished(JobEnd::Exited(_) | JobEnd::OutputClosed) = &self.state else {
            return false;
        };
        let line = format!("( {SHUTDOWN_COMMAND} )");
        match vm.run(self.reader, &line, Some(limit)) {
            Ok(wait) => self.shutdown = Some(wait),
            Err(_) => return false,
        }
        true
    }

    /// Logs in as soon as the VM is running.
    pub(crate) fn on_status(&mut self, vm: &mut Vm) -> Option<JobEvent> {
        if !matches!(self.state, JobState::Starting) || vm.status() != VmStatus::Running {
            return None;
        }
        let JobPlan { named_user, password, .. } = &self.plan;
        let user = named_user.as_deref().unwrap_or("root");
        let started = vm.login(self.reader, user, password.as_deref(), None::<Duration>);
        self.enter(started, JobState::LoggingIn)
    }

    /// Continues when the login or the command has ended.
    pub(crate) fn on_ended(&mut self, vm: &mut Vm, wait: WaitId) -> Option<JobEvent> {
        if self.shutdown == Some(wait) {
            self.shutdown = None;
            return vm.take_ended(wait).map(|_| JobEvent::ShutdownEnded);
        }
        match self.state {
            JobState::LoggingIn(login) if login == wait => match vm.take_ended(wait)? {
                Ended::Script(Ok(_)) => {
                    let started = match vm.mount_shares(self.reader, None).transpose() {
                        Some(started) => self.enter(started, JobState::Mounting),
                        None => self.run(vm),
                    };
                    started.or(Some(JobEvent::LoggedIn))
                }
                Ended::Script(Err(error)) => self.fail(format!("cannot log in: {error}")),
                _ => None,
            },
            JobState::Mounting(mounts) if mounts == wait => match vm.take_ended(wait)? {
                Ended::Script(Ok(reply)) if reply.success() => self.run(vm),
                Ended::Script(Ok(reply)) => {
                    let output = reply.text().trim().to_owned();
                    self.fail(Error::SharesNotMounted { output }.to_string())
                }
                Ended::Script(Err(error)) => self.fail(format!("cannot mount the shares: {error}")),
                _ => None,
            },
            JobState::Running(run) if run == wait => {
                // The output before a failure.
                let rest = vm.take_output(wait);
                self.put(rest);
                match vm.take_ended(wait)? {
                    Ended::Script(Ok(reply)) => {
                        self.put(reply.output);
                        self.truncated |= reply.truncated;
                        let status = reply.status.and_then(|status| u8::try_from(status).ok());
                        let Some(status) = status else {
                            return self.fail(
                                "the guest's shell reported no exit status of the command".into(),
                            );
                        };
                        self.finish(JobEnd::Exited(status))
                    }
                    Ended::Script(Err(error)) => {
                        self.fail(format!("cannot run the command: {error}"))
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// The result. A job that has not finished was ended with the VM.
    pub(crate) fn into_report(self) -> JobReport {
        let end = match self.state {
            JobState::Finished(end) => end,
            JobState::Starting | JobState::LoggingIn(_) | JobState::Mounting(_) => {
                JobEnd::Failed("the VM ended before the command was run".into())
            }
            JobState::Running(_) => {
                JobEnd::Failed("the VM ended before the command finished".into())
            }
        };
        let output = self.sink.into_kept();
        JobReport { end, output, error_output: None, truncated: self.truncated }
    }

    fn run(&mut self, vm: &mut Vm) -> Option<JobEvent> {
        let started = match self.plan.on_terminal {
            false => vm.spawn(self.reader, &self.plan.line, None),
            true => vm.spawn_on_terminal(self.reader, &self.plan.line_on_terminal(), None),
        };
        self.enter(started, JobState::Running)
    }

    fn put(&mut self, mut bytes: Vec<u8>) {
        if self.begin_expected && bytes.first() == Some(&BEGIN) {
            self.begin_expected = false;
            bytes.remove(0);
        }
        self.truncated |= !self.sink.put(bytes);
    }

    fn enter(
        &mut self,
        started: Result<WaitId, Error>,
        state: fn(WaitId) -> JobState,
    ) -> Option<JobEvent> {
        match started {
            Ok(wait) => {
                self.state = state(wait);
                None
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn fail(&mut self, reason: String) -> Option<JobEvent> {
        self.finish(JobEnd::Failed(reason))
    }

    /// Ends the job, and restores the terminal.
    fn finish(&mut self, end: JobEnd) -> Option<JobEvent> {
        self.input = None;
        self.state = JobState::Finished(end);
        Some(JobEvent::Finished)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_line_keeps_its_words() {
        let words = ["sh", "-c", "echo 'a b'; exit 7", ""].map(Into::into);
        let plan = JobPlan::new(&words, None, None, false, None).unwrap();
        assert_eq!(
            shell_words::split(&plan.line).unwrap(),
            words.map(|w| w.into_string().unwrap())
        );
    }

    #[test]
    fn job_without_utf8_words_is_usage_error() {
        use std::os::unix::ffi::OsStringExt;
        let raw = std::ffi::OsString::from_vec(b"\xff".to_vec());
        for words in [vec![], vec![raw]] {
            assert_eq!(JobPlan::new(&words, None, None, false, None).unwrap_err().code, 2);
        }
    }
}
