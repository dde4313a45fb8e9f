//! Calls from many threads and at the wrong moment do what is documented.

use std::time::Duration;

use capsa::{EndedBy, Error, VmStatus};

use super::machine::PATIENCE;
use super::{Scenario, Stage};
use capsa_testkit::vm::eventually;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::any("any_number_of_waits_return", many_waits),
    Scenario::any("a_machine_starts_once_and_stops_only_after_that", wrong_moment),
    Scenario::any("a_stop_while_starting_kills_at_once", stop_while_starting),
    Scenario::any("a_guest_that_dies_ends_a_wait_for_its_words", death_ends_a_wait),
];

fn many_waits(stage: &Stage<'_>) {
    let mut machine = stage.machine(stage.builder());
    // From before the start on.
    let waits: Vec<_> = (0..8)
        .map(|_| {
            let vm = machine.vm.clone();
            std::thread::spawn(move || vm.wait().unwrap())
        })
        .collect();
    machine.start();
    machine.listens();
    assert_eq!(machine.vm.wait_timeout(Duration::from_millis(50)).unwrap(), None);
    machine.power_off();
    machine.ended();
    for wait in waits {
        assert_eq!(wait.join().unwrap(), VmStatus::Stopped { exit_code: Some(0) });
    }
    // And after the end.
    assert!(machine.vm.wait_timeout(Duration::ZERO).unwrap().is_some());
}

fn wrong_moment(stage: &Stage<'_>) {
    let machine = stage.machine(stage.builder());
    assert_eq!(machine.vm.status(), VmStatus::Created);
    assert!(matches!(machine.vm.stop(), Err(Error::NotRunning)));
    assert!(matches!(machine.vm.kill(), Err(Error::NotRunning)));
    machine.start();
    assert!(matches!(machine.vm.start(), Err(Error::AlreadyRunning)));
    machine.vm.kill().unwrap();
    assert!(matches!(machine.vm.start(), Err(Error::AlreadyRunning)));
}

fn stop_while_starting(stage: &Stage<'_>) {
    let machine = stage.machine(stage.builder());
    let vm = machine.vm.clone();
    let starting = std::thread::spawn(move || vm.start());
    eventually("it is starting", || machine.vm.status() != VmStatus::Created);
    // A grace of an hour, of which nothing is waited for unless the start was quicker than us.
    let vm = machine.vm.clone();
    let stopping = std::thread::spawn(move || vm.stop_with_timeout(Duration::from_secs(3600)));
    match starting.join().unwrap() {
        Ok(()) => machine.vm.kill().unwrap(),
        Err(error) => assert!(matches!(error, Error::StartFailed(_)), "{error:?}"),
    }
    stopping.join().unwrap().unwrap();
    assert!(machine.vm.status().is_terminal());
}

fn death_ends_a_wait(stage: &Stage<'_>) {
    let mut machine = stage.boot(stage.builder());
    machine.power_off();
    let told = machine.console.wait_for_timeout("never said", PATIENCE);
    let Err(Error::PatternNotFound { ended: Some(report), .. }) = &told else { panic!("{told:?}") };
    assert_eq!(report.ended_by, EndedBy::GuestPowerOff);
}
