//! The simulation as an ordinary test.

use std::eprintln;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use super::{Trace, compare_cuts, run, run_seed};

/// How many schedules an ordinary test runs; `cargo xtask simulate` runs more.
const SCHEDULES: u64 = 10_000;

/// Runs the schedules of the first seeds, on two threads. A failure shows the seed and the last steps.
fn schedules(seeds: u64, schedule: impl Fn(u64, &mut Trace) + Sync) {
    let run = |first: u64| {
        for seed in (first..seeds).step_by(2) {
            let mut trace = Trace::of_seed(seed);
            let held = catch_unwind(AssertUnwindSafe(|| schedule(seed, &mut trace)));
            if held.is_err() {
                eprintln!("{trace}");
                panic!("a law is broken with seed {seed}");
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| run(1));
        run(0);
    });
}

#[test]
fn schedules_break_no_law() {
    schedules(SCHEDULES, |seed, trace| {
        run_seed(seed, trace);
    });
}

#[test]
fn other_cuts_have_the_same_result() {
    schedules(SCHEDULES / 10, |seed, trace| {
        compare_cuts(seed, trace);
    });
}

#[test]
fn schedule_of_no_bytes_breaks_no_law() {
    run(b"");
}
