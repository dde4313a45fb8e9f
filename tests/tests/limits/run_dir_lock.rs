//! Owners beside a process that holds the lock of the base directory of run directories, and beside
//! the run directories of dead owners.

use std::path::Path;
use std::time::{Duration, Instant};

use capsa::embed::Vm;
use capsa::{Error, VmStatus};
use capsa_io::run_dir::{self, LOCK_TIMEOUT};
use capsa_testkit::run_dirs::{LockingProcess, base, leave_behind, left_behind};
use capsa_testkit::vm::{PATIENCE, poll_fd};
use capsa_testkit::{fake, run_isolated};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn built() -> Vm {
    fake::vm("up serve").build_embedded().unwrap()
}

fn drive(vm: &mut Vm, done: impl Fn(&Vm) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(vm) {
        assert!(Instant::now() < deadline, "no end in {:?}", vm.status());
        poll_fd(&*vm, Some(vm.next_timeout().unwrap_or(PATIENCE)));
        vm.on_ready().unwrap();
        while vm.poll_event().is_some() {}
    }
}

fn run(mut vm: Vm) {
    vm.start().unwrap();
    drive(&mut vm, |vm| vm.status() == VmStatus::Running);
    vm.kill().unwrap();
    drive(&mut vm, |vm| vm.status().is_terminal());
}

/// The bound in time is in the suite `timing`.
#[test]
fn run_with_base_locked_waits_and_sweeps_nothing() {
    run_isolated!();
    let (vm, dir) = (built(), base());
    let run_dir = vm.launch_plan().run_dir().display().to_string();
    leave_behind(&dir, 1000);
    // It holds the lock until the VM has ended and its directory is removed.
    let holder = LockingProcess::of(&dir.join("lock"));
    run(vm);
    assert!(!Path::new(&run_dir).exists());
    drop(holder);
    assert_eq!(left_behind(&dir), 1000);
}

#[test]
fn build_with_base_locked_fails_within_deadline() {
    run_isolated!();
    let lock = base().join("lock");
    let holder = LockingProcess::of(&lock);
    kill(Pid::from_raw(holder.pid().cast_signed()), Signal::SIGSTOP).unwrap();
    let begin = Instant::now();
    let error = fake::vm("up serve").build_embedded().unwrap_err();
    let took = begin.elapsed();
    kill(Pid::from_raw(holder.pid().cast_signed()), Signal::SIGCONT).unwrap();
    assert!(took >= LOCK_TIMEOUT && took < LOCK_TIMEOUT + PATIENCE, "{took:?}");
    let Error::RunDirLocked(timeout) = &error else { panic!("{error}") };
    assert_eq!(timeout.path, lock);
    if cfg!(target_os = "linux") {
        let found = timeout.holder.as_ref().unwrap();
        assert_eq!((found.pid, found.is_stopped), (holder.pid(), true));
        assert!(error.to_string().contains("kill -CONT"), "{error}");
    }
    drop(holder);
    run(built());
}

#[test]
fn builds_sweep_all_leftovers_in_slices() {
    run_isolated!();
    let dir = base();
    leave_behind(&dir, 1000);
    let mut builds = 0;
    while left_behind(&dir) > 0 {
        drop(built());
        builds += 1;
        assert!(builds <= 1000, "{} are left", left_behind(&dir));
    }
    // One sweep per program: what appears now is left to the next program, or to `sweep`.
    leave_behind(&dir, 3);
    drop(built());
    assert_eq!(left_behind(&dir), 3);
    assert_eq!(run_dir::sweep(&dir).unwrap().len(), 3);
}

#[test]
fn run_dir_of_vm_not_started_is_owned() {
    run_isolated!();
    let (vm, dir) = (built(), base());
    let listed = || run_dir::list(&dir).unwrap();
    let [entry] = &listed()[..] else { panic!("{:?}", listed()) };
    assert_eq!((entry.is_owned, entry.is_started), (true, false));
    assert_eq!(run_dir::sweep(&dir).unwrap(), []);
    // Neither a dry run nor a simulated guest has a directory.
    fake::vm("up serve").plan().unwrap();
    let guest = capsa::testing::ScriptedGuest::new();
    let simulated = capsa::testing::vm(guest).build_embedded().unwrap();
    assert_eq!(listed().len(), 1);
    drop((vm, simulated));
    assert_eq!(listed(), []);
}

#[test]
fn start_run_dir_removed_fails_and_names_it() {
    run_isolated!();
    let mut vm = built();
    let run_dir = vm.launch_plan().run_dir().display().to_string();
    std::fs::remove_dir_all(&run_dir).unwrap();
    vm.start().unwrap();
    drive(&mut vm, |vm| vm.status().is_terminal());
    let VmStatus::Failed { message } = vm.status() else { panic!("{}", vm.status()) };
    for part in [&run_dir, "was removed after the VM was built"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn two_hundred_builds_take_no_longer_each() {
    run_isolated!();
    drop(built());
    let begin = Instant::now();
    let vms: Vec<Vm> = (0..200).map(|_| built()).collect();
    // About 2 ms each; this only ends a hang.
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    assert_eq!(run_dir::list(&base()).unwrap().len(), 200);
    drop(vms);
    assert_eq!(run_dir::list(&base()).unwrap(), []);
}
