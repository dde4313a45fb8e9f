//! Loops of one's own that are as careless, or as strict, as the contract allows.

use std::time::Instant;

use capsa::embed::{Ended, Vm, VmEvent};
use capsa::{Overflow, VmStatus};
use capsa_test::fake::{self, machine};
use capsa_test::vm::{PATIENCE, poll_fd};

const FAKE: &str = env!("CARGO_BIN_EXE_fake-qemu");

/// Drives by the contract until `done` says so of an event.
fn drive(vm: &mut Vm, mut done: impl FnMut(&mut Vm, VmEvent) -> bool) {
    let deadline = Instant::now() + PATIENCE / 4;
    loop {
        assert!(Instant::now() < deadline, "it hangs in {:?}", vm.status());
        let left = deadline.saturating_duration_since(Instant::now());
        poll_fd(&*vm, Some(vm.next_timeout().unwrap_or(left).min(left)));
        vm.on_ready().unwrap();
        while let Some(event) = vm.poll_event() {
            if done(vm, event) {
                return;
            }
        }
    }
}

#[test]
fn a_wait_that_is_over_at_once_is_said_to_be() {
    if !fake::alone(FAKE, "a_wait_that_is_over_at_once_is_said_to_be") {
        return;
    }
    let mut vm = machine("up console=login: serve").build_embedded().unwrap();
    let reader = vm.add_reader();
    vm.start().unwrap();
    drive(&mut vm, |vm, _| vm.scrollback().end() == 6);
    // What it waits for is there already.
    let wait = vm.expect(reader, &["login:"], None);
    drive(&mut vm, |_, event| event == VmEvent::Ended(wait));
    assert!(matches!(vm.take_ended(wait), Some(Ended::Expect(_))));
}

#[test]
fn a_loop_that_calls_for_nothing_gets_nothing() {
    if !fake::alone(FAKE, "a_loop_that_calls_for_nothing_gets_nothing") {
        return;
    }
    let mut vm = machine("up serve").build_embedded().unwrap();
    for _ in 0..1000 {
        vm.on_ready().unwrap();
    }
    assert_eq!(vm.poll_event(), None);
    vm.start().unwrap();
    drive(&mut vm, |_, event| event == VmEvent::Status(VmStatus::Running));
    for _ in 0..100_000 {
        vm.on_ready().unwrap();
    }
    assert_eq!((vm.poll_event(), vm.next_timeout()), (None, None));
    vm.kill().unwrap();
    drive(&mut vm, |vm, _| vm.status().is_terminal());
}

#[test]
fn one_call_reads_no_more_than_is_promised() {
    if !fake::alone(FAKE, "one_call_reads_no_more_than_is_promised") {
        return;
    }
    // The last event shows that all before it were read.
    let off = r#"{"event":"SHUTDOWN","data":{"reason":"guest-shutdown"}}"#;
    let mut vm = machine(&format!("up heir stray events*100000 control={off} hang"))
        .scrollback(1 << 20, Overflow::DropOldest)
        .on_reboot(capsa::RebootPolicy::Restart)
        .build_embedded()
        .unwrap();
    vm.start().unwrap();
    let mut most = 0;
    while vm.status() != VmStatus::Stopping {
        let before = vm.scrollback().end();
        poll_fd(&vm, vm.next_timeout());
        vm.on_ready().unwrap();
        most = most.max(vm.scrollback().end() - before);
        while vm.poll_event().is_some() {}
    }
    assert!(most <= 256 * 1024 + 8192, "{most} bytes at once");
}
