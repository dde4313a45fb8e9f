//! `cargo xtask fuzz`: runs every fuzz target for a while.
//!
//! The committed corpus is only read. What the fuzzer adds goes to `fuzz/target/found/`, and an
//! input that breaks a law to `fuzz/artifacts/`: shrink it with `cargo +nightly fuzz tmin`, give it
//! a name and put it in the corpus.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use pico_args::Arguments;

use crate::cargo::{cargo, root, text};
use crate::{Outcome, finish};

/// How long one input may take. The slowest body needs a hundredth of that.
const SECONDS_PER_INPUT: u32 = 10;

pub(crate) fn run(mut arguments: Arguments) -> Outcome {
    let seconds = arguments.opt_value_from_str("--seconds")?.unwrap_or(60);
    let only: Option<String> = arguments.opt_value_from_str("--target")?;
    finish(arguments)?;
    let length = Duration::from_secs(seconds);
    ensure_nightly()?;
    ensure_cargo_fuzz()?;

    let mut targets = targets()?;
    if let Some(only) = only {
        if !targets.contains(&only) {
            return Err(format!("no target {only}; there are {}", targets.join(", ")).into());
        }
        targets = vec![only];
    }
    let mut broken = Vec::new();
    for target in targets {
        println!("=== {target} for {seconds} s");
        if !fuzz(&target, length)? {
            broken.push(target);
        }
    }
    if broken.is_empty() {
        return Ok(());
    }
    Err(format!("laws are broken in {}; see fuzz/artifacts/", broken.join(", ")).into())
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

/// True when nothing was found.
fn fuzz(target: &str, length: Duration) -> Result<bool, std::io::Error> {
    let found = format!("fuzz/target/found/{target}");
    fs::create_dir_all(root().join(&found))?;
    // The first directory takes what is new; the others are only read.
    let status = nightly_cargo()
        .args(["fuzz", "run", target, &found, &format!("fuzz/corpus/{target}"), "--"])
        .arg(format!("-max_total_time={}", length.as_secs()))
        .arg(format!("-timeout={SECONDS_PER_INPUT}"))
        .args(["-print_final_stats=1", "-verbosity=0"])
        .status()?;
    Ok(status.success())
}

/// Cargo of the toolchain `nightly`, whichever we were started by.
fn nightly_cargo() -> Command {
    let mut rustup = Command::new("rustup");
    rustup.args(["run", "nightly", "cargo"]).current_dir(root());
    for ours in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN"] {
        rustup.env_remove(ours);
    }
    rustup
}

fn ensure_nightly() -> Outcome {
    match text(nightly_cargo().arg("--version")) {
        Ok(version) => {
            println!("{version}");
            Ok(())
        }
        Err(error) => Err(format!(
            "fuzzing needs the toolchain `nightly` of rustup (https://rustup.rs): \
             `rustup toolchain install nightly` ({error})"
        )
        .into()),
    }
}

fn ensure_cargo_fuzz() -> Outcome {
    let is_there = || {
        let mut version = nightly_cargo();
        version.args(["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
        version.status().is_ok_and(|status| status.success())
    };
    if is_there() {
        return Ok(());
    }
    println!("=== cargo-fuzz is missing: cargo install cargo-fuzz --locked");
    let status = cargo().args(["install", "cargo-fuzz", "--locked"]).status()?;
    if status.success() && is_there() {
        return Ok(());
    }
    Err("cargo-fuzz is missing and could not be installed; `cargo install cargo-fuzz --locked` \
         has to succeed, and Cargo's bin directory has to be on the PATH"
        .into())
}
