//! The same machine for programs without async: every call waits until it is done.
//!
//! ```no_run
//! use capsa::{Capsa, LinuxBootConfig};
//! use std::time::Duration;
//!
//! # fn main() -> capsa::Result<()> {
//! let config = LinuxBootConfig::new("./vmlinuz").initrd("./initrd");
//! let vm = Capsa::vm(config).console_enabled().build_blocking()?;
//! vm.start()?;
//! let mut console = vm.console()?;
//! console.wait_for_timeout("login:", Duration::from_secs(30))?;
//! vm.stop()?;
//! # Ok(())
//! # }
//! ```

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use futures_lite::future::block_on;
use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt};

use crate::{
    CommandOutput, ConsoleLog, ConsoleReader, ConsoleWriter, GuestOs, LaunchPlan, LinuxVmBuilder,
    Match, Pattern, Rejection, ResourceConfig, Result, StopReport, VmStatus,
};

impl LinuxVmBuilder {
    /// Checks and plans the machine.
    ///
    /// # Errors
    ///
    /// As [`build_embedded`](Self::build_embedded).
    pub fn build_blocking(self) -> Result<VmHandle> {
        block_on(self.build()).map(|inner| VmHandle { inner })
    }
}

/// A machine; see [`crate::VmHandle`], whose every word holds here too.
#[derive(Debug, Clone)]
pub struct VmHandle {
    inner: crate::VmHandle,
}

impl VmHandle {
    /// See [`crate::VmHandle::start`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn start(&self) -> Result<()> {
        block_on(self.inner.start())
    }

    /// See [`crate::VmHandle::stop`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn stop(&self) -> Result<()> {
        block_on(self.inner.stop())
    }

    /// See [`crate::VmHandle::stop_with_timeout`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn stop_with_timeout(&self, grace_period: Duration) -> Result<()> {
        block_on(self.inner.stop_with_timeout(grace_period))
    }

    /// See [`crate::VmHandle::kill`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn kill(&self) -> Result<()> {
        block_on(self.inner.kill())
    }

    /// See [`crate::VmHandle::wait`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn wait(&self) -> Result<VmStatus> {
        block_on(self.inner.wait())
    }

    /// See [`crate::VmHandle::wait_timeout`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<VmStatus>> {
        block_on(self.inner.wait_timeout(timeout))
    }

    /// See [`crate::VmHandle::status`].
    pub fn status(&self) -> VmStatus {
        self.inner.status()
    }

    /// See [`crate::VmHandle::stop_report`].
    pub fn stop_report(&self) -> Option<StopReport> {
        self.inner.stop_report()
    }

    /// See [`crate::VmHandle::console`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn console(&self) -> Result<VmConsole> {
        block_on(self.inner.console()).map(|inner| VmConsole { inner })
    }

    /// See [`crate::VmHandle::vsock_connect`]. The stream is an ordinary, blocking one.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn vsock_connect(&self, port: u32) -> Result<UnixStream> {
        Ok(block_on(self.inner.vsock_connect(port))?.into_std()?)
    }

    /// See [`crate::VmHandle::vsock_connect_timeout`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn vsock_connect_timeout(&self, port: u32, timeout: Duration) -> Result<UnixStream> {
        Ok(block_on(self.inner.vsock_connect_timeout(port, timeout))?.into_std()?)
    }

    /// See [`crate::VmHandle::vsock_listen`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn vsock_listen(&self, port: u32) -> Result<VsockListener> {
        block_on(self.inner.vsock_listen(port)).map(|inner| VsockListener { inner })
    }

    /// See [`crate::VmHandle::guest_os`].
    pub fn guest_os(&self) -> GuestOs {
        self.inner.guest_os()
    }

    /// See [`crate::VmHandle::resources`].
    pub fn resources(&self) -> &ResourceConfig {
        self.inner.resources()
    }

    /// See [`crate::VmHandle::launch_plan`].
    pub fn launch_plan(&self) -> &LaunchPlan {
        self.inner.launch_plan()
    }

    /// See [`crate::VmHandle::rejected_backends`].
    pub fn rejected_backends(&self) -> &[Rejection] {
        self.inner.rejected_backends()
    }

    /// See [`crate::VmHandle::hypervisor_pid`].
    pub fn hypervisor_pid(&self) -> Option<u32> {
        self.inner.hypervisor_pid()
    }

    /// See [`crate::VmHandle::keep_running`].
    pub fn keep_running(self) {
        self.inner.keep_running();
    }

    /// The handle for async code, of the same machine.
    pub fn as_async(&self) -> &crate::VmHandle {
        &self.inner
    }
}

