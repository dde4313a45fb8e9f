//! The contract of `embed::Vm`, with event loops that do no more than it demands.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use capsa::console::Overflow;
use capsa::embed::{Ended, Vm, VmEvent};
use capsa::testing::{self, ScriptedGuest};
use capsa::{ConsoleMode, VmStatus};
use capsa_testkit::fake;
use capsa_testkit::run_isolated;
use capsa_testkit::vm::{NanoGuest, PATIENCE, poll_fd};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Drives by the contract until `done` returns true for an event.
fn drive(vm: &mut Vm, mut done: impl FnMut(&mut Vm, VmEvent) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "no end in {:?}", vm.status());
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
fn expect_already_printed_ends_at_once() {
    run_isolated!();
    let mut vm = fake::vm("up console=login: serve").build_embedded().unwrap();
    let reader = vm.add_reader();
    vm.start().unwrap();
    drive(&mut vm, |vm, _| vm.scrollback().end() == 6);
    // The expected output exists already.
    let wait = vm.wait_for_any(reader, &["login:"], None).unwrap();
    drive(&mut vm, |_, event| event == VmEvent::Ended(wait));
    assert!(matches!(vm.take_ended(wait), Some(Ended::Expect(_))));
}

#[test]
fn reader_of_each_kind_sees_all_output() {
    // Sixteen bytes are kept; the last character is incomplete until the guest ends.
    let guest = ScriptedGuest::new().print("0123456789").expect_line("on");
    let guest = guest.print(b"abcdefgh\xc3").expect_line("off").power_off();
    let builder = testing::vm(guest).scrollback(16, Overflow::DropOldest);
    let mut vm = builder.build_embedded().unwrap();
    let (reader, observer) = (vm.add_reader(), vm.add_observer());
    vm.start().unwrap();
    drive(&mut vm, |vm, _| vm.scrollback().end() == 10);
    let mut buffer = [0; 4];
    assert_eq!((vm.read(observer, &mut buffer), &buffer), (4, b"0123"));
    let copy = vm.clone_reader(observer);
    assert_eq!(vm.write(b"on\r").unwrap(), 3);
    drive(&mut vm, |vm, _| vm.scrollback().end() == 23);
    assert!(!vm.is_console_closed());
    assert_eq!(vm.read_available(reader), "789on\r\nabcdefgh");
    assert_eq!(vm.read_available(observer), "789on\r\nabcdefgh");
    vm.write(b"off\r").unwrap();
    drive(&mut vm, |vm, _| vm.is_console_closed());
    assert_eq!(vm.read_available(reader), "\u{fffd}off\r\n");
    assert_eq!(vm.take(copy), b"\r\nabcdefgh\xc3off\r\n");
    assert_eq!(vm.read(copy, &mut buffer), 0);
    assert_eq!((vm.lost(reader), vm.lost(observer), vm.lost(copy)), (7, 3, 8));
}

#[test]
fn mio_writable_only_is_rejected() {
    let mut vm = testing::vm(ScriptedGuest::new()).build_embedded().unwrap();
    let poll = mio::Poll::new().unwrap();
    let (token, readable) = (mio::Token(0), mio::Interest::READABLE);
    let mut refused = |interest| poll.registry().register(&mut vm, token, interest).unwrap_err();
    assert_eq!(refused(mio::Interest::WRITABLE).kind(), std::io::ErrorKind::InvalidInput);
    poll.registry().register(&mut vm, token, readable | mio::Interest::WRITABLE).unwrap();
    poll.registry().reregister(&mut vm, token, mio::Interest::WRITABLE).unwrap_err();
}

