//! The real cloud-hypervisor with the nano guest, where there is one and KVM answers.
//!
//! KVM need not have hardware behind it: the nano guest runs on it all the same.

use std::time::Duration;

use capsa::blocking::{VmConsole, VmHandle};
use capsa::{
    Accelerator, EndedBy, Error, LinuxVmBuilder, MountMode, Overflow, RebootPolicy, StopStep,
    VmStatus,
};
use capsa_test::vm::{NanoGuest, PATIENCE, eventually, runs};
use capsa_test::{host, nano, skip};

/// The guest and what builds machines with it; `None`, said aloud, where it cannot run.
fn guest(test: &str) -> Option<(NanoGuest, impl Fn() -> LinuxVmBuilder)> {
    let found = std::env::var_os("CAPSA_CLOUD_HYPERVISOR").is_some()
        || host::find_program("cloud-hypervisor").is_some();
    if !found {
        skip(test, "no cloud-hypervisor in PATH or CAPSA_CLOUD_HYPERVISOR");
        return None;
    }
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        skip(test, "/dev/kvm cannot be opened");
        return None;
    }
    let guest = NanoGuest::for_any(nano::Nano::default());
    let builder = guest.builder().backend("cloud-hypervisor").accelerator(Accelerator::Kvm);
    Some((guest, move || builder.clone().memory_mb(64)))
}

fn listening(vm: &VmHandle) -> VmConsole {
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.wait_for_timeout("NANO READY\r\n", PATIENCE).unwrap();
    console
}

#[test]
fn the_console_has_every_byte_both_ways() {
    let Some((_guest, builder)) = guest("cloud-hypervisor console") else { return };
    // A reader that is behind: what it has no room for must wait and not be dropped.
    let paused = builder().scrollback(4096, Overflow::Pause);
    let vm = paused.cmdline_override("first=1").build_blocking().unwrap();
    vm.start().unwrap();
    std::thread::sleep(Duration::from_millis(100));
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
    assert!(flood.starts_with(&nano::flood()), "{} bytes came", flood.len());
}

#[test]
fn who_ended_it_is_told_apart() {
    let Some((_guest, builder)) = guest("cloud-hypervisor ends") else { return };
    for (order, ended_by) in [
        (nano::POWER_OFF, EndedBy::GuestPowerOff),
        (nano::RESET, EndedBy::GuestReboot),
        (nano::TRIPLE_FAULT, EndedBy::GuestReboot),
    ] {
        let vm = builder().build_blocking().unwrap();
        listening(&vm).write(&[order]).unwrap();
        let status = vm.wait_timeout(PATIENCE).unwrap().expect("it ends");
        assert_eq!(status, VmStatus::Stopped { exit_code: Some(0) });
        assert_eq!(vm.stop_report().unwrap().ended_by, ended_by);
    }
    let vm = builder().on_reboot(RebootPolicy::Restart).build_blocking().unwrap();
    let mut console = listening(&vm);
    console.write(&[nano::RESET]).unwrap();
    console.wait_for_timeout("NANO READY\r\n", PATIENCE).unwrap();
    assert_eq!(vm.status(), VmStatus::Running);
}

#[test]
fn the_stop_ladder_and_the_kill() {
    let Some((_guest, builder)) = guest("cloud-hypervisor stop") else { return };
    let vm = builder().build_blocking().unwrap();
    let _console = listening(&vm);
    // Its power button is not where this guest looks.
    vm.stop_with_timeout(Duration::from_millis(200)).unwrap();
    let report = vm.stop_report().unwrap();
    assert_eq!(
        (report.ended_by, report.steps),
        (EndedBy::Owner, vec![StopStep::Asked, StopStep::Quit])
    );
    let vm = builder().build_blocking().unwrap();
    let _console = listening(&vm);
    let pid = vm.as_async().hypervisor_pid().unwrap();
    let run_dir = vm.as_async().launch_plan().run_dir.to_string();
    drop(vm);
    eventually("it is gone", || !runs(pid));
    assert!(!std::path::Path::new(&run_dir).exists());
}

#[test]
fn a_refusal_comes_with_the_whole_chain_of_causes() {
    let Some((guest, builder)) = guest("cloud-hypervisor bad kernel") else { return };
    std::fs::write(guest.kernel(), b"\x7fELF and no more").unwrap();
    let error = builder().build_blocking().unwrap().start().unwrap_err();
    let Error::StartFailed(why) = &error else { panic!("{error}") };
    assert!(why.contains("boot the guest") && why.contains(": "), "{why}");
}

#[test]
fn a_share_starts_its_virtiofsd() {
    let Some((guest, builder)) = guest("cloud-hypervisor share") else { return };
    if host::find_program("virtiofsd").is_none() {
        return skip("cloud-hypervisor share", "virtiofsd is not installed");
    }
    let builder = builder().share(guest.dir(), "/share", MountMode::ReadOnly);
    let vm = builder.build_blocking().unwrap();
    listening(&vm).write(&[nano::POWER_OFF]).unwrap();
    vm.wait_timeout(PATIENCE).unwrap().expect("it ends");
    assert_eq!(vm.stop_report().unwrap().ended_by, EndedBy::GuestPowerOff);
}

#[test]
fn a_hundred_lives_leave_nothing_behind() {
    let Some((_guest, builder)) = guest("cloud-hypervisor a hundred lives") else { return };
    for _ in 0..100 {
        let vm = builder().build_blocking().unwrap();
        vm.start().unwrap();
        let pid = vm.hypervisor_pid().unwrap();
        let run_dir = vm.launch_plan().run_dir.to_string();
        vm.kill().unwrap();
        assert!(!runs(pid));
        assert!(!std::fs::exists(&run_dir).unwrap());
    }
}
