//! Warnings about event loops that call `on_ready` too late.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use capsa::VmStatus;
use capsa::embed::Vm;
use capsa_testkit::vm::{PATIENCE, poll_fd};
use capsa_testkit::{fake, run_isolated};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::Level;

use super::repeat;

/// The warnings that `run` logs, one a line.
fn warnings<T>(run: impl FnOnce() -> T) -> (T, String) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::WARN)
        .with_ansi(false)
        .with_writer(Arc::new(log.reopen().unwrap()))
        .finish();
    let result = tracing::subscriber::with_default(subscriber, run);
    (result, std::fs::read_to_string(log.path()).unwrap())
}

fn drive(vm: &mut Vm, mut done: impl FnMut(&mut Vm) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(vm) {
        assert!(Instant::now() < deadline, "no end in {:?}", vm.status());
        poll_fd(&*vm, Some(vm.next_timeout().unwrap_or(PATIENCE)));
        vm.on_ready().unwrap();
        while vm.poll_event().is_some() {}
    }
}

#[test]
fn on_ready_on_time_logs_no_warning() {
    run_isolated!();
    repeat(|| {
        let ((), log) = warnings(|| {
            drop(fake::vm("up serve").build_embedded().unwrap());
            let mut vm = fake::vm("up serve").build_embedded().unwrap();
            vm.start().unwrap();
            drive(&mut vm, |vm| vm.status() == VmStatus::Running);
            // An idle VM is not late: nothing is due.
            assert_eq!(vm.next_timeout(), None);
            vm.kill().unwrap();
            drive(&mut vm, |vm| vm.status().is_terminal());
        });
        if log.is_empty() { Ok(()) } else { Err(log) }
    });
}

#[test]
fn on_ready_never_called_logs_a_warning() {
    run_isolated!();
    let ((), log) = warnings(|| {
        let mut vm = fake::vm("up serve").build_embedded().unwrap();
        vm.start().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!((vm.status(), vm.hypervisor_pid()), (VmStatus::Starting, None));
        assert_eq!(vm.next_timeout(), Some(Duration::ZERO));
    });
    assert!(log.lines().count() == 1 && log.contains("without a call of on_ready"), "{log}");
}

#[test]
fn deadline_missed_is_logged_and_caught_up() {
    run_isolated!();
    repeat(|| {
        let (stopping, log) = warnings(|| {
            let mut vm = fake::vm("up serve").build_embedded().unwrap();
            vm.start().unwrap();
            drive(&mut vm, |vm| vm.status() == VmStatus::Running);
            vm.stop_with_timeout(Duration::from_millis(500)).unwrap();
            vm.on_ready().unwrap();
            // The VMM replies and does not stop. The loop only waits for the descriptor.
            let end = Instant::now() + Duration::from_millis(1800);
            while let Some(left) = end.checked_duration_since(Instant::now()) {
                let mut fds = [PollFd::new(vm.as_fd(), PollFlags::POLLIN)];
                if poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap() > 0 {
                    vm.on_ready().unwrap();
                    while vm.poll_event().is_some() {}
                }
            }
            let stopping = (vm.status(), vm.next_timeout());
            drive(&mut vm, |vm| vm.status().is_terminal());
            stopping
        });
        if stopping != (VmStatus::Stopping, Some(Duration::ZERO)) {
            return Err(format!("the loop called in time: {stopping:?}"));
        }
        match log.lines().count() == 1 && log.contains("called long after its deadline") {
            true => Ok(()),
            false => Err(log),
        }
    });
}
