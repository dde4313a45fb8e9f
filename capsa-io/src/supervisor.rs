//! Runs one VM: a [`VmCore`] with a clock and with its I/O.
//!
//! A VM has one descriptor and one deadline:
//!
//! 1. Wait until the descriptor ([`AsFd`]) is readable or [`Supervisor::next_timeout`] has passed.
//! 2. Call [`Supervisor::on_ready`]. Its work is bounded; spurious calls are harmless.
//! 3. Take events from [`Supervisor::poll_event`] until it returns `None`.
//! 4. Call `next_timeout` again before waiting: any call may have shortened it. It is zero when a
//!    budget was exhausted, because an edge-triggered loop gets no second report.
//!
//! This module makes no decision about a VM: that belongs in [`capsa_proto::vm::VmCore`]. The I/O is
//! that of real processes ([`ProcessIo`]) or of a simulated guest ([`SimulatedIo`]).

mod log;
mod options;
pub(crate) mod process_io;
mod simulated_io;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use capsa_proto::backend::HypervisorBackend;
use capsa_proto::console::{ConsoleMux, Ended, ReaderId, WaitId, WaitKind};
use capsa_proto::lifecycle::{InvalidState, StopReport, VmStatus};
use capsa_proto::plan::LaunchPlan;
use capsa_proto::sim::{SimBackend, SimulatedGuest};
use capsa_proto::spec::ConsoleMode;
use capsa_proto::time::{Deadline, Instant};
use capsa_proto::vm::{EventQueue, VmCore, VmEvent};

use crate::clock::MonotonicClock;
use crate::run_dir::RunDir;
use crate::vsock::PortListener;
use process_io::ProcessIo;
use simulated_io::SimulatedIo;

pub use options::Options;

/// The delay of a call from which a warning is logged. A loaded host delays calls by less
/// than this.
const LATE_CALL: Duration = Duration::from_secs(1);

/// The I/O of a VM: carries out what its core returns, and passes what happens back. It decides
/// nothing.
trait VmIo: AsFd + fmt::Debug + Send {
    /// Does the pending work, bounded: reads, passes bytes and exits to the core, passes the time, and
    /// carries out the outputs.
    fn on_ready(&mut self, core: &mut VmCore, clock: &mut MonotonicClock) -> io::Result<()>;

    /// Carries out the outputs of the core, and writes what its channels accept.
    fn act(&mut self, core: &mut VmCore, clock: &MonotonicClock);

    /// Writes what the channels accept, after a request of the owner.
    fn sync(&mut self, core: &mut VmCore, now: Instant);

    /// Whether there is work that the descriptor may not report.
    fn has_work(&self) -> bool;

    /// The deadline of the I/O itself.
    fn poll_timeout(&self) -> Option<Deadline>;

    /// Whether this is the process that created the VM, and not a forked child.
    fn is_same_process(&self) -> bool;

    /// The process id of the hypervisor while it runs.
    fn hypervisor_pid(&self) -> Option<u32>;

    /// The nonce that a command must use whose output is read from this offset of the console.
    fn nonce(&self, offset: u64) -> Option<u64>;

    /// Listens on a vsock port of the host. `None` when the VM has no such port.
    fn vsock_listen(&mut self, port: u32) -> io::Result<Option<PortListener>>;

    /// Removes the VM's files now.
    fn remove_files(&mut self);
}

/// One VM with its processes, channels and console.
#[derive(Debug)]
pub struct Supervisor {
    core: VmCore,
    io: Box<dyn VmIo>,
    clock: MonotonicClock,
    /// The VM was started and `on_ready` was not called since.
    never_driven: bool,
    span: tracing::Span,
}

impl Supervisor {
    /// Creates a VM for `plan`, whose run directory is `run_dir`. Starts nothing.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left for a poller.
    pub fn new(
        plan: LaunchPlan,
        run_dir: RunDir,
        backend: Arc<dyn HypervisorBackend>,
        options: Options,
    ) -> io::Result<Self> {
        let plan = Arc::new(plan);
        let io = Box::new(ProcessIo::new(Arc::clone(&plan), run_dir, options)?);
        Ok(Self::with_io(plan, backend, options, io))
    }

    /// Creates a VM with a simulated guest; its plan comes from [`capsa_proto::sim::plan`]. It has no
    /// run directory.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left for a poller.
    pub fn simulated(
        plan: LaunchPlan,
        guest: SimulatedGuest,
        options: Options,
    ) -> io::Result<Self> {
        let plan = Arc::new(plan);
        let io = Box::new(SimulatedIo::new(guest, options)?);
        Ok(Self::with_io(plan, Arc::new(SimBackend::default()), options, io))
    }

    fn with_io(
        plan: Arc<LaunchPlan>,
        backend: Arc<dyn HypervisorBackend>,
        options: Options,
        io: Box<dyn VmIo>,
    ) -> Self {
        let name = Path::new(plan.run_dir.as_str()).file_name().unwrap_or_default();
        let span = tracing::info_span!("vm", id = %name.display(), backend = plan.backend);
        let console = match plan.console.mode() {
            ConsoleMode::Disabled => ConsoleMux::disabled(),
            _ => ConsoleMux::new(options.scrollback, options.overflow),
        };
        let core = VmCore::new(plan, backend, console, options.timing);
        Self { core, io, clock: MonotonicClock::new(), never_driven: false, span }
    }

    /// Requests the start. [`Supervisor::on_ready`] starts the processes.
    ///
    /// # Errors
    ///
    /// When the VM was started before.
    pub fn start(&mut self) -> Result<(), InvalidState> {
        self.core.start(self.clock.now())?;
        self.never_driven = true;
        Ok(())
    }

