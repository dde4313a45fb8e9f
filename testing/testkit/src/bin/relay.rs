//! A program that connects the console of a VM with its own standard input and output.
//!
//! `relay KERNEL [SECONDS]`: exits when the VM ends, at the latest after its time limit.

use std::process::ExitCode;
use std::time::Duration;

use capsa::{Accelerator, Capsa, LinuxBootConfig};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> capsa::Result<()> {
    let Some(kernel) = std::env::args().nth(1) else {
        eprintln!("usage: relay KERNEL [SECONDS]");
        std::process::exit(2);
    };
    let limit = std::env::args().nth(2).and_then(|seconds| seconds.parse().ok());
    let vm = Capsa::vm(LinuxBootConfig::new(kernel))
        .backend("qemu")
        .accelerator(Accelerator::Emulation)
        .memory_mb(32)
        .no_network()
        .console_stdio()
        .timeout(Duration::from_secs(limit.unwrap_or(3600)))
        .build_blocking()?;
    vm.start()?;
    eprintln!("{}", vm.wait()?);
    Ok(())
}
