//! Futures that are dropped at any of their awaits.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_lite::future::{poll_once, yield_now};

/// Random decisions from a seed: the same numbers in every run. The times at which they take effect
/// differ.
#[derive(Debug)]
pub struct RandomDrops(fastrand::Rng);

impl RandomDrops {
    /// The decisions of this seed.
    pub fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0.u64(..limit)
    }

    /// An index into a collection of this length.
    pub fn index(&mut self, len: usize) -> usize {
        self.0.usize(..len)
    }

    /// Polls the future a few times with pauses, then drops it if it is not ready.
    pub async fn poll_and_drop<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        for _ in 0..self.below(5) {
            if let Some(output) = poll_once(&mut future).await {
                return Some(output);
            }
            std::thread::sleep(Duration::from_micros(self.below(150)));
            yield_now().await;
        }
        None
    }
}

/// Polls the future, and drops it after this time if it is not ready.
pub async fn poll_for<F: Future>(time: Duration, future: F) -> Option<F::Output> {
    let end = Instant::now() + time;
    let mut future = pin!(future);
    loop {
        if let Some(output) = poll_once(&mut future).await {
            return Some(output);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        std::thread::sleep(left.min(Duration::from_millis(1)));
    }
}
