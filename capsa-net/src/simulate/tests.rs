//! The simulation as an ordinary test.

use std::eprintln;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{NetScheduleOutcome, NetTrace, run_seed};

/// How many schedules an ordinary test runs; `cargo xtask simulate network` runs more.
const SCHEDULES: u64 = 1000;

#[test]
fn network_schedules_break_no_law() {
    let mut sum = NetScheduleOutcome::default();
    for seed in 0..SCHEDULES {
        let mut trace = NetTrace::of_seed(seed);
        match catch_unwind(AssertUnwindSafe(|| run_seed(seed, &mut trace))) {
            Ok(outcome) => sum.add(&outcome),
            Err(_) => {
                eprintln!("{trace}");
                panic!("a law is broken with seed {seed}");
            }
        }
    }
    // The laws of whole connections and of policies are not empty.
    assert!(sum.complete * 9 > sum.connections * 4, "{sum:?}");
    assert!(sum.allowed > 500 && sum.denied > 500, "{sum:?}");
}

#[test]
fn network_schedule_of_a_seed_is_always_the_same() {
    for seed in 0..50 {
        let digest = || {
            let mut trace = NetTrace::of_seed(seed);
            run_seed(seed, &mut trace);
            (trace.digest(), trace.steps())
        };
        assert_eq!(digest(), digest(), "seed {seed}");
    }
}
