//! A stand-in for `cloud-hypervisor`: the command line, the API and the event monitor of v53.
//!
//! - `command_line`: the flags.
//! - `http`: the transport of the API. `vmm`: the calls.
//! - `config`: the body of `vm.create`. `api_error`: its errors.
//! - `guest_args`: the arguments of QEMU.
//! - `events`: the event monitor.
//! - `fault`: the faults.
//!
//! `tests/tests/backends/transcript/` compares its answers with a recording of the real one.
//! In one point it is stricter: the real one accepts a `vm.create` with unknown fields, which would
//! hide errors of Capsa. The stand-in prints these fields, and those that it does not implement, and
//! exits with the code [`UNKNOWN_CONFIG`](super::UNKNOWN_CONFIG).

mod api_error;
mod command_line;
mod config;
mod events;
mod fault;
mod guest_args;
mod http;
mod vmm;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use super::{child, faulty};

pub use fault::{ChvCall, ChvFault};

/// The version that the stand-in reports.
pub const VERSION: &str = "v53.0.0";

/// The main function of the program.
pub fn main() -> ExitCode {
    let mut words = env::args_os();
    let called = PathBuf::from(words.next().unwrap_or_default());
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(status) = child::exec_if_requested(&words) {
        return status;
    }
    let options = match command_line::ChvOptions::parse(&words) {
        Ok(options) => options,
        Err(exit) => return exit.exit(),
    };
    match faulty::read_faults(&called) {
        Ok(faults) => vmm::run(&options, faults),
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
