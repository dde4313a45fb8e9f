//! How long `on_ready` takes while another process holds the lock of the base directory of run
//! directories, and directories of dead owners wait for a sweep.

use std::time::{Duration, Instant};

use capsa::VmStatus;
use capsa::embed::Vm;
use capsa_testkit::run_dirs::{LockingProcess, base, leave_behind, left_behind};
use capsa_testkit::vm::{PATIENCE, poll_fd};
use capsa_testkit::{fake, run_isolated};

use super::repeat;

/// The bound of a call that starts a process: fork, exec, and the start of the watchdog.
const SPAWNING: Duration = Duration::from_millis(250);

/// The bound of every other call.
const OTHER: Duration = Duration::from_millis(50);

/// Drives the VM to `done`. Returns the longest call that started a process, and the longest other
/// call.
fn longest_calls(vm: &mut Vm, done: impl Fn(&Vm) -> bool) -> (Duration, Duration) {
    let deadline = Instant::now() + PATIENCE;
    let (mut spawning, mut other) = (Duration::ZERO, Duration::ZERO);
    while !done(vm) {
        assert!(Instant::now() < deadline, "no end in {:?}", vm.status());
        poll_fd(&*vm, Some(vm.next_timeout().unwrap_or(PATIENCE)));
        let had_process = vm.hypervisor_pid().is_some();
        let begin = Instant::now();
        vm.on_ready().unwrap();
        let longest = match !had_process && vm.hypervisor_pid().is_some() {
            true => &mut spawning,
            false => &mut other,
        };
        *longest = begin.elapsed().max(*longest);
        while vm.poll_event().is_some() {}
    }
    (spawning, other)
}

#[test]
fn on_ready_with_base_locked_keeps_its_bound() {
    run_isolated!();
    let dir = base();
    repeat(|| {
        let mut vm = fake::vm("up console*1000 serve").build_embedded().unwrap();
        leave_behind(&dir, 1000);
        let holder = LockingProcess::of(&dir.join("lock"));
        vm.start().unwrap();
        let (spawning, first) = longest_calls(&mut vm, |vm| vm.status() == VmStatus::Running);
        vm.kill().unwrap();
        let (_, last) = longest_calls(&mut vm, |vm| vm.status().is_terminal());
        drop(holder);
        assert_eq!(left_behind(&dir), 1000);
        capsa_io::run_dir::sweep(&dir).unwrap();
        let other = first.max(last);
        if !spawning.is_zero() && spawning < SPAWNING && other < OTHER {
            return Ok(());
        }
        Err(format!("a call that spawned took {spawning:?}, another one {other:?}"))
    });
}
