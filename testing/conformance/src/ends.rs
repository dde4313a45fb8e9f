//! Each way a machine ends is told from every other.

use std::time::{Duration, Instant};

use capsa::{EndedBy, RebootPolicy, StopStep, VmStatus};

use super::machine::Speech;
use super::{Scenario, Stage};
use capsa_fixtures::nano;
use capsa_testkit::vm::eventually;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::any("a_power_off_of_the_guest_is_its_own", guest_power_off),
    Scenario::any("a_reboot_of_the_guest_ends_the_machine", guest_reboot).uses(&["reboot_end"]),
    Scenario::any("a_reboot_restarts_where_that_was_asked_for", restart).uses(&["reboot_restart"]),
    Scenario::linux("a_reboot_forgets_what_was_in_memory", restart_of_linux)
        .uses(&["reboot_restart"]),
    // By default, on every backend: each has its way to know.
    Scenario::linux("a_kernel_panic_ends_the_machine", kernel_panic),
    Scenario::linux("a_kernel_panic_is_told_from_a_reboot", panic_or_reboot).uses(&["reboot_end"]),
    Scenario::any("the_time_limit_ends_it_and_says_so", time_limit),
];

fn guest_power_off(stage: &Stage<'_>) {
    let mut machine = stage.boot(stage.builder());
    machine.power_off();
    let report = machine.ended();
    assert_eq!((report.ended_by, report.steps), (EndedBy::GuestPowerOff, vec![]));
    assert_eq!(machine.vm.status(), VmStatus::Stopped { exit_code: Some(0) });
}

fn guest_reboot(stage: &Stage<'_>) {
    let builder = || stage.builder().on_reboot(RebootPolicy::End);
    let mut machine = stage.boot(builder());
    machine.reset();
    assert_eq!(machine.ended().ended_by, EndedBy::GuestReboot);
    assert_eq!(machine.vm.status(), VmStatus::Stopped { exit_code: Some(0) });
    if stage.speech() == Speech::Nano {
        let mut machine = stage.boot(builder());
        machine.console.write(&[nano::TRIPLE_FAULT]).unwrap();
        assert_eq!(machine.ended().ended_by, EndedBy::GuestReboot);
    }
}

fn restart(stage: &Stage<'_>) {
    let mut machine = stage.boot(stage.builder().on_reboot(RebootPolicy::Restart));
    let pid = machine.pid();
    machine.reset();
    machine.listens_again();
    machine.echoes("back again");
    assert_eq!(machine.vm.status(), VmStatus::Running);
    assert_eq!(machine.pid(), pid, "it is the same machine");
    machine.power_off();
    assert_eq!(machine.ended().ended_by, EndedBy::GuestPowerOff);
}

fn restart_of_linux(stage: &Stage<'_>) {
    let mut machine = stage.boot(stage.builder().on_reboot(RebootPolicy::Restart));
    machine.sh("touch /in-memory");
    machine.reset();
    machine.listens_again();
    assert!(!machine.succeeds("test -e /in-memory"));
    machine.vm.stop().unwrap();
    assert_eq!(machine.ended().ended_by, EndedBy::GuestPowerOff);
}

fn kernel_panic(stage: &Stage<'_>) {
    let mut machine = stage.boot(stage.builder());
    machine.console.write_line("echo c >/proc/sysrq-trigger").unwrap();
    assert_eq!(machine.ended().ended_by, EndedBy::GuestPanic);
}

fn panic_or_reboot(stage: &Stage<'_>) {
    kernel_panic(stage);
    let mut machine = stage.boot(stage.builder().on_reboot(RebootPolicy::End));
    machine.reset();
    assert_eq!(machine.ended().ended_by, EndedBy::GuestReboot);
}

fn time_limit(stage: &Stage<'_>) {
    let limit = Duration::from_millis(500);
    let machine = stage.machine(stage.deaf_builder().timeout(limit));
    let begin = Instant::now();
    machine.start();
    eventually("it is stopping", || machine.vm.status() == VmStatus::Stopping);
    assert!(begin.elapsed() >= limit, "after {:?}", begin.elapsed());
    // The guest is asked with the usual grace. It need not be waited for here.
    machine.vm.stop_with_timeout(Duration::from_millis(100)).unwrap();
    let report = machine.ended();
    assert!(report.time_limit, "{report:?}");
    assert!(report.steps.starts_with(&[StopStep::PowerButton]), "{report:?}");
    assert!(report.to_string().ends_with("time limit reached"), "{report}");
}
