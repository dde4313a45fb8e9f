//! The stop ladder, on guests and hypervisors that heed it and on those that do not.

use std::time::{Duration, Instant};

use capsa::{EndedBy, Error, StopStep, VmStatus};
use nix::sys::signal::Signal;

use super::outside::signal;
use super::{Scenario, Stage};
use capsa_testkit::processes::runs;
use capsa_testkit::vm::eventually;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::linux("a_stop_reaches_the_guest", polite),
    Scenario::any("a_deaf_guest_loses_its_power_after_the_grace", deaf_guest),
    Scenario::any("a_hypervisor_that_hangs_is_killed_in_the_end", hung_hypervisor),
    Scenario::any("a_kill_does_not_ask", kill),
    Scenario::any("a_kill_ends_the_grace", kill_while_stopping),
    Scenario::any("dropping_the_last_handle_kills_and_leaves_nothing", drop_last_handle),
];

fn polite(stage: &Stage<'_>) {
    let machine = stage.boot(stage.builder());
    machine.vm.stop().unwrap();
    let report = machine.ended();
    assert_eq!(
        (report.ended_by, report.steps),
        (EndedBy::GuestPowerOff, vec![StopStep::PowerButton])
    );
    assert_eq!(machine.vm.status(), VmStatus::Stopped { exit_code: Some(0) });
}

fn deaf_guest(stage: &Stage<'_>) {
    let grace = Duration::from_millis(300);
    let mut machine = stage.boot(stage.deaf_builder());
    machine.deafen();
    let begin = Instant::now();
    machine.vm.stop_with_timeout(grace).unwrap();
    assert!(begin.elapsed() >= grace, "the grace was {:?}", begin.elapsed());
    let report = machine.ended();
    let steps = vec![StopStep::PowerButton, StopStep::Quit];
    assert_eq!((report.ended_by.clone(), &report.steps), (EndedBy::Owner, &steps), "{report:?}");
    assert!(report.to_string().contains("within its grace"), "{report}");
}

fn hung_hypervisor(stage: &Stage<'_>) {
    let mut machine = stage.boot(stage.deaf_builder());
    machine.deafen();
    let pid = machine.pid();
    // It neither answers nor quits, and only what it cannot refuse ends it.
    signal(pid, Signal::SIGSTOP);
    machine.vm.stop_with_timeout(Duration::from_millis(100)).unwrap();
    let report = machine.ended();
    let steps = [StopStep::PowerButton, StopStep::Quit, StopStep::Killed];
    assert_eq!((report.ended_by, &report.steps[..]), (EndedBy::Owner, &steps[..]));
    assert!(!runs(pid), "it was reaped");
}

fn kill(stage: &Stage<'_>) {
    let machine = stage.boot(stage.builder());
    let pid = machine.pid();
    machine.vm.kill().unwrap();
    assert!(!runs(pid), "a kill comes back when it is gone");
    assert_eq!(machine.vm.status(), VmStatus::Stopped { exit_code: None });
    let report = machine.ended();
    assert_eq!((report.ended_by, report.steps), (EndedBy::Owner, vec![StopStep::Killed]));
    // It is over, and saying so again is no error.
    machine.vm.stop().unwrap();
    machine.vm.kill().unwrap();
}

fn kill_while_stopping(stage: &Stage<'_>) {
    let mut machine = stage.boot(stage.deaf_builder());
    machine.deafen();
    let vm = machine.vm.clone();
    let stopping = std::thread::spawn(move || vm.stop_with_timeout(Duration::from_secs(3600)));
    eventually("it is stopping", || machine.vm.status() == VmStatus::Stopping);
    machine.vm.kill().unwrap();
    stopping.join().unwrap().unwrap();
    assert_eq!(machine.ended().steps, [StopStep::PowerButton, StopStep::Killed]);
}

fn drop_last_handle(stage: &Stage<'_>) {
    let mut machine = stage.boot(stage.builder());
    let pid = machine.pid();
    let run_dir = machine.vm.launch_plan().run_dir.to_string();
    let mut console = machine.vm.console().unwrap();
    drop(machine.vm.clone());
    machine.echoes("still here");
    drop(machine);
    assert!(!std::path::Path::new(&run_dir).exists(), "the run directory is gone at once");
    eventually("the hypervisor is gone", || !runs(pid));
    // Whoever still waits is told.
    let told = console.wait_for("never said");
    assert!(matches!(told, Err(Error::PatternNotFound { .. })), "{told:?}");
}
