//! A level-triggered poller whose sources take themselves out again.
//!
//! `polling` asks, unsafely, that a descriptor is removed before it is closed. [`PollSource`] owns the
//! descriptor, so it can promise that.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use polling::{Event, Events, PollMode, Poller};

use super::ForkGuard;

/// A poller. Its own descriptor is readable when one of its sources is ready.
#[derive(Debug)]
pub(crate) struct Poll {
    poller: Arc<Poller>,
    fork_guard: ForkGuard,
    interest_changed: Arc<AtomicBool>,
}

/// Room for what a wait brings.
#[derive(Debug)]
pub(crate) struct ReadyEvents(Events);

impl ReadyEvents {
    pub(crate) fn new() -> Self {
        Self(Events::new())
    }

    /// The keys of what was ready.
    pub(crate) fn keys(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|event| event.key)
    }

    pub(crate) fn has(&self, key: usize) -> bool {
        self.keys().any(|ready| ready == key)
    }
}

impl Poll {
    pub(crate) fn new() -> io::Result<Self> {
        let poller = Arc::new(Poller::new()?);
        Ok(Self { poller, fork_guard: ForkGuard::new(), interest_changed: Arc::default() })
    }

    /// Watches `io` for reading. Also while another thread waits.
    pub(crate) fn add<F: AsFd>(&self, io: F, key: usize) -> io::Result<PollSource<F>> {
        let interest = Event::readable(key);
        // SAFETY: `PollSource` owns the descriptor and deletes it from the poller before closing it.
        unsafe {
            self.poller.add_with_mode(&io.as_fd(), interest, PollMode::Level)?;
        }
        let (poller, interest_changed) =
            (Arc::clone(&self.poller), Arc::clone(&self.interest_changed));
        Ok(PollSource { poller, fork_guard: self.fork_guard, interest_changed, io, interest })
    }

    /// Ends a wait, now or when it begins.
    pub(crate) fn wake(&self) -> io::Result<()> {
        self.poller.notify()
    }

    /// Waits until something is ready, this long at most. `None`: for ever.
    ///
    /// # Errors
    ///
    /// In a forked copy of the program that made it, and when the poller is broken.
    pub(crate) fn wait(
        &self,
        timeout: Option<Duration>,
        ready: &mut ReadyEvents,
    ) -> io::Result<()> {
        self.check_process()?;
        self.interest_changed.store(false, Ordering::Relaxed);
        ready.0.clear();
        self.poller.wait(&mut ready.0, timeout)?;
        Ok(())
    }

    /// This process made it, and is no forked copy.
    pub(crate) fn is_same_process(&self) -> bool {
        self.fork_guard.is_same_process()
    }

    /// The same, as an error.
    pub(crate) fn check_process(&self) -> io::Result<()> {
        self.fork_guard.check_process()
    }

    /// A source's interest has grown since the last wait, and nobody may be told that it is ready.
    ///
    /// Whoever watches this poller's own descriptor for edges is not, where the source is still in
    /// epoll's list of what was ready: `ep_modify` of Linux 6.18 wakes only for one that is not.
    pub(crate) fn has_interest_changed(&self) -> bool {
        self.interest_changed.load(Ordering::Relaxed)
    }
}

impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}

/// A descriptor that is watched as long as it lives.
#[derive(Debug)]
pub(crate) struct PollSource<F: AsFd> {
    poller: Arc<Poller>,
    fork_guard: ForkGuard,
    interest_changed: Arc<AtomicBool>,
    io: F,
    interest: Event,
}

impl<F: AsFd> PollSource<F> {
    pub(crate) fn io(&mut self) -> &mut F {
        &mut self.io
    }

    /// Says which readiness matters from now on. Cheap when nothing changes.
    pub(crate) fn set_interest(&mut self, readable: bool, writable: bool) -> io::Result<()> {
        let before = (self.interest.readable, self.interest.writable);
        if before != (readable, writable) {
            if (readable && !before.0) || (writable && !before.1) {
                self.interest_changed.store(true, Ordering::Relaxed);
            }
            self.interest.readable = readable;
            self.interest.writable = writable;
            self.poller.modify_with_mode(self.io.as_fd(), self.interest, PollMode::Level)?;
        }
        Ok(())
    }
}

impl<F: AsFd> Drop for PollSource<F> {
    fn drop(&mut self) {
        // A copy would take it out of its fork_guard's poller, which is the same.
        if !self.fork_guard.is_same_process() {
            return;
        }
        // Only a poller that is already broken can refuse this, and then nothing is left to mend.
        let _ = self.poller.delete(self.io.as_fd());
    }
}
