//! Texts of a panic on the console, which may explain an end.

use super::*;

#[test]
fn reset_after_console_panic_is_panic() {
    let mut vm = LifecycleTest::running(&plan(0));
    vm.input(Input::ConsolePanic);
    assert_eq!(*vm.lifecycle.status(), VmStatus::Running, "console text alone does not end the VM");
    vm.input(Input::Guest(GuestEvent::Reset)).input(Input::HypervisorExited(Exit::with_code(0)));
    assert_eq!(vm.report().ended_by, EndedBy::GuestPanic);
}

#[test]
fn console_texts_explain_reset_in_any_order() {
    let reset = || Input::Guest(GuestEvent::Reset);
    for (inputs, want) in [
        (vec![Input::ConsolePanic, Input::ConsoleNoPanic, reset()], EndedBy::GuestReboot),
        // The event comes before the texts are read.
        (vec![Input::ConsolePanic, reset(), Input::ConsoleNoPanic], EndedBy::GuestReboot),
        (vec![reset(), Input::ConsolePanic], EndedBy::GuestPanic),
        (vec![Input::ConsoleNoPanic, Input::ConsolePanic, reset()], EndedBy::GuestPanic),
    ] {
        let mut vm = LifecycleTest::running(&plan(0));
        for input in inputs {
            vm.input(input);
        }
        vm.input(Input::HypervisorExited(Exit::with_code(0)));
        assert_eq!(vm.report().ended_by, want);
    }
}

#[test]
fn panic_before_restart_is_not_cause_of_later_exit() {
    let mut plan = plan(0);
    plan.on_reboot = RebootPolicy::Restart;
    let mut vm = LifecycleTest::running(&plan);
    // The guest restarts, and this hypervisor does not report it.
    vm.input(Input::ConsolePanic);
    vm.input(Input::HypervisorExited(Exit::with_code(0)));
    assert_eq!(vm.report().ended_by, EndedBy::GuestPowerOff);
}
