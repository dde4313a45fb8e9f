//! The API for programs without async code: every call blocks until it is done.
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

mod exec;
mod network;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt, future::block_on};

use crate::backend::{LaunchPlan, Rejection};
use crate::console::{self, CommandOutput, ConsoleLog, Match, Pattern};
use crate::disk_errors::DiskError;
use crate::{GuestOs, LinuxVmBuilder, ResourceConfig, Result, StopReport, VmStatus};

pub use exec::{Child, ChildOutput, ChildStdin, Command};
pub use network::ServiceListener;

impl LinuxVmBuilder {
    /// Checks the description, plans the VM and creates its run directory. Nothing is started. Blocks
    /// the calling thread; [`build_embedded`](Self::build_embedded) lists for how long.
    ///
    /// # Errors
    ///
    /// The same as [`build_embedded`](Self::build_embedded).
    #[cfg_attr(docsrs, doc(cfg(feature = "blocking")))]
    pub fn build_blocking(self) -> Result<VmHandle> {
        block_on(self.build()).map(|inner| VmHandle { inner })
    }
}

/// A handle of a VM; the blocking version of [`crate::VmHandle`], with the same guarantees.
#[derive(Debug, Clone)]
pub struct VmHandle {
    inner: crate::VmHandle,
}

impl VmHandle {
    /// Blocking version of [`crate::VmHandle::start`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn start(&self) -> Result<()> {
        block_on(self.inner.start())
    }

    /// Blocking version of [`crate::VmHandle::stop`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn stop(&self) -> Result<()> {
        block_on(self.inner.stop())
    }

    /// Blocking version of [`crate::VmHandle::stop_with_timeout`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn stop_with_timeout(&self, grace_period: Duration) -> Result<()> {
        block_on(self.inner.stop_with_timeout(grace_period))
    }

    /// Blocking version of [`crate::VmHandle::kill`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn kill(&self) -> Result<()> {
        block_on(self.inner.kill())
    }

    /// Blocking version of [`crate::VmHandle::wait`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn wait(&self) -> Result<VmStatus> {
        block_on(self.inner.wait())
    }

    /// Blocking version of [`crate::VmHandle::wait_timeout`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<VmStatus>> {
        block_on(self.inner.wait_timeout(timeout))
    }

    /// The same as [`crate::VmHandle::pause`].
    ///
    /// # Errors
    ///
    /// The same as [`crate::VmHandle::pause`].
    pub fn pause(&self) -> Result<()> {
        block_on(self.inner.pause())
    }

    /// The same as [`crate::VmHandle::resume`].
    ///
    /// # Errors
    ///
    /// The same as [`crate::VmHandle::pause`].
    pub fn resume(&self) -> Result<()> {
        block_on(self.inner.resume())
    }

    /// The same as [`crate::VmHandle::status`].
    pub fn status(&self) -> VmStatus {
        self.inner.status()
    }

    /// The same as [`crate::VmHandle::disk_errors`].
    pub fn disk_errors(&self) -> Vec<DiskError> {
        self.inner.disk_errors()
    }

    /// The same as [`crate::VmHandle::stop_report`].
    pub fn stop_report(&self) -> Option<StopReport> {
        self.inner.stop_report()
    }

    /// Blocking version of [`crate::VmHandle::console`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn console(&self) -> Result<VmConsole> {
        block_on(self.inner.console()).map(|inner| VmConsole { inner })
    }

    /// Blocking version of [`crate::VmHandle::vsock_connect`]. Returns a blocking stream.
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn vsock_connect(&self, port: u32) -> Result<UnixStream> {
        Ok(block_on(self.inner.vsock_connect(port))?.into_std()?)
    }

    /// Blocking version of [`crate::VmHandle::vsock_connect_timeout`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn vsock_connect_timeout(&self, port: u32, timeout: Duration) -> Result<UnixStream> {
        Ok(block_on(self.inner.vsock_connect_timeout(port, timeout))?.into_std()?)
    }

    /// Blocking version of [`crate::VmHandle::vsock_listen`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn vsock_listen(&self, port: u32) -> Result<VsockListener> {
        block_on(self.inner.vsock_listen(port)).map(|inner| VsockListener { inner })
    }

    /// The same as [`crate::VmHandle::guest_os`].
    pub fn guest_os(&self) -> GuestOs {
        self.inner.guest_os()
    }

    /// The same as [`crate::VmHandle::resources`].
    pub fn resources(&self) -> &ResourceConfig {
        self.inner.resources()
    }

    /// The same as [`crate::VmHandle::launch_plan`].
    pub fn launch_plan(&self) -> &LaunchPlan {
        self.inner.launch_plan()
    }

    /// The same as [`crate::VmHandle::rejected_backends`].
    pub fn rejected_backends(&self) -> &[Rejection] {
        self.inner.rejected_backends()
    }

    /// The same as [`crate::VmHandle::hypervisor_pid`].
    pub fn hypervisor_pid(&self) -> Option<u32> {
        self.inner.hypervisor_pid()
    }

    /// The same as [`crate::VmHandle::keep_running`].
    pub fn keep_running(self) {
        self.inner.keep_running();
    }

    /// The async handle of the same VM.
    pub fn as_async(&self) -> &crate::VmHandle {
        &self.inner
    }
}