impl AsRef<crate::VmHandle> for VmHandle {
    fn as_ref(&self) -> &crate::VmHandle {
        &self.inner
    }
}

/// Hears the guest's connections; see [`crate::VsockListener`].
#[derive(Debug)]
pub struct VsockListener {
    inner: crate::VsockListener,
}

impl VsockListener {
    /// See [`crate::VsockListener::accept`]. The stream is an ordinary, blocking one.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn accept(&self) -> Result<UnixStream> {
        Ok(block_on(self.inner.accept())?.into_std()?)
    }
}

/// A console; see [`crate::VmConsole`], whose every word holds here too.
#[derive(Debug)]
pub struct VmConsole {
    inner: crate::VmConsole,
}

impl VmConsole {
    /// See [`crate::VmConsole::split`]. The halves are [`io::Read`] and [`io::Write`].
    pub fn split(self) -> (Reader, Writer) {
        let (reader, writer) = self.inner.split();
        (Reader(reader), Writer(writer))
    }

    /// See [`crate::VmConsole::record`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn record(&self, recording: impl Into<crate::Recording>) -> Result<()> {
        self.inner.record(recording)
    }

    /// See [`crate::VmConsole::read`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        block_on(self.inner.read(buf))
    }

    /// See [`crate::VmConsole::wait_for`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn wait_for(&mut self, pattern: &str) -> Result<String> {
        block_on(self.inner.wait_for(pattern))
    }

    /// See [`crate::VmConsole::wait_for_timeout`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn wait_for_timeout(&mut self, pattern: &str, timeout: Duration) -> Result<String> {
        block_on(self.inner.wait_for_timeout(pattern, timeout))
    }

    /// See [`crate::VmConsole::wait_for_any`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn wait_for_any(&mut self, patterns: &[&str]) -> Result<(usize, String)> {
        block_on(self.inner.wait_for_any(patterns))
    }

    /// See [`crate::VmConsole::wait_for_pattern`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn wait_for_pattern(
        &mut self,
        pattern: &Pattern,
        timeout: Option<Duration>,
    ) -> Result<Match> {
        block_on(self.inner.wait_for_pattern(pattern, timeout))
    }

    /// See [`crate::VmConsole::wait_for_any_pattern`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn wait_for_any_pattern(
        &mut self,
        patterns: &[Pattern],
        timeout: Option<Duration>,
    ) -> Result<Match> {
        block_on(self.inner.wait_for_any_pattern(patterns, timeout))
    }

    /// See [`crate::VmConsole::wait_for_silence`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn wait_for_silence(
        &mut self,
        quiet: Duration,
        timeout: Option<Duration>,
    ) -> Result<String> {
        block_on(self.inner.wait_for_silence(quiet, timeout))
    }

    /// See [`crate::VmConsole::reader`].
    pub fn reader(&self) -> Reader {
        Reader(self.inner.reader())
    }

    /// See [`crate::VmConsole::log_to`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn log_to(&self, path: impl AsRef<Path>) -> Result<ConsoleLog> {
        self.inner.log_to(path)
    }

    /// See [`crate::VmConsole::read_available`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn read_available(&mut self) -> Result<String> {
        block_on(self.inner.read_available())
    }

    /// See [`crate::VmConsole::write`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        block_on(self.inner.write(data))
    }

    /// See [`crate::VmConsole::write_str`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn write_str(&mut self, s: &str) -> Result<()> {
        block_on(self.inner.write_str(s))
    }

    /// See [`crate::VmConsole::write_line`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn write_line(&mut self, s: &str) -> Result<()> {
        block_on(self.inner.write_line(s))
    }

    /// See [`crate::VmConsole::send_interrupt`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_interrupt(&mut self) -> Result<()> {
        block_on(self.inner.send_interrupt())
    }

    /// See [`crate::VmConsole::send_eof`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_eof(&mut self) -> Result<()> {
        block_on(self.inner.send_eof())
    }

    /// See [`crate::VmConsole::login`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn login(&mut self, username: &str, password: Option<&str>) -> Result<()> {
        block_on(self.inner.login(username, password))
    }

    /// See [`crate::VmConsole::login_timeout`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn login_timeout(
        &mut self,
        username: &str,
        password: Option<&str>,
        timeout: Duration,
    ) -> Result<()> {
        block_on(self.inner.login_timeout(username, password, timeout))
    }

    /// See [`crate::VmConsole::run_command`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn run_command(&mut self, cmd: &str, prompt: &str) -> Result<String> {
        block_on(self.inner.run_command(cmd, prompt))
    }

    /// See [`crate::VmConsole::run_command_timeout`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn run_command_timeout(
        &mut self,
        cmd: &str,
        prompt: &str,
        timeout: Duration,
    ) -> Result<String> {
        block_on(self.inner.run_command_timeout(cmd, prompt, timeout))
    }

    /// See [`crate::VmConsole::run`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn run(&mut self, cmd: &str, timeout: Option<Duration>) -> Result<CommandOutput> {
        block_on(self.inner.run(cmd, timeout))
    }

    /// See [`crate::VmConsole::spawn`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn spawn(&mut self, cmd: &str, timeout: Option<Duration>) -> Result<RunningCommand<'_>> {
        self.inner.spawn(cmd, timeout).map(RunningCommand)
    }
}

