//! Machines on the stand-in for cloud-hypervisor: a whole life first, and then what Capsa makes of
//! each fault, which is a typed error or a report, in bounded time, with nothing left behind.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use capsa::blocking::{VmConsole, VmHandle};
use capsa::{DiskImage, EndedBy, LinuxVmBuilder, MountMode, StopStep, VmStatus};
use capsa_test::guest::{self, Variant};
use capsa_test::processes::{self, runs};
use capsa_test::vm::{self, NanoGuest, PATIENCE, eventually};
use capsa_test::{host, nano, skip, stand_in};

/// A machine with `guest` on the hypervisor at `program`.
fn machine(guest: &NanoGuest, program: impl AsRef<Path>) -> LinuxVmBuilder {
    guest
        .builder()
        .backend("cloud-hypervisor")
        .accelerator(capsa::Accelerator::Auto)
        .program("cloud-hypervisor", program.as_ref())
        .trust_backend()
}

fn listening(vm: &VmHandle) -> VmConsole {
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.wait_for_timeout("NANO READY\r\n", PATIENCE).unwrap();
    console
}

#[test]
fn the_console_has_every_byte_both_ways() {
    let Some(guest) = NanoGuest::new("stand-in console") else { return };
    let vm = machine(&guest, stand_in::cloud_hypervisor())
        .scrollback(4096, capsa::Overflow::Pause)
        .cmdline_override("first=1")
        .build_blocking()
        .unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    let early = console.wait_for_timeout("READY\r\n", PATIENCE).unwrap();
    assert_eq!(early, "CMDLINE first=1\r\nNANO READY\r\n");
    console.write(b"hello\n\x03").unwrap();
    assert_eq!(console.wait_for_timeout("\x03", PATIENCE).unwrap(), "hello\n\x03");
    console.write(&[nano::FLOOD, nano::POWER_OFF]).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let mut flood = Vec::new();
    let mut chunk = [0; 4096];
    while let n @ 1.. = console.read(&mut chunk).unwrap() {
        flood.extend_from_slice(&chunk[..n]);
    }
    assert!(flood == nano::flood(), "{} bytes came", flood.len());
}

#[test]
fn who_ended_it_is_told_apart() {
    let Some(guest) = NanoGuest::new("stand-in ends") else { return };
    for (order, ended_by) in [
        (nano::POWER_OFF, EndedBy::GuestPowerOff),
        (nano::RESET, EndedBy::GuestReboot),
        (nano::TRIPLE_FAULT, EndedBy::GuestReboot),
    ] {
        let vm = machine(&guest, stand_in::cloud_hypervisor()).build_blocking().unwrap();
        listening(&vm).write(&[order]).unwrap();
        let status = vm.wait_timeout(PATIENCE).unwrap().expect("it ends");
        assert_eq!(status, VmStatus::Stopped { exit_code: Some(0) });
        assert_eq!(vm.stop_report().unwrap().ended_by, ended_by);
    }
}

#[test]
fn the_power_button_reaches_the_guest_and_a_deaf_one_is_cut_off() {
    let Some(guest) = NanoGuest::new("stand-in stop") else { return };
    let vm = machine(&guest, stand_in::cloud_hypervisor()).build_blocking().unwrap();
    let _console = listening(&vm);
    vm.stop_with_timeout(PATIENCE).unwrap();
    assert_eq!(vm.stop_report().unwrap().steps, [StopStep::Asked]);

    let guest = NanoGuest::deaf("stand-in stop").unwrap();
    let vm = machine(&guest, stand_in::cloud_hypervisor()).build_blocking().unwrap();
    let _console = listening(&vm);
    vm.stop_with_timeout(Duration::from_millis(200)).unwrap();
    assert_eq!(vm.stop_report().unwrap().steps, [StopStep::Asked, StopStep::Quit]);
}

#[test]
fn what_it_would_ignore_ends_it_with_the_names() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let mut program = Command::new(stand_in::cloud_hypervisor())
        .args(["--api-socket", &format!("path={}", socket.display())])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("it listens", || UnixStream::connect(&socket).is_ok());
    let body = r#"{"payload":{"kernl":"/k"},"console":{"mode":"Off"},"watchdog":true}"#;
    let length = body.len();
    let request =
        format!("PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}");
    UnixStream::connect(&socket).unwrap().write_all(request.as_bytes()).unwrap();
    eventually("it ends", || program.try_wait().unwrap().is_some());
    let output = program.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("would ignore payload.kernl, watchdog"), "{said}");
    assert_eq!(output.status.code(), Some(i32::from(stand_in::UNKNOWN_CONFIG)));
}

#[test]
fn a_linux_guest_has_its_disks_and_shares() {
    let guest = match guest::linux(Variant::Cloud) {
        Ok(guest) => guest,
        Err(why) => return skip("stand-in linux", why),
    };
    if host::find_program("virtiofsd").is_none() {
        return skip("stand-in linux", "virtiofsd is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let [raw, qcow2] = [&guest.disk_raw, &guest.disk_qcow2].map(|from| {
        let to = dir.path().join(from.file_name().unwrap());
        std::fs::copy(from, &to).unwrap();
        to
    });
    let share = tempfile::tempdir().unwrap();
    std::fs::write(share.path().join("from-host"), "hello").unwrap();
    let vm = vm::linux(&guest)
        .backend("cloud-hypervisor")
        .program("cloud-hypervisor", stand_in::cloud_hypervisor())
        .trust_backend()
        .disk(DiskImage::new(&raw).read_only())
        .disk(DiskImage::new(&qcow2))
        .share(share.path(), "/share", MountMode::ReadWrite)
        .build_blocking()
        .unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.login_timeout("root", None, 3 * PATIENCE).unwrap();
    for (command, works) in [
        ("test $(cat /share/from-host) = hello && echo hi >/share/from-guest", true),
        ("mkdir -p /d && umount /mnt/root; mount -t ext4 -o ro /dev/vda /d && umount /d", true),
        ("test $(cat /sys/block/vda/ro) = 1", true),
        ("mount -t ext4 /dev/vdb /d && echo written >/d/new && umount /d", true),
        ("test -c /dev/hwrng", true),
        ("test -e /dev/vdc", false),
    ] {
        let reply = console.run(command, Some(PATIENCE)).unwrap();
        let said = String::from_utf8_lossy(&reply.output);
        assert_eq!(reply.status == Some(0), works, "{command}: {said}");
    }
    vm.stop_with_timeout(PATIENCE).unwrap();
    let report = vm.stop_report().unwrap();
    assert_eq!((report.ended_by, report.steps), (EndedBy::GuestPowerOff, vec![StopStep::Asked]));
    assert_eq!(std::fs::read_to_string(share.path().join("from-guest")).unwrap().trim(), "hi");
}

#[test]
fn the_emulator_dies_with_it() {
    let Some(guest) = NanoGuest::new("stand-in killed") else { return };
    let vm = machine(&guest, stand_in::cloud_hypervisor()).build_blocking().unwrap();
    let _console = listening(&vm);
    let pid = vm.hypervisor_pid().unwrap();
    let emulator = processes::children(pid).pop().expect("it has an emulator").pid;
    // Only the stand-in, and not its group, which Capsa would kill.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    eventually("the emulator is gone", || !runs(emulator));
    let status = vm.wait_timeout(PATIENCE).unwrap().expect("it ends");
    assert!(matches!(status, VmStatus::Failed { .. }), "{status:?}");
}
