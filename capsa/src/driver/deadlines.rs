//! [`Deadlines`] of the VMs of a driver thread.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// When each VM must be driven, if nothing happens before.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    by_time: BTreeSet<(Instant, usize)>,
    by_key: HashMap<usize, Instant>,
}

impl Deadlines {
    pub(super) fn set(&mut self, key: usize, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.by_key.insert(key, at),
            None => self.by_key.remove(&key),
        };
        if let Some(before) = before {
            self.by_time.remove(&(before, key));
        }
        self.by_time.extend(at.map(|at| (at, key)));
    }

    pub(super) fn next_timeout(&self) -> Option<Duration> {
        let (at, _) = self.by_time.first()?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// Moves the keys whose time has come to `keys`.
    pub(super) fn take_due(&mut self, now: Instant, keys: &mut Vec<usize>) {
        while let Some(&(at, key)) = self.by_time.first()
            && at <= now
        {
            self.set(key, None);
            keys.push(key);
        }
    }
}
