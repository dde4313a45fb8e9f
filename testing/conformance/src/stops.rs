//! The stop ladder, with guests and hypervisors that react and with those that do not.

use std::time::{Duration, Instant};

use capsa::{EndedBy, Error, StopStep, VmStatus};
use nix::sys::signal::Signal;

use super::outside::signal;
use super::{Fixture, Scenario};
use capsa_testkit::processes::runs;
use capsa_testkit::vm::eventually;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::linux("stop_powers_guest_off", power_button),
    Scenario::any("stop_without_button_quits_after_grace", without_power_button),
    Scenario::any("stop_hung_hypervisor_is_killed", hung_hypervisor),
    Scenario::any("kill_ends_vm_at_once", kill),
    Scenario::any("kill_ends_grace_period", kill_while_stopping),
    Scenario::any("drop_last_handle_kills_and_cleans_up", drop_last_handle),
];

fn power_button(fixture: &Fixture<'_>) {
    let vm = fixture.boot(fixture.builder());
    vm.handle.stop().unwrap();
    let report = vm.wait_for_end();
    assert_eq!(
        (report.ended_by, report.steps),
        (EndedBy::GuestPowerOff, vec![StopStep::PowerButton])
    );
    assert_eq!(vm.handle.status(), VmStatus::Stopped { exit_code: Some(0) });
}

fn without_power_button(fixture: &Fixture<'_>) {
    let grace = Duration::from_millis(300);
    let mut vm = fixture.boot(fixture.builder_without_power_button());
    vm.ignore_power_button();
    let begin = Instant::now();
    vm.handle.stop_with_timeout(grace).unwrap();
    assert!(begin.elapsed() >= grace, "the grace period was {:?}", begin.elapsed());
    let report = vm.wait_for_end();
    let steps = vec![StopStep::PowerButton, StopStep::Quit];
    assert_eq!((report.ended_by.clone(), &report.steps), (EndedBy::Owner, &steps), "{report:?}");
    assert!(report.to_string().contains("within the grace period"), "{report}");
}

fn hung_hypervisor(fixture: &Fixture<'_>) {
    let mut vm = fixture.boot(fixture.builder_without_power_button());
    vm.ignore_power_button();
    let pid = vm.pid();
    // A stopped process neither replies nor quits. Only SIGKILL ends it.
    signal(pid, Signal::SIGSTOP);
    let begin = Instant::now();
    vm.handle.stop_with_timeout(Duration::from_millis(100)).unwrap();
    // Five seconds more than the grace period, and one second for a busy host.
    assert!(begin.elapsed() < Duration::from_millis(6100), "{:?}", begin.elapsed());
    let report = vm.wait_for_end();
    let steps = [StopStep::PowerButton, StopStep::Quit, StopStep::Killed];
    assert_eq!((report.ended_by, &report.steps[..]), (EndedBy::Owner, &steps[..]));
    assert!(!runs(pid), "the hypervisor still runs");
}

fn kill(fixture: &Fixture<'_>) {
    let vm = fixture.boot(fixture.builder());
    let pid = vm.pid();
    vm.handle.kill().unwrap();
    assert!(!runs(pid), "the kill returned before the exit");
    assert_eq!(vm.handle.status(), VmStatus::Stopped { exit_code: None });
    let report = vm.wait_for_end();
    assert_eq!((report.ended_by, report.steps), (EndedBy::Owner, vec![StopStep::Killed]));
    // Calls after the end succeed.
    vm.handle.stop().unwrap();
    vm.handle.kill().unwrap();
}

fn kill_while_stopping(fixture: &Fixture<'_>) {
    let mut vm = fixture.boot(fixture.builder_without_power_button());
    vm.ignore_power_button();
    let handle = vm.handle.clone();
    let stopping = std::thread::spawn(move || handle.stop_with_timeout(Duration::from_secs(3600)));
    eventually("the VM is stopping", || vm.handle.status() == VmStatus::Stopping);
    vm.handle.kill().unwrap();
    stopping.join().unwrap().unwrap();
    assert_eq!(vm.wait_for_end().steps, [StopStep::PowerButton, StopStep::Killed]);
}

fn drop_last_handle(fixture: &Fixture<'_>) {
    let mut vm = fixture.boot(fixture.builder());
    let pid = vm.pid();
    let run_dir = vm.handle.launch_plan().run_dir().display().to_string();
    let mut console = vm.handle.console().unwrap();
    drop(vm.handle.clone());
    vm.echoes("still here");
    drop(vm);
    assert!(!std::path::Path::new(&run_dir).exists(), "the run directory still exists");
    eventually("the hypervisor has exited", || !runs(pid));
    // A wait on a console returns an error.
    let result = console.wait_for("never printed");
    assert!(matches!(result, Err(Error::GuestEnded { .. })), "{result:?}");
}
