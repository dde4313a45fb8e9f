//! Calls from many threads and in the wrong phase have the documented results.

use std::time::Duration;

use capsa::{EndedBy, Error, VmStatus};

use super::vm::PATIENCE;
use super::{Fixture, Scenario};
use capsa_testkit::vm::eventually;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::any("wait_in_many_threads_returns_in_all", many_waits),
    Scenario::any("calls_in_wrong_phase_return_errors", wrong_phase),
    Scenario::any("stop_while_starting_kills_at_once", stop_while_starting),
    Scenario::any("console_wait_ends_with_the_guest", wait_ends_with_guest),
];

fn many_waits(fixture: &Fixture<'_>) {
    let mut vm = fixture.vm(fixture.builder());
    // The calls begin before the start.
    let waits: Vec<_> = (0..8)
        .map(|_| {
            let vm = vm.handle.clone();
            std::thread::spawn(move || vm.wait().unwrap())
        })
        .collect();
    vm.start();
    vm.wait_until_ready();
    assert_eq!(vm.handle.wait_timeout(Duration::from_millis(50)).unwrap(), None);
    vm.power_off();
    vm.wait_for_end();
    for wait in waits {
        assert_eq!(wait.join().unwrap(), VmStatus::Stopped { exit_code: Some(0) });
    }
    // And a call after the end.
    assert!(vm.handle.wait_timeout(Duration::ZERO).unwrap().is_some());
}

fn wrong_phase(fixture: &Fixture<'_>) {
    let vm = fixture.vm(fixture.builder());
    assert_eq!(vm.handle.status(), VmStatus::Created);
    assert!(matches!(vm.handle.stop(), Err(Error::NotRunning)));
    assert!(matches!(vm.handle.kill(), Err(Error::NotRunning)));
    vm.start();
    assert!(matches!(vm.handle.start(), Err(Error::AlreadyRunning)));
    vm.handle.kill().unwrap();
    assert!(matches!(vm.handle.start(), Err(Error::AlreadyRunning)));
}

fn stop_while_starting(fixture: &Fixture<'_>) {
    let vm = fixture.vm(fixture.builder());
    let handle = vm.handle.clone();
    let starting = std::thread::spawn(move || handle.start());
    eventually("the VM is starting", || vm.handle.status() != VmStatus::Created);
    // The grace period of an hour only begins if the start has finished before.
    let handle = vm.handle.clone();
    let stopping = std::thread::spawn(move || handle.stop_with_timeout(Duration::from_secs(3600)));
    match starting.join().unwrap() {
        Ok(()) => vm.handle.kill().unwrap(),
        Err(error) => assert!(matches!(error, Error::StartFailed(_)), "{error:?}"),
    }
    stopping.join().unwrap().unwrap();
    assert!(vm.handle.status().is_terminal());
}

fn wait_ends_with_guest(fixture: &Fixture<'_>) {
    let mut vm = fixture.boot(fixture.builder());
    vm.power_off();
    let result = vm.console.wait_for_timeout("never printed", PATIENCE);
    let Err(Error::GuestEnded { how, .. }) = &result else { panic!("{result:?}") };
    assert_eq!(how.ended_by, EndedBy::GuestPowerOff);
}
