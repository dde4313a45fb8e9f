//! What Capsa is tested with: guests to boot, and the programs that boot them.
//!
//! - [`conformance`] is one suite of scenarios that every backend must pass.
//! - [`nano`] is a guest of a kilobyte, made here, up in milliseconds.
//! - [`fake`] runs a test in a process of its own, on a fake QEMU that misbehaves.
//! - [`cut`] drops futures at random moments.
//! - [`idle`] measures what machines cost while nothing happens.
//! - [`guest`] makes real Linux guests from the host distribution's packages.
//! - [`host`] finds, and where it may installs, the programs that all this needs.
//! - [`lab`] is a machine with a working KVM, where there is none.
//! - [`macos`] is a compiler that checks for macOS on Linux.
//! - [`command`] runs them, and [`processes`] are what runs.
//! - [`stand_in`] are a `cloud-hypervisor` for machines without KVM and a `vfkit` for those that are
//!   no Mac, with faults on demand.
//! - [`vm`] builds machines from them through the library.
//! - [`workspace`] is what is tested.

pub mod command;
pub mod conformance;
pub mod cut;
pub mod fake;
pub mod guest;
pub mod host;
pub mod idle;
pub mod lab;
pub mod macos;
pub mod nano;
pub mod processes;
pub mod stand_in;
pub mod vm;
pub mod workspace;

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;

/// The environment variable that names the file where [`skip`] also keeps its lines.
pub const SKIP_LOG: &str = "CAPSA_SKIP_LOG";

/// The name of the calling test, modules included, as the test harness knows it.
///
/// The harness runs each test in a thread of that name, with one test thread too (since Rust 1.67).
///
/// # Panics
///
/// When another thread calls it, one without a name.
pub fn test_name() -> String {
    let name = std::thread::current().name().map(str::to_owned);
    name.expect("the thread of a test has the test's name")
}

/// Reports that the calling test did not run, and why: see [`skip_task`].
pub fn skip(why: impl Display) {
    skip_task(&test_name(), why);
}

/// Reports in one line, which the test harness does not capture, that `test` did not run, and why.
///
/// The line is also appended to the file that [`SKIP_LOG`] names, after the name of the program, so
/// that a run can count the skipped tests.
pub fn skip_task(test: &str, why: impl Display) {
    // One line, even if the reason has several: the log is counted by lines.
    let why = why.to_string().replace(['\r', '\n'], " ");
    // The print macros are captured for a test that passes; the stream itself is not.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
    let Some(log) = std::env::var_os(SKIP_LOG) else { return };
    let program = std::env::current_exe().unwrap_or_default();
    let program = program.file_stem().unwrap_or_default().to_string_lossy();
    let program = program.rsplit_once('-').map_or(&*program, |(name, _hash)| name);
    // A single write in append mode: lines of tests that run side by side stay whole.
    let line = format!("{program}::{test}: {why}\n");
    let kept = OpenOptions::new().create(true).append(true).open(&log);
    if let Err(error) = kept.and_then(|mut log| log.write_all(line.as_bytes())) {
        panic!("cannot count the skipped {test} in {}: {error}", log.display());
    }
}
