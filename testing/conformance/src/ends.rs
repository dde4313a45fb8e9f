//! The stop report distinguishes the ways in which a VM ends.

use std::time::{Duration, Instant};

use capsa::{EndedBy, RebootPolicy, StopStep, VmStatus};

use super::vm::GuestInterface;
use super::{Fixture, Scenario};
use capsa_fixtures::nano;
use capsa_testkit::vm::eventually;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::any("guest_power_off_is_reported", guest_power_off),
    Scenario::any("guest_reboot_ends_vm", guest_reboot).uses(&["reboot_end"]),
    Scenario::any("guest_reboot_with_policy_restarts", restart).uses(&["reboot_restart"]),
    Scenario::linux("guest_reboot_clears_memory", restart_of_linux).uses(&["reboot_restart"]),
    // With the default policy on every backend.
    Scenario::linux("kernel_panic_ends_vm", kernel_panic),
    Scenario::linux("kernel_panic_differs_from_reboot", panic_or_reboot).uses(&["reboot_end"]),
    Scenario::any("time_limit_ends_vm_and_is_reported", time_limit),
];

fn guest_power_off(fixture: &Fixture<'_>) {
    let mut vm = fixture.boot(fixture.builder());
    vm.power_off();
    let report = vm.wait_for_end();
    assert_eq!((report.ended_by, report.steps), (EndedBy::GuestPowerOff, vec![]));
    assert_eq!(vm.handle.status(), VmStatus::Stopped { exit_code: Some(0) });
}

fn guest_reboot(fixture: &Fixture<'_>) {
    let builder = || fixture.builder().on_reboot(RebootPolicy::End);
    let mut vm = fixture.boot(builder());
    vm.reset();
    assert_eq!(vm.wait_for_end().ended_by, EndedBy::GuestReboot);
    assert_eq!(vm.handle.status(), VmStatus::Stopped { exit_code: Some(0) });
    if fixture.interface() == GuestInterface::Nano {
        let mut vm = fixture.boot(builder());
        vm.console.write(&[nano::TRIPLE_FAULT]).unwrap();
        assert_eq!(vm.wait_for_end().ended_by, EndedBy::GuestReboot);
    }
}

fn restart(fixture: &Fixture<'_>) {
    let mut vm = fixture.boot(fixture.builder().on_reboot(RebootPolicy::Restart));
    let pid = vm.pid();
    vm.reset();
    vm.wait_until_rebooted();
    vm.echoes("after the reboot");
    assert_eq!(vm.handle.status(), VmStatus::Running);
    assert_eq!(vm.pid(), pid, "the hypervisor was restarted");
    vm.power_off();
    assert_eq!(vm.wait_for_end().ended_by, EndedBy::GuestPowerOff);
}

fn restart_of_linux(fixture: &Fixture<'_>) {
    let mut vm = fixture.boot(fixture.builder().on_reboot(RebootPolicy::Restart));
    vm.sh("touch /in-memory");
    vm.reset();
    vm.wait_until_rebooted();
    assert!(!vm.succeeds("test -e /in-memory"));
    vm.handle.stop().unwrap();
    assert_eq!(vm.wait_for_end().ended_by, EndedBy::GuestPowerOff);
}

fn kernel_panic(fixture: &Fixture<'_>) {
    let mut vm = fixture.boot(fixture.builder());
    vm.console.write_line("echo c >/proc/sysrq-trigger").unwrap();
    assert_eq!(vm.wait_for_end().ended_by, EndedBy::GuestPanic);
}

fn panic_or_reboot(fixture: &Fixture<'_>) {
    kernel_panic(fixture);
    let mut vm = fixture.boot(fixture.builder().on_reboot(RebootPolicy::End));
    vm.reset();
    assert_eq!(vm.wait_for_end().ended_by, EndedBy::GuestReboot);
}

fn time_limit(fixture: &Fixture<'_>) {
    let limit = Duration::from_millis(500);
    let vm = fixture.vm(fixture.builder_without_power_button().timeout(limit));
    let begin = Instant::now();
    vm.start();
    eventually("the VM is stopping", || vm.handle.status() == VmStatus::Stopping);
    assert!(begin.elapsed() >= limit, "after {:?}", begin.elapsed());
    // The stop ladder began with the default grace period; a shorter one ends the test sooner.
    vm.handle.stop_with_timeout(Duration::from_millis(100)).unwrap();
    let report = vm.wait_for_end();
    assert!(report.time_limit, "{report:?}");
    assert!(report.steps.starts_with(&[StopStep::PowerButton]), "{report:?}");
    assert!(report.to_string().ends_with("time limit reached"), "{report}");
}
