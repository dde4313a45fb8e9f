//! A stand-in for `cloud-hypervisor`: the command line, the API and the event monitor of v53, and
//! behind them a real guest in QEMU's software emulation, so that what is said about the real one
//! can be tried on any Linux machine, with KVM or without.
//!
//! - `command_line` is what it can be told.
//! - `http` is the API's transport, `vmm` its meaning.
//! - `config` is the body of `vm.create`, `refusal` what is wrong with one.
//! - `emulator` runs the guest, `guest_args` says with what.
//! - `events` is the event monitor.
//! - `fault` is what it breaks on demand.
//!
//! `tests/tests/cloud_hypervisor_transcript.rs` holds its answers to a recording of the real one.
//! In one point it is stricter: the real one accepts a `vm.create` with fields that it does not
//! know, which would hide our mistakes. The stand-in says which they are, with those it knows and
//! does not act on, and ends with the status [`UNKNOWN_CONFIG`].

mod command_line;
mod config;
mod emulator;
mod events;
mod fault;
mod guest_args;
mod http;
mod refusal;
mod vmm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

use tempfile::TempDir;

use crate::workspace;

pub use fault::{Call, Fault};

/// The status it ends with when it does not know, or would ignore, a part of a `vm.create`.
pub const UNKNOWN_CONFIG: u8 = 70;
/// The status it ends with when its emulator died under a running guest.
pub const EMULATOR_DIED: u8 = 71;
/// The version it says it is.
pub const VERSION: &str = "v53.0.0";

/// The file beside the program, as it was called, that orders faults.
const FAULTS: &str = "faults";

/// Where the stand-in is.
///
/// # Panics
///
/// When it was not built.
pub fn cloud_hypervisor() -> PathBuf {
    workspace::built("stand-in-cloud-hypervisor")
}

/// A stand-in of a test's own, in a directory of its own, that breaks on order.
#[derive(Debug)]
pub struct Faulty {
    dir: TempDir,
}

impl Faulty {
    /// A stand-in with all of `faults`.
    ///
    /// # Panics
    ///
    /// When its directory cannot be made.
    pub fn new(faults: &[Fault]) -> Self {
        Self::make(faults).expect("a directory for a faulty stand-in")
    }

    /// Where it is.
    pub fn program(&self) -> PathBuf {
        self.dir.path().join("cloud-hypervisor")
    }

    fn make(faults: &[Fault]) -> io::Result<Self> {
        let this = Self { dir: tempfile::tempdir()? };
        let lines: String = faults.iter().map(|fault| format!("{fault}\n")).collect();
        fs::write(this.dir.path().join(FAULTS), lines)?;
        std::os::unix::fs::symlink(cloud_hypervisor(), this.program())?;
        Ok(this)
    }
}

/// The program.
pub fn main() -> ExitCode {
    let mut words = env::args_os();
    let called = PathBuf::from(words.next().unwrap_or_default());
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    if let [first, rest @ ..] = &words[..]
        && first == emulator::BECOME
    {
        return emulator::become_program(rest);
    }
    let options = match command_line::Options::parse(&words) {
        Ok(options) => options,
        Err(said) => return said.exit(),
    };
    match faults(&called) {
        Ok(faults) => vmm::run(&options, faults),
        Err(why) => {
            eprintln!("{}: {why}", called.with_file_name(FAULTS).display());
            ExitCode::FAILURE
        }
    }
}

fn faults(called: &Path) -> Result<Vec<Fault>, String> {
    match fs::read_to_string(called.with_file_name(FAULTS)) {
        Ok(text) => text.lines().map(str::parse).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.to_string()),
    }
}
