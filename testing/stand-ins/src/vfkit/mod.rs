//! A stand-in for `vfkit` v0.6.4 on an Intel Mac: its command line, its REST service, its signals
//! and its exit codes.
//!
//! - `flags`: the command line. `device`: the devices of a VM. `config`: the rest of it. `go_url`
//!   and `rest_uri`: the paths of sockets.
//! - `rest`: the REST service.
//! - `framework`: the errors of macOS' Virtualization.framework. `guest_args`: the arguments of QEMU.
//!   `vsock`: the sockets.
//! - `vm`: the VM, from its start to the exit.
//! - `fault`: the faults.
//!
//! The tests of the vfkit backend compare the parsed command lines with the results of vfkit's own
//! parser. The rest comes from vfkit's source and from reports of its users; none of it was compared
//! with a running vfkit. The behaviour of Virtualization.framework is an assumption, above all that a
//! guest that reboots boots again in the same process, without an event.
//!
//! A configuration that the real one supports and the stand-in does not ends it at the start with the
//! exit code [`UNKNOWN_CONFIG`](super::UNKNOWN_CONFIG).

mod config;
mod device;
mod fault;
mod flags;
mod framework;
mod go_url;
mod guest_args;
mod log;
mod rest;
mod rest_uri;
mod vm;
mod vsock;

use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, fs};

use serde_json::{Value, json};

use super::{child, faulty};
use config::{Config, StageError};
use flags::{ParsedCommand, VfkitOptions};

pub use fault::{VfkitCall, VfkitFault};

/// The version that the stand-in reports.
pub const VERSION: &str = "v0.6.4";

/// Parses a command line without starting a VM. The result has the fields `options` (the flags), `vm` (the
/// reply to `GET /vm/inspect`) and `path` (the socket of the REST service, or null). If the command line is
/// rejected, it has `stage` and `error`.
pub fn parse_command_line(words: &[String]) -> Value {
    let rejected = |(stage, error): StageError| json!({ "stage": stage, "error": error });
    let options = match flags::parse(words) {
        Ok(ParsedCommand::Run(options)) => options,
        Ok(ParsedCommand::Version | ParsedCommand::Help) => return json!({}),
        Err(why) => return rejected(("flags", why)),
    };
    let mut parsed = match Config::from_options(&options, || Ok(())) {
        Ok(config) => json!({ "vm": config, "path": match &config.endpoint {
            rest_uri::Endpoint::Unix(path) => Some(path),
            _ => None,
        } }),
        Err(why) => rejected(why),
    };
    parsed["options"] = json!(options);
    parsed
}

/// The main function of the program.
pub fn main() -> ExitCode {
    let mut words = env::args_os();
    let called = PathBuf::from(words.next().unwrap_or_default());
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(status) = child::exec_if_requested(&words) {
        return status;
    }
    let options = match flags::parse(&words) {
        Ok(ParsedCommand::Run(options)) => options,
        Ok(ParsedCommand::Version) => {
            println!("vfkit version: {VERSION}");
            return ExitCode::SUCCESS;
        }
        Ok(ParsedCommand::Help) => {
            print!("{}", flags::usage());
            return ExitCode::SUCCESS;
        }
        Err(why) => return exit_with_error(&why),
    };
    let faults = match faulty::read_faults(&called) {
        Ok(faults) => faults,
        Err(why) => return exit_with_error(&why),
    };
    log::set_level(&options.log_level);
    let config = Config::from_options(&options, || write_pid_file(&options));
    let ended = config.map_err(|(_, why)| why).and_then(|config| vm::run(&config, faults));
    match ended {
        Ok(status) => status,
        Err(why) => exit_with_error(&why),
    }
}

/// Writes the pid file. As in the real one, this happens before the devices are parsed, and the file is
/// never removed.
fn write_pid_file(options: &VfkitOptions) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let path = &options.pidfile;
    if path.is_empty() {
        return Ok(());
    }
    let write = || {
        fs::write(path, std::process::id().to_string())?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
    };
    write().map_err(|error| {
        format!("could not write PID: open {path}: {}", device::go_error(&error.to_string()))
    })
}

/// Prints what cobra and then vfkit print: the error, the usage, and the error again.
fn exit_with_error(why: &str) -> ExitCode {
    eprintln!("Error: {why}\n{}\n{why}", flags::usage());
    ExitCode::FAILURE
}
