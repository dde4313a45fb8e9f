//! Drivers of the async API, and the state they share with handles.
//!
//! A [`Shared`] VM is an [`embed::Vm`] behind a lock, with the wakers of its waiters. Handles
//! submit requests and wait. A driver calls [`Shared::drive`] when the descriptor is readable or
//! the deadline has passed, and wakes the waiters. There are two drivers: one lazily started thread
//! for all VMs ([`on_thread`]), and a future ([`by_future`]).
//!
//! After any change that may move the deadline, the caller must call [`Shared::wake_driver`].

mod future;
mod thread;
mod unblock;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use capsa_proto::lifecycle::VmStatus;

use crate::Result;
use crate::embed::{self, ReaderId, VmEvent, WaitId};

pub use future::Driver;
pub(crate) use unblock::unblock;

/// A VM that the driver thread drives.
pub(crate) fn on_thread(vm: embed::Vm) -> Result<Arc<Shared>> {
    let shared = Shared::new(vm, WakeTarget::Thread);
    thread::register(&shared)?;
    Ok(shared)
}

/// A VM that a [`Driver`] future drives.
pub(crate) fn by_future(vm: embed::Vm) -> Result<(Arc<Shared>, Driver)> {
    let shared = Shared::new(vm, WakeTarget::Future(Mutex::new(None)));
    let driver = Driver::new(Arc::clone(&shared))?;
    Ok((shared, driver))
}

/// A VM, its waiters, and how to wake its driver.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<SharedState>,
    wake_target: WakeTarget,
}

/// How to wake the driver of a VM.
#[derive(Debug)]
enum WakeTarget {
    Thread,
    Future(Mutex<Option<Waker>>),
}

#[derive(Debug)]
pub(crate) struct SharedState {
    pub(crate) vm: embed::Vm,
    /// The VM has been `Running`.
    pub(crate) has_run: bool,
    /// The time of the start, on the VM's clock.
    pub(crate) started: Option<capsa_proto::time::Instant>,
    /// Threads that still write the VM's output: to standard output or to a recording.
    pub(crate) relays: usize,
    wakers: Wakers,
    timers: BTreeMap<(Instant, u64), Waker>,
    next_waiter_id: u64,
}

/// The wakers by what they wait for. Each waiter has at most one waker, so repeated polls and
/// cancelled waits do not accumulate.
type Wakers = BTreeMap<WaitKey, Waker>;

/// What a future waits for, and which future it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WaitKey {
    Status(WaiterId),
    Data(ReaderId),
    Writable(WaiterId),
    Ended(WaitId),
}

/// Distinguishes waiters for the same event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WaiterId(u64);

/// A waiter for a change of status. Dropping it removes its waker.
#[derive(Debug)]
pub(crate) struct StatusWaiter<'a> {
    shared: &'a Shared,
    key: WaitKey,
}

impl<'a> StatusWaiter<'a> {
    pub(crate) fn for_status(shared: &'a Shared) -> Self {
        let key = WaitKey::Status(shared.lock().waiter_id());
        Self { shared, key }
    }

    /// Wakes `waker` at the next event, once.
    pub(crate) fn register_waker(&self, state: &mut SharedState, waker: &Waker) {
        state.register_waker(self.key, waker);
    }
}

impl Drop for StatusWaiter<'_> {
    fn drop(&mut self) {
        self.shared.lock().remove_waker(self.key);
    }
}

impl SharedState {
    /// Wakes `waker` at the next event, once.
    pub(crate) fn register_waker(&mut self, key: WaitKey, waker: &Waker) {
        self.wakers.insert(key, waker.clone());
    }

    pub(crate) fn remove_waker(&mut self, key: WaitKey) {
        self.wakers.remove(&key);
    }

    pub(crate) fn waiter_id(&mut self) -> WaiterId {
        self.next_waiter_id += 1;
        WaiterId(self.next_waiter_id)
    }

    /// Removes and returns the wakers whose keys match.
    fn take(&mut self, matches: impl Fn(&WaitKey) -> bool) -> Vec<Waker> {
        let (taken, left) =
            std::mem::take(&mut self.wakers).into_iter().partition(|(key, _)| matches(key));
        self.wakers = left;
        let taken: Wakers = taken;
        taken.into_values().collect()
    }

