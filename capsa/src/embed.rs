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
//! vm.start()?;
//! let login = vm.login(reader, "root", None, Some(Duration::from_secs(60)))?;
//! let (mut command, mut result) = (None, None);
//! while !vm.status().is_terminal() {
//!     wait_readable(&vm, vm.next_timeout()); // poll(2), mio, tokio, calloop, …
//!     vm.on_ready()?;
//!     while let Some(event) = vm.poll_event() {
//!         match event {
//!             VmEvent::Ended(wait) if wait == login => {
//!                 command = Some(vm.run(reader, "id -u", None)?);
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
#![doc = include_str!("embed/bounds.md")]

mod agent;
#[cfg(feature = "mio")]
mod mio;
mod network;
mod options;
mod pausing;
#[cfg(feature = "tokio")]
mod tokio;
mod waits;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use capsa_io::clock::MonotonicClock;
use capsa_io::run_dir::RunDir;
use capsa_io::vm_io::{ProcessIo, VmIo};
use capsa_proto::backend::HypervisorBackend;
use capsa_proto::console::ConsoleMux;
use capsa_proto::lifecycle::{StopReport, VmStatus};
use capsa_proto::spec::{ConsoleMode, ForwardHost, GuestOs, PortForward, ResourceConfig};
use capsa_proto::time::{Deadline, Instant};
use capsa_proto::vm::{EventQueue, VmCore};

use crate::backend::choice::Planned;
use crate::backend::{LaunchPlan, Rejection};
use crate::error::lossy;
use crate::{Error, Result};

pub(crate) use options::Options;

#[cfg(feature = "async")]
#[cfg_attr(docsrs, doc(cfg(feature = "async")))]
pub use crate::driver::Driver;
pub use capsa_io::vsock::{
    Connecting as VsockConnecting, PortListener as ServicePortListener,
    PortListener as VsockPortListener,
};
pub use capsa_proto::agent::protocol::{
    CommandSpec, MountSpec, Operation, OperationEnd, OutputStream, PowerAction, TerminalSize,
    WriteMode,
};
pub use capsa_proto::agent::{
    AgentError, AgentEvent, AgentState, AgentViolation, OperationHandle, OperationRefused,
};
pub use capsa_proto::console::{BlockingReader, Ended, Outcome, ReaderId, Scrollback, WaitId};
pub use capsa_proto::lifecycle::{DEFAULT_GRACE, PauseRequest};
pub use capsa_proto::vm::VmEvent;

#[cfg(feature = "tokio")]
#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
pub use tokio::TokioVm;

/// The delay of a call from which a warning is logged. A loaded host delays calls by less than this.
const LATE_CALL: Duration = Duration::from_secs(1);

/// A VM for the caller's own event loop.
///
/// Dropping it kills its processes and removes its run directory. The drop of the program's last
/// running VM waits until the processes of all dropped VMs have exited; while other VMs run, the next
/// drop, build or `on_ready` of any VM reaps them. So dropping many VMs costs what dropping one does.
pub struct Vm {
    core: VmCore,
    io: Box<dyn VmIo>,
    clock: MonotonicClock,
    /// The VM was started and `on_ready` was not called since.
    never_driven: bool,
    span: tracing::Span,
    plan: LaunchPlan,
    resources: ResourceConfig,
    rejected: Vec<Rejection>,
    /// The forwards, bound.
    forwards: Vec<PortForward>,
}

impl Vm {
    /// Creates the run directory. Blocks while other processes hold the lock of its base directory, at
    /// most [`LOCK_TIMEOUT`](capsa_io::run_dir::LOCK_TIMEOUT).
    pub(crate) fn new(
        planned: Planned,
        options: Options,
        resources: ResourceConfig,
    ) -> Result<Self> {
        let Planned { backend, plan, rejected } = planned;
        let plan = Arc::new(plan);
        // Before the run directory, which an error would leave behind for a moment.
        let network = network::bind(&plan)?;
        let run_dir = Path::new(plan.run_dir.as_str());
        let run_dir = RunDir::create_and_sweep(run_dir).map_err(Error::from_run_dir)?;
        let forwards = network.as_ref().map(|network| network.forwards().to_vec());
        for (n, forward) in forwards.iter().flatten().enumerate() {
            if let ForwardHost::Unix(path) = &forward.host {
                run_dir.record_forward(n, Path::new(path.as_str())).map_err(Error::from_run_dir)?;
            }
        }
        let io = ProcessIo::new(Arc::clone(&plan), run_dir, network, options.read_budget)?;
        let mut vm = Self::with_io(plan, backend, Box::new(io), options, resources);
        (vm.rejected, vm.forwards) = (rejected, forwards.unwrap_or_default());
        Ok(vm)
    }

