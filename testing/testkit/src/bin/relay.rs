//! A program that connects the console of a VM with its own standard input and output.
//!
//! `relay KERNEL`: exits when the VM ends.

use std::process::ExitCode;

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
        eprintln!("usage: relay KERNEL");
        std::process::exit(2);
    };
    let vm = Capsa::vm(LinuxBootConfig::new(kernel))
        .backend("qemu")
        .accelerator(Accelerator::Emulation)
        .memory_mb(32)
        .no_network()
        .console_stdio()
        .build_blocking()?;
    vm.start()?;
    eprintln!("{}", vm.wait()?);
    Ok(())
}
