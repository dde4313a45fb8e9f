//! `cargo xtask fuzz`: runs the fuzz targets.
//!
//! The committed corpus is only read. New inputs go to `fuzz/target/found/`, an input that makes a
//! target fail to `fuzz/artifacts/`: minimize it with `cargo +nightly fuzz tmin`, name it and add it to
//! the corpus.

use std::error::Error;
use std::fs;
use std::process::Command;
use std::time::Duration;

use pico_args::Arguments;

use crate::cargo::{cargo, root, run as run_command, text};
use crate::{Outcome, finish};

/// The time limit of one input. The slowest target needs a hundredth of it.
const SECONDS_PER_INPUT: u32 = 10;

pub(crate) fn run(mut arguments: Arguments) -> Outcome {
    let seconds = seconds(&mut arguments)?;
    let only: Option<String> = arguments.opt_value_from_str("--target")?;
    finish(arguments)?;
    let length = Duration::from_secs(seconds);
    ensure_nightly()?;
    ensure_cargo_fuzz()?;

    let mut targets = targets()?;
    if let Some(only) = only {
        let all = targets.join(", ");
        targets.retain(|target| *target == only);
        if targets.is_empty() {
            return Err(format!("unknown target {only}: expected one of {all}").into());
        }
    }
    let mut failed = Vec::new();
    for target in targets {
        println!("=== {target} for {seconds} s");
        if !fuzz(&target, length)? {
            failed.push(target);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(format!("failed targets: {}; their inputs are in fuzz/artifacts/", failed.join(", "))
        .into())
}

/// The time for each target.
fn seconds(arguments: &mut Arguments) -> Result<u64, Box<dyn Error>> {
    let Some(text) = arguments.opt_value_from_str::<_, String>("--seconds")? else {
        return Ok(60);
    };
    let invalid =
        |_| format!("--seconds: invalid number {text:?}: expected whole seconds, e.g. 60");
    Ok(text.parse().map_err(invalid)?)
}

/// The names of the files in `fuzz/fuzz_targets`.
fn targets() -> Result<Vec<String>, std::io::Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("fuzz/fuzz_targets"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".rs").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Runs a target. Returns true if it found no failure.
fn fuzz(target: &str, length: Duration) -> Result<bool, std::io::Error> {
    let found = format!("fuzz/target/found/{target}");
    fs::create_dir_all(root().join(&found))?;
    // New inputs go to the first directory; the others are only read.
    let status = nightly_cargo()
        .args(["fuzz", "run", target, &found, &format!("fuzz/corpus/{target}"), "--"])
        .arg(format!("-max_total_time={}", length.as_secs()))
        .arg(format!("-timeout={SECONDS_PER_INPUT}"))
        .args(["-print_final_stats=1", "-verbosity=0"])
        .status()?;
    Ok(status.success())
}

/// Cargo of the toolchain `nightly`, whichever toolchain runs this task.
fn nightly_cargo() -> Command {
    let mut rustup = Command::new("rustup");
    rustup.args(["run", "nightly", "cargo"]).current_dir(root());
    for ours in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN"] {
        rustup.env_remove(ours);
    }
    rustup
}

fn ensure_nightly() -> Outcome {
    let version = text(nightly_cargo().arg("--version")).map_err(|error| {
        format!(
            "fuzzing needs the toolchain `nightly` of rustup (https://rustup.rs): \
             `rustup toolchain install nightly` ({error})"
        )
    })?;
    println!("{version}");
    Ok(())
}

fn ensure_cargo_fuzz() -> Outcome {
    let is_installed = || text(nightly_cargo().args(["fuzz", "--version"])).is_ok();
    if is_installed() {
        return Ok(());
    }
    println!("=== cargo-fuzz is missing: cargo install cargo-fuzz --locked");
    run_command(cargo().args(["install", "cargo-fuzz", "--locked"]))?;
    if is_installed() { Ok(()) } else { Err("Cargo's bin directory is not in PATH".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_that_are_no_number_are_rejected() {
        let parse = |flags: &[&str]| {
            let flags = flags.iter().map(Into::into).collect();
            seconds(&mut Arguments::from_vec(flags)).map_err(|error| error.to_string())
        };
        assert_eq!(parse(&[]), Ok(60));
        assert_eq!(parse(&["--seconds", "5"]), Ok(5));
        let want = "--seconds: invalid number \"x\": expected whole seconds, e.g. 60";
        assert_eq!(parse(&["--seconds", "x"]), Err(want.into()));
    }
}
