//! [`Driver`]: a future that drives one VM, for programs that want no driver thread. (It uses async-io, which has a thread of its own.)

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};

use async_io::{Async, Timer};
use capsa_io::reactor::wait_readable;

use super::{DriveOutcome, Shared, WakeTarget};
use crate::{Result, VmStatus};

/// A future that drives one VM while it is polled, on any executor. It resolves to the VM's last
/// status. If the VM cannot be driven, it resolves to the error, and every call of the handle
/// returns that error too.
///
/// The VM makes no progress unless this future is polled: spawn it, or join it with the code that
/// uses the handle. Dropping it kills the VM and waits until its processes have exited; a VM that
/// was not started yet cannot be started any more.
#[derive(Debug)]
#[must_use = "a VM makes no progress unless its driver is polled"]
pub struct Driver {
    shared: Arc<Shared>,
    descriptor: Async<OwnedFd>,
    timer: Option<Timer>,
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>) -> Result<Self> {
        let descriptor = Async::new_nonblocking(shared.descriptor()?)?;
        Ok(Self { shared, descriptor, timer: None })
    }
}

impl Future for Driver {
    type Output = Result<VmStatus>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.shared.check_process()?;
        if let WakeTarget::Future(waker) = &self.shared.wake_target {
            let waker =
                waker.lock().unwrap_or_else(PoisonError::into_inner).replace(cx.waker().clone());
            // After the unlock: it may own a task with a handle of this VM.
            drop(waker);
        }
        // The number of rounds is bounded, so that a busy VM does not starve other tasks.
        for _ in 0..16 {
            match self.shared.drive() {
                DriveOutcome::Over => return Poll::Ready(Ok(self.shared.snapshot().status)),
                DriveOutcome::Failed(error) => return Poll::Ready(Err(error.into())),
                DriveOutcome::Again(wait) => self.timer = wait.map(Timer::after),
            }
            let timer = self.timer.as_mut().map(|timer| Pin::new(timer).poll(cx));
            let readable = match self.descriptor.poll_readable(cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.shared.fail(error).into())),
                readable => readable,
            };
            if readable.is_pending() && !matches!(timer, Some(Poll::Ready(_))) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Driver {
    /// Kills the VM and waits for its processes, which takes milliseconds, so that waiters return
    /// although the VM has no driver any more.
    fn drop(&mut self) {
        if self.shared.check_process().is_err() {
            return;
        }
        self.shared.prepare(|state| state.vm.abandon());
        // The lifecycle's deadlines end this loop, even if a process does not exit.
        while let DriveOutcome::Again(wait) = self.shared.drive() {
            // Threads may still write the output of a VM that has ended.
            if self.shared.lock().has_ended() {
                return;
            }
            if let Err(error) = wait_readable(self.descriptor.get_ref().as_fd(), wait) {
                self.shared.fail(error);
                return;
            }
        }
    }
}
