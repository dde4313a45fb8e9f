//! A VM for the caller's own event loop: one descriptor, one deadline, one call.
//!
//! A [`Vm`] fits into any event loop. It owns no thread, installs no signal handler and never
//! blocks: it exposes what to wait for, and does bounded work when called.
//!
//! # The contract
//!
//! 1. Wait until the descriptor ([`AsFd`]) is readable or [`Vm::next_timeout`] has passed. A loop
//!    that counts in milliseconds must round up; otherwise it spins during the last millisecond.
//! 2. Call [`Vm::on_ready`]. Spurious calls are harmless.
//! 3. Take events with [`Vm::poll_event`] until it returns `None`.
//! 4. Call [`Vm::next_timeout`] again before waiting: any call may have changed it, and it is zero
//!    when work is left. (The descriptor is a poller. An edge-triggered loop such as mio's or
//!    tokio's gets no second notification for work that a bounded call left undone.)
//!
//! The descriptor does not change during the VM's lifetime, whichever processes and sockets are
//! behind it. Register it once, for reading, level-triggered or edge-triggered. A duplicate
//! (`try_clone_to_owned`) works as well, for loops that own what they watch. A `Vm` is [`Send`] but
//! not [`Sync`]: it can move between threads between any two calls.
//!
//! ```
//! use std::time::Duration;
//! use capsa::embed::{Ended, VmEvent};
//! use capsa::testing::{self, GuestReply, ScriptedGuest};
//!
//! # fn wait_readable(_: &impl std::os::fd::AsFd, timeout: Option<Duration>) {
//! #     std::thread::sleep(timeout.unwrap_or_default().min(Duration::from_millis(1)));
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A simulated guest, so that this runs anywhere. `Capsa::vm(…)` makes a real one.
//! let guest = ScriptedGuest::new().login("root", None).shell("# ").on("id -u", GuestReply::output("0\n"));
//! let mut vm = testing::vm(guest).build_embedded()?;
//!
//! let reader = vm.add_reader();
//! let login = vm.login(reader, "root", None, Some(Duration::from_secs(60)))?;
//! let (mut command, mut result) = (None, None);
//! vm.start()?;
//! while !vm.status().is_terminal() {
//!     wait_readable(&vm, vm.next_timeout()); // poll(2), mio, tokio, calloop, …
//!     vm.on_ready()?;
//!     while let Some(event) = vm.poll_event() {
//!         match event {
//!             VmEvent::Ended(wait) if wait == login => {
//!                 command = Some(vm.run_command(reader, "id -u", None, None)?);
//!             }
//!             VmEvent::Ended(wait) if Some(wait) == command => {
//!                 result = vm.take_ended(wait);
//!                 vm.stop()?;
//!             }
//!             _ => {}
//!         }
//!     }
//! }
//! let Some(Ended::Script(Ok(reply))) = result else { panic!("{result:?}") };
//! assert_eq!((reply.output.as_slice(), reply.status), (&b"0\n"[..], Some(0)));
//! # Ok(())
//! # }
//! ```
//!
//! `examples/loop_*.rs` drive a VM with `poll(2)`, mio, tokio, smol, async-io, calloop and
//! io_uring, and two hundred VMs on one thread.
//!
//! # Bounds
//!
//! | one call of | does at most |
//! | --- | --- |
//! | [`Vm::on_ready`] | reads 256 KiB of console output, 64 KiB of control traffic, 64 KiB of events and 64 KiB of each process's standard error, or the [read budget](crate::LinuxVmBuilder::read_budget) of each if that is less; writes what the guest and the hypervisor accept at once, at most 256 KiB queued for the guest; starts each process of the plan, one or two milliseconds each: see [below](#what-on_ready-waits-for) |
//! | [`Vm::poll_event`], [`Vm::start`], [`Vm::stop`], [`Vm::kill`] | constant work; no system call except reading the clock |
//! | [`Vm::next_timeout`] | constant work, plus a check of each pending wait |
//! | [`Vm::write`] | copies the bytes it accepts, and writes what the guest accepts at once |
//! | [`Vm::take`], [`Vm::take_text`], [`Vm::read`] | copy the unread part of the scrollback; `read`, as much as fits |
//! | [`Vm::expect`] and the other waits | search the unread output once |
//! | dropping it | kills the processes and waits until they have exited: milliseconds, and longer while the kernel frees the memory of a large guest; at most 5 seconds for each process, which is then left to the watchdog |
//!
//! Events do not accumulate: `ConsoleData` and `ConsoleWritable` are queued at most once until
//! taken; the number of other events is bounded by status changes, reboots and waits.
//!
//! # What `on_ready` waits for
//!
//! What another process can delay without a limit is in [`build_embedded`]: the lock of the directory
//! of run directories, which other programs take too, the removal of what crashed programs left
//! behind, and probes. `on_ready` waits for the kernel alone:
//!
//! | step of a start or an end | waits for | bound |
//! | --- | --- | --- |
//! | start of a process | `exec`, that is, until the program's file is opened and mapped. On Linux the child shares this process's memory until then, as with `vfork`, so the time does not depend on how much memory this process has; on macOS it is a `fork`, which copies the page tables | 1.0 ms in the median, 6 ms in 99 % and 12 ms at most of 1,000 starts on a busy host with two cores (`cargo xtask bench spawn`); as long as the file system takes to read the program |
//! | lock of the watchdog | starts of other VMs of this program, on other threads | one start each |
//! | watchdog | nothing: it is started once, and replaced if it was killed or does not read | one start |
//! | ephemeral disk | the creation of a file in `TMPDIR` and the writing of its header; on macOS, the clone of an image | one operation of the file system for each; as long as that takes, for example if `TMPDIR` is on a network file system |
//! | event pipe, pty, record of a child | `mkfifo`, `openpty`, a line in a file of the run directory | the same |
//! | connections to the VMM | nothing: they do not block, and are tried again by timer | |
//! | end | the removal of the files in the run directory | the same |
//! | exit of a process | nothing: a process is reaped after its descriptor has reported the exit | |
//! | events of `tracing` | the program's own subscriber | |
//!
//! A test in `tests/tests/timing/run_dirs.rs` holds `on_ready` to 250 ms in a call that starts a
//! process and 50 ms in any other, while another process holds that lock and a thousand directories
//! wait for a sweep.
//!
//! [`build_embedded`]: crate::LinuxVmBuilder::build_embedded
//!
//! # When the contract is broken
//!
//! | the caller | sees |
//! | --- | --- |
//! | never calls `on_ready` | a status that stays [`VmStatus::Starting`], no process, a `next_timeout` of zero, and a warning in the log when the VM is dropped |
//! | stops calling `on_ready` | a status that does not change and a descriptor that stays readable; the guest blocks when the system's console buffer is full, and no output is lost |
//! | ignores the deadline | stops that stay [`VmStatus::Stopping`] and waits that never time out, while `next_timeout` is zero; the next call catches up and logs how late it was, and for which deadline |
//! | skips step 4 in an edge-triggered loop | the same, and unread console output |
//! | waits without a console, or with an unknown reader | a wait that ends at once, as on a closed console |
//! | takes no events | a `next_timeout` of zero, so the loop spins |
//! | watches the descriptor after the VM is dropped | what its loop does with a closed descriptor; deregister first, or watch a duplicate |

