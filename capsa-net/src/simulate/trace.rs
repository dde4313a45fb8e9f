//! [`NetTrace`]: the last steps of a schedule, for the message of a failure.

use alloc::collections::VecDeque;
use core::fmt;

use capsa_proto::time::Instant;

/// How many steps are kept.
const STEPS: usize = 80;

/// The last steps of a schedule, and a digest of all of them.
#[derive(Debug, Default)]
pub struct NetTrace {
    seed: u64,
    steps: VecDeque<(Instant, &'static str, [u64; 3])>,
    count: u64,
    digest: u64,
}

impl NetTrace {
    /// An empty trace of the schedule with this seed.
    pub fn of_seed(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// The number of steps.
    pub fn steps(&self) -> u64 {
        self.count
    }

    /// A digest of all steps: the same for the same schedule.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn add(&mut self, now: Instant, what: &'static str, numbers: [u64; 3]) {
        self.count += 1;
        for number in [now.as_micros(), what.len() as u64].into_iter().chain(numbers) {
            self.digest = (self.digest ^ number).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        }
        if self.steps.len() == STEPS {
            self.steps.pop_front();
        }
        self.steps.push_back((now, what, numbers));
    }

    /// Reports a broken law.
    pub(super) fn fail(&self, law: fmt::Arguments<'_>) -> ! {
        panic!("law broken with seed {}: {law}\n{self}", self.seed)
    }
}

impl fmt::Display for NetTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the last steps of the network with seed {}:", self.seed)?;
        for (at, what, [a, b, c]) in &self.steps {
            writeln!(f, "{:>12} us  {what} {a} {b} {c}", at.as_micros())?;
        }
        Ok(())
    }
}
