//! Hypervisors that misbehave: whatever one does, its machine ends, says why, and leaves nothing.

use std::time::{Duration, Instant};

use capsa::blocking::VmHandle;
use capsa::{EndedBy, Error, LinuxVmBuilder, Overflow, StopStep, VmStatus};
use capsa_testkit::fake;
use capsa_testkit::processes::runs;
use capsa_testkit::run_isolated;
use capsa_testkit::vm::{PATIENCE, eventually};

fn started(orders: &str) -> VmHandle {
    start(fake::vm(orders))
}

fn start(builder: LinuxVmBuilder) -> VmHandle {
    let vm = builder.build_blocking().unwrap();
    vm.start().unwrap();
    vm
}

#[test]
fn a_start_that_never_comes_can_be_stopped() {
    run_isolated!();
    for orders in ["hang", "listen hang", "listen accept hang", "listen accept greet hang"] {
        let vm = fake::vm(orders).build_blocking().unwrap();
        let starting = {
            let vm = vm.clone();
            std::thread::spawn(move || vm.start())
        };
        eventually("its hypervisor runs", || vm.as_async().hypervisor_pid().is_some());
        vm.stop().unwrap();
        assert!(matches!(starting.join().unwrap(), Err(Error::StartFailed(_))), "{orders}");
    }
}

#[test]
fn a_hypervisor_without_control_does_not_live_on() {
    run_isolated!();
    let vm = started("up close-control hang");
    let VmStatus::Failed { message } = vm.wait().unwrap() else { panic!("not failed") };
    assert!(message.contains("closed its control channel"), "{message}");
}

#[test]
fn a_console_that_closes_ends_waits_and_writes_but_not_the_machine() {
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
fn a_paused_console_that_nobody_reads_can_be_stopped() {
    run_isolated!();
    let vm = start(fake::vm("up console*10000000 serve").scrollback(1, Overflow::Pause));
    let _console = vm.console().unwrap();
    vm.stop_with_timeout(Duration::ZERO).unwrap();
    assert!(vm.stop_report().unwrap().steps.contains(&StopStep::PowerButton));
}

#[test]
fn a_guest_that_never_reads_holds_a_write_until_it_is_killed() {
    run_isolated!();
    let vm = started("up serve");
    let mut console = vm.console().unwrap();
    let writing = std::thread::spawn(move || console.write(&vec![b'x'; 10_000_000]));
    assert_eq!(vm.wait_timeout(Duration::from_millis(50)).unwrap(), None);
    assert!(!writing.is_finished());
    vm.kill().unwrap();
    let Err(Error::Io(error)) = writing.join().unwrap() else { panic!("it was written") };
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn a_write_goes_on_when_the_guest_reads_again() {
    run_isolated!();
    let vm = fake::vm("up drain serve").build_blocking().unwrap();
    let mut console = vm.console().unwrap();
    // Into the queue, before there is a guest, and then past its end.
    let writing = std::thread::spawn(move || console.write(&vec![b'x'; 30_000_000]));
    vm.start().unwrap();
    writing.join().unwrap().unwrap();
    vm.kill().unwrap();
}

#[test]
fn floods_of_standard_error_and_console_starve_nobody() {
    run_isolated!();
    let loud = started("up stderr*50000000 heir serve");
    let quiet: Vec<_> = (0..30).map(|_| started("up console=hello serve")).collect();
    for vm in &quiet {
        vm.console().unwrap().wait_for_timeout("hello", PATIENCE).unwrap();
    }
    let begin = Instant::now();
    for vm in &quiet {
        vm.stop_with_timeout(Duration::ZERO).unwrap();
    }
    assert!(begin.elapsed() < PATIENCE / 4);
    assert_eq!(loud.status(), VmStatus::Running);
    loud.kill().unwrap();
}

#[test]
fn a_clean_exit_that_nobody_asked_for_is_the_guests() {
    run_isolated!();
    let vm = started("up exit=0");
    vm.wait().unwrap();
    assert_eq!(vm.stop_report().unwrap().ended_by, EndedBy::GuestPowerOff);
}

#[test]
fn a_stop_from_many_threads_is_one_stop() {
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
fn no_time_is_too_long_or_too_short() {
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
    eventually("it is stopping", || vm.status() == VmStatus::Stopping);
    vm.stop_with_timeout(Duration::ZERO).unwrap();
    stopping.join().unwrap().unwrap();
    assert!(waiting.join().unwrap().unwrap().is_some());
}
