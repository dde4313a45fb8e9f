//! How a machine is run beside its plan: how long its phases take, what its console keeps, and how much
//! one call may read.

use capsa_proto::console::{DEFAULT_CAPACITY, Overflow};
use capsa_proto::lifecycle::Timing;

use crate::{console, control, event_pipe};

/// Bytes of standard error read from a process in one call.
const STDERR_BUDGET: usize = 64 * 1024;

/// How a machine is run, beside its plan.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long each phase may take.
    pub timing: Timing,
    /// Bytes of console output that are kept.
    pub scrollback: usize,
    /// What happens when more comes.
    pub overflow: Overflow,
    /// Bytes that one call reads of each kind, where that is less than the built-in limit. One at
    /// least.
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

/// What one call may still read, however many reasons to read it finds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budgets {
    pub(super) control: usize,
    pub(super) console: usize,
    pub(super) events: usize,
    /// Of each process.
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
