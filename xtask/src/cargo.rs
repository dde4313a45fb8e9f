//! The workspace, and Cargo in it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;

/// The directory of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a package in a workspace")
}

/// Cargo's target directory.
pub(crate) fn target_directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root().join(target)
}

/// The Cargo that runs this task, in the [`root`].
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Runs a command to its end. An exit status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Outcome {
    let program = command.get_program().display().to_string();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program}: {status}").into()),
        Err(error) => Err(format!("cannot run {program}: {error}").into()),
    }
}

/// The standard output of a command, without the line break at its end.
pub(crate) fn text(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().display().to_string();
    let output = command.output().map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program}: {}: {}", output.status, stderr.trim_end()))
}

/// A call of Cargo that builds a program of another package and runs it with these arguments.
pub(crate) fn program<A: AsRef<OsStr>>(package: &str, name: &str, arguments: &[A]) -> Command {
    let mut cargo = cargo();
    cargo.args(["run", "--quiet", "--package", package, "--bin", name, "--"]).args(arguments);
    cargo
}

/// Builds a program of another package and runs it. It prints its own errors.
pub(crate) fn run_program<A: AsRef<OsStr>>(package: &str, name: &str, arguments: &[A]) -> Outcome {
    let status = program(package, name, arguments).status()?;
    if status.success() { Ok(()) } else { Err(format!("{name} failed ({status})").into()) }
}
