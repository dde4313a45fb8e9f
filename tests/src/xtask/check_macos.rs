//! `cargo xtask check-macos`: clippy over the whole workspace, tests included, as macOS on Apple
//! silicon sees it, on a Linux host. A warning is an error.
//!
//! Not covered: nothing is linked and nothing runs, and C code of dependencies (there is none today)
//! would not be compiled. Where the compiler cannot be had, that is said, and counted as a skip.

use std::error::Error;
use std::time::Instant;

use capsa_test::macos::{TARGET, Toolchain};
use capsa_test::skip_task;

use super::{Outcome, finish};

/// The name under which a skip of it is counted.
pub(super) const NAME: &str = "check-macos";

/// A host with rustup has a shorter way, when it may download from there.
const BY_HAND: &str = "with rustup: `rustup target add aarch64-apple-darwin`, then `cargo clippy \
                       --workspace --all-targets --all-features --target aarch64-apple-darwin`";

pub(super) fn run(arguments: pico_args::Arguments) -> Outcome {
    finish(arguments)?;
    if cfg!(target_os = "macos") {
        skip_task(NAME, "this is macOS, where clippy itself checks for it");
        return Ok(());
    }
    let begin = Instant::now();
    let toolchain = match Toolchain::get() {
        Ok(toolchain) => toolchain,
        Err(why) => {
            let cause = why.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            skip_task(NAME, format!("{why}{cause}; {BY_HAND}"));
            return Ok(());
        }
    };
    println!(
        "{} for {TARGET}, there after {:.1} s",
        toolchain.version,
        begin.elapsed().as_secs_f64()
    );
    let mut clippy = toolchain.clippy()?;
    clippy.args(["--workspace", "--all-targets", "--all-features", "--keep-going"]);
    clippy.args(["--", "-D", "warnings"]);
    if clippy.status()?.success() {
        return Ok(());
    }
    Err(format!("Capsa does not check for {TARGET}").into())
}
