//! [`Command`]: the description of a command in the guest.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use super::child::{Child, Collected};
use super::status::ExitStatus;
use crate::driver::Shared;
use crate::embed::{CommandSpec, Operation, OutputStream, TerminalSize};
use crate::{Result, VmHandle};

/// How many bytes [`Command::output`] keeps of each output, unless it is changed.
const OUTPUT_LIMIT: usize = 16 << 20;

/// A command in the guest, made by [`VmHandle::exec`]. It can be run several times.
#[derive(Debug, Clone)]
pub struct Command {
    shared: Arc<Shared>,
    spec: CommandSpec,
    timeout: Option<Duration>,
    stdout: ExecStdio,
    stderr: ExecStdio,
    output_limit: usize,
}

/// What a standard stream of a command is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExecStdio {
    /// A stream of [`Child`].
    Piped,
    /// Nothing: no input, or output that is discarded.
    Null,
}

/// The outputs and the status of a command that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecOutput {
    /// How the command ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// Output beyond the [limit](Command::output_limit) was discarded.
    pub truncated: bool,
}

impl VmHandle {
    /// A command for the guest: a program and its arguments, without a shell. A program without a slash is
    /// searched in the guest's `PATH`. It runs as soon as the guest is ready, through the agent.
    pub fn exec<I, S>(&self, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let args = args.into_iter().map(|arg| bytes(&arg)).collect();
        Command {
            shared: Arc::clone(self.shared()),
            spec: CommandSpec { args, ..CommandSpec::default() },
            timeout: None,
            stdout: ExecStdio::Piped,
            stderr: ExecStdio::Piped,
            output_limit: OUTPUT_LIMIT,
        }
    }
}

impl Command {
    /// Adds an argument.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.spec.args.push(bytes(&arg));
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.spec.args.extend(args.into_iter().map(|arg| bytes(&arg)));
        self
    }

    /// Sets a variable of its environment, which has `PATH`, `HOME`, `USER`, `LOGNAME` and `SHELL` of its
    /// user and nothing else. Nothing of this program's environment is passed.
    pub fn env(&mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.spec.env.push((bytes(&key), bytes(&value)));
        self
    }

    /// Sets its working directory. Default: the home directory of its user.
    pub fn current_dir(&mut self, path: impl AsRef<OsStr>) -> &mut Self {
        self.spec.cwd = Some(bytes(&path));
        self
    }

    /// Sets its user: a name of the guest, or `UID` or `UID:GID` in decimal. Default: root.
    pub fn user(&mut self, user: impl AsRef<OsStr>) -> &mut Self {
        self.spec.user = Some(bytes(&user));
        self
    }

    /// Sets its standard input. Default: [`ExecStdio::Null`].
    pub fn stdin(&mut self, stdin: ExecStdio) -> &mut Self {
        self.spec.has_input = stdin == ExecStdio::Piped;
        self
    }

    /// Sets its standard output. Default: [`ExecStdio::Piped`].
    pub fn stdout(&mut self, stdout: ExecStdio) -> &mut Self {
        self.stdout = stdout;
        self
    }

    /// Sets its standard error. Default: [`ExecStdio::Piped`].
    pub fn stderr(&mut self, stderr: ExecStdio) -> &mut Self {
        self.stderr = stderr;
        self
    }

    /// Kills its process group after this time, from the call that runs it on. Default: no limit.
    pub fn timeout(&mut self, timeout: Duration) -> &mut Self {
        self.timeout = Some(timeout);
        self
    }

    /// Runs it on a terminal of this size, to which its standard streams are connected: everything that it
    /// prints is on its standard output.
    pub fn terminal(&mut self, rows: u16, columns: u16) -> &mut Self {
        self.spec.terminal = Some(TerminalSize { rows, columns });
        self
    }

    /// How many bytes [`output`](Self::output) keeps of each output; the rest is discarded. Default:
    /// 16 MiB.
    pub fn output_limit(&mut self, bytes: usize) -> &mut Self {
        self.output_limit = bytes;
        self
    }

    /// Begins the command. It runs as soon as the guest is ready.
    ///
    /// # Errors
    ///
    /// [`Error::AgentNotEnabled`](crate::Error::AgentNotEnabled);
    /// [`Error::NotRunning`](crate::Error::NotRunning) when the VM was not started or has ended;
    /// [`Error::Operation`](crate::Error::Operation) when the command is empty, too long or has a NUL byte;
    /// [`Error::Io`](crate::Error::Io) when the VM cannot be driven.
    pub fn spawn(&self) -> Result<Child> {
        let program = self.spec.args.first().map(|name| String::from_utf8_lossy(name).into_owned());
        self.shared.check_process()?;
        let handle = self.shared.change(|state| {
            state.check_driver()?;
            let operation = Operation::Run(self.spec.clone());
            let handle = state.vm.begin_operation(operation, self.timeout)?;
            for (stream, stdio) in
                [(OutputStream::Stdout, self.stdout), (OutputStream::Stderr, self.stderr)]
            {
                if stdio == ExecStdio::Null {
                    state.vm.ignore_operation_output(handle, stream);
                }
            }
            Ok::<_, crate::Error>(handle)
        })?;
        Ok(Child::new(
            Arc::clone(&self.shared),
            handle,
            format!("running `{}`", program.unwrap_or_default()),
            [self.spec.has_input, self.stdout == ExecStdio::Piped, self.stderr == ExecStdio::Piped],
        ))
    }

    /// Runs the command and collects its outputs. Its input is empty, also if it is
    /// [piped](ExecStdio::Piped). Dropping the future kills it.
    ///
    /// # Errors
    ///
    /// The same as [`spawn`](Self::spawn) and [`Child::wait`].
    pub async fn output(&self) -> Result<ExecOutput> {
        self.spawn()?.collect(self.output_limit).await
    }

    /// Runs the command and discards its outputs. Dropping the future kills it.
    ///
    /// # Errors
    ///
    /// The same as [`output`](Self::output).
    pub async fn status(&self) -> Result<ExitStatus> {
        let mut command = self.clone();
        command.stdout(ExecStdio::Null).stderr(ExecStdio::Null);
        let mut child = command.spawn()?;
        drop(child.stdin.take());
        child.wait().await
    }
}

impl ExecOutput {
    pub(super) fn new(status: ExitStatus, stdout: Collected, stderr: Collected) -> Self {
        let truncated = stdout.truncated || stderr.truncated;
        Self { status, stdout: stdout.bytes, stderr: stderr.bytes, truncated }
    }
}

fn bytes(text: &impl AsRef<OsStr>) -> Vec<u8> {
    text.as_ref().as_bytes().to_vec()
}
