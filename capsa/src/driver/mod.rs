//! Drivers of the async API, and the state they share with handles.
//!
//! A [`Shared`] VM is an [`embed::Vm`] behind a lock, with the wakers of its waiters. Handles
//! change the VM ([`Shared::change`]) and wait ([`Shared::wait`]). A driver calls
//! [`Shared::drive`] when the descriptor is readable, the deadline has passed or a handle has
//! changed the VM, and wakes the waiters.
//!
//! There are two drivers: one lazily started thread for all VMs ([`on_thread`]), and a future
//! ([`by_future`]). The thread drives the VMs that have work and looks at no other: its cost does
//! not depend on the number of idle VMs.
//!
//! A driver that fails kills its VM and gives its error to every waiter and every later call.
//!
//! In a forked child of the program there is no driver, and the thread that held a lock at the fork
//! never releases it. So what may be called there checks the process first ([`Shared::check_process`])
//! and takes no lock.
//!
//! # Locks
//!
//! A thread takes locks only from left to right. While it holds one, it runs and drops no waker, and
//! drops no future or started VM: a waker and a future may lock again, and a VM waits for its processes.
//!
//! ```text
//! THREAD ──▶ DriverThread.vms
//! Shared.state ──▶ Shared.snapshot
//!              ──▶ Reactor.woken, WakeTarget::Future (capsa-io/src/reactor.rs)
//!              ──▶ DYING (capsa-io/src/process.rs) ──▶ WATCHDOG (capsa-io/src/watchdog.rs)
//! Reactor.ready ──▶ Reactor.woken
//! ```

mod deadlines;
mod future;
#[cfg(test)]
mod hostile_tests;
mod pausing;
#[cfg(test)]
mod tests;
mod throttle;
mod unblock;
mod wakers;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use capsa_io::ForkGuard;
use capsa_io::reactor::{Reactor, Registration};
use capsa_proto::lifecycle::{StopReport, VmStatus};

use crate::Result;
use crate::embed::{self, VmEvent};
use deadlines::Deadlines;
use throttle::Throttle;
use wakers::Wakers;

pub use future::Driver;
pub(crate) use unblock::unblock;
pub(crate) use wakers::{OperationPart, WaitKey, WaiterId};

/// A VM that the driver thread drives.
pub(crate) fn on_thread(vm: embed::Vm) -> Result<Arc<Shared>> {
    let mut running = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    let thread = match &*running {
        Some(thread) => Arc::clone(thread),
        None => Arc::clone(running.insert(DriverThread::start()?)),
    };
    Ok(thread.register(vm)?)
}

/// A VM that a [`Driver`] future drives.
pub(crate) fn by_future(vm: embed::Vm) -> Result<(Arc<Shared>, Driver)> {
    let shared = Shared::new(vm, WakeTarget::Future(Mutex::new(None)));
    let driver = Driver::new(Arc::clone(&shared))?;
    Ok((shared, driver))
}

/// A VM, its waiters, and how to wake its driver.
pub(crate) struct Shared {
    /// Held for one `on_ready`, which can last as long as a spawn, or for one short call of a
    /// handle.
    state: Mutex<SharedState>,
    /// What handles read without waiting for the driver. Held for a copy, also under `state`.
    snapshot: Mutex<VmSnapshot>,
    wake_target: WakeTarget,
    fork_guard: ForkGuard,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("status", &self.snapshot().status).finish_non_exhaustive()
    }
}

/// How to wake the driver of a VM.
#[derive(Debug)]
enum WakeTarget {
    /// The thread drives the VM with this key.
    Thread(Arc<DriverThread>, usize),
    /// Locked to set or take the waker.
    Future(Mutex<Option<Waker>>),
}

/// A copy of what changes only in [`Shared::drive`] and [`Shared::change`].
#[derive(Debug, Clone)]
pub(crate) struct VmSnapshot {
    pub(crate) status: VmStatus,
    pub(crate) report: Option<StopReport>,
    pub(crate) hypervisor_pid: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct SharedState {
    pub(crate) vm: embed::Vm,
    /// The VM has been `Running`.
    pub(crate) has_run: bool,
    /// The time of the start, on the VM's clock.
    pub(crate) started: Option<capsa_proto::time::Instant>,
    /// By [`PauseRequest`].
    pub(crate) pauses: [pausing::PauseOutcomes; 2],
    /// Threads that still write the VM's output: to standard output or to a recording.
    pub(crate) relays: usize,
    wakers: Wakers,
    /// Why there is no driver any more.
    failure: Option<DriverFailure>,
    /// How often the VM was driven.
    #[cfg(test)]
    drives: u64,
}

/// A locked VM.
///
/// Wakers that were replaced or removed are dropped after the unlock: a waker may own a task, and the
/// task a handle of this VM, which locks it again.
#[derive(Debug)]
pub(crate) struct StateGuard<'a> {
    // Fields are dropped in this order.
    state: MutexGuard<'a, SharedState>,
    discarded: Vec<Waker>,
}

