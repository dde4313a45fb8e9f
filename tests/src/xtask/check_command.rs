//! `cargo xtask check-command`: what people install as `capsa` is small, and starts at once.
//!
//! It builds the release, which has to be stripped, and holds it to two limits: its size, and what
//! `capsa version` takes from beginning to end in times of what `true` takes. The two run in turn, so
//! that a busy machine is busy for both, and the middle of many pairs counts.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use capsa_test::{command, skip_task, workspace};

use super::{Outcome, finish};

/// The name under which it, or a skip of it, is counted.
pub(super) const NAME: &str = "check-command";

/// Bytes of the program at most.
const LARGEST: u64 = 3 << 20;

/// Times what `true` takes.
const SLOWEST: f64 = 1.5;

/// Pairs of runs in a round, and rounds at most: what disturbs one is over in the next.
const PAIRS: usize = 101;
const ROUNDS: usize = 5;

pub(super) fn run(arguments: pico_args::Arguments) -> Outcome {
    finish(arguments)?;
    let mut build = workspace::cargo();
    command::output(build.args(["build", "--locked", "--release", "--package", "capsa-cli"]))?;
    let capsa = workspace::target_directory().join("release/capsa");
    let bytes = fs::metadata(&capsa)?.len();
    println!("capsa has {} KiB, of {} at most", bytes.div_ceil(1024), LARGEST / 1024);
    if bytes >= LARGEST {
        return Err(format!("the command has {bytes} bytes").into());
    }
    let truth = ["/bin/true", "/usr/bin/true"].map(Path::new).into_iter().find(|at| at.exists());
    let Some(truth) = truth else {
        skip_task(NAME, "there is no program `true` to compare with");
        return Ok(());
    };
    for _ in 0..ROUNDS {
        let ratio = ratio(truth, &capsa)?;
        println!("capsa version takes {ratio:.2} times what true takes, of {SLOWEST} at most");
        if ratio <= SLOWEST {
            return Ok(());
        }
    }
    Err(format!("`capsa version` took too long, {ROUNDS} times").into())
}

/// The middle of what one pair after the other took.
fn ratio(truth: &Path, capsa: &Path) -> io::Result<f64> {
    let mut ratios = Vec::with_capacity(PAIRS);
    for _ in 0..PAIRS {
        let by = seconds(&mut Command::new(truth))?;
        ratios.push(seconds(Command::new(capsa).arg("version"))? / by);
    }
    Ok(middle(ratios))
}

/// How long a program takes, from its spawn to its end.
fn seconds(command: &mut Command) -> io::Result<f64> {
    let begin = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    let took = begin.elapsed().as_secs_f64();
    if status.success() {
        Ok(took)
    } else {
        Err(io::Error::other(format!("{command:?}: {status}")))
    }
}

fn middle(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_was_disturbed_does_not_count() {
        assert_eq!(middle(vec![1.2, 90.0, 1.3, 1.1, 0.01]), 1.2);
    }

    #[test]
    fn a_program_that_fails_is_no_measurement() {
        assert!(seconds(Command::new("sh").args(["-c", "exit 3"])).is_err());
        let slow = seconds(Command::new("sh").args(["-c", "sleep 0.2"])).unwrap();
        assert!((0.2..20.0).contains(&slow), "{slow}");
    }
}
