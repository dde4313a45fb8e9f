//! Consoles of real Linux guests: logins, commands, and an unmodified distribution. What every backend
//! must do is in the conformance suite.

use std::time::Duration;

use capsa::blocking::VmConsole;
use capsa::{EndedBy, Error, StopStep};
use capsa_testkit::{guest, host, skip, vm};

/// For emulation on a loaded host.
const PATIENCE: Duration = Duration::from_secs(180);

/// The output of a command, which must succeed.
fn sh(console: &mut VmConsole, command: &str) -> String {
    let reply = console.run(command, Some(PATIENCE)).unwrap();
    let output = String::from_utf8(reply.output).unwrap();
    assert_eq!(reply.status, Some(0), "{command}: {output}");
    output.trim_end().to_owned()
}

fn status(console: &mut VmConsole, command: &str) -> i32 {
    console.run(command, Some(PATIENCE)).unwrap().status.unwrap()
}

#[test]
fn busybox_login_commands_power_off() {
    let Some(guest) = vm::linux_guest() else { return };
    let vm = vm::linux(&guest).build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    let error = console.login_timeout("user", Some("wrong"), PATIENCE).unwrap_err();
    assert!(matches!(&error, Error::LoginIncorrect { username } if username == "user"), "{error}");
    console.login_timeout("user", Some("secret"), PATIENCE).unwrap();
    assert_eq!(sh(&mut console, "id -un"), "user");
    assert_eq!(status(&mut console, "exit_code() { return 7; }; exit_code"), 7);
    assert_eq!(sh(&mut console, "printf 'a # b\\n$ '"), "a # b\n$");
    assert_eq!(sh(&mut console, "seq 20000 | wc -l"), "20000");
    assert_eq!(sh(&mut console, "seq 20000").len(), 108_893);
    let error = console.run("sleep 1000", Some(Duration::from_millis(500))).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_eq!(sh(&mut console, "echo usable again"), "usable again");
    vm.stop().unwrap();
    let report = vm.stop_report().unwrap();
    assert_eq!(
        (report.ended_by, report.steps),
        (EndedBy::GuestPowerOff, vec![StopStep::PowerButton])
    );
}

#[test]
fn debian_login_systemd_power_off() {
    if host::find_program("qemu-system-x86_64").is_none() {
        return skip("qemu-system-x86_64 is not installed");
    }
    let guest = match guest::debian() {
        Ok(guest) => guest,
        Err(why) => return skip(why),
    };
    let vm = vm::debian(&guest).build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.login_timeout("root", Some("capsa"), PATIENCE).unwrap();
    assert_eq!(sh(&mut console, "cat /proc/1/comm"), "systemd");
    assert_eq!(sh(&mut console, "systemctl is-active getty.target"), "active");
    assert_eq!(sh(&mut console, "systemctl is-active systemd-logind"), "active");
    vm.stop_with_timeout(PATIENCE).unwrap();
    let report = vm.stop_report().unwrap();
    assert_eq!(
        (report.ended_by, report.steps),
        (EndedBy::GuestPowerOff, vec![StopStep::PowerButton])
    );
}

/// A program of the guest prints a line every 0.2 s.
#[test]
fn busybox_login_beside_noise() {
    let Some(guest) = vm::linux_guest() else { return };
    let vm = vm::linux(&guest).build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.login_timeout("root", None, PATIENCE).unwrap();
    let noise = "while :; do echo 'a daemon says hello'; sleep 0.2; done >/dev/console 2>&1 &";
    console.run(noise, Some(PATIENCE)).unwrap();
    for (user, password, id) in [("user", Some("secret"), "1000"), ("root", None, "0")] {
        console.write_line("exit").unwrap();
        console.wait_for_timeout("login: ", PATIENCE).unwrap();
        console.login_timeout(user, password, PATIENCE).unwrap();
        let reply = console.run("id -u", Some(PATIENCE)).unwrap();
        assert!(reply.text().lines().any(|line| line == id), "{reply:?}");
    }
    vm.kill().unwrap();
}
