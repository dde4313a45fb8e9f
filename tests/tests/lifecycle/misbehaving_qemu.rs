//! A fake QEMU that misbehaves: the VM ends with a reason and leaves nothing behind.

use std::time::{Duration, Instant};

use capsa::blocking::VmHandle;
use capsa::console::Overflow;
use capsa::internal::BuilderForTests as _;
use capsa::{EndedBy, Error, LinuxVmBuilder, NetworkMode, StopStep, VmStatus};
use capsa_testkit::fake;
use capsa_testkit::processes::runs;
use capsa_testkit::run_isolated;
use capsa_testkit::vm::{PATIENCE, eventually, in_time};

fn started(orders: &str) -> VmHandle {
    start(fake::vm(orders))
}

/// A VM whose VMM does not react to quit, and should not delay the test.
fn killed_soon(builder: LinuxVmBuilder) -> LinuxVmBuilder {
    builder.timing(|timing| timing.quit = Duration::from_millis(300))
}

fn start(builder: LinuxVmBuilder) -> VmHandle {
    let vm = builder.build_blocking().unwrap();
    vm.start().unwrap();
    vm
}

#[test]
fn start_hanging_can_be_stopped() {
    run_isolated!();
    for orders in ["hang", "greet hang"] {
        let vm = fake::vm(orders).build_blocking().unwrap();
        let starting = {
            let vm = vm.clone();
            std::thread::spawn(move || vm.start())
        };
        eventually("the hypervisor runs", || vm.as_async().hypervisor_pid().is_some());
        vm.stop().unwrap();
        assert!(matches!(starting.join().unwrap(), Err(Error::StartFailed(_))), "{orders}");
    }
}

#[test]
fn control_channel_closed_ends_vm() {
    run_isolated!();
    let vm = start(killed_soon(fake::vm("up close-control hang")));
    let VmStatus::Failed { message } = vm.wait().unwrap() else { panic!("not failed") };
    assert!(message.contains("closed its control channel"), "{message}");
}

#[test]
fn console_closed_ends_waits_but_not_vm() {
    run_isolated!();
    let vm = started("up console=bye close-console serve");
    let mut console = vm.console().unwrap();
    let error = console.wait_for("never").unwrap_err();
    assert!(matches!(&error, Error::PatternNotFound { tail, .. } if tail == "bye"), "{error}");
    assert!(matches!(console.write(b"x"), Err(Error::Io(_))));
    assert_eq!(vm.status(), VmStatus::Running);
    vm.kill().unwrap();
}

#[test]
fn paused_console_unread_can_be_stopped() {
    run_isolated!();
    let vm =
        start(killed_soon(fake::vm("up console*10000000 serve").scrollback(1, Overflow::Pause)));
    let _console = vm.console().unwrap();
    vm.stop_with_timeout(Duration::ZERO).unwrap();
    assert!(vm.stop_report().unwrap().steps.contains(&StopStep::PowerButton));
}

#[test]
fn write_to_full_console_ends_with_kill() {
    run_isolated!();
    let vm = started("up serve");
    let mut console = vm.console().unwrap();
    let writing = std::thread::spawn(move || console.write(&vec![b'x'; 10_000_000]));
    assert_eq!(vm.wait_timeout(Duration::from_millis(50)).unwrap(), None);
    assert!(!writing.is_finished());
    vm.kill().unwrap();
    let error = writing.join().unwrap().unwrap_err();
    // The console may close before it is known how the VM ended.
    assert!(matches!(error, Error::GuestEnded { .. } | Error::Io(_)), "{error}");
}

#[test]
fn write_resumes_when_guest_reads() {
    run_isolated!();
    let vm = fake::vm("up drain serve").build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    let writing = std::thread::spawn(move || console.write(&vec![b'x'; 30_000_000]));
    writing.join().unwrap().unwrap();
    vm.kill().unwrap();
}

