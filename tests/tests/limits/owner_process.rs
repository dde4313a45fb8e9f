//! Owners that ignore SIGCHLD, reap all children, leak descriptors, lose the watchdog or end.

use std::fs;
use std::path::Path;

use capsa::blocking::VmHandle;
use capsa::embed::Vm;
use capsa::{Error, VmStatus};
use capsa_testkit::fake;
use capsa_testkit::processes::{self, Process, runs};
use capsa_testkit::vm::{PATIENCE, eventually, poll_fd};
use capsa_testkit::{run_isolated, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Starts the owner with SIGCHLD ignored, and a hypervisor that can be broken.
const IGNORES_CHILDREN: [&str; 3] = [
    "sh",
    "-c",
    "cp \"$CAPSA_QEMU\" \"$CAPSA_RUN_DIR/qemu\"
     CAPSA_QEMU=$CAPSA_RUN_DIR/qemu exec env --ignore-signal=CHLD \"$0\" \"$@\"",
];

/// Starts the owner with a descriptor that its children inherit.
const LEAKS: [&str; 3] = ["sh", "-c", "exec 9</dev/null; exec \"$0\" \"$@\""];

fn started(orders: &str) -> VmHandle {
    let vm = fake::vm(orders).build_blocking().unwrap();
    vm.start().unwrap();
    vm
}

fn pid(vm: &VmHandle) -> u32 {
    vm.as_async().hypervisor_pid().expect("it runs")
}

fn ignores_children(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
    u64::from_str_radix(ignored, 16).unwrap() & (1 << (Signal::SIGCHLD as u64 - 1)) != 0
}

fn watchdog() -> u32 {
    let all = processes::children(std::process::id());
    let is_it = |it: &&Process| it.arguments.contains("capsa-watchdog") && !it.is_zombie;
    all.iter().find(is_it).unwrap_or_else(|| panic!("no watchdog among {all:?}")).pid
}

/// Runs `test` on Linux only, because it reads `/proc`.
fn has_proc() -> bool {
    let has = Path::new("/proc/self/status").exists();
    if !has {
        skip("it takes a /proc to see what a process has and ignores");
    }
    has
}

#[test]
fn owner_ignoring_sigchld_runs_vms() {
    if !has_proc() {
        return;
    }
    run_isolated!(IGNORES_CHILDREN);
    assert!(ignores_children("self"), "the shell ignores SIGCHLD");
    let vm = started("up serve");
    let first = pid(&vm);
    // The hypervisor and its helpers do not ignore SIGCHLD.
    assert!(!ignores_children(&first.to_string()));
    vm.kill().unwrap();
    eventually("the hypervisor has exited", || !runs(first));

    let vm = started("up exit=0");
    assert!(vm.wait_timeout(PATIENCE).unwrap().is_some());

    // A program that cannot be executed is an error, not a panic.
    let broken = fake::vm("up serve").build_blocking().unwrap();
    fs::remove_file(std::env::var_os("CAPSA_QEMU").unwrap()).unwrap();
    let Error::StartFailed(why) = broken.start().unwrap_err() else { panic!("another error") };
    assert!(why.to_string().starts_with("cannot start qemu"), "{why}");
    let source = std::error::Error::source(&why).expect("the error of the system");
    assert!(source.is::<std::io::Error>(), "{source:?}");
}

#[test]
fn owner_reaping_all_children_runs_vms() {
    run_isolated!();
    std::thread::spawn(|| {
        loop {
            if nix::sys::wait::waitpid(None, None).is_err() {
                std::thread::yield_now();
            }
        }
    });
    for _ in 0..10 {
        let vm = started("up serve");
        let pid = pid(&vm);
        vm.kill().unwrap();
        assert!(!runs(pid));
        let vm = started("up exit=0");
        assert!(vm.wait_timeout(PATIENCE).unwrap().is_some());
    }
}

#[test]
fn owner_open_descriptor_is_not_inherited() {
    if !has_proc() {
        return;
    }
    run_isolated!(LEAKS);
    assert!(Path::new("/proc/self/fd/9").exists(), "the shell left it open");
    let vm = started("up serve");
    for pid in [pid(&vm), watchdog()] {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let open: Vec<_> = open.map(|fd| fd.file_name().into_string().unwrap()).collect();
        assert!(!open.contains(&"9".to_owned()), "{pid} has {open:?}");
    }
    vm.kill().unwrap();
}

#[test]
fn watchdog_killed_is_replaced() {
    run_isolated!();
    let first = started("up serve");
    let killed = watchdog();
    kill(Pid::from_raw(killed.cast_signed()), Signal::SIGKILL).unwrap();
    eventually("the watchdog has exited", || !runs(killed));
    let second = started("up serve");
    assert_ne!(watchdog(), killed);
    // The new watchdog has both VMs.
    first.kill().unwrap();
    second.kill().unwrap();
    assert_eq!(first.status(), VmStatus::Stopped { exit_code: None });
}

/// The test process adopts what an owner leaves, as the first process of a container does.
#[cfg(target_os = "linux")]
#[test]
fn owner_end_leaves_no_zombie() {
    use std::env;
    use std::process::Command;

    const ENDS: &str = "CAPSA_TEST_ENDS";
    let vm = || fake::vm("up console=hello serve");
    match env::var(ENDS).as_deref() {
        Ok("VM killed") => started("up serve").kill().unwrap(),
        Ok("VM running") => started("up serve").keep_running(),
        Ok("VM dropped") => {
            let mut vm = vm().build_embedded().unwrap();
            vm.start().unwrap();
            drive(&mut vm, |vm| vm.scrollback().end() > 0);
        }
        _ => {
            run_isolated!();
            nix::sys::prctl::set_child_subreaper(true).unwrap();
            for ends in ["VM killed", "VM running", "VM dropped"] {
                let mut owner = Command::new(env::current_exe().unwrap());
                owner.args([&capsa_testkit::test_name(), "--exact"]).env(ENDS, ends);
                assert!(owner.status().unwrap().success(), "{ends}");
                let left = processes::children(std::process::id());
                assert!(left.is_empty(), "{ends}: {left:?}");
            }
            return;
        }
    }
    std::process::exit(0);
}

#[test]
fn vms_dropped_in_turn_are_all_reaped() {
    run_isolated!();
    let vm = || {
        let mut vm = fake::vm("up console=hello serve").build_embedded().unwrap();
        vm.start().unwrap();
        drive(&mut vm, |vm| vm.scrollback().end() > 0);
        vm
    };
    let vms: Vec<Vm> = (0..8).map(|_| vm()).collect();
    let dirs: Vec<_> = vms.iter().map(|vm| vm.launch_plan().run_dir().to_owned()).collect();
    drop(vms);
    assert!(dirs.iter().all(|dir| !dir.exists()));
    let left = processes::children(std::process::id());
    assert_eq!(left.len(), 1, "only the watchdog is left: {left:?}");

    // While another VM runs, a drop waits for nothing, and its `on_ready` reaps.
    let (mut other, dropped) = (vm(), vm());
    let pid = dropped.hypervisor_pid().unwrap();
    drop(dropped);
    let is_reaped = || processes::children(std::process::id()).iter().all(|child| child.pid != pid);
    eventually("the dropped VM is reaped", || {
        other.on_ready().unwrap();
        is_reaped()
    });
}

fn drive(vm: &mut Vm, is_done: impl Fn(&Vm) -> bool) {
    while !is_done(vm) {
        poll_fd(&*vm, Some(vm.next_timeout().unwrap_or(PATIENCE)));
        vm.on_ready().unwrap();
        while vm.poll_event().is_some() {}
    }
}
