//! Upper limits of real time, which are claims of the documentation. Other suites have none: their
//! deadlines only end a hang.
//!
//! A busy host can exceed such a limit by accident. A test therefore measures up to [`ATTEMPTS`] times,
//! and reports each attempt that exceeds the limit on standard error.

// Shared with the suites of these subjects, and used in part.
#[allow(dead_code)]
#[path = "../devvm/service.rs"]
mod service;
#[allow(dead_code)]
#[path = "../backends/stand_ins/vfkit_program.rs"]
mod vfkit_program;

mod event_loop;
mod limits;
mod owner_death;
mod run_dirs;
mod vfkit;

use std::io::Write;
use std::time::Duration;

use capsa_testkit::test_name;

/// How often a test measures before it fails.
const ATTEMPTS: usize = 3;

/// Makes attempts until one succeeds.
#[track_caller]
fn repeat(mut attempt: impl FnMut() -> Result<(), String>) {
    for number in 1..=ATTEMPTS {
        let Err(error) = attempt() else { return };
        // The harness captures the output of the print macros, but not of the stream.
        let _ = writeln!(std::io::stderr(), "{}: attempt {number}: {error}", test_name());
    }
    panic!("no attempt of {ATTEMPTS} succeeded");
}

/// Measures until a time is below `limit`.
#[track_caller]
fn assert_within(limit: Duration, mut measure: impl FnMut() -> Duration) {
    repeat(|| {
        let took = measure();
        if took < limit {
            Ok(())
        } else {
            Err(format!("took {took:?}, and the limit is {limit:?}"))
        }
    });
}

#[test]
fn repeat_succeeds_on_third_attempt() {
    let mut attempts = 0;
    repeat(|| {
        attempts += 1;
        if attempts == ATTEMPTS { Ok(()) } else { Err("as expected".into()) }
    });
    assert_eq!(attempts, ATTEMPTS);
}

#[test]
#[should_panic(expected = "no attempt of 3 succeeded")]
fn repeat_fails_after_three_attempts() {
    assert_within(Duration::ZERO, || Duration::ZERO);
}
