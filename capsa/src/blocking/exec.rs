//! Commands in the guest; the blocking version of [`crate::exec`].

use std::ffi::OsStr;
use std::io;
use std::time::Duration;

use futures_lite::future::block_on;
use futures_lite::{AsyncReadExt, AsyncWriteExt};

use super::VmHandle;
use crate::Result;
use crate::exec::{self, ExecOutput, ExecStdio, ExitStatus};

impl VmHandle {
    /// The same as [`crate::VmHandle::exec`].
    pub fn exec<I, S>(&self, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Command(self.inner.exec(args))
    }

    /// Blocking version of [`crate::VmHandle::read_file`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn read_file(&self, path: impl AsRef<OsStr>) -> Result<Vec<u8>> {
        block_on(self.inner.read_file(path))
    }

    /// Blocking version of [`crate::VmHandle::write_file`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn write_file(&self, path: impl AsRef<OsStr>, content: impl AsRef<[u8]>) -> Result<()> {
        block_on(self.inner.write_file(path, content))
    }
}

/// A command in the guest; the blocking version of [`exec::Command`].
#[derive(Debug, Clone)]
pub struct Command(exec::Command);

impl Command {
    /// The same as [`exec::Command::arg`].
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.0.arg(arg);
        self
    }

    /// The same as [`exec::Command::args`].
    pub fn args(&mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.0.args(args);
        self
    }

    /// The same as [`exec::Command::env`].
    pub fn env(&mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.0.env(key, value);
        self
    }

    /// The same as [`exec::Command::current_dir`].
    pub fn current_dir(&mut self, path: impl AsRef<OsStr>) -> &mut Self {
        self.0.current_dir(path);
        self
    }

    /// The same as [`exec::Command::user`].
    pub fn user(&mut self, user: impl AsRef<OsStr>) -> &mut Self {
        self.0.user(user);
        self
    }

    /// The same as [`exec::Command::stdin`].
    pub fn stdin(&mut self, stdin: ExecStdio) -> &mut Self {
        self.0.stdin(stdin);
        self
    }

    /// The same as [`exec::Command::stdout`].
    pub fn stdout(&mut self, stdout: ExecStdio) -> &mut Self {
        self.0.stdout(stdout);
        self
    }

    /// The same as [`exec::Command::stderr`].
    pub fn stderr(&mut self, stderr: ExecStdio) -> &mut Self {
        self.0.stderr(stderr);
        self
    }

    /// The same as [`exec::Command::timeout`].
    pub fn timeout(&mut self, timeout: Duration) -> &mut Self {
        self.0.timeout(timeout);
        self
    }

    /// The same as [`exec::Command::terminal`].
    pub fn terminal(&mut self, rows: u16, columns: u16) -> &mut Self {
        self.0.terminal(rows, columns);
        self
    }

    /// The same as [`exec::Command::output_limit`].
    pub fn output_limit(&mut self, bytes: usize) -> &mut Self {
        self.0.output_limit(bytes);
        self
    }

    /// The same as [`exec::Command::spawn`].
    ///
    /// # Errors
    ///
    /// The same as [`exec::Command::spawn`].
    pub fn spawn(&self) -> Result<Child> {
        let mut inner = self.0.spawn()?;
        Ok(Child {
            stdin: inner.stdin.take().map(ChildStdin),
            stdout: inner.stdout.take().map(ChildOutput),
            stderr: inner.stderr.take().map(ChildOutput),
            inner,
        })
    }

    /// Blocking version of [`exec::Command::output`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn output(&self) -> Result<ExecOutput> {
        block_on(self.0.output())
    }

    /// Blocking version of [`exec::Command::status`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn status(&self) -> Result<ExitStatus> {
        block_on(self.0.status())
    }
}

/// A command that runs in the guest; the blocking version of [`exec::Child`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Child {
    /// Its input, if it is piped. Dropping it ends the input.
    pub stdin: Option<ChildStdin>,
    /// Its standard output, if it is piped.
    pub stdout: Option<ChildOutput>,
    /// Its standard error, if it is piped.
    pub stderr: Option<ChildOutput>,
    inner: exec::Child,
}

impl Child {
    /// The same as [`exec::Child::id`].
    pub fn id(&self) -> Option<u32> {
        self.inner.id()
    }

    /// Blocking version of [`exec::Child::wait`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.stdin = None;
        block_on(self.inner.wait())
    }

    /// Blocking version of [`exec::Child::wait_with_output`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn wait_with_output(mut self) -> Result<ExecOutput> {
        self.stdin = None;
        self.inner.stdout = self.stdout.take().map(|output| output.0);
        self.inner.stderr = self.stderr.take().map(|output| output.0);
        block_on(self.inner.wait_with_output())
    }

    /// The same as [`exec::Child::kill`].
    pub fn kill(&mut self) {
        self.inner.kill();
    }

    /// The same as [`exec::Child::signal`].
    pub fn signal(&mut self, number: i32) {
        self.inner.signal(number);
    }

    /// The same as [`exec::Child::resize`].
    pub fn resize(&mut self, rows: u16, columns: u16) {
        self.inner.resize(rows, columns);
    }
}

/// The standard input of a command; the blocking version of [`exec::ChildStdin`].
#[derive(Debug)]
pub struct ChildStdin(exec::ChildStdin);

impl io::Write for ChildStdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        block_on(AsyncWriteExt::write(&mut self.0, bytes))
    }

    /// What was written is on its way to the agent already.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An output of a command; the blocking version of [`exec::ChildOutput`].
#[derive(Debug)]
pub struct ChildOutput(exec::ChildOutput);

impl io::Read for ChildOutput {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        block_on(AsyncReadExt::read(&mut self.0, buf))
    }
}