#[cfg(feature = "mio")]
mod mio;
#[cfg(feature = "tokio")]
mod tokio;

#[cfg(feature = "async")]
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use capsa_io::run_dir::RunDir;
use capsa_io::supervisor::{Options, Supervisor};
#[cfg(feature = "async")]
use capsa_proto::console::InputRecord;
use capsa_proto::console::{
    Expect, Login, Matcher, Pattern, RunCommand, ScriptError, Silence, WaitKind,
};
use capsa_proto::lifecycle::{StopReport, VmStatus};
use capsa_proto::spec::{GuestOs, ResourceConfig};
use capsa_proto::time::Instant;

use crate::backend::choice::Planned;
use crate::backend::{LaunchPlan, Rejection};
use crate::error::lossy;
use crate::{Error, Result};

#[cfg(feature = "async")]
pub use crate::driver::Driver;
pub use capsa_io::vsock::{Connecting as VsockConnecting, PortListener as VsockPortListener};
pub use capsa_proto::console::{Ended, Outcome, ReaderId, Scrollback, WaitId};
pub use capsa_proto::lifecycle::DEFAULT_GRACE;
pub use capsa_proto::vm::VmEvent;

#[cfg(feature = "tokio")]
pub use tokio::TokioVm;

/// A VM for the caller's own event loop. Dropping it kills its processes and waits until they have
/// exited.
#[derive(Debug)]
pub struct Vm {
    supervisor: Supervisor,
    plan: LaunchPlan,
    resources: ResourceConfig,
    rejected: Vec<Rejection>,
}

