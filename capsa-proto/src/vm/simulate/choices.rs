//! [`Chooser`]: where the decisions of a schedule come from: the bytes of a fuzzer, or a seed.
//!
//! A schedule has two sources. The [`Chooser`] decides what happens; the [`Cuts`] decide into how many
//! pieces bytes are cut that arrive at one time. So one schedule can be run again with other cuts.

use core::time::Duration;

/// How many decisions a schedule from a seed makes at most.
const MAX_DECISIONS: u32 = 4000;

/// A source of decisions.
#[derive(Debug)]
pub(super) enum Chooser<'a> {
    /// One decision for each byte; all zero once they ran out.
    Bytes {
        /// The bytes that are left.
        rest: &'a [u8],
        /// More decisions were needed than there are bytes.
        ran_out: bool,
    },
    /// Random decisions.
    Random {
        /// The generator.
        random: Rng,
        /// The decisions that are left.
        left: u32,
    },
}

impl<'a> Chooser<'a> {
    /// Decisions from the bytes of a fuzzer.
    pub(super) const fn bytes(rest: &'a [u8]) -> Self {
        Self::Bytes { rest, ran_out: false }
    }

    /// Decisions from a seed.
    pub(super) fn seeded(seed: u64) -> Self {
        Self::Random { random: Rng::new(seed), left: MAX_DECISIONS }
    }

    /// Whether the schedule ends here: the rest is the end of the VM.
    pub(super) const fn ran_out(&self) -> bool {
        match self {
            Self::Bytes { ran_out, .. } => *ran_out,
            Self::Random { left, .. } => *left == 0,
        }
    }

    /// A number below `end`, which is at most 65536.
    pub(super) fn below(&mut self, end: usize) -> usize {
        match self {
            Self::Bytes { rest, ran_out } => {
                let mut take = || match rest.split_first() {
                    Some((first, others)) => {
                        *rest = others;
                        usize::from(*first)
                    }
                    None => {
                        *ran_out = true;
                        0
                    }
                };
                let number = if end <= 256 { take() } else { take() << 8 | take() };
                number % end.max(1)
            }
            Self::Random { random, left } => {
                *left = left.saturating_sub(1);
                random.below(end)
            }
        }
    }

    /// `true` in `of_256` of 256 cases.
    pub(super) fn chance(&mut self, of_256: u8) -> bool {
        // Zero is `false`, so that a schedule without further bytes is uneventful.
        self.below(256) > 255 - usize::from(of_256)
    }

    /// One of these.
    pub(super) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Less than 256 times `unit`.
    pub(super) fn span(&mut self, unit: Duration) -> Duration {
        unit * self.below(256) as u32
    }
}

/// Into which pieces bytes are cut that arrive at one time.
#[derive(Debug, Clone)]
pub(super) enum Cuts {
    /// Not at all.
    Whole,
    /// After each byte.
    Single,
    /// At random places.
    Random(Rng),
}

impl Cuts {
    /// Cuts at random places.
    pub(super) const fn seeded(seed: u64) -> Self {
        Self::Random(Rng::new(seed))
    }

    /// The length of the next piece of `len` bytes.
    pub(super) fn piece(&mut self, len: usize) -> usize {
        match self {
            Self::Whole => len,
            Self::Single => len.min(1),
            Self::Random(random) => match random.below(4) {
                0 => len.min(1),
                1 => len.min(1 + random.below(16)),
                _ => len.min(1 + random.below(len.max(1))),
            },
        }
    }
}

/// A random generator: SplitMix64.
#[derive(Debug, Clone)]
pub(super) struct Rng(u64);

impl Rng {
    const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 33) as usize % end.max(1)
    }
}
