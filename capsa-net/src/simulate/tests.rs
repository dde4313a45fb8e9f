//! The simulation as an ordinary test.

use std::eprintln;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{NetTrace, run_seed};

/// How many schedules an ordinary test runs; `cargo xtask simulate network` runs more.
const SCHEDULES: u64 = 1000;

#[test]
fn network_schedules_break_no_law() {
    let (mut connections, mut complete) = (0, 0);
    for seed in 0..SCHEDULES {
        let mut trace = NetTrace::of_seed(seed);
        match catch_unwind(AssertUnwindSafe(|| run_seed(seed, &mut trace))) {
            Ok(outcome) => {
                connections += outcome.connections;
                complete += outcome.complete;
            }
            Err(_) => {
                eprintln!("{trace}");
                panic!("a law is broken with seed {seed}");
            }
        }
    }
    // The laws of whole connections are not empty.
    assert!(complete * 2 > connections, "{complete} of {connections} connections are complete");
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
