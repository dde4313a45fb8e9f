//! `cargo xtask bench idle`: the cost of idle VMs for the program that owns them, and for a VM beside
//! them that works.

use std::process::Command;
use std::time::{Duration, Instant};

use capsa::NetworkMode;
use capsa::testing::{self, GuestReply, ScriptedGuest};
use capsa_fixtures::nano;
use capsa_fixtures::programs::TestProgram;
use capsa_fixtures::task::{Arguments, Outcome, finish};
use capsa_testkit::idle;
use capsa_testkit::processes::raise_descriptor_limit;
use capsa_testkit::vm::NanoGuest;

use super::{Result, median};

/// The numbers of idle VMs beside the one that works.
const BESIDE: [usize; 4] = [1, 50, 500, 2000];

/// How much longer the VM that works may take beside the largest number of idle VMs than beside the
/// smallest.
const FLAT: f64 = 1.5;

/// The most memory of an idle VM, in KiB: a third more than was measured.
const MEMORY: f64 = 20.0;

pub(crate) fn run(mut arguments: Arguments) -> Outcome {
    let vms: usize = arguments.opt_value_from_str("--vms")?.unwrap_or(200);
    let seconds: u64 = arguments.opt_value_from_str("--seconds")?.unwrap_or(10);
    let api: Option<String> = arguments.opt_value_from_str("--api")?;
    let with_network = arguments.contains("--network");
    finish(arguments)?;
    let Some(api) = api else { return each_in_its_own_process(vms, seconds, with_network) };
    if api == "login" {
        return login_beside_idle_vms();
    }
    let (fake, guest) = (TestProgram::new("fake-qemu"), NanoGuest::for_any(nano::Nano::default()));
    let mode = if with_network { NetworkMode::Nat } else { NetworkMode::None };
    let vm = || idle::vm(fake.path(), guest.kernel()).network(mode.clone());
    let time = Duration::from_secs(seconds);
    let (name, cost) = match api.as_str() {
        "embed" => ("`embed::Vm`, one `poll(2)` loop", idle::embedded(vms, time, vm)?),
        "handle" => ("`VmHandle`, a console each", idle::handles(vms, time, vm)?),
        other => {
            return Err(format!("unknown API `{other}`: expected embed, handle or login").into());
        }
    };
    let each = |total: usize| total as f64 / cost.vms as f64;
    println!(
        "| {name} | {} | {:.1} | {:.1} KiB | {} |",
        cost.threads,
        each(cost.descriptors),
        each(cost.bytes) / 1024.0,
        cost.wakeups
    );
    let memory = each(cost.bytes) / 1024.0;
    if memory > MEMORY {
        return Err(format!("too much: {memory:.1} KiB for each VM, at most {MEMORY} KiB").into());
    }
    Ok(())
}

fn each_in_its_own_process(vms: usize, seconds: u64, with_network: bool) -> Outcome {
    let card = if with_network { " with a network card each" } else { "" };
    println!("{vms} idle VMs{card} on the fake QEMU, {seconds} s\n");
    println!("| | threads | descriptors each | memory each, without scrollback | wake-ups |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    for api in ["embed", "handle", "login"] {
        let mut this = Command::new(std::env::current_exe()?);
        this.args(["idle", "--api", api, "--vms", &vms.to_string()]);
        if with_network {
            this.arg("--network");
        }
        if !this.args(["--seconds", &seconds.to_string()]).status()?.success() {
            return Err(format!("cannot measure {api}").into());
        }
    }
    Ok(())
}

/// Measures a login and a command on one VM while more and more idle VMs run on the driver thread. The
/// guests are simulated, so this is the time of Capsa alone.
fn login_beside_idle_vms() -> Outcome {
    raise_descriptor_limit();
    println!("\nA login and a command beside idle VMs, simulated guests, microseconds\n");
    println!("| idle VMs | median | least | to the first row |\n| ---: | ---: | ---: | ---: |");
    let (mut idle, mut first) = (Vec::new(), None);
    login_and_command(20)?;
    for count in BESIDE {
        while idle.len() < count {
            let vm = testing::vm(ScriptedGuest::new().print("ready").hang()).build_blocking()?;
            vm.start()?;
            let mut console = vm.console()?;
            console.wait_for_timeout("ready", super::PATIENCE)?;
            idle.push((vm, console));
        }
        let mut times = login_and_command(200)?;
        let (median, least) = (median(&mut times), times[0]);
        let ratio = least / *first.get_or_insert(least);
        println!("| {count} | {median:.0} | {least:.0} | {ratio:.2} |");
        if ratio > FLAT {
            return Err(format!("not flat: more than {FLAT} times the first row").into());
        }
    }
    Ok(())
}

/// The microseconds of a login and a command, each time on a fresh VM.
fn login_and_command(times: usize) -> Result<Vec<f64>> {
    let guest = ScriptedGuest::new().login("root", None).shell("# ");
    let guest = guest.on("id -u", GuestReply::output("0\n"));
    let time = |_| {
        let vm = testing::vm(guest.clone()).build_blocking()?;
        vm.start()?;
        let mut console = vm.console()?;
        let begin = Instant::now();
        console.login("root", None)?;
        console.run("id -u", None)?;
        Ok(begin.elapsed().as_secs_f64() * 1e6)
    };
    (0..times).map(time).collect()
}
