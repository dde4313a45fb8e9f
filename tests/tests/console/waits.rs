//! Waits, readers and logs of the console, with the nano guest, which echoes its input.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use capsa::blocking::{VmConsole, VmHandle};
use capsa::console::Pattern;
use capsa::{EndedBy, Error};
use capsa_testkit::nano;
use capsa_testkit::vm::{NanoGuest, PATIENCE, in_time};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A VM whose guest is ready.
fn started(guest: &NanoGuest) -> (VmHandle, VmConsole) {
    let vm = guest.builder().build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.wait_for_timeout("NANO READY\r\n", PATIENCE).unwrap();
    (vm, console)
}

#[test]
fn guest_end_ends_wait_and_is_named() {
    let Some(guest) = NanoGuest::new() else { return };
    type EndGuest = fn(&VmHandle, &mut VmConsole);
    let powers_off: EndGuest = |_, console| console.write(&[nano::POWER_OFF]).unwrap();
    let reboots: EndGuest = |_, console| console.write(&[nano::RESET]).unwrap();
    let is_lost: EndGuest = |vm, _| {
        let pid = vm.hypervisor_pid().unwrap();
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    };
    for (end_guest, words) in [
        (powers_off, "\"never\": guest powered off, "),
        (reboots, "\"never\": guest rebooted, "),
        (is_lost, "signal"),
    ] {
        let (vm, mut console) = started(&guest);
        console.write_str("last words").unwrap();
        end_guest(&vm, &mut console);
        let (error, mut console) =
            in_time("the wait ends", move || (console.wait_for("never").unwrap_err(), console));
        let text = error.to_string();
        assert!(text.contains(words), "{text}");
        let Error::GuestEnded { how, .. } = error else { panic!("{text}") };
        assert_eq!(Some(*how), vm.stop_report());

        // A later wait gets the same error, and all output can still be read.
        let error = console.wait_for("ever").unwrap_err();
        assert!(matches!(error, Error::GuestEnded { .. }), "{error}");
    }
}

#[test]
fn kernel_panic_ends_wait_while_vm_runs() {
    let Some(guest) = NanoGuest::new() else { return };
    let (vm, mut console) = started(&guest);
    let panic = "[    1.500000] Kernel panic - not syncing: no init\r\n---[ end Kernel panic\r\n";
    console.write_str(panic).unwrap();
    // The echo of an emulated guest takes some time.
    vm.console().unwrap().wait_for_timeout("end Kernel panic\r\n", PATIENCE).unwrap();
    let error = console.wait_for_timeout("login:", PATIENCE).unwrap_err();
    let Error::KernelPanic { expected, line, tail } = error else { panic!("{error}") };
    assert_eq!((&*expected, &*line), ("\"login:\"", "Kernel panic - not syncing: no init"));
    assert_eq!(tail, panic);

    let error = console.login("root", None).unwrap_err();
    assert!(matches!(error, Error::KernelPanic { .. }), "{error}");
    // The output can still be read.
    assert_eq!(console.wait_for("end Kernel panic\r\n").unwrap(), panic);
    vm.kill().unwrap();
    // A VM whose guest has panicked ended by the panic or by its owner.
    assert!(matches!(vm.stop_report().unwrap().ended_by, EndedBy::Owner | EndedBy::GuestPanic));
}

