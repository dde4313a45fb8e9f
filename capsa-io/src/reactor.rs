//! A poller for whoever drives many machines: waits for all their descriptors at once.
//!
//! Level-triggered: what was not taken is reported again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::{Poll, PollSource, ReadyEvents};

/// Waits for many descriptors.
#[derive(Debug)]
pub struct Reactor {
    poll: Poll,
    ready: Mutex<ReadyEvents>,
    woken: AtomicBool,
}

/// A descriptor that is watched as long as this lives.
#[derive(Debug)]
pub struct Registration<F: AsFd> {
    _source: PollSource<F>,
}

impl Reactor {
    /// A reactor with nothing in it.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let (poll, ready) = (Poll::new()?, Mutex::new(ReadyEvents::new()));
        Ok(Self { poll, ready, woken: AtomicBool::new(false) })
    }

    /// Watches `io` for reading, under this key. Also while another thread waits.
    ///
    /// # Errors
    ///
    /// In a forked copy of the program, where the thread that waits is not; when the system refuses.
    pub fn watch<F: AsFd>(&self, io: F, key: usize) -> io::Result<Registration<F>> {
        self.poll.check_process()?;
        Ok(Registration { _source: self.poll.add(io, key)? })
    }

    /// Makes [`Reactor::wait`] come back, now or when it is called next.
    pub fn wake(&self) {
        self.woken.store(true, Ordering::SeqCst);
        if let Err(error) = self.poll.wake() {
            tracing::error!("cannot wake the reactor: {error}");
        }
    }

    /// Whether [`Reactor::wake`] was called since this was last asked.
    pub fn was_woken(&self) -> bool {
        self.woken.swap(false, Ordering::SeqCst)
    }

    /// Waits, and adds the keys of what is ready. One thread waits; another one would queue.
    ///
    /// # Errors
    ///
    /// When the poller is broken.
    pub fn wait(&self, timeout: Option<Duration>, into: &mut Vec<usize>) -> io::Result<()> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        self.poll.wait(timeout, &mut ready)?;
        into.extend(ready.keys());
        Ok(())
    }
}

/// Waits for one descriptor, this long at most, without taking another one from the system.
///
/// # Errors
///
/// When the system refuses to wait.
pub fn wait_readable(io: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
    let timeout = match timeout {
        // Rounded up: who is called too early spins.
        Some(timeout) => PollTimeout::try_from(timeout + Duration::from_micros(999)),
        None => Ok(PollTimeout::NONE),
    };
    let mut fds = [PollFd::new(io, PollFlags::POLLIN)];
    match poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
