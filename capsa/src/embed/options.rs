//! [`Options`]: the settings of a VM that are not part of its plan.

use capsa_proto::console::{DEFAULT_CAPACITY, Overflow};
use capsa_proto::lifecycle::Timing;

/// The settings of a VM that are not part of its plan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// How long each phase may take.
    pub(crate) timing: Timing,
    /// The size of the scrollback in bytes.
    pub(crate) scrollback: usize,
    /// What happens when the scrollback is full.
    pub(crate) overflow: Overflow,
    /// The largest number of bytes that one call reads of each kind, at least 1. The built-in
    /// limits apply too.
    pub(crate) read_budget: usize,
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
