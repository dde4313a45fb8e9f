//! A level-triggered poller whose sources deregister themselves.
//!
//! `polling` requires, as a safety condition, that a descriptor is removed before it is closed.
//! [`PollSource`] owns the descriptor and ensures that.

use std::cell::Cell;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use polling::{Event, Events, PollMode, Poller};

use super::ForkGuard;

/// A poller. Its own descriptor is readable when one of its sources is ready.
#[derive(Debug, Clone)]
pub(crate) struct Poll {
    poller: Arc<OwnPoller>,
    fork_guard: ForkGuard,
    interest_changed: Arc<AtomicBool>,
}

/// A poller that only the process that created it drops. Dropping it deregisters its own descriptors, which
/// in a forked child would affect the parent's poller.
#[derive(Debug)]
struct OwnPoller {
    poller: ManuallyDrop<Poller>,
    fork_guard: ForkGuard,
}

impl OwnPoller {
    fn new() -> io::Result<Self> {
        let poller = ManuallyDrop::new(Poller::new()?);
        Ok(Self { poller, fork_guard: ForkGuard::new() })
    }
}

impl Deref for OwnPoller {
    type Target = Poller;

    fn deref(&self) -> &Poller {
        &self.poller
    }
}

impl Drop for OwnPoller {
    fn drop(&mut self) {
        if self.fork_guard.is_same_process() {
            // SAFETY: it is dropped only here.
            unsafe { ManuallyDrop::drop(&mut self.poller) }
        }
    }
}

/// A buffer for the events of a wait.
#[derive(Debug)]
pub(crate) struct ReadyEvents(Events);

thread_local! {
    static READY: Cell<Option<ReadyEvents>> = const { Cell::new(None) };
}

impl ReadyEvents {
    pub(crate) fn new() -> Self {
        Self(Events::new())
    }

    /// The buffer of this thread, for one call; [`keep`](Self::keep) returns it. It has room for 1024
    /// events: one for each VM would be most of the memory of an idle VM.
    pub(crate) fn take() -> Self {
        READY.try_with(Cell::take).ok().flatten().unwrap_or_else(Self::new)
    }

    /// Keeps the buffer for the next [`take`](Self::take) of this thread.
    pub(crate) fn keep(self) {
        // While the thread ends it has no place for the buffer.
        let _ = READY.try_with(|ready| ready.set(Some(self)));
    }

    /// The keys of the ready sources.
    pub(crate) fn keys(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|event| event.key)
    }

    pub(crate) fn has(&self, key: usize) -> bool {
        self.keys().any(|ready| ready == key)
    }
}

impl Poll {
    pub(crate) fn new() -> io::Result<Self> {
        let poller = Arc::new(OwnPoller::new()?);
        Ok(Self { poller, fork_guard: ForkGuard::new(), interest_changed: Arc::default() })
    }

    /// Watches `io` for reading. It can be called while another thread waits.
    pub(crate) fn add<F: AsFd>(&self, io: F, key: usize) -> io::Result<PollSource<F>> {
        self.add_with_mode(io, key, PollMode::Level)
    }

    /// Watches an event counter without reading it: each time that it is increased is reported once.
    pub(crate) fn add_edge<F: AsFd>(&self, io: F, key: usize) -> io::Result<PollSource<F>> {
        self.add_with_mode(io, key, PollMode::Edge)
    }

    fn add_with_mode<F: AsFd>(
        &self,
        io: F,
        key: usize,
        mode: PollMode,
    ) -> io::Result<PollSource<F>> {
        let interest = Event::readable(key);
        // SAFETY: `PollSource` owns the descriptor and deletes it from the poller before closing it.
        unsafe {
            self.poller.add_with_mode(&io.as_fd(), interest, mode)?;
        }
        let (poller, interest_changed) =
            (Arc::clone(&self.poller), Arc::clone(&self.interest_changed));
        Ok(PollSource {
            poller,
            fork_guard: self.fork_guard,
            interest_changed,
            io,
            interest,
            is_added: true,
        })
    }

