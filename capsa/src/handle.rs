//! [`VmHandle`]: the async handle of a VM.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::backend::{LaunchPlan, Rejection};
use crate::disk_errors::DiskError;
use crate::driver::{Shared, SharedState, Waiter};
use crate::embed::{DEFAULT_GRACE, PauseRequest};
use crate::network::{BoundForward, Counters, NetworkEvent, NetworkPolicy};
use crate::{
    ConsoleMode, Error, GuestOs, ResourceConfig, Result, StopReport, VmConsole, VmStatus, stdio,
};

/// A handle of a VM. Clones refer to the same VM.
///
/// The futures work on any executor, or with a bare `block_on`; none needs a runtime's timer or
/// I/O. Each future can be dropped at any await point: an operation that has begun continues, and
/// the result can be waited for again.
///
/// [`status`](Self::status) and the other calls that are not async return at once, also while a
/// process is being spawned.
///
/// If the VM cannot be driven any more, because its poller is broken, it is killed, and every future
/// returns [`Error::Io`]. So do the futures in a forked child of the program.
///
/// **Dropping the last handle kills the VM** at once; [`VmHandle::keep_running`] avoids that.
/// Consoles do not keep the VM alive.
#[derive(Clone)]
pub struct VmHandle {
    inner: Arc<HandleInner>,
}

impl fmt::Debug for VmHandle {
    /// The run directory, the backend and the status.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmHandle")
            .field("run_dir", &self.inner.plan.run_dir())
            .field("backend", &self.inner.plan.backend())
            .field("status", &self.status())
            .finish()
    }
}

/// The state shared by all clones of a handle: the VM behind its lock, and values that never
/// change. Dropping it kills the VM.
struct HandleInner {
    shared: Arc<Shared>,
    plan: LaunchPlan,
    resources: ResourceConfig,
    guest_os: GuestOs,
    rejected: Vec<Rejection>,
    /// Dropping the last handle does not kill the VM.
    keeps_running: AtomicBool,
}

