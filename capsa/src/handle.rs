//! The handle of a machine.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::backends::Rejection;
use crate::driver::{Shared, SharedState, StatusWaiter};
use crate::{
    ConsoleMode, DEFAULT_GRACE, Error, GuestOs, LaunchPlan, ResourceConfig, Result, StopReport,
    VmConsole, VmStatus, stdio,
};

/// A machine. Clones are handles of the same one.
///
/// Every future here works on any executor, or on none but a `block_on`; none needs a runtime's
/// timer or I/O. Each may be dropped at any await without harm: what was begun goes on, and what was
/// waited for can be waited for again.
///
/// **Dropping the last handle kills the machine** at once; [`VmHandle::keep_running`] is the other
/// choice. Consoles do not keep it alive.
#[derive(Debug, Clone)]
pub struct VmHandle {
    inner: Arc<HandleInner>,
}

/// Kills the machine when the last handle goes. Has what never changes beside the lock.
#[derive(Debug)]
struct HandleInner {
    shared: Arc<Shared>,
    plan: LaunchPlan,
    resources: ResourceConfig,
    rejected: Vec<Rejection>,
}

impl VmHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let state = shared.lock();
        let plan = state.vm.launch_plan().clone();
        let resources = state.vm.resources().clone();
        let rejected = state.vm.rejected_backends().to_vec();
        drop(state);
        Self { inner: Arc::new(HandleInner { shared, plan, resources, rejected }) }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    /// Does something with the machine and lets its driver know.
    fn with<T>(&self, act: impl FnOnce(&mut SharedState) -> T) -> T {
        let result = act(&mut self.shared().lock());
        self.shared().wake_driver();
        result
    }

    /// Starts the machine. Comes back when it is [`VmStatus::Running`]: the hypervisor answers and
    /// the guest was told to go. That the guest is *up*, its console tells.
    ///
    /// Dropping the future does not stop the start.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyRunning`] when it was started before, whatever became of it.
    /// [`Error::StartFailed`] with the hypervisor's last words when it did not get to run.
    pub async fn start(&self) -> Result<()> {
        let stdio = {
            let mut state = self.shared().lock();
            state.vm.start()?;
            let stdio = self.inner.plan.console.mode() == ConsoleMode::Stdio;
            state.relays += usize::from(stdio);
            state.started = Some(Instant::now());
            stdio
        };
        if stdio {
            stdio::relay(self.shared()).inspect_err(|_| {
                // Nobody carries its bytes, and nobody waits until they are written.
                let mut state = self.shared().lock();
                let _ = state.vm.kill();
                state.relayed();
            })?;
        }
        self.shared().wake_driver();
        let waiting = StatusWaiter::for_status(self.shared());
        poll_fn(|cx| {
            let mut state = self.shared().lock();
            if state.has_run {
                return Poll::Ready(Ok(()));
            }
            match state.vm.status() {
                VmStatus::Failed { message } => {
                    let message = message.strip_prefix("start failed: ").unwrap_or(&message);
                    Poll::Ready(Err(Error::StartFailed(message.to_owned())))
                }
                VmStatus::Stopped { .. } => {
                    let report = state.vm.stop_report().map(|report| report.to_string());
                    Poll::Ready(Err(Error::StartFailed(report.unwrap_or_default())))
                }
                _ => {
                    waiting.register_waker(&mut state, cx.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Asks the guest to power off, cuts its power after 30 seconds, and comes back when it is over.
    ///
    /// # Errors
    ///
    /// As [`VmHandle::stop_with_timeout`].
    pub async fn stop(&self) -> Result<()> {
        self.stop_with_timeout(DEFAULT_GRACE).await
    }

    /// Asks the guest to power off, cuts its power after `grace_period`, and comes back when it is
    /// over. [`VmHandle::stop_report`] tells which it was.
    ///
    /// A machine that is still starting is killed. A second stop may shorten the grace, never
    /// lengthen it. A machine that has ended is no error. Dropping the future does not take the
    /// stop back.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when it was never started, [`Error::Hypervisor`] when a process did not
    /// even die of SIGKILL.
    pub async fn stop_with_timeout(&self, grace_period: Duration) -> Result<()> {
        self.with(|state| state.vm.stop_with_timeout(grace_period))?;
        self.ended().await
    }

    /// Kills the machine and comes back when it is gone. The guest is not told.
    ///
    /// # Errors
    ///
    /// As [`VmHandle::stop_with_timeout`].
    pub async fn kill(&self) -> Result<()> {
        self.with(|state| state.vm.kill())?;
        self.ended().await
    }

    async fn ended(&self) -> Result<()> {
        self.wait().await?;
        let report = self.stop_report();
        match report.filter(|report| report.steps.contains(&crate::StopStep::GaveUp)) {
            Some(report) => Err(Error::Hypervisor(report.to_string())),
            None => Ok(()),
        }
    }

    /// Its status.
    pub fn status(&self) -> VmStatus {
        self.shared().lock().vm.status()
    }

    /// How it ended, once it has: who ended it, and which steps that needed.
    pub fn stop_report(&self) -> Option<StopReport> {
        self.shared().lock().vm.stop_report()
    }

    /// Waits until the machine has ended, and gives its last status. Any number of tasks may wait.
    ///
    /// A machine that was not started yet is waited for as well.
    ///
    /// # Errors
    ///
    /// None today.
    pub async fn wait(&self) -> Result<VmStatus> {
        let waiting = StatusWaiter::for_status(self.shared());
        Ok(poll_fn(|cx| self.poll_finished(&waiting, cx)).await)
    }

    /// Waits until the machine has ended, this long at most. `None`: it has not.
    ///
    /// # Errors
    ///
    /// None today.
    pub async fn wait_timeout(&self, timeout: Duration) -> Result<Option<VmStatus>> {
        let Some(at) = Instant::now().checked_add(timeout) else {
            return self.wait().await.map(Some);
        };
        let waiting = StatusWaiter::for_status(self.shared());
        let mut timer = Timer { shared: self.shared(), key: None };
        Ok(poll_fn(|cx| {
            if let Poll::Ready(status) = self.poll_finished(&waiting, cx) {
                return Poll::Ready(Some(status));
            }
            if Instant::now() >= at {
                return Poll::Ready(None);
            }
            timer.set(at, cx.waker());
            Poll::Pending
        })
        .await)
    }

    fn poll_finished(
        &self,
        waiting: &StatusWaiter<'_>,
        cx: &std::task::Context<'_>,
    ) -> Poll<VmStatus> {
        let mut state = self.shared().lock();
        if state.has_finished() {
            return Poll::Ready(state.vm.status());
        }
        waiting.register_waker(&mut state, cx.waker());
        Poll::Pending
    }

    /// A console of the machine, at the oldest byte that is kept. Each one sees everything.
    ///
    /// # Errors
    ///
    /// [`Error::ConsoleNotEnabled`] when the machine was built without one, or with one on standard
    /// input and output.
    pub async fn console(&self) -> Result<VmConsole> {
        if self.inner.plan.console.mode() != ConsoleMode::Enabled {
            return Err(Error::ConsoleNotEnabled);
        }
        Ok(VmConsole::new(Arc::clone(self.shared())))
    }

    /// The guest's operating system.
    pub fn guest_os(&self) -> GuestOs {
        self.shared().lock().vm.guest_os()
    }

    /// CPUs and memory.
    pub fn resources(&self) -> &ResourceConfig {
        &self.inner.resources
    }

    /// What the machine is started from.
    pub fn launch_plan(&self) -> &LaunchPlan {
        &self.inner.plan
    }

    /// The backends that were passed over for this machine, each with every reason.
    pub fn rejected_backends(&self) -> &[Rejection] {
        &self.inner.rejected
    }

    /// The hypervisor's process id, while it runs.
    pub fn hypervisor_pid(&self) -> Option<u32> {
        self.shared().lock().vm.hypervisor_pid()
    }

    /// Lets the machine run on without a handle, until its guest ends it or this program ends.
    pub fn keep_running(self) {
        std::mem::forget(self);
    }
}

impl AsRef<VmHandle> for VmHandle {
    fn as_ref(&self) -> &VmHandle {
        self
    }
}

impl Drop for HandleInner {
    /// Sends the kill at once and takes the run directory away; the driver reaps.
    fn drop(&mut self) {
        self.shared.lock().vm.abandon();
        self.shared.wake_driver();
    }
}

/// An timer that is taken back when nobody waits for it any more.
struct Timer<'a> {
    shared: &'a Shared,
    key: Option<(Instant, u64)>,
}

impl Timer<'_> {
    fn set(&mut self, at: Instant, waker: &std::task::Waker) {
        let mut state = self.shared.lock();
        if let Some(key) = self.key.take() {
            state.clear_timer(key);
        }
        self.key = Some(state.set_timer(at, waker));
        drop(state);
        self.shared.wake_driver();
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.shared.lock().clear_timer(key);
        }
    }
}
