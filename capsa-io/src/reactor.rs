//! A poller for many VMs: waits for all their descriptors at once.
//!
//! It is level-triggered: a descriptor that is still readable is reported again.

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

/// A descriptor that is watched while this value lives.
#[derive(Debug)]
pub struct Registration<F: AsFd> {
    _source: PollSource<F>,
}

impl Reactor {
    /// Creates a reactor without descriptors.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let (poll, ready) = (Poll::new()?, Mutex::new(ReadyEvents::new()));
        Ok(Self { poll, ready, woken: AtomicBool::new(false) })
    }

    /// Watches `io` for reading, under `key`. It can be called while another thread waits.
    ///
    /// # Errors
    ///
    /// In a forked child of the program, which does not have the waiting thread; when the system
    /// rejects the descriptor.
    pub fn watch<F: AsFd>(&self, io: F, key: usize) -> io::Result<Registration<F>> {
        self.poll.check_process()?;
        Ok(Registration { _source: self.poll.add(io, key)? })
    }

    /// Makes the current or next [`Reactor::wait`] return.
    pub fn wake(&self) {
        self.woken.store(true, Ordering::SeqCst);
        if let Err(error) = self.poll.wake() {
            tracing::error!("cannot wake the reactor: {error}");
        }
    }

    /// Whether [`Reactor::wake`] was called since the last call of this method.
    pub fn was_woken(&self) -> bool {
        self.woken.swap(false, Ordering::SeqCst)
    }

    /// Waits, then adds the keys of the readable descriptors to `into`. One thread waits at a time.
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

/// Waits for one descriptor, for at most `timeout`, without opening another descriptor.
///
/// # Errors
///
/// When the system call fails.
pub fn wait_readable(io: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
    let timeout = match timeout {
        // Rounded up: a caller that is woken too early would spin.
        Some(timeout) => PollTimeout::try_from(timeout + Duration::from_micros(999)),
        None => Ok(PollTimeout::NONE),
    };
    let mut fds = [PollFd::new(io, PollFlags::POLLIN)];
    match poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
