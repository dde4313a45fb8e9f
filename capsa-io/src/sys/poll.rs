//! A level-triggered poller whose sources take themselves out again.
//!
//! `polling` asks, unsafely, that a descriptor is removed before it is closed. [`Source`] owns the
//! descriptor, so it can promise that.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use polling::{Event, Events, PollMode, Poller};

use super::Maker;

/// A poller. Its own descriptor is readable when one of its sources is ready.
#[derive(Debug)]
pub(crate) struct Poll {
    poller: Arc<Poller>,
    maker: Maker,
    stirred: Arc<AtomicBool>,
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
        let poller = Arc::new(Poller::new()?);
        Ok(Self { poller, maker: Maker::this(), stirred: Arc::default() })
    }

    /// Watches `io` for reading. Also while another thread waits.
    pub(crate) fn add<F: AsFd>(&self, io: F, key: usize) -> io::Result<Source<F>> {
        let interest = Event::readable(key);
        // SAFETY: `Source` owns the descriptor and deletes it from the poller before closing it.
        unsafe {
            self.poller.add_with_mode(&io.as_fd(), interest, PollMode::Level)?;
        }
        let (poller, stirred) = (Arc::clone(&self.poller), Arc::clone(&self.stirred));
        Ok(Source { poller, maker: self.maker, stirred, io, interest })
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
    pub(crate) fn wait(&self, timeout: Option<Duration>, ready: &mut Ready) -> io::Result<()> {
        self.must_be_ours()?;
        self.stirred.store(false, Ordering::Relaxed);
        ready.0.clear();
        self.poller.wait(&mut ready.0, timeout)?;
        Ok(())
    }

    /// This process made it, and is no forked copy.
    pub(crate) fn is_ours(&self) -> bool {
        self.maker.is_this()
    }

    /// The same, as an error.
    pub(crate) fn must_be_ours(&self) -> io::Result<()> {
        self.maker.must_be_this()
    }

    /// A source's interest has grown since the last wait, and nobody may be told that it is ready.
    ///
    /// Whoever watches this poller's own descriptor for edges is not, where the source is still in
    /// epoll's list of what was ready: `ep_modify` of Linux 6.18 wakes only for one that is not.
    pub(crate) fn is_stirred(&self) -> bool {
        self.stirred.load(Ordering::Relaxed)
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
    maker: Maker,
    stirred: Arc<AtomicBool>,
    io: F,
    interest: Event,
}

impl<F: AsFd> Source<F> {
    pub(crate) fn io(&mut self) -> &mut F {
        &mut self.io
    }

    /// Says which readiness matters from now on. Cheap when nothing changes.
    pub(crate) fn set_interest(&mut self, readable: bool, writable: bool) -> io::Result<()> {
        let before = (self.interest.readable, self.interest.writable);
        if before != (readable, writable) {
            if (readable && !before.0) || (writable && !before.1) {
                self.stirred.store(true, Ordering::Relaxed);
            }
            self.interest.readable = readable;
            self.interest.writable = writable;
            self.poller.modify_with_mode(self.io.as_fd(), self.interest, PollMode::Level)?;
        }
        Ok(())
    }
}

impl<F: AsFd> Drop for Source<F> {
    fn drop(&mut self) {
        // A copy would take it out of its maker's poller, which is the same.
        if !self.maker.is_this() {
            return;
        }
        // Only a poller that is already broken can refuse this, and then nothing is left to mend.
        let _ = self.poller.delete(self.io.as_fd());
    }
}
