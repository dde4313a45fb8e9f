//! The driver thread: one for all VMs of the program, started with the first VM.
//!
//! It waits on one poller that watches the descriptors of all VMs. When no VM has work, it sleeps.
//! It runs until the program exits.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use capsa_io::reactor::{Reactor, Registration};

use super::{DriveOutcome, Shared};
use crate::Result;

struct DriverThread {
    reactor: Reactor,
    vms: Mutex<RegisteredVms>,
}

#[derive(Default)]
struct RegisteredVms {
    by_key: BTreeMap<usize, Arc<RegisteredVm>>,
    next_key: usize,
}

struct RegisteredVm {
    shared: Arc<Shared>,
    _watch: Registration<OwnedFd>,
    due: Mutex<Option<Instant>>,
}

static THREAD: OnceLock<DriverThread> = OnceLock::new();

/// Adds a VM, which is driven until it has ended.
pub(super) fn register(shared: &Arc<Shared>) -> Result<()> {
    let thread = running()?;
    let descriptor = shared.descriptor()?;
    let mut vms = thread.vms();
    vms.next_key += 1;
    let key = vms.next_key;
    let vm = RegisteredVm {
        shared: Arc::clone(shared),
        _watch: thread.reactor.watch(descriptor, key)?,
        due: Mutex::new(None),
    };
    vms.by_key.insert(key, Arc::new(vm));
    Ok(())
}

/// Wakes the thread, which then drives every VM.
pub(super) fn wake() {
    if let Some(thread) = THREAD.get() {
        thread.reactor.wake();
    }
}

fn running() -> io::Result<&'static DriverThread> {
    /// If the thread could not be started, the next call tries again.
    static IS_STARTED: Mutex<bool> = Mutex::new(false);
    let mut is_started = IS_STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    let thread = match THREAD.get() {
        Some(thread) => thread,
        None => {
            let thread = DriverThread { reactor: Reactor::new()?, vms: Mutex::default() };
            THREAD.get_or_init(|| thread)
        }
    };
    if !*is_started {
        std::thread::Builder::new().name("capsa".into()).spawn(|| thread.run())?;
        *is_started = true;
    }
    Ok(thread)
}

impl DriverThread {
    fn vms(&self) -> MutexGuard<'_, RegisteredVms> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut ready = Vec::new();
        loop {
            let wait = self.next_timeout();
            ready.clear();
            let woken = self.reactor.wait(wait, &mut ready);
            if let Err(error) = woken {
                // This happens only in a broken process. The pause keeps the loop from spinning.
                tracing::error!("the driver thread cannot wait: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
            let woken_by_handle = self.reactor.was_woken();
            let now = Instant::now();
            let vms: Vec<_> = self.vms().by_key.iter().map(|(k, m)| (*k, Arc::clone(m))).collect();
            for (key, vm) in vms {
                let due = vm.due().is_some_and(|due| due <= now);
                if woken_by_handle || due || ready.contains(&key) {
                    self.drive(key, &vm);
                }
            }
        }
    }

    fn drive(&self, key: usize, vm: &RegisteredVm) {
        match vm.shared.drive() {
            Ok(DriveOutcome::Again(wait)) => {
                *vm.due() = wait.and_then(|wait| Instant::now().checked_add(wait));
            }
            Ok(DriveOutcome::Over) => drop(self.vms().by_key.remove(&key)),
            Err(error) => {
                tracing::error!("cannot drive a VM: {error}");
                self.vms().by_key.remove(&key);
            }
        }
    }

    fn next_timeout(&self) -> Option<Duration> {
        let vms = self.vms();
        let due = vms.by_key.values().filter_map(|vm| *vm.due()).min();
        due.map(|due| due.saturating_duration_since(Instant::now()))
    }
}

impl RegisteredVm {
    fn due(&self) -> MutexGuard<'_, Option<Instant>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