impl Deref for StateGuard<'_> {
    type Target = SharedState;

    fn deref(&self) -> &SharedState {
        &self.state
    }
}

impl DerefMut for StateGuard<'_> {
    fn deref_mut(&mut self) -> &mut SharedState {
        &mut self.state
    }
}

impl Drop for StateGuard<'_> {
    fn drop(&mut self) {
        self.discarded = self.state.wakers.take_discarded();
    }
}

/// The error that ended a driver before its VM.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the driver of the VM has failed: {0}")]
struct DriverFailure(Arc<io::Error>);

/// A waiter for a status, or for a time. Dropping it removes its waker.
#[derive(Debug)]
pub(crate) struct Waiter<'a> {
    shared: &'a Shared,
    key: WaitKey,
}

impl<'a> Waiter<'a> {
    /// # Errors
    ///
    /// In a forked child.
    pub(crate) fn for_status(shared: &'a Shared) -> io::Result<Self> {
        shared.check_process()?;
        Ok(Self { shared, key: WaitKey::Status(shared.waiter_id()) })
    }

    /// # Errors
    ///
    /// In a forked child.
    pub(crate) fn until(shared: &'a Shared, at: Instant) -> io::Result<Self> {
        shared.check_process()?;
        Ok(Self { shared, key: WaitKey::Timer(at, shared.waiter_id()) })
    }

    /// Like [`Shared::wait`].
    pub(crate) fn wait<T, E: From<io::Error>>(
        &self,
        state: &mut SharedState,
        cx: &Context<'_>,
    ) -> Poll<std::result::Result<T, E>> {
        self.shared.wait(state, self.key, cx)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if self.shared.check_process().is_ok() {
            self.shared.lock().remove_waker(self.key);
        }
    }
}

/// What a driver does next.
#[derive(Debug)]
enum DriveOutcome {
    /// Wait for the descriptor, at most this long.
    Again(Option<Duration>),
    /// The VM has ended and produces no more events, and all its output is written.
    Over,
    /// The VM cannot be driven.
    Failed(io::Error),
}

impl Shared {
    fn new(vm: embed::Vm, wake_target: WakeTarget) -> Arc<Self> {
        let snapshot = Mutex::new(VmSnapshot::of(&vm));
        let state = SharedState {
            vm,
            has_run: false,
            started: None,
            pauses: Default::default(),
            relays: 0,
            wakers: Wakers::default(),
            failure: None,
            #[cfg(test)]
            drives: 0,
        };
        let fork_guard = ForkGuard::new();
        Arc::new(Self { state: Mutex::new(state), snapshot, wake_target, fork_guard })
    }