#[test]
fn emergency_shell_fails_login_hints_timeout() {
    let Some(guest) = NanoGuest::new() else { return };
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

#[test]
fn regex_match_has_groups_and_consumes_to_its_end() {
    let Some(guest) = NanoGuest::new() else { return };
    let (vm, mut console) = started(&guest);
    console.write_str("inet 10.0.2.15/24\r\nroot@vm:~# ").unwrap();
    let address = Pattern::regex(r"inet (\d+(?:\.\d+){3})/").unwrap();
    let found = console.wait_for_pattern(&address, Some(PATIENCE)).unwrap();
    assert_eq!((found.text(), found.group(1)), ("inet 10.0.2.15/", Some("10.0.2.15")));
    // A prompt without a newline matches at its last byte: no later byte comes.
    let either = [Pattern::literal("never"), Pattern::regex(r"\w+@\w+:\S+[#$] ").unwrap()];
    let found = console.wait_for_any_pattern(&either, Some(PATIENCE)).unwrap();
    assert_eq!(
        (found.pattern, found.text(), &*found.output),
        (1, "root@vm:~# ", "24\r\nroot@vm:~# ")
    );
    let error = Pattern::regex("# $").unwrap_err().to_string();
    assert!(error.contains("has the assertion $, which is unsupported: write"), "{error}");
    vm.kill().unwrap();
}

#[test]
fn wait_error_names_near_misses() {
    let Some(guest) = NanoGuest::new() else { return };
    let (vm, mut console) = started(&guest);
    console.write_str("capsa login: ").unwrap();
    vm.console().unwrap().wait_for_timeout("login: ", PATIENCE).unwrap();
    for (pattern, expected) in [
        ("Login:", r#"waiting for "Login:"; "Login:" matches "login:" except for letter case; "#),
        (
            "login as",
            r#"; only the start of "login as" matched: "login", followed by ": "; last console output:"#,
        ),
    ] {
        let error = console.wait_for_timeout(pattern, Duration::from_millis(1)).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(expected), "{error}");
    }
    vm.kill().unwrap();
}

#[test]
fn wait_for_silence_returns_output_before_it() {
    let Some(guest) = NanoGuest::new() else { return };
    let (vm, mut console) = started(&guest);
    console.write_str("so much").unwrap();
    vm.console().unwrap().wait_for_timeout("so much", PATIENCE).unwrap();
    let quiet = Duration::from_millis(50);
    assert_eq!(console.wait_for_silence(quiet, Some(PATIENCE)).unwrap(), "so much");
    assert_eq!(console.wait_for_silence(quiet, None).unwrap(), "");
    let error = console.wait_for_silence(PATIENCE, Some(quiet)).unwrap_err();
    let Error::Timeout { expected, .. } = error else { panic!("{error}") };
    assert_eq!(expected, "60s of silence");
    vm.kill().unwrap();
    let error = console.wait_for_silence(quiet, None).unwrap_err();
    assert!(matches!(error, Error::GuestEnded { .. }), "{error}");
}

/// The lines of the guest's flood.
fn flood() -> String {
    String::from_utf8(nano::flood()).unwrap()
}

#[test]
fn readers_beside_a_wait_see_every_line() {
    let Some(guest) = NanoGuest::new() else { return };
    let (vm, mut console) = started(&guest);
    let tails: Vec<_> = (0..3)
        .map(|_| {
            let lines = console.reader().lines();
            std::thread::spawn(move || lines.collect::<Vec<String>>())
        })
        .collect();
    console.write(&[nano::FLOOD]).unwrap();
    let last = flood().lines().last().unwrap().to_owned() + "\r\n";
    assert_eq!(console.wait_for_timeout(&last, PATIENCE).unwrap(), flood());
    console.write_str("and the rest").unwrap();
    console.wait_for_timeout("and the rest", PATIENCE).unwrap();
    vm.kill().unwrap();
    for tail in tails {
        let lines = tail.join().unwrap();
        let expected = flood() + "and the rest";
        assert_eq!(lines, expected.lines().collect::<Vec<_>>());
    }
}

#[test]
fn split_console_loses_nothing() {
    let Some(guest) = NanoGuest::new() else { return };
    let (vm, mut console) = started(&guest);
    console.write_str("before \x1b[1;31mthe split\x1b[0m").unwrap();
    vm.console().unwrap().wait_for_timeout("split\x1b[0m", PATIENCE).unwrap();
    let (reader, mut writer) = console.split();
    let mut stripped = reader.clone().strip_ansi();
    let (mut raw, mut reader) = (Vec::new(), reader);
    writer.write_all(b", after it").unwrap();
    vm.console().unwrap().wait_for_timeout("after it", PATIENCE).unwrap();
    vm.kill().unwrap();
    reader.read_to_end(&mut raw).unwrap();
    assert_eq!(raw, b"before \x1b[1;31mthe split\x1b[0m, after it");
    let mut text = String::new();
    stripped.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before the split, after it");
}

#[test]
fn log_file_has_every_byte() {
    let Some(guest) = NanoGuest::new() else { return };
    let vm = guest.builder().build_blocking().unwrap();
    let path = guest.dir().join("console.log");
    let mut console = vm.console().unwrap();
    let log = console.log_to(&path).unwrap();
    vm.start().unwrap();
    let mut seen = console.wait_for_timeout("NANO READY\r\n", PATIENCE).unwrap();
    console.write(&[nano::FLOOD]).unwrap();
    seen += &console.wait_for_timeout("03ff ", PATIENCE).unwrap();
    vm.kill().unwrap();
    seen += &console.read_available().unwrap();
    let logged = log.finish().unwrap();
    assert_eq!((logged.written, logged.lost), (seen.len() as u64, 0));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), seen);
    assert!(seen.starts_with("CMDLINE ") || seen.contains("\nCMDLINE "), "{seen:.100}");
}

#[test]
fn log_disk_full_ends_log_not_guest() {
    let Some(guest) = NanoGuest::new() else { return };
    let (vm, mut console) = started(&guest);
    let log = console.log_to("/dev/full").unwrap();
    console.write_str("still here").unwrap();
    let error = log.finish().unwrap_err();
    assert!(matches!(&error, Error::Io(io) if io.kind() == ErrorKind::StorageFull), "{error}");
    console.wait_for_timeout("still here", PATIENCE).unwrap();
    vm.kill().unwrap();
}
