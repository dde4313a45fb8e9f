//! Runs a blocking function on a thread of its own, so that it does not block an executor.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use crate::Result;

/// Returns the result of `work`, which runs on a thread called `name`.
///
/// If the future is dropped, the work completes and its result is discarded.
///
/// # Errors
///
/// When no thread can be started.
pub(crate) async fn unblock<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    struct Slot<T> {
        done: Option<std::thread::Result<T>>,
        waker: Option<Waker>,
    }
    let slot = Arc::new(Mutex::new(Slot { done: None, waker: None }));
    let theirs = Arc::clone(&slot);
    std::thread::Builder::new().name(name.into()).spawn(move || {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let waker = {
            let mut slot = theirs.lock().unwrap_or_else(PoisonError::into_inner);
            slot.done = Some(done);
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    })?;
    let done = poll_fn(|cx| {
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.done.take() {
            Some(done) => Poll::Ready(done),
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    })
    .await;
    // A panic of the work is propagated to the caller.
    done.map_err(|panic| std::panic::resume_unwind(panic))
}
