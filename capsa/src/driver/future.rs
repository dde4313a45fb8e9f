//! The driver as a future, for programs that want no thread of ours. (async-io has one of its own.)

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};

use async_io::{Async, Timer};
use capsa_io::reactor::wait_readable;

use super::{DriveOutcome, Shared, WakeTarget};
use crate::{Result, VmStatus};

/// Drives one machine for as long as it is polled, on any executor. Ends with its last status.
///
/// Nothing happens while nobody polls it: spawn it, or join it with whatever uses the handle.
/// Dropping it kills the machine and waits until it is gone. One that was not started yet can then not
/// be started any more.
#[derive(Debug)]
#[must_use = "a machine does not run unless its driver is polled"]
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
        if let WakeTarget::Future(waker) = &self.shared.wake_target {
            *waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        }
        // Bounded: a machine that always has more to do gives other tasks their turn.
        for _ in 0..16 {
            match self.shared.drive()? {
                DriveOutcome::Over => {
                    return Poll::Ready(Ok(self.shared.lock().vm.status()));
                }
                DriveOutcome::Again(wait) => self.timer = wait.map(Timer::after),
            }
            let timer = self.timer.as_mut().map(|timer| Pin::new(timer).poll(cx));
            let readable = self.descriptor.poll_readable(cx)?;
            if readable.is_pending() && !matches!(timer, Some(Poll::Ready(_))) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Driver {
    /// Nobody will drive it any more: kills what runs and waits until it is gone, which takes
    /// milliseconds, so that whoever waits for the machine is told.
    fn drop(&mut self) {
        self.shared.lock().vm.abandon();
        // The lifecycle's own deadlines end this, even where a process does not die.
        while let Ok(DriveOutcome::Again(wait)) = self.shared.drive()
            && wait_readable(self.descriptor.get_ref().as_fd(), wait).is_ok()
        {}
    }
}