#[test]
fn output_of_one_vm_does_not_starve_others() {
    run_isolated!();
    let loud = started("up stderr*50000000 child serve");
    let quiet: Vec<_> = (0..30).map(|_| started("up console=hello serve")).collect();
    for vm in &quiet {
        vm.console().unwrap().wait_for_timeout("hello", PATIENCE).unwrap();
    }
    let begin = Instant::now();
    for vm in &quiet {
        vm.stop_with_timeout(Duration::ZERO).unwrap();
    }
    assert!(begin.elapsed() < PATIENCE);
    assert_eq!(loud.status(), VmStatus::Running);
    loud.kill().unwrap();
}

#[test]
fn exit_zero_unrequested_is_guest_power_off() {
    run_isolated!();
    let vm = started("up exit=0");
    vm.wait().unwrap();
    assert_eq!(vm.stop_report().unwrap().ended_by, EndedBy::GuestPowerOff);
}

#[test]
fn stop_from_16_threads_is_one_stop() {
    run_isolated!();
    let vm = started("up serve");
    let pid = vm.as_async().hypervisor_pid().unwrap();
    let stops: Vec<_> = (0..16)
        .map(|n| {
            let vm = vm.clone();
            std::thread::spawn(move || vm.stop_with_timeout(Duration::from_millis(n)))
        })
        .collect();
    for stop in stops {
        stop.join().unwrap().unwrap();
    }
    assert!(!runs(pid));
}

#[test]
fn timeouts_zero_and_max_are_accepted() {
    run_isolated!();
    let vm = start(fake::vm("up console=login: serve").timeout(Duration::MAX));
    let mut console = vm.console().unwrap();
    console.wait_for_timeout("login:", Duration::MAX).unwrap();
    assert!(console.wait_for_timeout("never", Duration::ZERO).is_err());
    assert!(console.run("true", Some(Duration::ZERO)).is_err());
    assert!(console.login_timeout("me", None, Duration::ZERO).is_err());
    assert_eq!(vm.wait_timeout(Duration::ZERO).unwrap(), None);
    let stopping = {
        let vm = vm.clone();
        std::thread::spawn(move || vm.stop_with_timeout(Duration::MAX))
    };
    let waiting = {
        let vm = vm.clone();
        std::thread::spawn(move || vm.wait_timeout(Duration::MAX))
    };
    eventually("the VM is stopping", || vm.status() == VmStatus::Stopping);
    vm.stop_with_timeout(Duration::ZERO).unwrap();
    stopping.join().unwrap().unwrap();
    assert!(waiting.join().unwrap().unwrap().is_some());
}

#[test]
fn pause_between_event_and_reply_ends() {
    run_isolated!();
    let stop = r#"control={"event":"STOP","timestamp":{"seconds":0,"microseconds":0}}"#;
    let vm = started(&format!("up ticks*50 {stop} ticks*50 reply serve"));
    vm.pause().unwrap();
    let again = vm.clone();
    in_time("the second pause", move || again.pause()).unwrap();
    assert_eq!(vm.status(), VmStatus::Paused);
    vm.kill().unwrap();
}

#[test]
fn network_link_changes_reach_the_hypervisor() {
    run_isolated!();
    let vm = start(fake::vm("up show show serve").network(NetworkMode::Nat));
    let mut console = vm.console().unwrap();
    for is_up in [false, true] {
        vm.set_network_link(is_up).unwrap();
        console.wait_for(&format!("\"up\":{is_up}")).unwrap();
    }
    vm.kill().unwrap();
}

#[test]
fn network_link_rejected_keeps_vm_running() {
    run_isolated!();
    let vm = start(fake::vm("up reject show serve").network(NetworkMode::Nat));
    let mut console = vm.console().unwrap();
    vm.set_network_link(false).unwrap();
    vm.set_network_link(true).unwrap();
    console.wait_for("\"up\":true").unwrap();
    assert_eq!(vm.status(), VmStatus::Running);
    vm.kill().unwrap();
}