impl Vm {
    /// Creates the run directory, unless the guest is simulated. Blocks while other processes hold the
    /// lock of its base directory, at most [`LOCK_TIMEOUT`](capsa_io::run_dir::LOCK_TIMEOUT).
    pub(crate) fn new(
        planned: Planned,
        options: Options,
        resources: ResourceConfig,
    ) -> Result<Self> {
        let Planned { backend, plan, rejected, simulated } = planned;
        let public = LaunchPlan::new(plan.clone());
        let supervisor = match simulated {
            None => {
                let run_dir = RunDir::create_and_sweep(Path::new(plan.run_dir.as_str()))
                    .map_err(Error::from_run_dir)?;
                Supervisor::new(plan, run_dir, backend, options)?
            }
            Some(simulated) => Supervisor::simulated(plan, simulated, options)?,
        };
        Ok(Self { supervisor, plan: public, resources, rejected })
    }

    /// Requests the start. The next [`Vm::on_ready`] starts the programs.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyRunning`] when the VM was started before, even if it has ended.
    pub fn start(&mut self) -> Result<()> {
        Ok(self.supervisor.start()?)
    }

    /// Requests a stop with a grace period of 30 seconds, as [`Vm::stop_with_timeout`].
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the VM was never started. Stopping a VM that has ended is not an
    /// error.
    pub fn stop(&mut self) -> Result<()> {
        self.stop_with_timeout(DEFAULT_GRACE)
    }

    /// Requests that the guest powers off; the VM is killed after `grace_period`.
    ///
    /// A VM that is still starting is killed. A second call may shorten the grace period but never
    /// extends it.
    ///
    /// # Errors
    ///
    /// The same as [`Vm::stop`].
    pub fn stop_with_timeout(&mut self, grace_period: Duration) -> Result<()> {
        Ok(self.supervisor.stop(grace_period)?)
    }

    /// Requests that the VM is killed without asking the guest.
    ///
    /// # Errors
    ///
    /// The same as [`Vm::stop`].
    pub fn kill(&mut self) -> Result<()> {
        Ok(self.supervisor.kill()?)
    }

    /// The current status.
    pub fn status(&self) -> VmStatus {
        self.supervisor.status().clone()
    }

    /// How the VM ended; `None` before the end.
    pub fn stop_report(&self) -> Option<StopReport> {
        self.supervisor.report()
    }

    /// The plan from which the VM is launched.
    pub fn launch_plan(&self) -> &LaunchPlan {
        &self.plan
    }

    /// The backends that were rejected for this VM, each with all reasons.
    pub fn rejected_backends(&self) -> &[Rejection] {
        &self.rejected
    }

    /// The guest's operating system.
    pub fn guest_os(&self) -> GuestOs {
        GuestOs::Linux
    }

    /// The number of vCPUs and the memory size.
    pub fn resources(&self) -> &ResourceConfig {
        &self.resources
    }

