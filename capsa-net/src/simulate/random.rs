//! [`ScheduleRandom`]: the decisions of a schedule, from its seed.

/// A generator of random numbers (SplitMix64): the same seed gives the same numbers.
#[derive(Debug)]
pub(super) struct ScheduleRandom(u64);

impl ScheduleRandom {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    /// True in `percent` of 100 cases.
    pub(super) fn chance(&mut self, percent: u64) -> bool {
        percent > 0 && self.next() % 100 < percent
    }

    pub(super) fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[(self.next() % values.len() as u64) as usize]
    }

    /// A number up to `high` that is small more often than large.
    pub(super) fn skewed(&mut self, high: u64) -> u64 {
        let bits = self.between(0, u64::from(64 - high.leading_zeros()));
        self.between(0, high.min((1 << bits) - 1))
    }
}
