//! `cargo xtask check-command`: builds the release of `capsa` and fails if it is too large.

use std::fs;

use pico_args::Arguments;

use crate::cargo::{self, cargo, target_directory};
use crate::{Outcome, finish};

/// The name under which its result is counted.
pub(crate) const NAME: &str = "check-command";

/// Size limit of the stripped program, in bytes.
const MAX_SIZE: u64 = 4352 << 10;

pub(crate) fn run(arguments: Arguments) -> Outcome {
    finish(arguments)?;
    let build = ["build", "--quiet", "--locked", "--release", "--package", "capsa-cli"];
    cargo::run(cargo().args(build))?;
    let capsa = target_directory().join("release/capsa");
    let size = fs::metadata(&capsa)?.len();
    println!("size of capsa: {} KiB, limit: {} KiB", size.div_ceil(1024), MAX_SIZE / 1024);
    if size >= MAX_SIZE {
        return Err(format!("capsa has {size} bytes, the limit is {MAX_SIZE}").into());
    }
    Ok(())
}