    /// The process id of the hypervisor while it runs.
    pub fn hypervisor_pid(&self) -> Option<u32> {
        self.supervisor.hypervisor_pid()
    }

    /// The longest time to wait for the descriptor. `None`: no deadline. Zero: call
    /// [`Vm::on_ready`] now.
    pub fn next_timeout(&self) -> Option<Duration> {
        self.supervisor.next_timeout()
    }

    /// Does the pending work, bounded as listed in [Bounds](self#bounds).
    ///
    /// # Errors
    ///
    /// When called in a forked child of the process that made the VM, or when the poller fails. All
    /// other failures change the status.
    pub fn on_ready(&mut self) -> io::Result<()> {
        self.supervisor.on_ready()
    }

    /// The next event; `None` when there is none.
    pub fn poll_event(&mut self) -> Option<VmEvent> {
        self.supervisor.poll_event()
    }

    /// The console output that is still kept.
    pub fn scrollback(&self) -> &Scrollback {
        self.supervisor.console().scrollback()
    }

    /// Whether the console is closed, so that no more output follows: its stream or the VM has
    /// ended.
    pub fn is_console_closed(&self) -> bool {
        self.supervisor.console().is_closed()
    }

    /// Adds a reader of the console, positioned at the oldest byte that is kept. Readers are
    /// independent: each sees all output.
    pub fn add_reader(&mut self) -> ReaderId {
        self.supervisor.with_console(|console, _, _| console.add_reader())
    }

    /// Adds an observer, positioned at the oldest byte that is kept: a reader that does not count as
    /// the first one. A console that [pauses](crate::console::Overflow::Pause) keeps all its output for the
    /// first reader, whatever observers have read.
    pub fn add_observer(&mut self) -> ReaderId {
        self.supervisor.with_console(|console, _, _| console.add_observer())
    }

    /// Adds a reader at the position of another.
    pub fn clone_reader(&mut self, reader: ReaderId) -> ReaderId {
        self.supervisor.with_console(|console, _, _| console.clone_reader(reader))
    }

    /// Removes a reader and cancels its waits.
    pub fn remove_reader(&mut self, reader: ReaderId) {
        self.supervisor.with_console(|console, _, _| console.remove_reader(reader));
    }

    /// Takes all unread output of this reader; empty when there is none.
    pub fn take(&mut self, reader: ReaderId) -> Vec<u8> {
        self.supervisor.with_console(|console, _, _| console.take(reader))
    }

    /// Takes all unread output of this reader as text; invalid UTF-8 becomes U+FFFD. A character
    /// that is still incomplete at the end stays unread, until the console is closed.
    pub fn take_text(&mut self, reader: ReaderId) -> String {
        lossy(&self.supervisor.with_console(|console, _, _| console.take_text(reader)))
    }

    /// Copies unread output of this reader into `into` and returns the number of bytes: 0 when there
    /// is none, which is not the end unless the console [is closed](Vm::is_console_closed).
    pub fn read(&mut self, reader: ReaderId, into: &mut [u8]) -> usize {
        self.supervisor.with_console(|console, _, _| console.read(reader, into))
    }

    /// The number of bytes that this reader missed, because they were dropped from the scrollback
    /// before it read them. They are counted when it reads.
    pub fn lost(&self, reader: ReaderId) -> u64 {
        self.supervisor.console().lost(reader)
    }