impl AsRef<crate::VmHandle> for VmHandle {
    fn as_ref(&self) -> &crate::VmHandle {
        &self.inner
    }
}

/// Accepts connections from the guest; the blocking version of [`crate::vsock::VsockListener`].
#[derive(Debug)]
pub struct VsockListener {
    inner: crate::vsock::VsockListener,
}

impl VsockListener {
    /// Blocking version of [`crate::vsock::VsockListener::accept`]. Returns a blocking stream.
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn accept(&self) -> Result<UnixStream> {
        Ok(block_on(self.inner.accept())?.into_std()?)
    }
}

/// A console of a VM; the blocking version of [`crate::VmConsole`], with the same guarantees.
#[derive(Debug)]
pub struct VmConsole {
    inner: crate::VmConsole,
}

impl VmConsole {
    /// The same as [`crate::VmConsole::split`]. The halves implement [`io::Read`] and [`io::Write`].
    pub fn split(self) -> (ConsoleReader, ConsoleWriter) {
        let (reader, writer) = self.inner.split();
        (ConsoleReader(reader), ConsoleWriter(writer))
    }

    /// Blocking version of [`crate::VmConsole::record`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    #[cfg(feature = "recording")]
    #[cfg_attr(docsrs, doc(cfg(feature = "recording")))]
    pub fn record(&self, recording: impl Into<crate::recording::Recording>) -> Result<()> {
        self.inner.record(recording)
    }

    /// Blocking version of [`crate::VmConsole::read`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        block_on(self.inner.read(buf))
    }

    /// Blocking version of [`crate::VmConsole::wait_for`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn wait_for(&mut self, pattern: &str) -> Result<String> {
        block_on(self.inner.wait_for(pattern))
    }

    /// Blocking version of [`crate::VmConsole::wait_for_timeout`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn wait_for_timeout(&mut self, pattern: &str, timeout: Duration) -> Result<String> {
        block_on(self.inner.wait_for_timeout(pattern, timeout))
    }

    /// Blocking version of [`crate::VmConsole::wait_for_any`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn wait_for_any(&mut self, patterns: &[&str]) -> Result<(usize, String)> {
        block_on(self.inner.wait_for_any(patterns))
    }

    /// Blocking version of [`crate::VmConsole::wait_for_pattern`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn wait_for_pattern(
        &mut self,
        pattern: &Pattern,
        timeout: Option<Duration>,
    ) -> Result<Match> {
        block_on(self.inner.wait_for_pattern(pattern, timeout))
    }

    /// Blocking version of [`crate::VmConsole::wait_for_any_pattern`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn wait_for_any_pattern(
        &mut self,
        patterns: &[Pattern],
        timeout: Option<Duration>,
    ) -> Result<Match> {
        block_on(self.inner.wait_for_any_pattern(patterns, timeout))
    }

    /// Blocking version of [`crate::VmConsole::wait_for_silence`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn wait_for_silence(
        &mut self,
        quiet: Duration,
        timeout: Option<Duration>,
    ) -> Result<String> {
        block_on(self.inner.wait_for_silence(quiet, timeout))
    }

    /// The same as [`crate::VmConsole::reader`].
    pub fn reader(&self) -> ConsoleReader {
        ConsoleReader(self.inner.reader())
    }

    /// Blocking version of [`crate::VmConsole::log_to`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn log_to(&self, path: impl AsRef<Path>) -> Result<ConsoleLog> {
        self.inner.log_to(path)
    }

    /// Blocking version of [`crate::VmConsole::read_available`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn read_available(&mut self) -> Result<String> {
        block_on(self.inner.read_available())
    }

    /// Blocking version of [`crate::VmConsole::write`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        block_on(self.inner.write(data))
    }

    /// Blocking version of [`crate::VmConsole::write_str`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn write_str(&mut self, s: &str) -> Result<()> {
        block_on(self.inner.write_str(s))
    }

    /// Blocking version of [`crate::VmConsole::write_line`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn write_line(&mut self, s: &str) -> Result<()> {
        block_on(self.inner.write_line(s))
    }

    /// Blocking version of [`crate::VmConsole::send_interrupt`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn send_interrupt(&mut self) -> Result<()> {
        block_on(self.inner.send_interrupt())
    }

    /// Blocking version of [`crate::VmConsole::send_eof`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn send_eof(&mut self) -> Result<()> {
        block_on(self.inner.send_eof())
    }

    /// Blocking version of [`crate::VmConsole::login`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn login(&mut self, username: &str, password: Option<&str>) -> Result<()> {
        block_on(self.inner.login(username, password))
    }

    /// Blocking version of [`crate::VmConsole::login_timeout`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn login_timeout(
        &mut self,
        username: &str,
        password: Option<&str>,
        timeout: Duration,
    ) -> Result<()> {
        block_on(self.inner.login_timeout(username, password, timeout))
    }

    /// Blocking version of [`crate::VmConsole::run_command`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn run_command(&mut self, cmd: &str, prompt: &str) -> Result<String> {
        block_on(self.inner.run_command(cmd, prompt))
    }

    /// Blocking version of [`crate::VmConsole::run_command_timeout`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn run_command_timeout(
        &mut self,
        cmd: &str,
        prompt: &str,
        timeout: Duration,
    ) -> Result<String> {
        block_on(self.inner.run_command_timeout(cmd, prompt, timeout))
    }

    /// Blocking version of [`crate::VmConsole::run`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn run(&mut self, cmd: &str, timeout: Option<Duration>) -> Result<CommandOutput> {
        block_on(self.inner.run(cmd, timeout))
    }

    /// Blocking version of [`crate::VmConsole::run_in_login_shell`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn run_in_login_shell(
        &mut self,
        cmd: &str,
        timeout: Option<Duration>,
    ) -> Result<CommandOutput> {
        block_on(self.inner.run_in_login_shell(cmd, timeout))
    }

    /// Blocking version of [`crate::VmConsole::mount_shares`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn mount_shares(&mut self, timeout: Option<Duration>) -> Result<()> {
        block_on(self.inner.mount_shares(timeout))
    }

    /// Blocking version of [`crate::VmConsole::spawn`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn spawn(&mut self, cmd: &str, timeout: Option<Duration>) -> Result<RunningCommand<'_>> {
        self.inner.spawn(cmd, timeout).map(RunningCommand)
    }

    /// Blocking version of [`crate::VmConsole::spawn_on_terminal`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn spawn_on_terminal(
        &mut self,
        cmd: &str,
        timeout: Option<Duration>,
    ) -> Result<RunningCommand<'_>> {
        self.inner.spawn_on_terminal(cmd, timeout).map(RunningCommand)
    }
}

