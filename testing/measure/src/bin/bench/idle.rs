//! `cargo xtask bench idle`: the cost of idle VMs for the program that owns them.

use std::process::Command;
use std::time::Duration;

use capsa_fixtures::nano;
use capsa_fixtures::programs::TestProgram;
use capsa_fixtures::task::{Arguments, Outcome, finish};
use capsa_testkit::idle;
use capsa_testkit::vm::NanoGuest;

pub(crate) fn run(mut arguments: Arguments) -> Outcome {
    let vms: usize = arguments.opt_value_from_str("--vms")?.unwrap_or(200);
    let seconds: u64 = arguments.opt_value_from_str("--seconds")?.unwrap_or(10);
    let api: Option<String> = arguments.opt_value_from_str("--api")?;
    finish(arguments)?;
    let Some(api) = api else { return each_in_its_own_process(vms, seconds) };
    let (fake, guest) = (TestProgram::new("fake-qemu"), NanoGuest::for_any(nano::Nano::default()));
    let vm = || idle::vm(fake.path(), guest.kernel());
    let time = Duration::from_secs(seconds);
    let (name, cost) = match api.as_str() {
        "embed" => ("`embed::Vm`, one `poll(2)` loop", idle::embedded(vms, time, vm)?),
        "handle" => ("`VmHandle`, a console each", idle::handles(vms, time, vm)?),
        other => return Err(format!("unknown API `{other}`: expected embed or handle").into()),
    };
    let each = |total: usize| total as f64 / cost.vms as f64;
    println!(
        "| {name} | {} | {:.1} | {:.1} KiB | {} |",
        cost.threads,
        each(cost.descriptors),
        each(cost.bytes) / 1024.0,
        cost.wakeups
    );
    Ok(())
}

fn each_in_its_own_process(vms: usize, seconds: u64) -> Outcome {
    println!("{vms} idle VMs on the fake QEMU, {seconds} s\n");
    println!("| | threads | descriptors each | memory each, without scrollback | wake-ups |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    for api in ["embed", "handle"] {
        let mut this = Command::new(std::env::current_exe()?);
        this.args(["idle", "--api", api, "--vms", &vms.to_string()]);
        if !this.args(["--seconds", &seconds.to_string()]).status()?.success() {
            return Err(format!("cannot measure {api}").into());
        }
    }
    Ok(())
}