    /// Checks that this is the process that created the VM.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub(crate) fn check_process(&self) -> io::Result<()> {
        self.fork_guard.check_process()
    }

    /// Locks the VM, to look at it or to take what is there. It waits while the driver is in
    /// `on_ready`.
    pub(crate) fn lock(&self) -> StateGuard<'_> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        StateGuard { state, discarded: Vec::new() }
    }

    /// The status and what belongs to it. Never waits for the driver, and never lags behind what a
    /// waiter was woken for.
    pub(crate) fn snapshot(&self) -> VmSnapshot {
        self.locked_snapshot().clone()
    }

    /// Changes the VM, then wakes its driver, which does the pending work and computes the next
    /// deadline.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut SharedState) -> T) -> T {
        let result = self.prepare(change);
        self.wake_driver();
        result
    }

    /// Like [`change`](Self::change), without waking the driver: the caller does that.
    pub(crate) fn prepare<T>(&self, change: impl FnOnce(&mut SharedState) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        *self.locked_snapshot() = VmSnapshot::of(&state.vm);
        result
    }

    /// Wakes the driver of this VM, and no other VM.
    pub(crate) fn wake_driver(&self) {
        match &self.wake_target {
            WakeTarget::Thread(thread, key) => thread.reactor.wake(*key),
            WakeTarget::Future(waker) => {
                let waker = waker.lock().unwrap_or_else(PoisonError::into_inner).take();
                wake_all(waker);
            }
        }
    }

    /// Wakes the task of `cx` once, at the next event for `key`. After a new timer, the caller
    /// must unlock and call [`wake_driver`](Self::wake_driver).
    ///
    /// # Errors
    ///
    /// When no driver will report an event: it has failed, or it is in another process.
    pub(crate) fn wait<T, E: From<io::Error>>(
        &self,
        state: &mut SharedState,
        key: WaitKey,
        cx: &Context<'_>,
    ) -> Poll<std::result::Result<T, E>> {
        state.check_driver()?;
        self.check_process()?;
        state.wakers.insert(key, cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn waiter_id(&self) -> WaiterId {
        self.lock().wakers.waiter_id()
    }

    /// Call this when a thread has written all output: it wakes the waiters for the end.
    pub(crate) fn relay_finished(&self) {
        let mut wake = Vec::new();
        {
            let mut state = self.lock();
            state.relays = state.relays.saturating_sub(1);
            state.wakers.take_status(&mut wake);
        }
        wake_all(wake);
        self.wake_driver();
    }

    /// A duplicate of the descriptor, for the driver's own poller.
    fn descriptor(&self) -> io::Result<OwnedFd> {
        self.lock().vm.as_fd().try_clone_to_owned()
    }

    /// Does the pending work once and wakes the waiters of its events.
    fn drive(&self) -> DriveOutcome {
        let mut wake = Vec::new();
        let outcome = {
            let mut state = self.lock();
            #[cfg(test)]
            {
                state.drives += 1;
            }
            let outcome = match state.check_driver().and_then(|()| state.vm.on_ready()) {
                Ok(()) => state.dispatch(&mut wake),
                Err(error) => DriveOutcome::Failed(state.fail(error, &mut wake)),
            };
            *self.locked_snapshot() = VmSnapshot::of(&state.vm);
            outcome
        };
        wake_all(wake);
        outcome
    }

    /// Ends the driver of this VM before the VM: see [`SharedState::fail`].
    fn fail(&self, error: io::Error) -> io::Error {
        let mut wake = Vec::new();
        let error = self.prepare(|state| state.fail(error, &mut wake));
        wake_all(wake);
        error
    }

    fn locked_snapshot(&self) -> MutexGuard<'_, VmSnapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VmSnapshot {
    fn of(vm: &embed::Vm) -> Self {
        let (report, hypervisor_pid) = (vm.stop_report(), vm.hypervisor_pid());
        Self { status: vm.status(), report, hypervisor_pid }
    }
}

impl SharedState {
    pub(crate) fn remove_waker(&mut self, key: WaitKey) {
        self.wakers.remove(key);
    }

    /// Returns the error that ended the driver, if it has failed.
    pub(crate) fn check_driver(&self) -> io::Result<()> {
        match &self.failure {
            None => Ok(()),
            Some(failure) => Err(io::Error::new(failure.0.kind(), failure.clone())),
        }
    }

    /// The VM has ended and all its output is written.
    pub(crate) fn has_finished(&self) -> bool {
        self.vm.status().is_terminal() && self.relays == 0
    }

    /// The VM has ended and produces no more events.
    fn has_ended(&self) -> bool {
        self.vm.status().is_terminal() && self.vm.next_timeout().is_none()
    }

    /// Takes the VM's events, and moves the wakers that wait for them to `wake`.
    fn dispatch(&mut self, wake: &mut Vec<Waker>) -> DriveOutcome {
        while let Some(event) = self.vm.poll_event() {
            match event {
                VmEvent::Status(status) => {
                    self.wakers.take_status(wake);
                    self.has_run |= status == VmStatus::Running;
                    self.note_pause(&status);
                    if status.is_terminal() {
                        self.wakers.take_data(wake);
                        self.wakers.take_writable(wake);
                    }
                }
                VmEvent::PauseRejected { request, reason } => {
                    self.note_rejected_pause(request, reason, wake);
                }
                VmEvent::ConsoleData => self.wakers.take_data(wake),
                VmEvent::ConsoleWritable => self.wakers.take_writable(wake),
                VmEvent::ConsoleClosed => {
                    self.wakers.take_data(wake);
                    self.wakers.take_writable(wake);
                }
                VmEvent::Ended(wait) => self.wakers.take_ended(wait, wake),
                VmEvent::Agent(event) => self.wakers.take_agent(event, wake),
                _ => {}
            }
        }
        self.note_pause_replies(wake);
        let now = Instant::now();
        self.wakers.take_due(now, wake);
        let timer = self.wakers.next_timer().map(|at| at.saturating_duration_since(now));
        if self.has_ended() && self.relays == 0 {
            return DriveOutcome::Over;
        }
        DriveOutcome::Again(self.vm.next_timeout().into_iter().chain(timer).min())
    }

    /// Records that the driver has failed, kills the VM, which nothing watches any more, and moves
    /// all wakers to `wake`. Returns the error for the driver itself.
    fn fail(&mut self, error: io::Error, wake: &mut Vec<Waker>) -> io::Error {
        if self.failure.is_none() {
            let run_dir = self.vm.launch_plan().run_dir().display();
            tracing::error!(%run_dir, "cannot drive a VM: {error}");
            self.failure = Some(DriverFailure(Arc::new(error)));
            if self.vm.status() != VmStatus::Created {
                self.vm.abandon();
            }
        }
        self.wakers.take_all(wake);
        self.check_driver().expect_err("the failure was just recorded")
    }
}

/// Runs wakers, outside the locks because they may take them.
///
/// A waker is code of the program; a panic in it must not end the thread that serves other VMs.
fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    for waker in wakers {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
            // Its drop may panic too.
            std::mem::forget(panic);
            tracing::error!("a waker panicked: its future may never be woken");
        }
    }
}