impl VmHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let state = shared.lock();
        let plan = state.vm.launch_plan().clone();
        let resources = state.vm.resources().clone();
        let guest_os = state.vm.guest_os();
        let rejected = state.vm.rejected_backends().to_vec();
        drop(state);
        let keeps_running = AtomicBool::new(false);
        let inner = HandleInner { shared, plan, resources, guest_os, rejected, keeps_running };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    /// Starts the VM and waits until it is [`VmStatus::Running`]: the hypervisor answers on its
    /// control channel and the guest's vCPUs run. Whether the guest has *booted* shows on its
    /// console only.
    ///
    /// Dropping the future does not cancel the start.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyRunning`] when the VM was started before, even if it has ended.
    /// [`Error::StartFailed`] when the VM did not reach `Running`. If a process exited or was not ready
    /// in time, the error holds the last lines of its standard error. [`Error::Io`] when the VM
    /// cannot be driven.
    pub async fn start(&self) -> Result<()> {
        self.shared().check_process()?;
        let stdio = self.inner.plan.console() == ConsoleMode::Stdio;
        self.shared().prepare(|state| {
            state.check_driver()?;
            state.vm.start()?;
            state.started = Some(state.vm.now());
            state.relays += usize::from(stdio);
            Ok::<_, Error>(())
        })?;
        if stdio {
            stdio::relay(self.shared()).inspect_err(|_| {
                // No thread copies the console and no wait must count on it.
                let _ = self.shared().prepare(|state| state.vm.kill());
                self.shared().relay_finished();
            })?;
        }
        self.shared().wake_driver();
        let waiter = Waiter::for_status(self.shared())?;
        poll_fn(|cx| {
            let mut state = self.shared().lock();
            state.check_driver()?;
            if state.has_run {
                return Poll::Ready(Ok(()));
            }
            if let Some(report) = state.vm.stop_report() {
                return Poll::Ready(Err(Error::StartFailed(report.into_start_error())));
            }
            waiter.wait(&mut state, cx)
        })
        .await
    }

    /// Stops the VM with a grace period of 30 seconds, as [`VmHandle::stop_with_timeout`].
    ///
    /// # Errors
    ///
    /// The same as [`VmHandle::stop_with_timeout`].
    pub async fn stop(&self) -> Result<()> {
        self.stop_with_timeout(DEFAULT_GRACE).await
    }

    /// Asks the guest to power off, kills the VM after `grace_period`, and waits until the VM has
    /// ended. [`VmHandle::stop_report`] lists the steps that were needed.
    ///
    /// A VM that is still starting is killed. A second stop may shorten the grace period but never
    /// extends it. Stopping a VM that has ended is not an error. Dropping the future does not
    /// cancel the stop.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the VM was never started; [`Error::Hypervisor`] when a process
    /// did not exit after SIGKILL; [`Error::Io`] when the VM cannot be driven.
    pub async fn stop_with_timeout(&self, grace_period: Duration) -> Result<()> {
        self.shared().check_process()?;
        self.shared().change(|state| state.vm.stop_with_timeout(grace_period))?;
        self.ended().await
    }

    /// Kills the VM without asking the guest, and waits until it has ended.
    ///
    /// # Errors
    ///
    /// The same as [`VmHandle::stop_with_timeout`].
    pub async fn kill(&self) -> Result<()> {
        self.shared().check_process()?;
        self.shared().change(|state| state.vm.kill())?;
        self.ended().await
    }

    /// Pauses the guest, and waits until the status is [`VmStatus::Paused`]. Pausing a paused guest is not
    /// an error.
    ///
    /// Deadlines of waits, and the time limit of the VM, go on. A [stop](Self::stop) resumes the guest first,
    /// because a paused guest cannot power off; a [kill](Self::kill) does not. Dropping the future does not
    /// cancel the request.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the VM neither runs nor is paused, or ends meanwhile;
    /// [`Error::Hypervisor`] when the hypervisor rejects the request, or does not reply within 30 seconds;
    /// [`Error::Io`] when the VM cannot be driven.
    pub async fn pause(&self) -> Result<()> {
        self.request_pause(PauseRequest::Pause).await
    }

    /// Resumes the guest, and waits until the status is [`VmStatus::Running`]. Resuming a guest that runs is
    /// not an error. After a disk error the failed operation is repeated.
    ///
    /// # Errors
    ///
    /// The same as [`VmHandle::pause`].
    pub async fn resume(&self) -> Result<()> {
        self.request_pause(PauseRequest::Resume).await
    }

    async fn request_pause(&self, request: PauseRequest) -> Result<()> {
        self.shared().check_process()?;
        let (requested, before) = self.shared().change(|state| {
            let requested = match request {
                PauseRequest::Pause => state.vm.pause(),
                PauseRequest::Resume => state.vm.resume(),
            };
            let outcomes = &mut state.pauses[request as usize];
            outcomes.is_awaited = true;
            (requested, outcomes.clone())
        });
        requested?;
        let wanted = match request {
            PauseRequest::Pause => VmStatus::Paused,
            PauseRequest::Resume => VmStatus::Running,
        };
        let waiter = Waiter::for_status(self.shared())?;
        poll_fn(|cx| {
            let mut state = self.shared().lock();
            state.check_driver()?;
            let (status, outcomes) = (state.vm.status(), &state.pauses[request as usize]);
            if outcomes.reached > before.reached || status == wanted && !state.vm.is_pausing() {
                return Poll::Ready(Ok(()));
            }
            if outcomes.rejected > before.rejected {
                return Poll::Ready(Err(Error::Hypervisor(outcomes.reason.clone())));
            }
            if !matches!(status, VmStatus::Running | VmStatus::Paused) {
                return Poll::Ready(Err(Error::NotRunning));
            }
            waiter.wait(&mut state, cx)
        })
        .await
    }

    async fn ended(&self) -> Result<()> {
        self.wait().await?;
        let report = self.stop_report();
        match report.filter(|report| report.steps.contains(&crate::StopStep::GaveUp)) {
            Some(report) => Err(Error::Hypervisor(report.to_string())),
            None => Ok(()),
        }
    }

    /// The current status. Never waits for the driver, and never lags behind what a future of this
    /// VM has returned.
    pub fn status(&self) -> VmStatus {
        self.shared().snapshot().status
    }

    /// How the VM ended and which steps of the stop ladder were needed; `None` before the end.
    pub fn stop_report(&self) -> Option<StopReport> {
        self.shared().snapshot().report
    }

    /// The last error of each disk and operation, of those that the hypervisor has reported.
    pub fn disk_errors(&self) -> Vec<DiskError> {
        self.shared().lock().vm.disk_errors()
    }

    /// The forwards, in the order of the builder's calls, with the ports that were chosen for 0. They are
    /// known before the start.
    ///
    /// ```no_run
    /// # use capsa::{Capsa, LinuxBootConfig};
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let config = LinuxBootConfig::new("./vmlinuz").initrd("./initrd");
    /// let vm = Capsa::vm(config).forward(0, 80).build().await?;
    /// vm.start().await?;
    /// let address = vm.forwards()[0].host.address().expect("a port");
    /// let stream = std::net::TcpStream::connect(address)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn forwards(&self) -> Vec<BoundForward> {
        self.shared().lock().vm.forwards()
    }

    /// What the guest's network carried, dropped and refused since the start; also after the end.
    pub fn network_counters(&self) -> Counters {
        self.shared().lock().vm.network_counters()
    }

    /// Takes the link of the guest's network down or up again. While it is down, no packet passes in either
    /// direction. On QEMU the guest's card loses its carrier; on the other backends the guest sees no change
    /// but that. Connections survive a short interruption.
    ///
    /// # Errors
    ///
    /// [`Error::NetworkNotEnabled`]; [`Error::NotRunning`] when the VM has ended.
    pub fn set_network_link(&self, is_up: bool) -> Result<()> {
        self.shared().check_process()?;
        self.shared().change(|state| state.vm.set_network_link(is_up))
    }

    /// Replaces the policy of the guest's network, or sets one where the network is NAT. Flows that the new
    /// policy does not allow end at once.
    ///
    /// ```no_run
    /// use capsa::network::NetworkPolicy;
    ///
    /// # fn main_(vm: &capsa::VmHandle) -> capsa::Result<()> {
    /// // The packages are installed: the tests that follow need no network but their database.
    /// vm.set_network_policy(NetworkPolicy::new().allow("10.1.2.3:5432"))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] with every mistake of the policy, which then changes nothing;
    /// [`Error::NetworkNotEnabled`]; [`Error::NotRunning`] when the VM has ended.
    pub fn set_network_policy(&self, policy: NetworkPolicy) -> Result<()> {
        self.shared().check_process()?;
        self.shared().change(|state| state.vm.set_network_policy(policy))
    }

    /// Takes what happened in the guest's network since the last call, also after the end: which flows and
    /// queries were allowed or refused, by which rule, and why. There are no events without a policy, unless
    /// the VM has a [`network_log`](crate::LinuxVmBuilder::network_log).
    ///
    /// The VM keeps the newest 1024 events. A gap between the [`seq`](crate::network::NetworkEvent::seq) of
    /// two events is the number of those that were dropped.
    pub fn network_events(&self) -> Vec<NetworkEvent> {
        self.shared().lock().vm.network_events()
    }

    /// Waits until the VM has ended and returns its last status. Any number of tasks may wait, also
    /// before the start.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the VM cannot be driven.
    pub async fn wait(&self) -> Result<VmStatus> {
        let waiter = Waiter::for_status(self.shared())?;
        poll_fn(|cx| self.poll_finished(&mut self.shared().lock(), &waiter, cx)).await
    }

    /// Like [`wait`](Self::wait), for at most `timeout`. Returns `None` when the VM has not ended
    /// by then.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the VM cannot be driven.
    pub async fn wait_timeout(&self, timeout: Duration) -> Result<Option<VmStatus>> {
        let Some(at) = Instant::now().checked_add(timeout) else {
            return self.wait().await.map(Some);
        };
        let waiter = Waiter::for_status(self.shared())?;
        let timer = Waiter::until(self.shared(), at)?;
        poll_fn(|cx| {
            let mut state = self.shared().lock();
            if let Poll::Ready(status) = self.poll_finished(&mut state, &waiter, cx) {
                return Poll::Ready(status.map(Some));
            }
            if Instant::now() >= at {
                return Poll::Ready(Ok(None));
            }
            let pending = timer.wait(&mut state, cx);
            drop(state);
            self.shared().wake_driver();
            pending
        })
        .await
    }

    fn poll_finished(
        &self,
        state: &mut SharedState,
        waiter: &Waiter<'_>,
        cx: &Context<'_>,
    ) -> Poll<Result<VmStatus>> {
        state.check_driver()?;
        if state.has_finished() {
            return Poll::Ready(Ok(state.vm.status()));
        }
        waiter.wait(state, cx)
    }

    /// Opens a console of the VM, positioned at the oldest byte in the scrollback. Consoles are
    /// independent: each sees all output.
    ///
    /// # Errors
    ///
    /// [`Error::ConsoleNotEnabled`] when the VM was built without a console, or with one on
    /// standard input and output.
    pub async fn console(&self) -> Result<VmConsole> {
        if self.inner.plan.console() != ConsoleMode::Enabled {
            return Err(Error::ConsoleNotEnabled);
        }
        self.shared().check_process()?;
        Ok(VmConsole::new(Arc::clone(self.shared())))
    }

    /// The guest's operating system.
    pub fn guest_os(&self) -> GuestOs {
        self.inner.guest_os
    }

    /// The number of vCPUs and the memory size.
    pub fn resources(&self) -> &ResourceConfig {
        &self.inner.resources
    }

    /// The plan from which the VM is launched.
    pub fn launch_plan(&self) -> &LaunchPlan {
        &self.inner.plan
    }

    /// The backends that were rejected for this VM, each with all reasons.
    pub fn rejected_backends(&self) -> &[Rejection] {
        &self.inner.rejected
    }

    /// The process id of the hypervisor while it runs.
    pub fn hypervisor_pid(&self) -> Option<u32> {
        self.shared().snapshot().hypervisor_pid
    }

    /// Drops the handle without killing the VM; dropping its clones does not kill the VM either. The
    /// VM runs until its guest ends it or this program exits.
    pub fn keep_running(self) {
        self.inner.keeps_running.store(true, Ordering::Relaxed);
    }
}

impl AsRef<VmHandle> for VmHandle {
    fn as_ref(&self) -> &VmHandle {
        self
    }
}

impl Drop for HandleInner {
    /// Sends SIGKILL at once and removes the run directory; the driver reaps the processes.
    fn drop(&mut self) {
        if !*self.keeps_running.get_mut() && self.shared.check_process().is_ok() {
            self.shared.change(|state| state.vm.abandon());
        }
    }
}