    /// A VM whose I/O is `io`.
    pub(crate) fn with_io(
        plan: Arc<capsa_proto::plan::LaunchPlan>,
        backend: Arc<dyn HypervisorBackend>,
        io: Box<dyn VmIo>,
        options: Options,
        resources: ResourceConfig,
    ) -> Self {
        let id = Path::new(plan.run_dir.as_str()).file_name().unwrap_or_default().display();
        let span = tracing::info_span!("vm", %id, backend = plan.backend);
        let console = match plan.console.mode() {
            ConsoleMode::Disabled => ConsoleMux::disabled(),
            _ => ConsoleMux::new(options.scrollback, options.overflow),
        };
        Self {
            plan: LaunchPlan::new(Arc::clone(&plan)),
            core: VmCore::new(plan, backend, console, options.timing),
            io,
            clock: MonotonicClock::new(),
            never_driven: false,
            span,
            resources,
            rejected: Vec::new(),
            forwards: Vec::new(),
        }
    }

    /// Requests the start. The next [`Vm::on_ready`] starts the programs.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyRunning`] when the VM was started before, even if it has ended.
    pub fn start(&mut self) -> Result<()> {
        self.core.start(self.clock.now())?;
        self.never_driven = true;
        Ok(())
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
        Ok(self.core.stop(self.clock.now(), grace_period)?)
    }

    /// Requests that the VM is killed without asking the guest.
    ///
    /// # Errors
    ///
    /// The same as [`Vm::stop`].
    pub fn kill(&mut self) -> Result<()> {
        Ok(self.core.kill(self.clock.now())?)
    }

    /// The current status.
    pub fn status(&self) -> VmStatus {
        self.core.status().clone()
    }

    /// How the VM ended; `None` before the end.
    pub fn stop_report(&self) -> Option<StopReport> {
        self.core.report()
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
        self.io.hypervisor_pid()
    }

    /// The longest time to wait for the descriptor. `None`: no deadline. Zero: call
    /// [`Vm::on_ready`] now.
    pub fn next_timeout(&self) -> Option<Duration> {
        if self.io.has_work() || self.core.has_events() {
            return Some(Duration::ZERO);
        }
        let deadline = Deadline::earliest(self.core.poll_timeout(), self.io.poll_timeout());
        deadline.map(|deadline| self.clock.until(deadline))
    }

    /// Does the pending work, bounded as listed in [Bounds](self#bounds).
    ///
    /// # Errors
    ///
    /// When called in a forked child of the process that made the VM, or when the poller fails. All
    /// other failures change the status.
    pub fn on_ready(&mut self) -> io::Result<()> {
        let span = self.span.clone();
        let _entered = span.enter();
        self.never_driven = false;
        self.warn_if_late();
        self.io.on_ready(&mut self.core, &mut self.clock)
    }

    /// The next event; `None` when there is none.
    pub fn poll_event(&mut self) -> Option<VmEvent> {
        self.core.poll_event()
    }

    /// The console output that is still kept.
    pub fn scrollback(&self) -> &Scrollback {
        self.core.console().scrollback()
    }

    /// Whether the console is closed, so that no more output follows: its stream or the VM has
    /// ended.
    pub fn is_console_closed(&self) -> bool {
        self.core.console().is_closed()
    }

    /// Adds a reader of the console, positioned at the oldest byte that is kept. Readers are
    /// independent: each sees all output.
    pub fn add_reader(&mut self) -> ReaderId {
        self.with_console(|console, _, _| console.add_reader())
    }

    /// Adds an observer, positioned at the oldest byte that is kept: a reader that does not count as
    /// the first one. A console that [pauses](crate::console::Overflow::Pause) keeps all its output for the
    /// first reader, whatever observers have read.
    pub fn add_observer(&mut self) -> ReaderId {
        self.with_console(|console, _, _| console.add_observer())
    }

    /// Adds a reader at the position of another.
    pub fn clone_reader(&mut self, reader: ReaderId) -> ReaderId {
        self.with_console(|console, _, _| console.clone_reader(reader))
    }

    /// Removes a reader and cancels its waits.
    pub fn remove_reader(&mut self, reader: ReaderId) {
        self.with_console(|console, now, _| console.remove_reader(now, reader));
    }

    /// Names a reader, for [`Vm::blocking_reader`].
    pub fn name_reader(&mut self, reader: ReaderId, name: &str) {
        self.with_console(|console, _, _| console.name_reader(reader, name));
    }

    /// The reader, other than `waiting`, whose unread output pauses the guest: it may explain a wait
    /// that timed out. `None` when there is none, or when the console does not
    /// [pause](crate::console::Overflow::Pause).
    pub fn blocking_reader(&self, waiting: ReaderId) -> Option<BlockingReader> {
        self.core.console().blocking_reader(waiting)
    }

