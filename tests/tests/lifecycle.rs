//! The life of a machine, with the nano guest on the real QEMU.

use std::time::{Duration, Instant};

use capsa::blocking::VmHandle;
use capsa::{EndedBy, Error, Overflow, RebootPolicy, StopStep, VmStatus};
use capsa_test::nano;
use capsa_test::vm::{NanoGuest, PATIENCE, eventually, runs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The guest runs and listens.
fn listening(vm: &VmHandle) -> capsa::blocking::VmConsole {
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.wait_for_timeout("NANO READY\r\n", PATIENCE).unwrap();
    console
}

fn pid(vm: &VmHandle) -> u32 {
    vm.hypervisor_pid().expect("it runs")
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

#[test]
fn not_one_byte_of_early_output_is_lost() {
    let Some(guest) = NanoGuest::new("early output") else { return };
    let vm = guest.builder().cmdline_override("first=1").build_blocking().unwrap();
    vm.start().unwrap();
    // Nobody has looked yet, and it has long said all it has to say.
    std::thread::sleep(Duration::from_millis(300));
    let mut console = vm.console().unwrap();
    let early = console.wait_for_timeout("READY\r\n", PATIENCE).unwrap();
    assert_eq!(early, "CMDLINE first=1\r\nNANO READY\r\n");
}

#[test]
fn the_console_goes_both_ways_byte_for_byte() {
    let Some(guest) = NanoGuest::new("both ways") else { return };
    let vm = guest.builder().build_blocking().unwrap();
    let mut console = listening(&vm);
    console.write_line("hello\tworld").unwrap();
    assert_eq!(console.wait_for_timeout("world\n", PATIENCE).unwrap(), "hello\tworld\n");
    console.send_interrupt().unwrap();
    assert_eq!(console.wait_for_timeout("\x03", PATIENCE).unwrap(), "\x03");
}

#[test]
fn a_flood_that_nobody_reads_arrives_whole() {
    let Some(guest) = NanoGuest::new("flood") else { return };
    let vm = guest.builder().build_blocking().unwrap();
    let mut console = listening(&vm);
    console.write(&[nano::FLOOD, nano::POWER_OFF]).unwrap();
    assert_eq!(vm.wait().unwrap(), VmStatus::Stopped { exit_code: Some(0) });
    let mut flood = Vec::new();
    let mut chunk = [0; 1000];
    while let n @ 1.. = console.read(&mut chunk).unwrap() {
        flood.extend_from_slice(&chunk[..n]);
    }
    assert!(flood.starts_with(&nano::flood()), "{} bytes came", flood.len());
}

#[test]
fn a_guest_that_heeds_its_power_button_is_only_asked() {
    let Some(guest) = NanoGuest::new("power button") else { return };
    let vm = guest.builder().build_blocking().unwrap();
    let _console = listening(&vm);
    vm.stop().unwrap();
    let report = vm.stop_report().unwrap();
    assert_eq!((report.ended_by, report.steps), (EndedBy::GuestPowerOff, vec![StopStep::Asked]));
    assert_eq!(vm.status(), VmStatus::Stopped { exit_code: Some(0) });
}

#[test]
fn a_deaf_guest_loses_its_power_after_the_grace() {
    let Some(guest) = NanoGuest::deaf("deaf guest") else { return };
    let vm = guest.builder().build_blocking().unwrap();
    let _console = listening(&vm);
    let begin = Instant::now();
    vm.stop_with_timeout(Duration::from_millis(300)).unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(300));
    let report = vm.stop_report().unwrap();
    assert_eq!(
        (report.ended_by, report.steps),
        (EndedBy::Owner, vec![StopStep::Asked, StopStep::Quit])
    );
}

#[test]
fn a_power_off_of_the_guest_is_its_own() {
    let Some(guest) = NanoGuest::new("own power-off") else { return };
    let vm = guest.builder().build_blocking().unwrap();
    listening(&vm).write(&[nano::POWER_OFF]).unwrap();
    assert_eq!(vm.wait().unwrap(), VmStatus::Stopped { exit_code: Some(0) });
    let report = vm.stop_report().unwrap();
    assert_eq!((report.ended_by, report.steps), (EndedBy::GuestPowerOff, vec![]));
}

#[test]
fn a_reset_ends_the_machine_unless_it_shall_restart() {
    let Some(guest) = NanoGuest::new("reset") else { return };
    for order in [nano::RESET, nano::TRIPLE_FAULT] {
        let vm = guest.builder().build_blocking().unwrap();
        listening(&vm).write(&[order]).unwrap();
        assert_eq!(vm.wait().unwrap(), VmStatus::Stopped { exit_code: Some(0) });
        assert_eq!(vm.stop_report().unwrap().ended_by, EndedBy::GuestReboot);
    }
    let vm = guest.builder().on_reboot(RebootPolicy::Restart).build_blocking().unwrap();
    let mut console = listening(&vm);
    console.write(&[nano::RESET]).unwrap();
    console.wait_for_timeout("NANO READY\r\n", PATIENCE).unwrap();
    assert_eq!(vm.status(), VmStatus::Running);
}

#[test]
fn kill_does_not_ask() {
    let Some(guest) = NanoGuest::new("kill") else { return };
    let vm = guest.builder().build_blocking().unwrap();
    let _console = listening(&vm);
    let pid = pid(&vm);
    vm.kill().unwrap();
    assert!(!runs(pid));
    assert_eq!(vm.status(), VmStatus::Stopped { exit_code: None });
    assert_eq!(vm.stop_report().unwrap().steps, [StopStep::Killed]);
    // It is over, and saying so again is no error.
    vm.stop().unwrap();
    vm.kill().unwrap();
}

#[test]
fn dropping_the_last_handle_kills_and_leaves_nothing() {
    let Some(guest) = NanoGuest::new("drop") else { return };
    let vm = guest.builder().build_blocking().unwrap();
    let mut console = listening(&vm);
    let pid = pid(&vm);
    let run_dir = vm.launch_plan().run_dir.to_string();
    let second = vm.clone();
    drop(vm);
    console.write_line("still here").unwrap();
    console.wait_for_timeout("still here", PATIENCE).unwrap();
    drop(second);
    assert!(!std::path::Path::new(&run_dir).exists(), "the run directory is gone at once");
    eventually("the hypervisor is gone", || !runs(pid));
    // Whoever still waits is told.
    assert!(matches!(console.wait_for("never"), Err(Error::PatternNotFound { .. })));
}

#[test]
fn dropping_a_machine_that_never_ran_tells_who_waits() {
    let Some(guest) = NanoGuest::new("never ran") else { return };
    let vm = guest.builder().build_blocking().unwrap();
    let mut console = vm.console().unwrap();
    drop(vm);
    let told = console.wait_for_timeout("never", PATIENCE);
    assert!(matches!(told, Err(Error::PatternNotFound { .. })), "{told:?}");

    let (vm, driver) = futures_lite::future::block_on(guest.builder().build_driven()).unwrap();
    drop(vm);
    let end = futures_lite::future::block_on(driver).unwrap();
    assert_eq!(end, VmStatus::Stopped { exit_code: None });
}

#[test]
fn any_number_of_waits_return() {
    let Some(guest) = NanoGuest::new("waits") else { return };
    let vm = guest.builder().build_blocking().unwrap();
    let waits: Vec<_> = (0..3)
        .map(|_| {
            let vm = vm.clone();
            std::thread::spawn(move || vm.wait().unwrap())
        })
        .collect();
    let mut console = listening(&vm);
    assert_eq!(vm.wait_timeout(Duration::from_millis(50)).unwrap(), None);
    console.write(&[nano::POWER_OFF]).unwrap();
    for wait in waits {
        assert_eq!(wait.join().unwrap(), VmStatus::Stopped { exit_code: Some(0) });
    }
    assert!(vm.wait_timeout(Duration::ZERO).unwrap().is_some());
}

#[test]
fn wishes_at_the_wrong_moment_do_what_is_documented() {
    let Some(guest) = NanoGuest::deaf("wrong moment") else { return };
    let vm = guest.builder().build_blocking().unwrap();
    assert!(matches!(vm.stop(), Err(Error::NotRunning)));
    assert!(matches!(vm.kill(), Err(Error::NotRunning)));
    let _console = listening(&vm);
    assert!(matches!(vm.start(), Err(Error::AlreadyRunning)));
    // A kill while stopping ends the grace.
    let stopping = {
        let vm = vm.clone();
        std::thread::spawn(move || vm.stop_with_timeout(Duration::from_secs(3600)))
    };
    eventually("it is stopping", || vm.status() == VmStatus::Stopping);
    vm.kill().unwrap();
    stopping.join().unwrap().unwrap();
    assert!(matches!(vm.start(), Err(Error::AlreadyRunning)));
}

#[test]
fn a_stop_while_starting_kills_at_once() {
    let Some(guest) = NanoGuest::new("stop while starting") else { return };
    let vm = guest.builder().build_blocking().unwrap();
    let starting = {
        let vm = vm.clone();
        std::thread::spawn(move || vm.start())
    };
    eventually("it is starting", || vm.status() != VmStatus::Created);
    let begin = Instant::now();
    vm.stop_with_timeout(Duration::from_secs(3600)).unwrap();
    assert!(begin.elapsed() < PATIENCE);
    // The start either came through just before, or says that it did not.
    if let Err(error) = starting.join().unwrap() {
        assert!(matches!(error, Error::StartFailed(_)), "{error}");
    }
    assert!(vm.status().is_terminal());
}

#[test]
fn a_wait_that_times_out_consumes_nothing_and_says_what_it_saw() {
    let Some(guest) = NanoGuest::new("timeout") else { return };
    let vm = guest.builder().build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.wait_for_timeout("CMDLINE", PATIENCE).unwrap();
    eventually("it is ready", || {
        console.wait_for_timeout("never", Duration::from_millis(20)).is_err_and(|error| {
            let Error::Timeout { expected, tail, .. } = error else { panic!("{error}") };
            assert_eq!(expected, "\"never\"");
            tail.ends_with("NANO READY\r\n")
        })
    });
    console.wait_for_timeout("NANO READY", Duration::ZERO).unwrap();
}

#[test]
fn a_guest_that_dies_ends_a_wait_at_once() {
    let Some(guest) = NanoGuest::new("death ends a wait") else { return };
    let vm = guest.builder().build_blocking().unwrap();
    let mut console = listening(&vm);
    console.write(&[nano::POWER_OFF]).unwrap();
    let begin = Instant::now();
    let error = console.wait_for_timeout("never", Duration::from_secs(3600)).unwrap_err();
    assert!(begin.elapsed() < PATIENCE);
    assert!(matches!(error, Error::PatternNotFound { .. }), "{error}");
}

#[test]
fn the_time_limit_ends_it_and_says_so() {
    let Some(guest) = NanoGuest::new("time limit") else { return };
    let vm = guest.builder().timeout(Duration::from_millis(700)).build_blocking().unwrap();
    vm.start().unwrap();
    vm.wait().unwrap();
    assert!(vm.stop_report().unwrap().time_limit);
}

#[test]
fn a_hypervisor_killed_from_outside_is_told_from_a_power_off() {
    let Some(guest) = NanoGuest::new("killed from outside") else { return };
    for (with, says) in
        [(Signal::SIGKILL, "qemu was killed by signal 9"), (Signal::SIGTERM, "another process")]
    {
        let vm = guest.builder().build_blocking().unwrap();
        let _console = listening(&vm);
        signal(pid(&vm), with);
        let VmStatus::Failed { message } = vm.wait().unwrap() else { panic!("not failed") };
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn a_start_that_fails_has_the_hypervisors_words() {
    let Some(guest) = NanoGuest::new("bad kernel") else { return };
    // An ELF header and nothing behind it: a check from outside cannot tell, QEMU can.
    std::fs::write(guest.kernel(), b"\x7fELF and no more").unwrap();
    let vm = guest.builder().build_blocking().unwrap();
    let error = vm.start().unwrap_err();
    let Error::StartFailed(why) = &error else { panic!("{error}") };
    assert!(why.contains("qemu exited with status 1") && why.contains("kernel"), "{why}");
    assert!(matches!(vm.status(), VmStatus::Failed { .. }));
}

#[test]
fn a_machine_without_console_has_none() {
    let Some(guest) = NanoGuest::new("no console") else { return };
    let builder = guest.builder().console(capsa::ConsoleMode::Disabled);
    let vm = builder.build_blocking().unwrap();
    vm.start().unwrap();
    assert!(matches!(vm.console(), Err(Error::ConsoleNotEnabled)));
    vm.kill().unwrap();
}

#[test]
fn a_paused_console_loses_nothing_when_its_guest_ends() {
    let Some(guest) = NanoGuest::new("paused console") else { return };
    let vm = guest.builder().scrollback(4096, Overflow::Pause).build_blocking().unwrap();
    let mut console = listening(&vm);
    // The log is full long before the flood is over, and nobody reads until the guest is gone.
    console.write(&[nano::FLOOD, nano::POWER_OFF]).unwrap();
    let mut flood = Vec::new();
    let mut chunk = [0; 512];
    while let n @ 1.. = console.read(&mut chunk).unwrap() {
        flood.extend_from_slice(&chunk[..n]);
        if flood.len() == 60 * 512 {
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    assert_eq!(flood.len(), nano::flood().len());
    assert!(flood == nano::flood());
}
