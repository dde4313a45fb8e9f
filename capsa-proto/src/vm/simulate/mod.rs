//! The whole VM in a simulated world: one fuzz target, and one deterministic simulation.
//!
//! A schedule chooses a VM and then, step by step, what its hypervisor, its helpers, its guest, its
//! driver and its owner do. The [`VmCore`](super::VmCore) is the real one; everything around it is simulated, so a
//! schedule takes microseconds and is the same at each run. The bytes of a fuzzer choose the schedule
//! ([`run`]), or a seed ([`run_seed`]). Nothing here is part of the API.
//!
//! | module | what it does |
//! | --- | --- |
//! | `choices` | where the decisions come from, and how bytes are cut |
//! | `setup` | the VM: plans of several shapes, a guest, and how reliable its world is |
//! | `hypervisor` | the hypervisor's end of the control channel (QMP, HTTP), events, standard error |
//! | `world` | the steps: what the processes and the guest do, and time |
//! | `driver` | the third driver of [`VmCore`](super::VmCore): moves bytes, carries out outputs |
//! | `owner` | the owner: readers, input, and requests; the laws of the console |
//! | `waits` | the owner's waits, and the laws of their ends |
//! | `laws` | the laws of the lifecycle, the control channel and the stop report |
//! | `trace` | the last steps, for the message of a failure |
//!
//! `docs/measurements.md` lists bugs that were put in on purpose, and after how many schedules each is
//! found.
//!
//! # Laws
//!
//! Checked after each step:
//!
//! - a process is launched at most once, in the order of the plan, and never after a kill;
//! - signals go to processes that were launched and not reaped; a helper is signalled only after the
//!   hypervisor has exited or was killed;
//! - statuses come in order and once each; [`VmEvent::ControlReady`](crate::vm::VmEvent) comes between
//!   `Starting` and `Running`; a terminal status never changes, and only console events follow it;
//! - the release comes once and last, and each process was reaped or killed by then;
//! - a deadline in the past leads to progress: few calls of `handle_timeout` at one time;
//! - when nothing is under way, the status is `Paused` if and only if the guest is paused;
//! - a channel that is not connected has no bytes to write;
//! - a reply is counted for the message that it answers, once;
//! - the window is that of a naive twin; each reader gets the bytes that the guest wrote, in order, and
//!   misses exactly those that it counts as lost: none under back-pressure;
//! - each wait ends once, with one event, at the latest at its deadline or at the release; a wait that
//!   fails or is cancelled consumes nothing; a match is what the guest wrote; the output of a command
//!   is what the guest's shell printed;
//! - the next deadline is not after that of a wait;
//! - new output, room for input and the end of the console are each reported.
//!
//! Checked at the end of each schedule:
//!
//! - after a kill, timeouts alone end the VM in a bounded number of steps;
//! - afterwards there is no deadline, and late requests change nothing;
//! - the stop report is what happened: the first immediate cause, the steps that were taken, the exit
//!   of the hypervisor;
//! - the same schedule with other cuts has the same result ([`compare_cuts`]).

mod choices;
mod driver;
mod hypervisor;
mod laws;
mod owner;
mod setup;
#[cfg(test)]
mod tests;
mod trace;
mod waits;
mod world;

use core::hash::Hasher as _;

use crate::lifecycle::EndedBy;
use choices::{Chooser, Cuts};
use trace::{Digest, ScheduleSource};
use world::Simulation;

pub use trace::Trace;

/// What a schedule covered.
#[derive(Debug, Clone)]
pub struct ScheduleOutcome {
    /// How the VM ended.
    pub ended_by: EndedBy,
    /// The guest was started.
    pub was_running: bool,
    /// The guest was paused.
    pub was_paused: bool,
    /// A process survived SIGKILL.
    pub gave_up: bool,
    /// The protocol was HTTP.
    pub is_http: bool,
    /// The waits that ended with a match or with the output of a script.
    pub waits_met: u32,
    /// The waits that ended without.
    pub waits_failed: u32,
    /// The waits that were cancelled, or whose reader was removed.
    pub waits_cancelled: u32,
    /// The bytes of console output that the core took.
    pub console_bytes: u64,
    /// The scrollback dropped old output.
    pub has_dropped: bool,
    /// A digest of the report, the results of all waits and the events. Only with cuts to compare.
    result: u64,
}

/// Runs the schedule that these bytes choose.
///
/// # Panics
///
/// When a law does not hold. The message has the last steps.
pub fn run(data: &[u8]) {
    let mut digest = Digest::new();
    digest.write(data);
    let mut trace = Trace::new(ScheduleSource::Bytes);
    let cuts = Cuts::seeded(digest.finish());
    Simulation::new(Chooser::bytes(data), cuts, &mut trace, false).run();
}

/// Runs the schedule of a seed. The caller keeps the trace, also if the core panics.
///
/// # Panics
///
/// When a law does not hold. The message has the seed and the last steps.
pub fn run_seed(seed: u64, trace: &mut Trace) -> ScheduleOutcome {
    Simulation::new(Chooser::seeded(seed), Cuts::seeded(!seed), trace, false).run()
}

/// Runs the schedule of a seed with three kinds of cuts, and one of them twice. Returns `false` if the
/// cuts make a difference by design: bytes were dropped, and a wait may have seen them before.
///
/// # Panics
///
/// When a law does not hold, when the cuts make a difference, or when the same schedule takes other
/// steps at the second run.
pub fn compare_cuts(seed: u64, trace: &mut Trace) -> bool {
    let run = |cuts: Cuts| {
        let mut trace = Trace::of_seed(seed);
        let outcome = Simulation::new(Chooser::seeded(seed), cuts, &mut trace, true).run();
        (outcome, trace)
    };
    let (whole, first) = run(Cuts::Whole);
    let (_, again) = run(Cuts::Whole);
    if first.digest() != again.digest() {
        again.fail(format_args!("the same schedule takes other steps at its second run"));
    }
    *trace = first;
    if whole.has_dropped {
        return false;
    }
    for cuts in [Cuts::Single, Cuts::seeded(seed)] {
        let (outcome, other) = run(cuts);
        if outcome.result != whole.result {
            other.fail(format_args!("cuts make a difference to the result\n{trace}\nbut"));
        }
    }
    true
}