#[test]
fn expect_on_removed_reader_ends_closed() {
    run_isolated!();
    let long = Some(PATIENCE);
    let closed = |vm: &mut Vm, reader| {
        for login in [false, true] {
            let wait = match login {
                true => vm.login(reader, "root", None, long).unwrap(),
                false => vm.wait_for_any(reader, &["never"], long).unwrap(),
            };
            drive(vm, |_, event| event == VmEvent::Ended(wait));
            let ended = vm.take_ended(wait).unwrap();
            assert!(format!("{ended:?}").contains("Closed"), "{ended:?}");
        }
        // A deadline that is no longer handled would make the loop spin.
        assert_eq!(vm.next_timeout(), None);
    };
    let running = |mut vm: Vm| {
        vm.start().unwrap();
        drive(&mut vm, |_, event| event == VmEvent::Status(VmStatus::Running));
        vm
    };
    let mut vm = running(fake::vm("up serve").build_embedded().unwrap());
    let gone = vm.add_reader();
    vm.remove_reader(gone);
    closed(&mut vm, gone);
    let mut other = fake::vm("up serve").build_embedded().unwrap();
    let foreign = (0..9).map(|_| other.add_reader()).last().unwrap();
    closed(&mut vm, foreign);

    let mute = fake::vm("up serve").console(ConsoleMode::Disabled);
    let mut mute = running(mute.build_embedded().unwrap());
    let reader = mute.add_reader();
    closed(&mut mute, reader);
    assert_eq!(mute.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn on_ready_spurious_has_no_effect() {
    run_isolated!();
    let mut vm = fake::vm("up serve").build_embedded().unwrap();
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
fn poll_loop_real_guest_does_not_spin() {
    let Some(guest) = NanoGuest::new() else { return };
    let mut vm = guest.builder().build_embedded().unwrap();
    vm.start().unwrap();
    let mut calls = 0;
    while !vm.status().is_terminal() {
        calls += 1;
        assert!(calls < 5_000, "the loop spins in {:?}", vm.status());
        poll_fd(&vm, vm.next_timeout());
        vm.on_ready().unwrap();
        while let Some(event) = vm.poll_event() {
            if event == VmEvent::ConsoleData
                && vm.scrollback().since(0).ends_with(b"NANO READY\r\n")
            {
                vm.stop().unwrap();
            }
        }
    }
    assert_eq!(vm.status(), VmStatus::Stopped { exit_code: Some(0) });
}

#[test]
fn on_ready_reads_at_most_256_kib() {
    run_isolated!();
    // The last event shows that all before it were read.
    let off = r#"{"event":"SHUTDOWN","data":{"reason":"guest-shutdown"}}"#;
    let mut vm = fake::vm(&format!("up child detached-child events*100000 control={off} hang"))
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
    assert!(most <= 256 * 1024, "{most} bytes at once");
}

#[test]
fn on_ready_respects_read_budget() {
    run_isolated!();
    let mut vm = fake::vm("up child hang").read_budget(100).build_embedded().unwrap();
    vm.start().unwrap();
    let mut calls = 0;
    while vm.scrollback().end() < 10_000 {
        let before = vm.scrollback().end();
        poll_fd(&vm, vm.next_timeout());
        vm.on_ready().unwrap();
        while vm.poll_event().is_some() {}
        calls += 1;
        assert!(vm.scrollback().end() - before <= 100);
    }
    assert!(calls >= 100);
}

#[test]
fn exit_output_complete_with_tiny_read_budget() {
    run_isolated!();
    let mut vm = fake::vm("up console*50000 exit=3").read_budget(10).build_embedded().unwrap();
    vm.start().unwrap();
    drive(&mut vm, |vm, _| vm.status().is_terminal());
    assert_eq!(vm.scrollback().end(), 50_000);
}

#[test]
fn on_ready_paused_holds_output_back() {
    const BYTES: usize = 1_000_000;
    run_isolated!();
    let orders = format!("up console*{BYTES} console=END serve");
    let mut vm = fake::vm(&orders).build_embedded().unwrap();
    vm.start().unwrap();
    drive(&mut vm, |_, event| event == VmEvent::Status(VmStatus::Running));
    std::thread::sleep(Duration::from_millis(100));
    let mut fds = [PollFd::new(vm.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::ZERO).unwrap(), 1, "the descriptor stays readable");
    let received = vm.scrollback().end();
    assert!(received < BYTES as u64, "output was read without a call");
    drive(&mut vm, |vm, _| vm.scrollback().end() == BYTES as u64 + 3);
}
