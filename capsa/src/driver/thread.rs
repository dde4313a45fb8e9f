//! The hidden thread: one for all machines of the program, started with the first.
//!
//! It sleeps on one poller in which every machine's descriptor is. With nothing to do it does not
//! wake up. It never ends; with the program it is gone.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use capsa_io::reactor::{Reactor, Registration};

use super::{Round, Shared};
use crate::Result;

struct Thread {
    reactor: Reactor,
    machines: Mutex<Machines>,
}

#[derive(Default)]
struct Machines {
    by_key: BTreeMap<usize, Arc<Machine>>,
    next_key: usize,
}

struct Machine {
    shared: Arc<Shared>,
    _watch: Registration<OwnedFd>,
    due: Mutex<Option<Instant>>,
}

static THREAD: OnceLock<Thread> = OnceLock::new();

/// Drives this machine until it is over.
pub(super) fn adopt(shared: &Arc<Shared>) -> Result<()> {
    let thread = running()?;
    let descriptor = shared.descriptor()?;
    let mut machines = thread.machines();
    machines.next_key += 1;
    let key = machines.next_key;
    let machine = Machine {
        shared: Arc::clone(shared),
        _watch: thread.reactor.watch(descriptor, key)?,
        due: Mutex::new(None),
    };
    machines.by_key.insert(key, Arc::new(machine));
    Ok(())
}

/// Makes the thread look at every machine again.
pub(super) fn poke() {
    if let Some(thread) = THREAD.get() {
        thread.reactor.wake();
    }
}

fn running() -> io::Result<&'static Thread> {
    /// One that could not be started is tried again.
    static IS_STARTED: Mutex<bool> = Mutex::new(false);
    let mut is_started = IS_STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    let thread = match THREAD.get() {
        Some(thread) => thread,
        None => {
            let thread = Thread { reactor: Reactor::new()?, machines: Mutex::default() };
            THREAD.get_or_init(|| thread)
        }
    };
    if !*is_started {
        std::thread::Builder::new().name("capsa".into()).spawn(|| thread.run())?;
        *is_started = true;
    }
    Ok(thread)
}

impl Thread {
    fn machines(&self) -> MutexGuard<'_, Machines> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut ready = Vec::new();
        loop {
            let wait = self.next_timeout();
            ready.clear();
            let woken = self.reactor.wait(wait, &mut ready);
            if let Err(error) = woken {
                // Only a broken process gets here. Not to spin is all that is left to do.
                tracing::error!("the capsa thread cannot wait: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
            let poked = self.reactor.was_woken();
            let now = Instant::now();
            let machines: Vec<_> =
                self.machines().by_key.iter().map(|(k, m)| (*k, Arc::clone(m))).collect();
            for (key, machine) in machines {
                let due = machine.due().is_some_and(|due| due <= now);
                if poked || due || ready.contains(&key) {
                    self.drive(key, &machine);
                }
            }
        }
    }

    fn drive(&self, key: usize, machine: &Machine) {
        match machine.shared.drive() {
            Ok(Round::Again(wait)) => {
                *machine.due() = wait.and_then(|wait| Instant::now().checked_add(wait));
            }
            Ok(Round::Over) => drop(self.machines().by_key.remove(&key)),
            Err(error) => {
                tracing::error!("cannot drive a machine: {error}");
                self.machines().by_key.remove(&key);
            }
        }
    }

    fn next_timeout(&self) -> Option<Duration> {
        let machines = self.machines();
        let due = machines.by_key.values().filter_map(|machine| *machine.due()).min();
        due.map(|due| due.saturating_duration_since(Instant::now()))
    }
}

impl Machine {
    fn due(&self) -> MutexGuard<'_, Option<Instant>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
