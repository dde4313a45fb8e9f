//! A poller for many VMs: waits for all their descriptors at once, and for wakes by key.
//!
//! It is level-triggered: a descriptor that is still readable is reported again. A wake names the VM
//! that it is for; the cost of a wait depends on the keys that it reports, not on the number of
//! descriptors.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::{Poll, PollSource, ReadyEvents};

/// Waits for many descriptors, and for wakes.
#[derive(Debug)]
pub struct Reactor {
    poll: Poll,
    /// Locked by the waiting thread for the whole wait. No other thread locks it.
    ready: Mutex<ReadyEvents>,
    /// The woken keys that no wait has reported yet. A leaf lock, held for an insertion or a take.
    woken: Mutex<BTreeSet<usize>>,
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
        let ready = Mutex::new(ReadyEvents::new());
        Ok(Self { poll: Poll::new()?, ready, woken: Mutex::default() })
    }

    /// Watches `io` for reading, under `key`. It can be called while another thread waits.
    ///
    /// # Errors
    ///
    /// In a forked child of the program, which does not have the waiting thread; when the system
    /// rejects the descriptor.
    pub fn watch<F: AsFd>(&self, io: F, key: usize) -> io::Result<Registration<F>> {
        self.check_process()?;
        Ok(Registration { _source: self.poll.add(io, key)? })
    }

    /// Makes the current or next [`Reactor::wait`] return `key`. Several wakes of one key before
    /// that are one wake. Does nothing in a forked child, whose wake would reach the parent.
    pub fn wake(&self, key: usize) {
        if self.check_process().is_err() {
            return;
        }
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        // After the insertion: the wait that this notification ends takes the key.
        if let Err(error) = self.poll.wake() {
            tracing::error!("cannot wake the reactor: {error}");
        }
    }

    /// Waits, then adds the keys of the readable descriptors and the woken keys to `into`; a key may
    /// be added twice. Returns whether a key was woken. One thread waits at a time.
    ///
    /// # Errors
    ///
    /// When the poller is broken.
    pub fn wait(&self, timeout: Option<Duration>, into: &mut Vec<usize>) -> io::Result<bool> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        self.poll.wait(timeout, &mut ready)?;
        into.extend(ready.keys());
        let woken = std::mem::take(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner));
        let is_woken = !woken.is_empty();
        into.extend(woken);
        Ok(is_woken)
    }

    /// Checks that this is the process that created the reactor.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub(crate) fn check_process(&self) -> io::Result<()> {
        self.poll.check_process()
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

/// Waits until a write to this descriptor does not block, or fails. `false` when `timeout` has passed; a
/// signal may end the wait early.
pub fn wait_until_writable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
    !matches!(poll(&mut fds, timeout), Ok(0) | Err(Errno::EINTR))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn wake_before_wait_is_reported_once() {
        let (reactor, mut keys) = (Reactor::new().unwrap(), Vec::new());
        for key in [7, 3, 7] {
            reactor.wake(key);
        }
        assert!(reactor.wait(None, &mut keys).unwrap());
        assert_eq!(keys, [3, 7]);
        keys.clear();
        assert!(!reactor.wait(Some(Duration::ZERO), &mut keys).unwrap());
        assert!(keys.is_empty(), "{keys:?}");
    }

    #[test]
    fn wakes_of_other_threads_are_never_lost() {
        const WAKES: usize = 2_000;
        let (reactor, done) = (Reactor::new().unwrap(), Mutex::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for key in 0..WAKES {
                    reactor.wake(key);
                    // The next wake may meet any moment of the wait.
                    while *done.lock().unwrap() < key {
                        std::hint::spin_loop();
                    }
                }
            });
            let (mut keys, mut count) = (Vec::new(), 0);
            while count < WAKES {
                keys.clear();
                let begin = Instant::now();
                reactor.wait(Some(Duration::from_secs(60)), &mut keys).unwrap();
                // A wait may take a key before its notification, which then ends the next wait.
                let is_late = begin.elapsed() >= Duration::from_secs(60);
                if is_late {
                    // The other thread ends.
                    *done.lock().unwrap() = WAKES;
                }
                assert!(!is_late, "wake {count} is lost");
                count += keys.len();
                *done.lock().unwrap() = count;
            }
        });
    }
}
