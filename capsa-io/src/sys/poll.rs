//! A level-triggered poller whose sources take themselves out again.
//!
//! `polling` asks, unsafely, that a descriptor is removed before it is closed. [`Source`] owns the
//! descriptor, so it can promise that.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use polling::{Event, Events, PollMode, Poller};

/// A poller. Its own descriptor is readable when one of its sources is ready.
#[derive(Debug)]
pub(crate) struct Poll {
    poller: Arc<Poller>,
}

/// Room for what a wait brings.
#[derive(Debug)]
pub(crate) struct Ready(Events);

impl Ready {
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
        Ok(Self { poller: Arc::new(Poller::new()?) })
    }

    /// Watches `io` for reading. Also while another thread waits.
    pub(crate) fn add<F: AsFd>(&self, io: F, key: usize) -> io::Result<Source<F>> {
        let interest = Event::readable(key);
        // SAFETY: `Source` owns the descriptor and deletes it from the poller before closing it.
        unsafe {
            self.poller.add_with_mode(&io.as_fd(), interest, PollMode::Level)?;
        }
        Ok(Source { poller: Arc::clone(&self.poller), io, interest })
    }

    /// Ends a wait, now or when it begins.
    pub(crate) fn wake(&self) -> io::Result<()> {
        self.poller.notify()
    }

    /// Waits until something is ready, this long at most. `None`: for ever.
    pub(crate) fn wait(&self, timeout: Option<Duration>, ready: &mut Ready) -> io::Result<()> {
        ready.0.clear();
        self.poller.wait(&mut ready.0, timeout)?;
        Ok(())
    }
}

impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}

/// A descriptor that is watched as long as it lives.
#[derive(Debug)]
pub(crate) struct Source<F: AsFd> {
    poller: Arc<Poller>,
    io: F,
    interest: Event,
}

impl<F: AsFd> Source<F> {
    pub(crate) fn io(&mut self) -> &mut F {
        &mut self.io
    }

    /// Says which readiness matters from now on. Cheap when nothing changes.
    pub(crate) fn set_interest(&mut self, readable: bool, writable: bool) -> io::Result<()> {
        if (self.interest.readable, self.interest.writable) != (readable, writable) {
            self.interest.readable = readable;
            self.interest.writable = writable;
            self.poller.modify_with_mode(self.io.as_fd(), self.interest, PollMode::Level)?;
        }
        Ok(())
    }
}

impl<F: AsFd> Drop for Source<F> {
    fn drop(&mut self) {
        // Only a poller that is already broken can refuse this, and then nothing is left to mend.
        let _ = self.poller.delete(self.io.as_fd());
    }
}
