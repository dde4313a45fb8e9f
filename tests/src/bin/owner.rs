//! A program that owns a machine and is killed by a test: says what it does, a word a line.
//!
//! `owner KERNEL SHARE`: boots the nano guest with a share, waits until it listens, stops it.

use std::io::Write;
use std::time::Duration;

use capsa::{Accelerator, Capsa, LinuxBootConfig, MountMode};

fn say(word: &str) {
    println!("{word}");
    let _ = std::io::stdout().flush();
}

fn main() -> capsa::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(kernel), Some(share)) = (args.next(), args.next()) else {
        eprintln!("usage: owner KERNEL SHARE");
        std::process::exit(2);
    };
    say("begin");
    let vm = Capsa::vm(LinuxBootConfig::new(kernel))
        .backend("qemu")
        .accelerator(Accelerator::Emulation)
        .memory_mb(32)
        .no_network()
        .console_enabled()
        .share(share, "/share", MountMode::ReadOnly)
        .build_blocking()?;
    say("built");
    vm.start()?;
    say("running");
    let mut console = vm.console()?;
    console.wait_for("NANO READY\r\n")?;
    say("ready");
    // It does not heed the button: the test kills during the grace.
    vm.stop_with_timeout(Duration::from_secs(2))?;
    say("stopped");
    Ok(())
}
