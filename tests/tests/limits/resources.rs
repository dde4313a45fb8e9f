//! Owners without free descriptors, or without memory for another thread.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use capsa::embed::Vm;
use capsa::internal::BuilderForTests as _;
use capsa::{Error, LinuxVmBuilder, VmStatus};
use capsa_testkit::fake;
use capsa_testkit::processes::{children, descriptors};
use capsa_testkit::run_isolated;
use capsa_testkit::skip;
use capsa_testkit::vm::{PATIENCE, eventually, poll_fd};
use futures_lite::future::{block_on, poll_once};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lowers the limit of descriptors to this many more, calls the function, and restores the limit.
fn with_room_for<T>(more: u64, act: impl FnOnce() -> T) -> T {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // The open descriptors have the lowest numbers, without gaps.
    let lowest = u64::from(File::open("/dev/null").unwrap().as_raw_fd().unsigned_abs());
    setrlimit(Resource::RLIMIT_NOFILE, lowest + more, hard).unwrap();
    let result = act();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    result
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

fn hypervisors() -> usize {
    let children = children(std::process::id());
    children.iter().filter(|child| child.arguments.contains("-append")).count()
}

#[test]
fn start_without_descriptors_fails_cleanly() {
    run_isolated!();
    let before = descriptors();
    let mut ran = false;
    for room in 0..40 {
        // A failed start does not wait for the launch deadline.
        let slow = |vm: LinuxVmBuilder| vm.timing(|timing| timing.launch = PATIENCE * 10);
        let mut vm = slow(fake::vm("up serve")).build_embedded().unwrap();
        vm.start().unwrap();
        with_room_for(room, || {
            drive(&mut vm, |vm| vm.status() == VmStatus::Running || vm.status().is_terminal())
        });
        match vm.status() {
            VmStatus::Failed { message } => {
                assert!(message.contains("Too many open files"), "{room}: {message}");
            }
            status => {
                assert_eq!(status, VmStatus::Running);
                ran = true;
            }
        }
        drop(vm);
        assert_eq!(hypervisors(), 0, "{room}");
        if ran {
            break;
        }
    }
    assert!(ran);
    // The watchdog's line.
    assert_eq!(descriptors(), before + 1);
}

#[test]
fn build_without_descriptors_names_the_cause() {
    run_isolated!();
    let mut refused = 0;
    for room in 0..40 {
        let builder = fake::vm("up serve");
        match with_room_for(room, || block_on(builder.build())) {
            Err(error) => {
                refused += 1;
                assert!(format!("{error:?}").contains("Too many open files"), "{room}: {error:?}");
            }
            Ok(vm) => {
                block_on(vm.start()).unwrap();
                block_on(vm.kill()).unwrap();
            }
        }
    }
    assert!((3..40).contains(&refused), "{refused}");
}

#[test]
fn driver_drop_without_descriptors_wakes_waiters() {
    run_isolated!();
    let (vm, mut driver) = block_on(fake::vm("up serve").build_driven()).unwrap();
    let started = async {
        let mut starting = Box::pin(vm.start());
        while poll_once(&mut starting).await.is_none() {
            assert!(poll_once(&mut driver).await.is_none());
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    block_on(started);
    with_room_for(0, || drop(driver));
    assert!(block_on(vm.wait_timeout(PATIENCE)).unwrap().is_some());
}

#[test]
fn stop_without_descriptors_succeeds() {
    run_isolated!();
    let vm = block_on(fake::vm("up serve").build()).unwrap();
    block_on(vm.start()).unwrap();
    with_room_for(0, || block_on(vm.stop_with_timeout(Duration::from_millis(10))).unwrap());
    let vm = block_on(fake::vm("up serve").build()).unwrap();
    block_on(vm.start()).unwrap();
    with_room_for(0, || drop(vm));
    eventually("the hypervisor has exited", || hypervisors() == 0);
}

#[test]
fn thread_spawn_failed_is_retried_later() {
    if !Path::new("/proc/self/statm").exists() {
        return skip("it takes a /proc to see how much memory is in use");
    }
    run_isolated!();
    let soon = || std::thread::sleep(Duration::from_millis(50));
    let mut building = Box::pin(fake::vm("up serve").build());
    assert!(block_on(poll_once(&mut building)).is_none(), "a thread checks files");
    soon();
    // That thread has ended, and another process uses its place.
    let _parked = std::thread::spawn(std::thread::park);
    soon();
    let (soft, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    setrlimit(Resource::RLIMIT_AS, pages * 4096 + (1 << 20), hard).unwrap();
    let refused = block_on(building);
    setrlimit(Resource::RLIMIT_AS, soft, hard).unwrap();
    assert!(matches!(refused, Err(Error::Io(_))), "{refused:?}");

    let vm = fake::vm("up serve").build_blocking().unwrap();
    let started = std::thread::spawn(move || vm.start());
    eventually("the VM starts", || started.is_finished());
    started.join().unwrap().unwrap();
}
