//! Futures that are dropped at any of their awaits.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_lite::future::{poll_once, yield_now};

/// Numbers that are the same in each run. The moments they stand for are not.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of this seed, which is not zero.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// A place in something of this length.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("it is below a usize")
    }

    /// Polls a few times with pauses between, and drops the future, unless it is through before.
    pub async fn cut<F: Future>(&mut self, future: F) -> Option<F::Output> {
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
