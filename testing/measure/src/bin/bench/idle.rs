//! `cargo xtask bench idle`: what idle machines cost the program that has them.

use std::process::Command;
use std::time::Duration;

use capsa_fixtures::nano;
use capsa_fixtures::programs::TestProgram;
use capsa_testkit::idle::{self, Cost};
use capsa_testkit::vm::NanoGuest;

use capsa_fixtures::task::{Arguments, Outcome, finish};

pub(crate) fn run(mut arguments: Arguments) -> Outcome {
    let machines: usize = arguments.opt_value_from_str("--machines")?.unwrap_or(200);
    let seconds: u64 = arguments.opt_value_from_str("--seconds")?.unwrap_or(10);
    let face: Option<String> = arguments.opt_value_from_str("--face")?;
    finish(arguments)?;
    let Some(face) = face else { return each_in_its_own_process(machines, seconds) };
    let (name, measure): (_, fn(usize, Duration) -> Measured) = match face.as_str() {
        "embed" => ("`embed::Vm`, one `poll(2)` loop", embedded),
        "handle" => ("`VmHandle`, a console each", handles),
        other => return Err(format!("no face {other}; there are embed and handle").into()),
    };
    let cost = measure(machines, Duration::from_secs(seconds))?;
    let each = |total: usize| total as f64 / cost.machines as f64;
    println!(
        "| {name} | {} | {:.1} | {:.1} KiB | {} |",
        cost.threads,
        each(cost.descriptors),
        each(cost.bytes) / 1024.0,
        cost.wakeups
    );
    Ok(())
}

type Measured = Result<Cost, Box<dyn std::error::Error>>;

fn each_in_its_own_process(machines: usize, seconds: u64) -> Outcome {
    println!("{machines} idle machines, on a hypervisor that is idle too, {seconds} s\n");
    println!("| | threads | descriptors each | memory each, beside the scrollback | wake-ups |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    for face in ["embed", "handle"] {
        let mut this = Command::new(std::env::current_exe()?);
        this.args(["idle", "--face", face, "--machines", &machines.to_string()]);
        if !this.args(["--seconds", &seconds.to_string()]).status()?.success() {
            return Err(format!("the face {face} could not be measured").into());
        }
    }
    Ok(())
}

fn embedded(machines: usize, time: Duration) -> Measured {
    let (fake, guest) = (TestProgram::new("fake-qemu"), NanoGuest::for_any(nano::Nano::default()));
    idle::embedded(machines, time, || idle::machine(fake.path(), guest.kernel()))
}

fn handles(machines: usize, time: Duration) -> Measured {
    let (fake, guest) = (TestProgram::new("fake-qemu"), NanoGuest::for_any(nano::Nano::default()));
    idle::handles(machines, time, || idle::machine(fake.path(), guest.kernel()))
}
