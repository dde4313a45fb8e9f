//! What Capsa is tested with: guests to boot, and the programs that boot them.
//!
//! - [`nano`] is a guest of a kilobyte, made here, up in milliseconds.
//! - [`guest`] makes real Linux guests from the host distribution's packages.
//! - [`host`] finds, and where it may installs, the programs that all this needs.
//! - [`command`] runs them.
//! - [`vm`] builds machines from them through the library.

pub mod command;
pub mod guest;
pub mod host;
pub mod nano;
pub mod vm;

use std::fmt::Display;
use std::io::Write;

/// Says in one line, which the test harness does not swallow, that `test` did not run and why.
pub fn skip(test: &str, why: impl Display) {
    // The print macros are captured for a test that passes; the stream itself is not.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}
