//! `cargo xtask check-command`: builds the release of `capsa` and fails if it is too large.

use std::fs;

use capsa_test::{command, workspace};

use super::{Outcome, finish};

/// The name under which its result is counted.
pub(super) const NAME: &str = "check-command";

/// Size limit of the stripped program, in bytes.
const MAX_SIZE: u64 = 3 << 20;

pub(super) fn run(arguments: pico_args::Arguments) -> Outcome {
    finish(arguments)?;
    let mut build = workspace::cargo();
    command::output(build.args(["build", "--locked", "--release", "--package", "capsa-cli"]))?;
    let capsa = workspace::target_directory().join("release/capsa");
    let size = fs::metadata(&capsa)?.len();
    println!("size of capsa: {} KiB, limit: {} KiB", size.div_ceil(1024), MAX_SIZE / 1024);
    if size >= MAX_SIZE {
        return Err(format!("capsa has {size} bytes, the limit is {MAX_SIZE}").into());
    }
    Ok(())
}
