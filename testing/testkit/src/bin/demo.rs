//! `cargo xtask demo`: boots a Linux guest, runs a command in it and stops it, through the public API.
//! Prints when each phase ended.

use std::time::{Duration, Instant};

use capsa::backend::NoteLevel;
use capsa::{Capsa, DiskImage, LinuxBootConfig};
use capsa_fixtures::guest::{self, Variant};
use capsa_fixtures::host::setup::{self, Requirement};
use capsa_fixtures::task::{Arguments, Outcome, finish};

/// The time limit of the boot on a loaded host without KVM.
const PATIENCE: Duration = Duration::from_secs(180);

fn main() -> std::process::ExitCode {
    capsa_fixtures::task::main("demo", run)
}

fn run(arguments: Arguments) -> Outcome {
    finish(arguments)?;
    setup::ensure(&[Requirement::Qemu, Requirement::GuestTools])?;
    println!("building the guest (only the first time)");
    let guest = guest::linux(Variant::Cloud)?;

    // The demo does not change the disk.
    let disk = DiskImage::new(guest.disk_qcow2).ephemeral();
    let config = LinuxBootConfig::new(guest.kernel).initrd(guest.initrd).disk(disk);
    let vm = Capsa::vm(config)
        .memory_mb(512)
        .no_network()
        .console_enabled()
        .cmdline_arg("quiet")
        .cmdline_arg("mitigations=off")
        .build_blocking()?;
    let plan = vm.launch_plan();
    for note in plan.notes().iter().filter(|note| note.level == NoteLevel::Warning) {
        println!("{note}");
    }
    println!("booting on {}", plan.backend());

    let begin = Instant::now();
    let mut phases: Vec<(&str, Duration)> = Vec::new();
    vm.start()?;
    phases.push(("spawn", begin.elapsed()));
    let mut console = vm.console()?;
    let mut first = [0; 1];
    console.read(&mut first)?;
    phases.push(("first byte", begin.elapsed()));
    console.login_timeout("root", None, PATIENCE)?;
    phases.push(("prompt", begin.elapsed()));
    let uname = console.run("uname -a", Some(PATIENCE))?;
    phases.push(("uname -a", begin.elapsed()));
    vm.stop()?;
    phases.push(("stop", begin.elapsed()));

    println!();
    print!("{}", String::from_utf8_lossy(&uname.output));
    for (name, since_begin) in phases {
        println!("{name:<10} {:>7.3} s", since_begin.as_secs_f64());
    }
    let report = vm.stop_report().ok_or("the VM did not end")?;
    println!("stopped: {report}");
    Ok(())
}