    /// Wakes `waker` at `at`, unless the timer is removed by the returned key.
    pub(crate) fn set_timer(&mut self, at: Instant, waker: &Waker) -> (Instant, u64) {
        let key = (at, self.waiter_id().0);
        self.timers.insert(key, waker.clone());
        key
    }

    pub(crate) fn clear_timer(&mut self, key: (Instant, u64)) {
        self.timers.remove(&key);
    }

    /// The VM has ended and all its output is written.
    pub(crate) fn has_finished(&self) -> bool {
        self.vm.status().is_terminal() && self.relays == 0
    }

    fn next_timeout(&self) -> Option<Duration> {
        let timer = self.timers.keys().next();
        let timer = timer.map(|(at, _)| at.saturating_duration_since(Instant::now()));
        match (self.vm.next_timeout(), timer) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

impl Shared {
    fn new(vm: embed::Vm, wake_target: WakeTarget) -> Arc<Self> {
        let state = SharedState {
            vm,
            has_run: false,
            started: None,
            relays: 0,
            wakers: Wakers::new(),
            timers: BTreeMap::new(),
            next_waiter_id: 0,
        };
        Arc::new(Self { state: Mutex::new(state), wake_target })
    }

    /// Locks the VM. The driver holds the lock for at most one `on_ready` call.
    pub(crate) fn lock(&self) -> MutexGuard<'_, SharedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the driver, which then does pending work and computes the next deadline.
    pub(crate) fn wake_driver(&self) {
        match &self.wake_target {
            WakeTarget::Thread => thread::wake(),
            WakeTarget::Future(waker) => {
                let waker = waker.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }

    /// A duplicate of the descriptor, for the driver's own poller.
    fn descriptor(&self) -> io::Result<OwnedFd> {
        self.lock().vm.as_fd().try_clone_to_owned()
    }

    /// Does the pending work once and wakes the waiters of its events.
    fn drive(&self) -> io::Result<DriveOutcome> {
        let mut wake = Vec::new();
        let round = {
            let mut state = self.lock();
            state.vm.on_ready()?;
            while let Some(event) = state.vm.poll_event() {
                state.dispatch(&event, &mut wake);
            }
            let now = Instant::now();
            while let Some(timer) = state.timers.first_entry()
                && timer.key().0 <= now
            {
                wake.push(timer.remove());
            }
            if state.vm.status().is_terminal() && state.vm.next_timeout().is_none() {
                DriveOutcome::Over
            } else {
                DriveOutcome::Again(state.next_timeout())
            }
        };
        // Wakers run outside the lock, because they may take it. A waker is code of the program; a
        // panic in it must not end the thread that serves other VMs.
        for waker in wake {
            if catch_unwind(AssertUnwindSafe(|| waker.wake())).is_err() {
                tracing::error!("a waker panicked: its future may never be woken");
            }
        }
        Ok(round)
    }
}

/// What a driver does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DriveOutcome {
    /// Wait for the descriptor, at most this long.
    Again(Option<Duration>),
    /// The VM has ended and produces no more events.
    Over,
}

impl SharedState {
    fn dispatch(&mut self, event: &VmEvent, wake: &mut Vec<Waker>) {
        let is_status = |key: &WaitKey| matches!(key, WaitKey::Status(_));
        let is_console = |key: &WaitKey| matches!(key, WaitKey::Data(_) | WaitKey::Writable(_));
        wake.extend(match event {
            VmEvent::Status(status) => {
                self.has_run |= *status == VmStatus::Running;
                let is_last = status.is_terminal();
                self.take(|key| is_status(key) || is_last && is_console(key))
            }
            VmEvent::ConsoleData => self.take(|key| matches!(key, WaitKey::Data(_))),
            VmEvent::ConsoleWritable => self.take(|key| matches!(key, WaitKey::Writable(_))),
            VmEvent::ConsoleClosed => self.take(is_console),
            VmEvent::Ended(id) => self.wakers.remove(&WaitKey::Ended(*id)).into_iter().collect(),
            _ => Vec::new(),
        });
    }

    /// A thread has written all output: wakes the waiters for the end.
    pub(crate) fn relayed(&mut self) -> Vec<Waker> {
        self.relays = self.relays.saturating_sub(1);
        self.take(|key| matches!(key, WaitKey::Status(_)))
    }
}