    /// A source that is not watched until it gets an interest.
    pub(crate) fn add_idle<F: AsFd>(&self, io: F, key: usize) -> PollSource<F> {
        PollSource {
            poller: Arc::clone(&self.poller),
            fork_guard: self.fork_guard,
            interest_changed: Arc::clone(&self.interest_changed),
            io,
            interest: Event::none(key),
            is_added: false,
        }
    }

    /// Makes the current or next wait return.
    pub(crate) fn wake(&self) -> io::Result<()> {
        self.poller.notify()
    }

    /// Wakes this poller from other threads.
    pub(crate) fn waker(&self) -> PollWaker {
        PollWaker(Arc::downgrade(&self.poller))
    }

    /// Waits until a source is ready, for at most `timeout`. `None`: no limit.
    ///
    /// # Errors
    ///
    /// In a forked child of the process that created it, and when the poller is broken.
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

    /// Returns an error in a forked child.
    pub(crate) fn check_process(&self) -> io::Result<()> {
        self.fork_guard.check_process()
    }

    /// The interest of a source has grown since the last wait, and its readiness may go unreported.
    ///
    /// An edge-triggered watcher of this poller's descriptor is not notified if the source is still
    /// in epoll's ready list: `ep_modify` of Linux 6.18 wakes only for a source that is not in it.
    pub(crate) fn has_interest_changed(&self) -> bool {
        self.interest_changed.load(Ordering::Relaxed)
    }
}

impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}

/// Wakes a poller while that exists.
#[derive(Debug, Clone)]
pub(crate) struct PollWaker(Weak<OwnPoller>);

impl PollWaker {
    /// Makes the current or next wait return.
    pub(crate) fn wake(&self) {
        if let Some(poller) = self.0.upgrade()
            && let Err(error) = poller.notify()
        {
            tracing::error!("cannot wake a poller: {error}");
        }
    }
}

/// A descriptor that is watched while this value lives.
#[derive(Debug)]
pub(crate) struct PollSource<F: AsFd> {
    poller: Arc<OwnPoller>,
    fork_guard: ForkGuard,
    interest_changed: Arc<AtomicBool>,
    io: F,
    interest: Event,
    is_added: bool,
}

impl<F: AsFd> PollSource<F> {
    /// Whether the current process created it, so that it is not a forked child's copy.
    pub(crate) fn is_same_process(&self) -> bool {
        self.fork_guard.is_same_process()
    }

    pub(crate) fn io(&mut self) -> &mut F {
        &mut self.io
    }

    pub(crate) fn io_ref(&self) -> &F {
        &self.io
    }

    /// Gives a source without interest another key.
    pub(crate) fn set_key(&mut self, key: usize) {
        debug_assert!(!self.is_added, "the poller has the old key");
        self.interest.key = key;
    }

    /// Sets which readiness is reported. Cheap when nothing changes. Without interest the source leaves
    /// the poller, which would report a closed peer all the same, without end.
    pub(crate) fn set_interest(&mut self, readable: bool, writable: bool) -> io::Result<()> {
        let before = (self.interest.readable, self.interest.writable);
        if before != (readable, writable) {
            if (readable && !before.0) || (writable && !before.1) {
                self.interest_changed.store(true, Ordering::Relaxed);
            }
            self.interest.readable = readable;
            self.interest.writable = writable;
            match (self.is_added, readable || writable) {
                (true, true) => {
                    self.poller.modify_with_mode(
                        self.io.as_fd(),
                        self.interest,
                        PollMode::Level,
                    )?;
                }
                (true, false) => {
                    self.poller.delete(self.io.as_fd())?;
                    self.is_added = false;
                }
                (false, true) => {
                    // SAFETY: as in `Poll::add`: `drop` deletes the descriptor before it is closed.
                    unsafe {
                        self.poller.add_with_mode(
                            &self.io.as_fd(),
                            self.interest,
                            PollMode::Level,
                        )?;
                    }
                    self.is_added = true;
                }
                (false, false) => {}
            }
        }
        Ok(())
    }
}

impl<F: AsFd> Drop for PollSource<F> {
    fn drop(&mut self) {
        // A forked child shares the poller; deregistering here would affect the parent.
        if !self.fork_guard.is_same_process() || !self.is_added {
            return;
        }
        // Only a broken poller rejects this, and then there is nothing to do.
        let _ = self.poller.delete(self.io.as_fd());
    }
}