    /// Requests that the guest powers off, and is killed after `grace`.
    ///
    /// # Errors
    ///
    /// When the VM was never started.
    pub fn stop(&mut self, grace: Duration) -> Result<(), InvalidState> {
        self.core.stop(self.clock.now(), grace)
    }

    /// Requests that the VM is killed.
    ///
    /// # Errors
    ///
    /// When the VM was never started.
    pub fn kill(&mut self) -> Result<(), InvalidState> {
        self.core.kill(self.clock.now())
    }

    /// The current status.
    pub fn status(&self) -> &VmStatus {
        self.core.status()
    }

    /// How the VM ended; `None` before the end.
    pub fn report(&self) -> Option<StopReport> {
        self.core.report()
    }

    /// The launch plan.
    pub fn plan(&self) -> &LaunchPlan {
        self.core.plan()
    }

    /// The process id of the hypervisor while it runs.
    pub fn hypervisor_pid(&self) -> Option<u32> {
        self.io.hypervisor_pid()
    }

    /// The time on the VM's clock, which starts when the supervisor is created.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The console.
    pub fn console(&self) -> &ConsoleMux {
        self.core.console()
    }

    /// Lets `change` read, write or wait on the console, with the current time and the queue for
    /// events, and moves bytes afterwards.
    pub fn with_console<T>(
        &mut self,
        change: impl FnOnce(&mut ConsoleMux, Instant, &mut EventQueue) -> T,
    ) -> T {
        let now = self.clock.now();
        let result = self.core.with_console(|console, events| change(console, now, events));
        self.io.sync(&mut self.core, now);
        result
    }

    /// Begins a wait on the console. [`VmEvent::Ended`] reports its end, even if it ends at once.
    /// `make` receives the current time, from which its deadline counts.
    pub fn begin(&mut self, reader: ReaderId, make: impl FnOnce(Instant) -> WaitKind) -> WaitId {
        let Ok(id) = self.try_begin(reader, |now| Ok::<_, Infallible>(make(now)));
        id
    }

    /// Like [`Supervisor::begin`], if creating the wait can fail.
    ///
    /// # Errors
    ///
    /// Those of `make`; nothing is begun then.
    pub fn try_begin<E>(
        &mut self,
        reader: ReaderId,
        make: impl FnOnce(Instant) -> Result<WaitKind, E>,
    ) -> Result<WaitId, E> {
        let kind = make(self.clock.now())?;
        Ok(self.with_console(|console, now, events| console.begin(now, reader, kind, events)))
    }

    /// Takes the output of a streaming wait since the last call.
    pub fn take_output(&mut self, id: WaitId) -> Vec<u8> {
        self.with_console(|console, now, events| console.take_output(now, id, events))
    }

    /// Takes the result of a wait that has ended.
    pub fn take_ended(&mut self, id: WaitId) -> Option<Ended> {
        self.core.with_console(|console, _| console.take_ended(id))
    }

    /// The nonce that this reader's next command must use when a replayed recording contains its
    /// result.
    pub fn nonce(&self, reader: ReaderId) -> Option<u64> {
        self.io.nonce(self.core.console().offset(reader))
    }

    /// Listens on a vsock port of the host. `None` when the VM has no such port or has ended.
    ///
    /// # Errors
    ///
    /// `AddrInUse` when the port has a listener already; also when the run directory was removed.
    pub fn vsock_listen(&mut self, port: u32) -> io::Result<Option<PortListener>> {
        if self.status().is_terminal() {
            return Ok(None);
        }
        self.io.vsock_listen(port)
    }

    /// Kills the VM without waiting for its end, and removes the run directory. Further calls of
    /// [`Supervisor::on_ready`] reap the processes.
    pub fn abandon(&mut self) {
        if self.status().is_alive() && self.kill().is_ok() {
            self.io.act(&mut self.core, &self.clock);
        }
        self.io.remove_files();
    }

    /// The longest time to wait for the descriptor. `None`: no deadline. Zero: call
    /// [`Supervisor::on_ready`] now.
    pub fn next_timeout(&self) -> Option<Duration> {
        if self.io.has_work() || self.core.has_events() {
            return Some(Duration::ZERO);
        }
        let deadline = Deadline::earliest(self.core.poll_timeout(), self.io.poll_timeout());
        deadline.map(|deadline| self.clock.until(deadline))
    }

    /// The next event; `None` when there is none.
    pub fn poll_event(&mut self) -> Option<VmEvent> {
        self.core.poll_event()
    }

    /// Does the pending work, bounded: at most 256 KiB of console output, and 64 KiB each of control
    /// traffic, events and standard error of a process; of each at most [`Options::read_budget`].
    ///
    /// # Errors
    ///
    /// In a forked child of the program, and when the poller fails. All other failures change the
    /// status of the VM.
    pub fn on_ready(&mut self) -> io::Result<()> {
        let span = self.span.clone();
        let _entered = span.enter();
        self.never_driven = false;
        self.warn_if_late();
        self.io.on_ready(&mut self.core, &mut self.clock)
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

impl AsFd for Supervisor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

impl Drop for Supervisor {
    /// Kills the remaining processes, the hypervisor before its helpers, and waits for them:
    /// milliseconds.
    fn drop(&mut self) {
        if self.never_driven && self.io.is_same_process() && !std::thread::panicking() {
            let _entered = self.span.enter();
            tracing::warn!("started VM was dropped without a call of on_ready");
        }
    }
}
