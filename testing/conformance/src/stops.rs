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
    Scenario::any("paused_guest_is_silent_until_resume", pause),
    Scenario::linux("stop_of_paused_vm_powers_guest_off", stop_paused),
    Scenario::any("kill_of_paused_vm_ends_it", kill_paused),
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
    let mut steps = vec![StopStep::PowerButton, StopStep::Quit];
    if !fixture.subject.traits.quits_in_time {
        steps.push(StopStep::Killed);
    }
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

fn pause(fixture: &Fixture<'_>) {
    let mut vm = fixture.boot(fixture.builder());
    vm.handle.pause().unwrap();
    vm.handle.pause().unwrap();
    assert_eq!(vm.handle.status(), VmStatus::Paused);
    let quiet = Duration::from_millis(300);
    vm.console.write_line("echo paused").unwrap();
    let result = vm.console.wait_for_timeout("paused", quiet);
    assert!(result.is_err(), "the paused guest echoes: {result:?}");
    assert_eq!(vm.handle.wait_timeout(Duration::ZERO).unwrap(), None);
    vm.handle.resume().unwrap();
    vm.handle.resume().unwrap();
    assert_eq!(vm.handle.status(), VmStatus::Running);
    vm.console.wait_for("paused").unwrap();
    vm.handle.kill().unwrap();
    let after = [vm.handle.pause(), vm.handle.resume()];
    assert!(after.iter().all(|it| matches!(it, Err(Error::NotRunning))), "{after:?}");
}

fn stop_paused(fixture: &Fixture<'_>) {
    let vm = fixture.boot(fixture.builder());
    vm.handle.pause().unwrap();
    vm.handle.stop().unwrap();
    let report = vm.wait_for_end();
    assert_eq!(
        (report.ended_by, report.steps),
        (EndedBy::GuestPowerOff, vec![StopStep::PowerButton])
    );
}

fn kill_paused(fixture: &Fixture<'_>) {
    // A short grace period ends with the quit command, which a paused VM obeys too.
    for kill in [true, false] {
        let mut vm = fixture.boot(fixture.builder_without_power_button());
        vm.ignore_power_button();
        vm.handle.pause().unwrap();
        match kill {
            true => vm.handle.kill().unwrap(),
            false => vm.handle.stop_with_timeout(Duration::ZERO).unwrap(),
        }
        assert_eq!(vm.wait_for_end().ended_by, EndedBy::Owner);
    }
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
