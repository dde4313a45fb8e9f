//! [`Options`]: the settings of a VM that are not part of its plan.

use capsa_proto::console::{DEFAULT_CAPACITY, Overflow};
use capsa_proto::lifecycle::Timing;

/// The settings of a VM that are not part of its plan.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long each phase may take.
    pub timing: Timing,
    /// The size of the scrollback in bytes.
    pub scrollback: usize,
    /// What happens when the scrollback is full.
    pub overflow: Overflow,
    /// The largest number of bytes that one call reads of each kind, at least 1. The built-in
    /// limits apply too.
    pub read_budget: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timing: Timing::default(),
            scrollback: DEFAULT_CAPACITY,
            overflow: Overflow::DropOldest,
            read_budget: usize::MAX,
        }
    }
}

impl Options {
    /// How many bytes one call reads of a kind whose built-in limit is `limit`. With a budget of zero
    /// no call would make progress.
    pub(super) fn budget(self, limit: usize) -> usize {
        limit.min(self.read_budget.max(1))
    }
}
