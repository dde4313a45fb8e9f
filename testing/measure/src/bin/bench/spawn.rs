//! `cargo xtask bench spawn`: how long `on_ready` takes when it starts a process, and when it does not.
//!
//! The VMs run on the fake QEMU, one after the other. `--memory-mb` gives the owner that much memory
//! of its own first, because `fork` copies its page tables.

use std::time::{Duration, Instant};

use capsa::VmStatus;
use capsa::embed::Vm;
use capsa_fixtures::nano::Nano;
use capsa_fixtures::programs::TestProgram;
use capsa_fixtures::task::{Arguments, Outcome, finish};
use capsa_testkit::idle;
use capsa_testkit::vm::{NanoGuest, poll_fd};

use super::{PATIENCE, Result};

pub(crate) fn run(mut arguments: Arguments) -> Outcome {
    let vms: usize = arguments.opt_value_from_str("--vms")?.unwrap_or(1000);
    let memory_mb: usize = arguments.opt_value_from_str("--memory-mb")?.unwrap_or(0);
    finish(arguments)?;
    let memory = vec![1_u8; memory_mb << 20];
    let (fake, guest) = (TestProgram::new("fake-qemu"), NanoGuest::for_any(Nano::default()));
    let mut times = Times::default();
    for _ in 0..=vms {
        let begin = Instant::now();
        let vm = idle::vm(fake.path(), guest.kernel()).build_embedded()?;
        times.builds.push(begin.elapsed());
        times.drive(vm)?;
    }
    let Times { mut builds, mut spawns, mut others } = times;
    println!(
        "{vms} VMs on the fake QEMU, an owner with {} MiB, milliseconds\n",
        memory.len() >> 20
    );
    println!("| | median | 99 % | worst |\n| --- | ---: | ---: | ---: |");
    println!("| first build, with its probes | {:.2} | | |", millis(builds.remove(0)));
    println!("| other builds | {} |", summary(&mut builds));
    println!(
        "| first `on_ready` that spawns, with the watchdog | {:.2} | | |",
        millis(spawns.remove(0))
    );
    println!("| other `on_ready` that spawn | {} |", summary(&mut spawns));
    println!("| `on_ready` that do not spawn | {} |", summary(&mut others));
    Ok(())
}

#[derive(Default)]
struct Times {
    builds: Vec<Duration>,
    spawns: Vec<Duration>,
    others: Vec<Duration>,
}

impl Times {
    /// Starts the VM, kills it when it runs, and drives it to its end.
    fn drive(&mut self, mut vm: Vm) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut was_killed = false;
        vm.start()?;
        while !vm.status().is_terminal() {
            if Instant::now() > deadline {
                return Err(format!("no end of a VM that is {}", vm.status()).into());
            }
            poll_fd(&vm, Some(vm.next_timeout().unwrap_or(PATIENCE)));
            let had_process = vm.hypervisor_pid().is_some();
            let begin = Instant::now();
            vm.on_ready()?;
            let took = begin.elapsed();
            let spawned = !had_process && vm.hypervisor_pid().is_some();
            if spawned { &mut self.spawns } else { &mut self.others }.push(took);
            while vm.poll_event().is_some() {}
            if !was_killed && vm.status() == VmStatus::Running {
                vm.kill()?;
                was_killed = true;
            }
        }
        Ok(())
    }
}

/// The median, the 99th percentile and the maximum.
fn summary(times: &mut [Duration]) -> String {
    times.sort();
    let at = |part: f64| millis(times[((times.len() - 1) as f64 * part) as usize]);
    format!("{:.2} | {:.2} | {:.2}", at(0.5), at(0.99), at(1.0))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
