//! `cargo xtask conformance --backend NAME`: runs the conformance suite on a backend of this host and
//! writes a report: the commit, the host, its backends, and a line for each scenario.
//!
//! The other flags are the suite's. The report is printed, and kept in Cargo's target directory.

use std::error::Error;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use pico_args::Arguments;

use crate::cargo::{program, root, target_directory, text};
use crate::{Outcome, finish};

/// The exit code of the suite when no scenario failed and some were skipped.
const SOME_SKIPPED: i32 = 3;

pub(crate) fn run(arguments: Arguments) -> Outcome {
    let name = &backend(arguments.clone())?;
    let flags = arguments.finish();
    fs::create_dir_all(target_directory())?;
    let path = target_directory().join(format!("conformance-{name}.txt"));
    let mut file = File::create(&path)?;
    let mut report = |line: &str| {
        println!("{line}");
        writeln!(file, "{line}")
    };
    report(&format!("Capsa {}, backend {name}", revision()))?;
    report(&format!("host: {}", host()))?;
    let mut suite = program("capsa-conformance", "conformance", &flags);
    let mut process = suite.arg("--backends").stdout(Stdio::piped()).spawn()?;
    for line in BufReader::new(process.stdout.take().expect("piped")).lines() {
        report(&line?)?;
    }
    let status = process.wait()?;
    println!("report: {}", fs::canonicalize(&path)?.display());
    match status.code() {
        Some(0 | SOME_SKIPPED) => Ok(()),
        _ => Err(format!("the suite failed ({status})").into()),
    }
}

/// The backend that the flags name. Rejects flags that the suite does not have.
fn backend(mut arguments: Arguments) -> Result<String, Box<dyn Error>> {
    let name: Option<String> = arguments.opt_value_from_str("--backend")?;
    let _: Option<String> = arguments.opt_value_from_str("--filter")?;
    for switch in ["--linux", "--list", "--backends"] {
        arguments.contains(switch);
    }
    finish(arguments)?;
    name.ok_or_else(|| "missing flag: --backend NAME".into())
}

/// The commit, if this is a clone, and whether the work tree has changes.
fn revision() -> String {
    let git = |arguments: &[&str]| output("git", arguments);
    let Ok(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return env!("CARGO_PKG_VERSION").to_owned();
    };
    match git(&["status", "--porcelain"]) {
        Ok(changes) if changes.is_empty() => commit,
        _ => format!("{commit} with changes"),
    }
}

fn host() -> String {
    let kernel = output("uname", &["-srm"]).unwrap_or_else(|error| error);
    match output("sw_vers", &["-productVersion"]) {
        Ok(version) => format!("macOS {version}, {kernel}"),
        Err(_) => kernel,
    }
}

fn output(program: &str, arguments: &[impl AsRef<OsStr>]) -> Result<String, String> {
    text(Command::new(program).args(arguments).current_dir(root()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conformance_unknown_flag_is_named() {
        for (flags, want) in [
            (&["--backend", "qemu", "--linux", "--filter", "boot"][..], Ok("qemu")),
            (&["--bakend", "x"], Err("unknown argument --bakend")),
            (&["--linux"], Err("missing flag: --backend NAME")),
        ] {
            let flags = Arguments::from_vec(flags.iter().map(Into::into).collect());
            let found = backend(flags).map_err(|error| error.to_string());
            assert_eq!(found.as_deref().map_err(String::as_str), want);
        }
    }
}
