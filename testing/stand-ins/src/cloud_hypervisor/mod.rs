//! A stand-in for `cloud-hypervisor`: the command line, the API and the event monitor of v53.
//!
//! - `command_line` is what it can be told.
//! - `http` is the API's transport, `vmm` its meaning.
//! - `config` is the body of `vm.create`, `refusal` what is wrong with one.
//! - `guest_args` is the machine as the emulator has it.
//! - `events` is the event monitor.
//! - `fault` is what it breaks on demand.
//!
//! `tests/tests/backends/transcript/` holds its answers to a recording of the real one.
//! In one point it is stricter: the real one accepts a `vm.create` with fields that it does not
//! know, which would hide our mistakes. The stand-in says which they are, with those it knows and
//! does not act on, and ends with the status [`UNKNOWN_CONFIG`](super::UNKNOWN_CONFIG).

mod command_line;
mod config;
mod events;
mod fault;
mod guest_args;
mod http;
mod refusal;
mod vmm;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use super::{child, faulty};

pub use fault::{Call, Fault};

/// The version it says it is.
pub const VERSION: &str = "v53.0.0";

/// The program.
pub fn main() -> ExitCode {
    let mut words = env::args_os();
    let called = PathBuf::from(words.next().unwrap_or_default());
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(status) = child::becomes(&words) {
        return status;
    }
    let options = match command_line::Options::parse(&words) {
        Ok(options) => options,
        Err(said) => return said.exit(),
    };
    match faulty::ordered(&called) {
        Ok(faults) => vmm::run(&options, faults),
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
