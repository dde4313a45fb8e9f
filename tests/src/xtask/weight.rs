//! `cargo xtask weight`: what Capsa costs the program that uses it, as Markdown.

use std::fs;
use std::path::Path;
use std::time::Instant;

use capsa_test::command;
use capsa_test::workspace;

use super::{Outcome, finish};

/// What is weighed: its name, its package, and the features that make it up.
const FACES: &[(&str, &str, &[&str])] = &[
    ("`embed::Vm` alone", "capsa", &["--no-default-features"]),
    ("async (default)", "capsa", &[]),
    ("blocking", "capsa", &["--features", "blocking"]),
    ("CLI", "capsa-cli", &[]),
];

pub(super) fn run(arguments: pico_args::Arguments) -> Outcome {
    finish(arguments)?;
    let cores = std::thread::available_parallelism()?;
    println!("| | packages, itself included | clean build, dev profile, {cores} cores |");
    println!("| --- | ---: | ---: |");
    for (name, package, features) in FACES {
        let packages = workspace::tree(package, features)?.len();
        let seconds = clean_build(package, features)?;
        println!("| {name} | {packages} | {seconds:.1} s |");
    }
    println!();
    println!("| program, release profile, stripped | size |");
    println!("| --- | ---: |");
    for (name, bytes) in programs()? {
        println!("| {name} | {} KiB |", bytes.div_ceil(1024));
    }
    Ok(())
}

/// Seconds for a build into an empty directory. What has to be downloaded is there already: the
/// tree was resolved before, and this very program was built.
fn clean_build(package: &str, features: &[&str]) -> Result<f64, Box<dyn std::error::Error>> {
    let target = tempfile::tempdir()?;
    let mut build = workspace::cargo();
    build.args(["build", "--locked", "--package", package]).args(features);
    build.arg("--target-dir").arg(target.path());
    let begin = Instant::now();
    command::output(&mut build)?;
    Ok(begin.elapsed().as_secs_f64())
}

/// The command and the examples of `capsa`, smallest first. The release profile strips them.
fn programs() -> Result<Vec<(String, u64)>, Box<dyn std::error::Error>> {
    let target = tempfile::tempdir()?;
    for what in [&["--package", "capsa-cli"][..], &["--package", "capsa", "--examples"]] {
        let mut build = workspace::cargo();
        build.args(["build", "--locked", "--release"]).args(what);
        command::output(build.arg("--target-dir").arg(target.path()))?;
    }
    let release = target.path().join("release");
    let mut sizes = Vec::new();
    for (directory, kind) in [(release.clone(), "command"), (release.join("examples"), "example")] {
        for (name, bytes) in executables(&directory)? {
            sizes.push((format!("{kind} `{name}`"), bytes));
        }
    }
    sizes.sort_by_key(|(_, bytes)| *bytes);
    Ok(sizes)
}

/// The programs in a directory of Cargo's.
fn executables(directory: &Path) -> Result<Vec<(String, u64)>, std::io::Error> {
    let mut found = Vec::new();
    if !directory.exists() {
        return Ok(found);
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let metadata = entry.metadata()?;
        if metadata.is_file() && !name.contains('.') && !carries_a_hash(&name) {
            found.push((name, metadata.len()));
        }
    }
    Ok(found)
}

/// Cargo keeps examples under a second name, with 16 digits behind it.
fn carries_a_hash(name: &str) -> bool {
    let last = name.rsplit_once('-').map(|(_, last)| last);
    last.is_some_and(|last| last.len() == 16 && last.bytes().all(|b| b.is_ascii_hexdigit()))
}