/// A running command; the blocking version of [`crate::console::RunningCommand`].
#[derive(Debug)]
pub struct RunningCommand<'a>(crate::console::RunningCommand<'a>);

impl RunningCommand<'_> {
    /// Blocking version of [`crate::console::RunningCommand::wait`].
    ///
    /// # Errors
    ///
    /// The same as the async version.
    pub fn wait(self) -> Result<CommandOutput> {
        block_on(self.0.wait())
    }
}

impl io::Read for RunningCommand<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(block_on(self.0.read(buf)))
    }
}

/// The reading half of a console; the blocking version of [`crate::console::ConsoleReader`].
#[derive(Debug, Clone)]
pub struct ConsoleReader(console::ConsoleReader);

impl ConsoleReader {
    /// The same as [`console::ConsoleReader::strip_ansi`].
    #[must_use]
    pub fn strip_ansi(self) -> Self {
        Self(self.0.strip_ansi())
    }

    /// The same as [`console::ConsoleReader::named`].
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self(self.0.named(name))
    }

    /// The same as [`console::ConsoleReader::lines`]. Returns an iterator that blocks for each line.
    pub fn lines(self) -> Lines {
        Lines(self.0.lines())
    }

    /// The same as [`console::ConsoleReader::log_to`].
    ///
    /// # Errors
    ///
    /// The same as [`console::ConsoleReader::log_to`].
    pub fn log_to(self, path: impl AsRef<Path>) -> Result<ConsoleLog> {
        self.0.log_to(path)
    }

    /// The same as [`console::ConsoleReader::lost`].
    pub fn lost(&self) -> u64 {
        self.0.lost()
    }
}

/// The lines of a console; the blocking version of [`crate::console::Lines`].
#[derive(Debug)]
pub struct Lines(crate::console::Lines);

impl Lines {
    /// The number of bytes that were dropped before they were read, and are missing from the lines.
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

impl io::Read for ConsoleReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        block_on(AsyncReadExt::read(&mut self.0, buf))
    }
}

/// The writing half of a console; the blocking version of [`crate::console::ConsoleWriter`].
#[derive(Debug, Clone)]
pub struct ConsoleWriter(console::ConsoleWriter);

impl io::Write for ConsoleWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        block_on(AsyncWriteExt::write(&mut self.0, buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
