//! [`Options`]: the settings of a VM that are not part of its plan.

use capsa_proto::console::{DEFAULT_CAPACITY, Overflow};
use capsa_proto::lifecycle::Timing;

use crate::{console, control, event_pipe};

/// The largest number of bytes of standard error read from a process in one call.
const STDERR_BUDGET: usize = 64 * 1024;

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

/// The bytes that the current call may still read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budgets {
    pub(super) control: usize,
    pub(super) console: usize,
    pub(super) events: usize,
    /// For each process.
    pub(super) stderr: usize,
}

impl Budgets {
    pub(super) fn at_most(limit: usize) -> Self {
        Self {
            control: control::READ_BUDGET.min(limit),
            console: console::READ_BUDGET.min(limit),
            events: event_pipe::READ_BUDGET.min(limit),
            stderr: STDERR_BUDGET.min(limit),
        }
    }
}
