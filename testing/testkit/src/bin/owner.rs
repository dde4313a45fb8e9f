//! A program that owns a VM, for tests that kill it. It prints a word for each step.
//!
//! `owner KERNEL SHARE BACKEND [SOCKET]`: boots the nano guest with a share on `qemu` or on the stand-in for
//! `vfkit`, waits until it is ready, stops it. With a socket, it is forwarded to port 22 of the guest.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use capsa::internal::BuilderForTests as _;
use capsa::network::ListenAddress;
use capsa::{Accelerator, Capsa, LinuxBootConfig, MountMode, NetworkMode};

fn print(word: &str) {
    println!("{word}");
    let _ = std::io::stdout().flush();
}

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
    let mut args = std::env::args().skip(1);
    let (Some(kernel), Some(share), Some(backend)) = (args.next(), args.next(), args.next()) else {
        eprintln!("usage: owner KERNEL SHARE BACKEND [SOCKET]");
        std::process::exit(2);
    };
    print("begin");
    let builder = match backend.as_str() {
        // vfkit requires an initrd, and has no read-only shares.
        "vfkit" => Capsa::vm(LinuxBootConfig::new(&kernel).initrd(&kernel))
            .program("vfkit", capsa_stand_ins::VFKIT)
            .trust_backend()
            .memory_mb(64)
            .share(share, "/share", MountMode::ReadWrite),
        _ => Capsa::vm(LinuxBootConfig::new(&kernel))
            .accelerator(Accelerator::Emulation)
            .memory_mb(32)
            .share(share, "/share", MountMode::ReadOnly),
    };
    let builder = match args.next() {
        Some(socket) => builder.network(NetworkMode::Nat).forward(ListenAddress::unix(socket), 22),
        None => builder.no_network(),
    };
    let vm = builder.backend(backend).console_enabled().build_blocking()?;
    print("built");
    vm.start()?;
    print("running");
    let mut console = vm.console()?;
    console.wait_for("NANO READY\r\n")?;
    print("ready");
    // The guest ignores the power button: the test kills during the grace period.
    vm.stop_with_timeout(Duration::from_secs(2))?;
    print("stopped");
    Ok(())
}