/// A command under way; see [`crate::RunningCommand`].
#[derive(Debug)]
pub struct RunningCommand<'a>(crate::RunningCommand<'a>);

impl RunningCommand<'_> {
    /// See [`crate::RunningCommand::wait`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn wait(self) -> Result<CommandOutput> {
        block_on(self.0.wait())
    }
}

impl io::Read for RunningCommand<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(block_on(self.0.read(buf)))
    }
}

/// The reading half of a console.
#[derive(Debug, Clone)]
pub struct Reader(ConsoleReader);

impl Reader {
    /// See [`ConsoleReader::strip_ansi`].
    #[must_use]
    pub fn strip_ansi(self) -> Self {
        Self(self.0.strip_ansi())
    }

    /// See [`ConsoleReader::lines`]. An iterator, which waits for each line.
    pub fn lines(self) -> Lines {
        Lines(self.0.lines())
    }

    /// See [`ConsoleReader::log_to`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn log_to(self, path: impl AsRef<Path>) -> Result<ConsoleLog> {
        self.0.log_to(path)
    }

    /// See [`ConsoleReader::lost`].
    pub fn lost(&self) -> u64 {
        self.0.lost()
    }
}

/// The lines of a console; see [`crate::Lines`].
#[derive(Debug)]
pub struct Lines(crate::Lines);

impl Lines {
    /// Bytes that are in no line, because they were dropped before they were read.
    pub fn lost(&self) -> u64 {
        self.0.lost()
    }
}

impl Iterator for Lines {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        block_on(self.0.next())
    }
}

impl io::Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        block_on(AsyncReadExt::read(&mut self.0, buf))
    }
}

/// The writing half of a console.
#[derive(Debug, Clone)]
pub struct Writer(ConsoleWriter);

impl io::Write for Writer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        block_on(AsyncWriteExt::write(&mut self.0, buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
