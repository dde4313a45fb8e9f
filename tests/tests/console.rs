//! The console from a test's side, with the nano guest, which echoes whatever it is sent: a guest
//! that says what the test wants.

use std::time::{Duration, Instant};

use capsa::blocking::{VmConsole, VmHandle};
use capsa::{EndedBy, Error};
use capsa_test::nano;
use capsa_test::vm::{NanoGuest, PATIENCE};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A machine that listens.
fn started(guest: &NanoGuest) -> (VmHandle, VmConsole) {
    let vm = guest.builder().build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.wait_for_timeout("NANO READY\r\n", PATIENCE).unwrap();
    (vm, console)
}

#[test]
fn a_guest_that_dies_ends_a_wait_at_once_and_by_name() {
    let Some(guest) = NanoGuest::new("death while waiting") else { return };
    type Deed = fn(&VmHandle, &mut VmConsole);
    let powers_off: Deed = |_, console| console.write(&[nano::POWER_OFF]).unwrap();
    let reboots: Deed = |_, console| console.write(&[nano::RESET]).unwrap();
    let is_lost: Deed = |vm, _| {
        let pid = vm.hypervisor_pid().unwrap();
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    };
    for (deed, words) in [
        (powers_off, "\"never\": guest powered off; "),
        (reboots, "\"never\": guest rebooted; "),
        (is_lost, "signal"),
    ] {
        let (vm, mut console) = started(&guest);
        console.write_str("last words").unwrap();
        deed(&vm, &mut console);
        let begin = Instant::now();
        let error = console.wait_for_timeout("never", PATIENCE).unwrap_err();
        assert!(begin.elapsed() < PATIENCE / 4, "not at the timeout: {:?}", begin.elapsed());
        let text = error.to_string();
        assert!(text.contains(words), "{text}");
        let Error::PatternNotFound { ended: Some(report), .. } = error else { panic!("{text}") };
        assert_eq!(Some(report), vm.stop_report());

        // Whoever comes later is told as well, and everything is still there to be read.
        let error = console.run("true", None).unwrap_err();
        assert!(matches!(error, Error::PatternNotFound { ended: Some(_), .. }), "{error}");
    }
}

#[test]
fn a_panic_ends_a_wait_within_a_second_while_the_machine_runs_on() {
    let Some(guest) = NanoGuest::new("panic while waiting") else { return };
    let (vm, mut console) = started(&guest);
    let panic = "[    1.5] Kernel panic - not syncing: no init\r\n---[ end Kernel panic\r\n";
    console.write_str(panic).unwrap();
    // Emulation takes its time to echo.
    vm.console().unwrap().wait_for_timeout("end Kernel panic\r\n", PATIENCE).unwrap();
    let begin = Instant::now();
    let error = console.wait_for("login:").unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    let Error::KernelPanic { expected, line, tail } = error else { panic!("{error}") };
    assert_eq!((&*expected, &*line), ("\"login:\"", "Kernel panic - not syncing: no init"));
    assert_eq!(tail, panic);

    let error = console.login("root", None).unwrap_err();
    assert!(matches!(error, Error::KernelPanic { .. }), "{error}");
    // It is still there for who looks for it.
    assert_eq!(console.wait_for("end Kernel panic\r\n").unwrap(), panic);
    vm.kill().unwrap();
    // A machine whose guest was seen to panic ended of it, or by its owner.
    assert!(matches!(vm.stop_report().unwrap().ended_by, EndedBy::Owner | EndedBy::GuestPanic));
}

#[test]
fn an_emergency_shell_is_an_error_of_login_and_told_by_a_timeout() {
    let Some(guest) = NanoGuest::new("emergency shell") else { return };
    let (vm, mut console) = started(&guest);
    console.write_str("Press Enter for maintenance\r\n(or press Control-D to continue): ").unwrap();
    vm.console().unwrap().wait_for_timeout("continue): ", PATIENCE).unwrap();
    let error = console.login("root", None).unwrap_err();
    let Error::EmergencyShell { line, .. } = error else { panic!("{error}") };
    assert_eq!(line, "Press Enter for maintenance");

    let error = console.wait_for_timeout("login:", Duration::from_millis(1)).unwrap_err();
    let Error::Timeout { hint: Some(hint), .. } = error else { panic!("{error}") };
    assert_eq!(hint, "the guest is in an emergency shell: Press Enter for maintenance");
    vm.kill().unwrap();
}
