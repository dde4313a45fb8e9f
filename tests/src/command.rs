//! Running the programs that make fixtures, with an error worth reading when one fails.

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Output};

/// A program that could not be run, or said no.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// It could not be started.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("`{command}` failed ({status}): {tail}")]
    Status {
        /// The program with its arguments.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last lines of its stderr.
        tail: String,
    },
}

/// Runs a program to its end and returns its stdout.
///
/// # Errors
/// When it cannot be started or does not succeed.
pub fn output(command: &mut Command) -> Result<Vec<u8>, Failed> {
    let name = |os: &OsStr| os.to_string_lossy().into_owned();
    let program = name(command.get_program());
    tracing::debug!(?command, "run");
    let Output { status, stdout, stderr } =
        command.output().map_err(|source| Failed::Spawn { program, source })?;
    if status.success() {
        return Ok(stdout);
    }
    let words: Vec<_> =
        [command.get_program()].into_iter().chain(command.get_args()).map(name).collect();
    let stderr = String::from_utf8_lossy(&stderr);
    let lines: Vec<_> = stderr.lines().collect();
    let tail = lines[lines.len().saturating_sub(5)..].join("; ");
    Err(Failed::Status { command: words.join(" "), status, tail })
}

/// [`output`] as text, lossy.
///
/// # Errors
/// As [`output`].
pub fn text(command: &mut Command) -> Result<String, Failed> {
    output(command).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
