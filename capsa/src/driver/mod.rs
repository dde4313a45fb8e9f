//! What drives the machines of the async face, and how the two sides meet.
//!
//! A [`Shared`] machine is an [`embed::Vm`] behind a lock, with the wakers of whoever waits for it.
//! Handles express wishes and wait; a driver calls [`Shared::drive`] when the descriptor or the
//! deadline says so, and wakes. There are two drivers: one lazily started thread for all machines
//! ([`on_thread`]), and a future for those who want no thread ([`by_future`]).
//!
//! The one rule: after a change that may move the deadline, [`Shared::poke`].

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

/// A machine that the hidden thread drives.
pub(crate) fn on_thread(vm: embed::Vm) -> Result<Arc<Shared>> {
    let shared = Shared::new(vm, Poke::Thread);
    thread::adopt(&shared)?;
    Ok(shared)
}

/// A machine that the future drives.
pub(crate) fn by_future(vm: embed::Vm) -> Result<(Arc<Shared>, Driver)> {
    let shared = Shared::new(vm, Poke::Future(Mutex::new(None)));
    let driver = Driver::new(Arc::clone(&shared))?;
    Ok((shared, driver))
}

/// A machine and who waits for it.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    poke: Poke,
}

/// How a driver is told to look again.
#[derive(Debug)]
enum Poke {
    Thread,
    Future(Mutex<Option<Waker>>),
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) vm: embed::Vm,
    /// It was `Running` at some time.
    pub(crate) has_run: bool,
    /// When it was started.
    pub(crate) started: Option<Instant>,
    /// Threads that still write its output: to standard output, to a recording.
    pub(crate) relays: usize,
    wakers: Wakers,
    alarms: BTreeMap<(Instant, u64), Waker>,
    next_ticket: u64,
}

/// Whoever waits, by what for: at most one waker each, so that what is polled again, or was given
/// up, does not add up while nothing happens.
type Wakers = BTreeMap<For, Waker>;

/// What a future can wait for, and which one it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum For {
    Status(Ticket),
    Data(ReaderId),
    Writable(Ticket),
    Ended(WaitId),
}

/// Tells one that waits from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// One that waits. Its waker goes with it.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    shared: &'a Shared,
    what: For,
}

impl<'a> Waiting<'a> {
    pub(crate) fn for_status(shared: &'a Shared) -> Self {
        let what = For::Status(shared.lock().ticket());
        Self { shared, what }
    }

    /// Wakes `waker` when it happens. Once.
    pub(crate) fn wake(&self, state: &mut State, waker: &Waker) {
        state.wake(self.what, waker);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.lock().forget(self.what);
    }
}

impl State {
    /// Wakes `waker` when it happens. Once.
    pub(crate) fn wake(&mut self, what: For, waker: &Waker) {
        self.wakers.insert(what, waker.clone());
    }

    pub(crate) fn forget(&mut self, what: For) {
        self.wakers.remove(&what);
    }

    pub(crate) fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    /// Takes the wakers of those who wait for `what`.
    fn take(&mut self, what: impl Fn(&For) -> bool) -> Vec<Waker> {
        let (taken, left) =
            std::mem::take(&mut self.wakers).into_iter().partition(|(f, _)| what(f));
        self.wakers = left;
        let taken: Wakers = taken;
        taken.into_values().collect()
    }

    /// Wakes `waker` at `at`, unless it is taken back by its key.
    pub(crate) fn set_alarm(&mut self, at: Instant, waker: &Waker) -> (Instant, u64) {
        let key = (at, self.ticket().0);
        self.alarms.insert(key, waker.clone());
        key
    }

    pub(crate) fn clear_alarm(&mut self, key: (Instant, u64)) {
        self.alarms.remove(&key);
    }

    /// Over, and everything it said has been written where it goes.
    pub(crate) fn is_over(&self) -> bool {
        self.vm.status().is_terminal() && self.relays == 0
    }

    fn next_timeout(&self) -> Option<Duration> {
        let alarm = self.alarms.keys().next();
        let alarm = alarm.map(|(at, _)| at.saturating_duration_since(Instant::now()));
        match (self.vm.next_timeout(), alarm) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

impl Shared {
    fn new(vm: embed::Vm, poke: Poke) -> Arc<Self> {
        let state = State {
            vm,
            has_run: false,
            started: None,
            relays: 0,
            wakers: Wakers::new(),
            alarms: BTreeMap::new(),
            next_ticket: 0,
        };
        Arc::new(Self { state: Mutex::new(state), poke })
    }

    /// The machine. Held for as long as one `on_ready` at most.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the driver look again at what to do and how long to wait.
    pub(crate) fn poke(&self) {
        match &self.poke {
            Poke::Thread => thread::poke(),
            Poke::Future(waker) => {
                let waker = waker.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }

    /// A copy of the descriptor, for the driver's own poller.
    fn descriptor(&self) -> io::Result<OwnedFd> {
        self.lock().vm.as_fd().try_clone_to_owned()
    }

    /// One round: does what there is to do and wakes whoever waited for it.
    fn drive(&self) -> io::Result<Round> {
        let mut wake = Vec::new();
        let round = {
            let mut state = self.lock();
            state.vm.on_ready()?;
            while let Some(event) = state.vm.poll_event() {
                state.dispatch(&event, &mut wake);
            }
            let now = Instant::now();
            while let Some(alarm) = state.alarms.first_entry()
                && alarm.key().0 <= now
            {
                wake.push(alarm.remove());
            }
            if state.vm.status().is_terminal() && state.vm.next_timeout().is_none() {
                Round::Over
            } else {
                Round::Again(state.next_timeout())
            }
        };
        // Outside of the lock: whoever wakes may want it. What a waker does is its program's code: one
        // that panics does not take the thread from everybody else's machines.
        for waker in wake {
            if catch_unwind(AssertUnwindSafe(|| waker.wake())).is_err() {
                tracing::error!("a waker panicked: whoever it stands for may wait for ever");
            }
        }
        Ok(round)
    }
}

/// What a driver does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// Wait for the descriptor, this long at most.
    Again(Option<Duration>),
    /// The machine is over and will say nothing more.
    Over,
}

impl State {
    fn dispatch(&mut self, event: &VmEvent, wake: &mut Vec<Waker>) {
        let is_status = |what: &For| matches!(what, For::Status(_));
        let is_console = |what: &For| matches!(what, For::Data(_) | For::Writable(_));
        wake.extend(match event {
            VmEvent::Status(status) => {
                self.has_run |= *status == VmStatus::Running;
                let is_last = status.is_terminal();
                self.take(|what| is_status(what) || is_last && is_console(what))
            }
            VmEvent::ConsoleData => self.take(|what| matches!(what, For::Data(_))),
            VmEvent::ConsoleWritable => self.take(|what| matches!(what, For::Writable(_))),
            VmEvent::ConsoleClosed => self.take(is_console),
            VmEvent::Ended(id) => self.wakers.remove(&For::Ended(*id)).into_iter().collect(),
            _ => Vec::new(),
        });
    }

    /// Output was written where it goes: who waits for the end may look again.
    pub(crate) fn relayed(&mut self) -> Vec<Waker> {
        self.relays = self.relays.saturating_sub(1);
        self.take(|what| matches!(what, For::Status(_)))
    }
}