    /// Takes all unread output of this reader; empty when there is none.
    pub fn take(&mut self, reader: ReaderId) -> Vec<u8> {
        self.with_console(|console, _, _| console.take(reader))
    }

    /// Takes all unread output of this reader as text; invalid UTF-8 becomes U+FFFD. A character
    /// that is still incomplete at the end stays unread, until the console is closed.
    pub fn read_available(&mut self, reader: ReaderId) -> String {
        lossy(self.with_console(|console, _, _| console.take_text(reader)))
    }

    /// Copies unread output of this reader into `into` and returns the number of bytes: 0 when there
    /// is none, which is not the end unless the console [is closed](Vm::is_console_closed).
    pub fn read(&mut self, reader: ReaderId, into: &mut [u8]) -> usize {
        self.with_console(|console, _, _| console.read(reader, into))
    }

    /// The number of bytes that this reader missed, because they were dropped from the scrollback
    /// before it read them. They are counted when it reads.
    pub fn lost(&self, reader: ReaderId) -> u64 {
        self.core.console().lost(reader)
    }

    /// Queues bytes for the guest and returns how many were accepted: fewer than given when the
    /// queue of 256 KiB is full. [`VmEvent::ConsoleWritable`] reports that there is room again.
    ///
    /// # Errors
    ///
    /// `NotConnected`, with [`Error::NotRunning`] as its cause, when the VM was not started or has
    /// ended; `BrokenPipe` when the console is closed or the VM was built without one.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check_running().map_err(|error| io::Error::new(io::ErrorKind::NotConnected, error))?;
        let written = self.with_console(|console, now, _| console.write(now, bytes));
        written.map_err(|closed| io::Error::new(io::ErrorKind::BrokenPipe, closed))
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
        // A paused guest answers when it is resumed.
        if !matches!(self.core.status(), VmStatus::Running | VmStatus::Paused) {
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
        if self.core.status().is_terminal() {
            return Err(Error::NotRunning);
        }
        self.io.vsock_listen(port)?.ok_or(Error::NotRunning)
    }

    /// Takes the result of a wait. `None` while it is pending and after the result was taken.
    pub fn take_ended(&mut self, wait: WaitId) -> Option<Ended> {
        self.core.with_console(|console, _| console.take_ended(wait))
    }

    /// Cancels a wait. Output that it read but did not hand out is unread again. A running command
    /// is interrupted.
    pub fn cancel(&mut self, wait: WaitId) {
        self.with_console(|console, now, _| console.cancel(now, wait));
    }

    /// Kills the VM without waiting, because the last handle was dropped. A VM that was never
    /// started ends too, without spawning anything, so that its console waits return and its driver
    /// releases it.
    #[cfg(feature = "async")]
    pub(crate) fn abandon(&mut self) {
        if *self.core.status() == VmStatus::Created {
            let _ = self.core.start(self.clock.now());
            let _ = self.kill();
        }
        if self.core.status().is_alive() && self.kill().is_ok() {
            self.io.act(&mut self.core, &self.clock);
        }
        self.io.remove_files();
    }

    /// The time on the VM's clock, which starts when the VM is created.
    #[cfg(feature = "async")]
    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Lets `change` read, write or wait on the console, and moves bytes afterwards.
    pub(crate) fn with_console<T>(
        &mut self,
        change: impl FnOnce(&mut ConsoleMux, Instant, &mut EventQueue) -> T,
    ) -> T {
        let now = self.clock.now();
        let result = self.core.with_console(|console, events| change(console, now, events));
        self.io.sync(&mut self.core, now);
        result
    }

    /// Logs a warning if the caller missed a deadline.
    fn warn_if_late(&self) {
        let deadline = self.core.poll_timeout().filter(|deadline| deadline.at > Instant::ZERO);
        let Some(Deadline { at, why }) = deadline else { return };
        let late = self.clock.now().since(at);
        if late > LATE_CALL {
            tracing::warn!(
                ?late,
                why,
                "on_ready called long after its deadline: does the loop use next_timeout?"
            );
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if self.never_driven && self.io.check_process().is_ok() && !std::thread::panicking() {
            let _entered = self.span.enter();
            tracing::warn!("started VM was dropped without a call of on_ready");
        }
    }
}

impl fmt::Debug for Vm {
    /// The run directory, the backend and the status.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm")
            .field("run_dir", &self.plan.run_dir())
            .field("backend", &self.plan.backend())
            .field("status", self.core.status())
            .finish()
    }
}

impl AsFd for Vm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

/// The number of the descriptor of [`AsFd`], for loops that need it. It does not change during the
/// VM's lifetime.
impl AsRawFd for Vm {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
