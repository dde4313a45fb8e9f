//! Loops of one's own that are as careless, or as strict, as the contract allows.

use std::fmt::Debug;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use capsa::embed::{Ended, Vm, VmEvent};
use capsa::testing::{self, ScriptedGuest};
use capsa::{ConsoleMode, Overflow, VmStatus};
use capsa_testkit::fake;
use capsa_testkit::run_isolated;
use capsa_testkit::vm::{NanoGuest, PATIENCE, poll_fd};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::field::Field;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

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
    run_isolated!();
    let mut vm = fake::vm("up console=login: serve").build_embedded().unwrap();
    let reader = vm.add_reader();
    vm.start().unwrap();
    drive(&mut vm, |vm, _| vm.scrollback().end() == 6);
    // What it waits for is there already.
    let wait = vm.expect(reader, &["login:"], None);
    drive(&mut vm, |_, event| event == VmEvent::Ended(wait));
    assert!(matches!(vm.take_ended(wait), Some(Ended::Expect(_))));
}

#[test]
fn who_watches_for_writing_alone_is_told() {
    let mut vm = testing::vm(ScriptedGuest::new()).build_embedded().unwrap();
    let poll = mio::Poll::new().unwrap();
    let (token, readable) = (mio::Token(0), mio::Interest::READABLE);
    let mut refused = |interest| poll.registry().register(&mut vm, token, interest).unwrap_err();
    assert_eq!(refused(mio::Interest::WRITABLE).kind(), std::io::ErrorKind::InvalidInput);
    poll.registry().register(&mut vm, token, readable | mio::Interest::WRITABLE).unwrap();
    poll.registry().reregister(&mut vm, token, mio::Interest::WRITABLE).unwrap_err();
}

#[test]
fn a_wait_that_can_see_nothing_is_over_at_once() {
    run_isolated!();
    let long = Some(PATIENCE);
    let closed = |vm: &mut Vm, reader| {
        for login in [false, true] {
            let wait = match login {
                true => vm.login(reader, "root", None, long).unwrap(),
                false => vm.expect(reader, &["never"], long),
            };
            drive(vm, |_, event| event == VmEvent::Ended(wait));
            let ended = vm.take_ended(wait).unwrap();
            assert!(format!("{ended:?}").contains("Closed"), "{ended:?}");
        }
        // A deadline that nobody looks at any more would have the loop spin.
        assert_eq!(vm.next_timeout(), None);
    };
    let mut vm = fake::vm("up serve").build_embedded().unwrap();
    let gone = vm.add_reader();
    vm.remove_reader(gone);
    closed(&mut vm, gone);
    let mut other = fake::vm("up serve").build_embedded().unwrap();
    let foreign = (0..9).map(|_| other.add_reader()).last().unwrap();
    closed(&mut vm, foreign);

    let mut mute = fake::vm("hang").console(ConsoleMode::Disabled).build_embedded().unwrap();
    let reader = mute.add_reader();
    closed(&mut mute, reader);
    assert_eq!(mute.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn a_loop_that_calls_for_nothing_gets_nothing() {
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
fn one_call_reads_no_more_than_is_promised() {
    run_isolated!();
    // The last event shows that all before it were read.
    let off = r#"{"event":"SHUTDOWN","data":{"reason":"guest-shutdown"}}"#;
    let mut vm = fake::vm(&format!("up heir stray events*100000 control={off} hang"))
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
fn one_call_reads_no_more_than_was_asked() {
    run_isolated!();
    let mut vm = fake::vm("up heir hang").read_budget(100).build_embedded().unwrap();
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
fn last_words_are_whole_however_little_is_read_at_once() {
    run_isolated!();
    let mut vm = fake::vm("up console*50000 exit=3").read_budget(10).build_embedded().unwrap();
    vm.start().unwrap();
    drive(&mut vm, |vm, _| vm.status().is_terminal());
    assert_eq!(vm.scrollback().end(), 50_000);
}

#[test]
fn who_never_calls_can_see_it() {
    run_isolated!();
    let log = Warnings::default();
    tracing::subscriber::with_default(log.clone(), || {
        let mut vm = fake::vm("up serve").build_embedded().unwrap();
        vm.start().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!((vm.status(), vm.hypervisor_pid()), (VmStatus::Starting, None));
        assert_eq!(vm.next_timeout(), Some(Duration::ZERO));
    });
    log.assert_one("without a call of on_ready");
}

#[test]
fn who_is_quick_is_told_of_nothing() {
    run_isolated!();
    let log = Warnings::default();
    tracing::subscriber::with_default(log.clone(), || {
        drop(fake::vm("up serve").build_embedded().unwrap());
        let mut vm = fake::vm("up serve").build_embedded().unwrap();
        vm.start().unwrap();
        drive(&mut vm, |_, event| event == VmEvent::Status(VmStatus::Running));
        // An idle hour is no delay: nothing is due.
        assert_eq!(vm.next_timeout(), None);
        vm.kill().unwrap();
        drive(&mut vm, |vm, _| vm.status().is_terminal());
    });
    assert_eq!(*log.0.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn who_forgets_the_deadline_can_see_it_and_the_next_call_catches_up() {
    run_isolated!();
    let log = Warnings::default();
    tracing::subscriber::with_default(log.clone(), || {
        let mut vm = fake::vm("up serve").build_embedded().unwrap();
        vm.start().unwrap();
        drive(&mut vm, |_, event| event == VmEvent::Status(VmStatus::Running));
        vm.stop_with_timeout(Duration::from_millis(500)).unwrap();
        vm.on_ready().unwrap();
        // It is asked, answers, and stays. Only the descriptor is looked at.
        let end = Instant::now() + Duration::from_millis(1800);
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let mut fds = [PollFd::new(vm.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap() > 0 {
                vm.on_ready().unwrap();
                while vm.poll_event().is_some() {}
            }
        }
        assert_eq!((vm.status(), vm.next_timeout()), (VmStatus::Stopping, Some(Duration::ZERO)));
        drive(&mut vm, |vm, _| vm.status().is_terminal());
    });
    log.assert_one("called long after its deadline");
}

#[test]
fn who_stops_calling_holds_the_guest_up_and_loses_nothing() {
    const BYTES: usize = 1_000_000;
    run_isolated!();
    let orders = format!("up console*{BYTES} console=END serve");
    let mut vm = fake::vm(&orders).build_embedded().unwrap();
    vm.start().unwrap();
    drive(&mut vm, |_, event| event == VmEvent::Status(VmStatus::Running));
    std::thread::sleep(Duration::from_millis(100));
    let mut fds = [PollFd::new(vm.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::ZERO).unwrap(), 1, "the descriptor stays readable");
    let heard = vm.scrollback().end();
    assert!(heard < BYTES as u64, "it was heard without a call");
    drive(&mut vm, |vm, _| vm.scrollback().end() == BYTES as u64 + 3);
}

/// What was warned of.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    #[track_caller]
    fn assert_one(&self, what: &str) {
        let warnings = self.0.lock().unwrap();
        assert!(matches!(&warnings[..], [one] if one.contains(what)), "{warnings:?}");
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = String::new();
        event.record(&mut |field: &Field, value: &dyn Debug| {
            text += &format!("{field}={value:?} ");
        });
        self.0.lock().unwrap().push(text);
    }
}