/// The driver thread: one for all VMs of the program, started with the first VM. It waits on one
/// poller that watches the descriptors of all VMs, and runs until the program exits.
#[derive(Debug)]
struct DriverThread {
    reactor: Reactor,
    /// Held to add, find or remove one VM.
    vms: Mutex<RegisteredVms>,
    /// How often the thread let output accumulate.
    #[cfg(test)]
    pauses: std::sync::atomic::AtomicU64,
}

#[derive(Debug, Default)]
struct RegisteredVms {
    by_key: HashMap<usize, RegisteredVm>,
    /// Keys are never used again: a late wake of an ended VM finds nothing.
    last_key: usize,
}

#[derive(Debug)]
struct RegisteredVm {
    shared: Arc<Shared>,
    _watch: Registration<OwnedFd>,
}

/// The running thread. Held while a VM is registered, or the thread starts or ends.
static THREAD: Mutex<Option<Arc<DriverThread>>> = Mutex::new(None);

impl DriverThread {
    fn start() -> io::Result<Arc<Self>> {
        let thread = Arc::new(Self {
            reactor: Reactor::new()?,
            vms: Mutex::default(),
            #[cfg(test)]
            pauses: Default::default(),
        });
        let theirs = Arc::clone(&thread);
        std::thread::Builder::new().name("capsa".into()).spawn(move || theirs.run())?;
        Ok(thread)
    }

    /// Adds a VM, which is driven until it has ended. No handle exists before this returns, so no
    /// wake is too early.
    fn register(self: &Arc<Self>, vm: embed::Vm) -> io::Result<Arc<Shared>> {
        let key = {
            let mut vms = self.vms();
            vms.last_key += 1;
            vms.last_key
        };
        let shared = Shared::new(vm, WakeTarget::Thread(Arc::clone(self), key));
        let watch = self.reactor.watch(shared.descriptor()?, key)?;
        let vm = RegisteredVm { shared: Arc::clone(&shared), _watch: watch };
        self.vms().by_key.insert(key, vm);
        Ok(shared)
    }

    fn run(&self) {
        let (mut deadlines, mut keys) = (Deadlines::default(), Vec::new());
        let mut throttle = Throttle::default();
        loop {
            keys.clear();
            let (began, timeout) = (Instant::now(), deadlines.next_timeout());
            // Not of a handle, and not of a deadline.
            let is_output = match self.reactor.wait(timeout, &mut keys) {
                Ok(is_woken) => !is_woken && !keys.is_empty(),
                Err(error) => return self.fail(&error),
            };
            if timeout != Some(Duration::ZERO)
                && let Some(pause) = throttle.pause_after(began.elapsed(), is_output)
            {
                #[cfg(test)]
                self.pauses.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                std::thread::sleep(pause);
            }
            deadlines.take_due(Instant::now(), &mut keys);
            keys.sort_unstable();
            keys.dedup();
            for key in &keys {
                self.drive(*key, &mut deadlines);
            }
        }
    }

    fn drive(&self, key: usize, deadlines: &mut Deadlines) {
        let shared = self.vms().by_key.get(&key).map(|vm| Arc::clone(&vm.shared));
        let Some(shared) = shared else { return };
        // A panic must not end the thread that serves other VMs. The program's tracing subscriber, for
        // example, runs in this call.
        let driven = catch_unwind(AssertUnwindSafe(|| shared.drive()));
        if let Ok(DriveOutcome::Again(timeout)) = driven {
            deadlines.set(key, timeout.and_then(|timeout| Instant::now().checked_add(timeout)));
            return;
        }
        deadlines.set(key, None);
        if let Err(panic) = driven {
            std::mem::forget(panic);
            let error = io::Error::other("the driver of the VM panicked");
            let failed = catch_unwind(AssertUnwindSafe(|| shared.fail(error)));
            failed.map(drop).unwrap_or_else(std::mem::forget);
        }
        // The last reference of a VM may be dropped here, which waits for processes.
        let removed = self.vms().by_key.remove(&key);
        drop(removed);
    }

    /// Ends the thread because its poller is broken. The next VM starts a new one.
    fn fail(&self, error: &io::Error) {
        let mut running = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
        let vms = std::mem::take(&mut self.vms().by_key);
        *running = None;
        drop(running);
        for vm in vms.into_values() {
            vm.shared.fail(io::Error::new(error.kind(), error.to_string()));
        }
    }

    fn vms(&self) -> MutexGuard<'_, RegisteredVms> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
