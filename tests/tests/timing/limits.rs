//! Waits, simulated guests and the example service.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use capsa::blocking::{VmConsole, VmHandle};
use capsa::testing::{self, GuestReply, ScriptedGuest};
use capsa::{EndedBy, Error};
use capsa_testkit::vm::{NanoGuest, PATIENCE, eventually, poll_fd};
use nix::sys::signal::Signal;
use serde_json::json;

use super::service::{DevvmService, command, description};
use super::{assert_within, repeat};

#[test]
fn kernel_panic_ends_wait_within_a_second() {
    let Some(guest) = NanoGuest::new() else { return };
    assert_within(Duration::from_secs(1), || {
        let vm = guest.builder().build_blocking().unwrap();
        vm.start().unwrap();
        let mut console = vm.console().unwrap();
        console.wait_for_timeout("NANO READY\r\n", PATIENCE).unwrap();
        let panic =
            "[    1.500000] Kernel panic - not syncing: no init\r\n---[ end Kernel panic\r\n";
        console.write_str(panic).unwrap();
        // The emulated guest needs some time for its echo.
        vm.console().unwrap().wait_for_timeout("end Kernel panic\r\n", PATIENCE).unwrap();
        let begun = Instant::now();
        let error = console.wait_for_timeout("login:", PATIENCE).unwrap_err();
        assert!(matches!(error, Error::KernelPanic { .. }), "{error}");
        begun.elapsed()
    });
}

fn logged_in(guest: ScriptedGuest) -> (VmHandle, VmConsole) {
    let guest = guest.print("booting\r\n").login("root", Some("secret")).shell("# ");
    let vm = testing::vm(guest).build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.login_timeout("root", Some("secret"), PATIENCE).unwrap();
    (vm, console)
}

/// Each login has three prompts, which a login to a real guest sees unchanged for 100 ms: 30 s.
#[test]
fn simulated_guest_100_logins_take_under_20_s() {
    assert_within(Duration::from_secs(20), || {
        let begun = Instant::now();
        for _ in 0..100 {
            logged_in(ScriptedGuest::new());
        }
        begun.elapsed()
    });
}

#[test]
fn simulated_guest_100_commands_take_under_6_s() {
    assert_within(Duration::from_secs(6), || {
        let guest = ScriptedGuest::new().on("uname -r", GuestReply::output("6.1.0\n"));
        let (vm, mut console) = logged_in(guest);
        let begun = Instant::now();
        for _ in 0..100 {
            assert_eq!(console.run("uname -r", Some(PATIENCE)).unwrap().output, b"6.1.0\n");
        }
        let took = begun.elapsed();
        vm.stop().unwrap();
        assert_eq!(vm.stop_report().unwrap().ended_by, EndedBy::GuestPowerOff);
        took
    });
}

/// A guest that ignores its power button has a grace period of 10 s. A second signal ends it.
#[test]
fn devvm_second_sigterm_ends_grace_period() {
    let Some(guest) = NanoGuest::without_power_button() else { return };
    assert_within(Duration::from_secs(5), || {
        let file = json!({ "web": description(&guest) }).to_string();
        let mut service = DevvmService::of(&guest, &mut command(&guest, &file));
        service.attach("web").until("NANO READY\r\n");
        service.signal(Signal::SIGTERM);
        eventually("the service closes its socket", || !guest.dir().join("socket").exists());
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(service.process.try_wait().unwrap(), None, "the service waits for its guest");
        let begun = Instant::now();
        service.signal(Signal::SIGTERM);
        service.process.wait().unwrap();
        let took = begun.elapsed();
        eventually("all VMMs have exited", || service.hypervisors() == 0);
        took
    });
}

/// Dropping twenty VMs takes the time of one, times this for the CPUs that free their memory. One drop
/// after the other would take that of twenty.
#[test]
fn drop_of_20_vms_costs_that_of_one() {
    const FACTOR: u32 = 6;
    let Some(guest) = NanoGuest::new() else { return };
    let vm = || {
        let mut vm = guest.builder().build_embedded().unwrap();
        vm.start().unwrap();
        while vm.scrollback().end() == 0 {
            poll_fd(&vm, Some(vm.next_timeout().unwrap_or(PATIENCE)));
            vm.on_ready().unwrap();
            while vm.poll_event().is_some() {}
        }
        vm
    };
    let drop_of = |count: usize| {
        let vms: Vec<_> = (0..count).map(|_| vm()).collect();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Each exit of a process waits for its turn on busy CPUs.
            for _ in 0..2 * available_parallelism().map_or(2, NonZero::get) {
                scope.spawn(|| {
                    while !is_done.load(Ordering::Relaxed) {
                        std::hint::spin_loop()
                    }
                });
            }
            let begun = Instant::now();
            drop(vms);
            let took = begun.elapsed();
            is_done.store(true, Ordering::Relaxed);
            took
        })
    };
    // In turn, so that other load of the host meets both alike; the fastest of each has the least of it.
    repeat(|| {
        let rounds: Vec<_> = (0..5).map(|_| (drop_of(1), drop_of(20))).collect();
        let one = rounds.iter().map(|(one, _)| *one).min().unwrap();
        let twenty = rounds.iter().map(|(_, twenty)| *twenty).min().unwrap();
        println!(
            "one VM: {one:?}, twenty VMs: {twenty:?}, factor {:.1}",
            twenty.div_duration_f64(one)
        );
        if twenty < FACTOR * one { Ok(()) } else { Err(format!("one {one:?}, twenty {twenty:?}")) }
    });
}