    /// Queues bytes for the guest and returns how many were accepted: fewer than given when the
    /// queue of 256 KiB is full. [`VmEvent::ConsoleWritable`] reports that there is room again.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` when the console is closed or the VM was built without one.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.supervisor.with_console(|console, now, _| console.write(now, bytes));
        written.map_err(|closed| io::Error::new(io::ErrorKind::BrokenPipe, closed))
    }

    /// Begins to wait for one of `patterns`. The match with the earliest end wins; ties go to the
    /// pattern listed first. [`VmEvent::Ended`] reports the end of the wait, [`Vm::take_ended`]
    /// returns its result.
    ///
    /// The wait ends at once, as on a [closed](Outcome::Closed) console, when the VM was built
    /// without a console, or when `reader` was removed or belongs to another VM.
    pub fn expect(
        &mut self,
        reader: ReaderId,
        patterns: &[&str],
        timeout: Option<Duration>,
    ) -> WaitId {
        self.expect_patterns(reader, patterns.iter().map(Pattern::literal), timeout)
    }

    /// Like [`Vm::expect`], for patterns of any kind, such as regular expressions.
    pub fn expect_patterns(
        &mut self,
        reader: ReaderId,
        patterns: impl IntoIterator<Item = Pattern>,
        timeout: Option<Duration>,
    ) -> WaitId {
        let matcher = Matcher::of(patterns);
        self.supervisor
            .begin(reader, |now| WaitKind::Expect(Box::new(Expect::new(matcher, now, timeout))))
    }

    /// Begins to wait until the guest has printed nothing for `quiet`. The result holds all unread
    /// output.
    pub fn expect_silence(
        &mut self,
        reader: ReaderId,
        quiet: Duration,
        timeout: Option<Duration>,
    ) -> WaitId {
        self.supervisor
            .begin(reader, |now| WaitKind::Script(Box::new(Silence::new(quiet, now, timeout))))
    }

    /// Begins to log in on the console.
    ///
    /// # Errors
    ///
    /// When the username or the password contains characters that cannot be typed.
    pub fn login(
        &mut self,
        reader: ReaderId,
        username: &str,
        password: Option<&str>,
        timeout: Option<Duration>,
    ) -> Result<WaitId> {
        self.script(reader, |now| {
            Ok(WaitKind::Script(Box::new(Login::new(username, password, now, timeout)?)))
        })
    }

    /// Begins to run a shell command. With a `prompt`, the wait ends when the prompt has appeared
    /// again.
    ///
    /// # Errors
    ///
    /// When the command is too long or contains characters that cannot be typed.
    pub fn run_command(
        &mut self,
        reader: ReaderId,
        command: &str,
        prompt: Option<&str>,
        timeout: Option<Duration>,
    ) -> Result<WaitId> {
        let nonce = self.nonce(reader);
        self.script(reader, |now| {
            let script = RunCommand::new(command, prompt, nonce, now, timeout)?;
            Ok(WaitKind::Script(Box::new(script)))
        })
    }

    /// Like [`Vm::run_command`] without a prompt, for a command whose output is read while it runs
    /// or is large. Call [`Vm::take_output`] at each [`VmEvent::ConsoleData`], and once more at the
    /// end.
    ///
    /// The result holds the output that was not taken. If no output is taken, a console that
    /// [pauses](crate::console::Overflow::Pause) blocks the command after 64 KiB; otherwise 16 MiB are kept,
    /// older output is dropped, and the result is marked as truncated.
    ///
    /// # Errors
    ///
    /// The same as [`Vm::run_command`].
    pub fn stream_command(
        &mut self,
        reader: ReaderId,
        command: &str,
        timeout: Option<Duration>,
    ) -> Result<WaitId> {
        let nonce = self.nonce(reader);
        self.script(reader, |now| {
            let script = RunCommand::new(command, None, nonce, now, timeout)?.streamed();
            Ok(WaitKind::Script(Box::new(script)))
        })
    }

    /// Takes the output that a [streamed](Vm::stream_command) command has printed since the last
    /// call. The output of a failed command stays available until [`Vm::take_ended`].
    pub fn take_output(&mut self, wait: WaitId) -> Vec<u8> {
        self.supervisor.take_output(wait)
    }

    /// Begins to connect to a vsock port of the guest. Wait until the result is readable, call
    /// [`VsockConnecting::proceed`] until it returns `true`, then take the stream.
    ///
    /// # Errors
    ///
    /// [`Error::VsockNotEnabled`]; [`Error::VsockPortNotNamed`]; [`Error::NotRunning`] when the VM
    /// does not run; [`Error::Io`] when the device cannot be reached.
    pub fn vsock_connect(&self, port: u32) -> Result<VsockConnecting> {
        let vsock = self.plan.parts().vsock.as_ref().ok_or(Error::VsockNotEnabled)?;
        let route = vsock.to_guest(port).ok_or(Error::VsockPortNotNamed { port })?;
        if *self.supervisor.status() != VmStatus::Running {
            return Err(Error::NotRunning);
        }
        Ok(VsockConnecting::begin(route, port)?)
    }

    /// Listens on a vsock port of the host for connections from the guest. It can be called before
    /// the start, so that the listener exists when the guest boots.
    ///
    /// # Errors
    ///
    /// [`Error::VsockNotEnabled`]; [`Error::VsockPortNotNamed`]; [`Error::NotRunning`] when the VM
    /// has ended; [`Error::Io`] with `AddrInUse` when the port has a listener already, and when the
    /// run directory was removed.
    pub fn vsock_listen(&mut self, port: u32) -> Result<VsockPortListener> {
        let vsock = self.plan.parts().vsock.as_ref().ok_or(Error::VsockNotEnabled)?;
        vsock.listener(port).ok_or(Error::VsockPortNotNamed { port })?;
        self.supervisor.vsock_listen(port)?.ok_or(Error::NotRunning)
    }

    /// Takes the result of a wait. `None` while it is pending and after the result was taken.
    pub fn take_ended(&mut self, wait: WaitId) -> Option<Ended> {
        self.supervisor.take_ended(wait)
    }

    /// Cancels a wait. Output that it read but did not hand out is unread again. A running command
    /// is interrupted.
    pub fn cancel(&mut self, wait: WaitId) {
        self.supervisor.with_console(|console, now, _| console.cancel(now, wait));
    }

    /// Kills the VM without waiting, because the last handle was dropped. A VM that was never
    /// started ends too, without spawning anything, so that its console waits return and its driver
    /// releases it.
    #[cfg(feature = "async")]
    pub(crate) fn abandon(&mut self) {
        if *self.supervisor.status() == VmStatus::Created {
            let _ = self.supervisor.start();
            let _ = self.supervisor.kill();
        }
        self.supervisor.abandon();
    }

    /// The time on the VM's clock, which starts when the VM is created.
    #[cfg(feature = "async")]
    pub(crate) fn now(&self) -> Instant {
        self.supervisor.now()
    }

    /// The number of bytes of output that precede the next byte of this reader.
    #[cfg(feature = "async")]
    pub(crate) fn offset(&self, reader: ReaderId) -> u64 {
        self.supervisor.console().offset(reader)
    }

    /// Keeps what is written from now on for this reader, until it takes it.
    #[cfg(feature = "async")]
    pub(crate) fn log_input(&mut self, reader: ReaderId) {
        self.supervisor.with_console(|console, _, _| console.log_input(reader));
    }

    /// Takes what was written since the last call.
    #[cfg(feature = "async")]
    pub(crate) fn take_input_log(&mut self, reader: ReaderId) -> VecDeque<InputRecord> {
        self.supervisor.with_console(|console, _, _| console.take_input_log(reader))
    }

    /// A number that distinguishes the begin and end marks of one command from those of another.
    fn nonce(&mut self, reader: ReaderId) -> u64 {
        self.supervisor.nonce(reader).unwrap_or_else(capsa_io::random::number)
    }

    fn script(
        &mut self,
        reader: ReaderId,
        make: impl FnOnce(Instant) -> std::result::Result<WaitKind, ScriptError>,
    ) -> Result<WaitId> {
        self.supervisor.try_begin(reader, make).map_err(Error::from)
    }
}

impl AsFd for Vm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.supervisor.as_fd()
    }
}

/// The number of the descriptor of [`AsFd`], for loops that need it. It does not change during the
/// VM's lifetime.
impl AsRawFd for Vm {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
