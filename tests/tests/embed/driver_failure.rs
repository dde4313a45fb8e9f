//! Drivers that fail before their VM has ended: each waiter and each later call gets the error.
//!
//! A poller is broken by putting `/dev/null` in the place of its descriptor.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::future::Future;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use capsa::{Error, LinuxVmBuilder, VmHandle, VmStatus};
use capsa_testkit::fake;
use capsa_testkit::processes::runs;
use capsa_testkit::programs::TestProgram;
use capsa_testkit::vm::{PATIENCE, eventually, in_time};
use capsa_testkit::{run_isolated, skip, test_name};
use futures_lite::future::{block_on, poll_once};
use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt};
use nix::unistd::{close, daemon};

const FAKE_VSOCK: TestProgram = TestProgram::new("fake-vsock");

const PORT: u32 = 7;

type Call = (&'static str, Pin<Box<dyn Future<Output = Result<(), Error>>>>);

fn builder() -> LinuxVmBuilder {
    let builder = fake::vm("up console=hello serve").vsock();
    builder.program("vhost-device-vsock", FAKE_VSOCK)
}

/// The descriptors of all pollers of this process. `None` where the kernel does not list them.
fn pollers() -> Option<BTreeSet<RawFd>> {
    let entries = fs::read_dir("/proc/self/fd").ok()?.flatten();
    let is_poller = |fd: &fs::DirEntry| {
        fs::read_link(fd.path()).is_ok_and(|link| link == Path::new("anon_inode:[eventpoll]"))
    };
    entries.filter(is_poller).map(|fd| fd.file_name().to_str()?.parse().ok()).collect()
}

/// The pollers that exist now and are not in `before`.
fn new_pollers(before: &BTreeSet<RawFd>) -> BTreeSet<RawFd> {
    &pollers().unwrap() - before
}

/// The poller that watches another poller.
fn outer_poller() -> RawFd {
    let all = pollers().unwrap();
    let watches_poller = |fd: &RawFd| {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
        let watched = info.lines().filter_map(|line| line.strip_prefix("tfd:"));
        let mut watched = watched.filter_map(|rest| rest.split_whitespace().next()?.parse().ok());
        watched.any(|fd| all.contains(&fd))
    };
    all.iter().copied().find(watches_poller).unwrap()
}

fn break_pollers(pollers: impl IntoIterator<Item = RawFd>) {
    for poller in pollers {
        close(poller).unwrap();
        let mut others = Vec::new();
        loop {
            let file = File::open("/dev/null").unwrap();
            if file.as_raw_fd() == poller {
                // The owner of the poller closes it.
                let _ = file.into_raw_fd();
                break;
            }
            others.push(file);
        }
    }
}

#[track_caller]
fn assert_driver_error<T: std::fmt::Debug>(what: &str, result: Result<T, Error>) {
    let Err(Error::Io(error)) = result else { panic!("{what}: {result:?}") };
    let text = error.to_string();
    assert!(text.contains("the driver of the VM has failed: "), "{what}: {text}");
}

/// Calls of every kind that wait for a VM that runs.
async fn waits(vm: &VmHandle) -> Vec<Call> {
    fn call(future: impl Future<Output = Result<(), Error>> + 'static) -> Call {
        ("", Box::pin(future))
    }
    let console = || async { vm.console().await.unwrap() };
    let mut all = Vec::new();
    let mut add = |name, (_, future): Call| all.push((name, future));
    let handle = vm.clone();
    add("wait", call(async move { handle.wait().await.map(drop) }));
    let handle = vm.clone();
    add("wait_timeout", call(async move { handle.wait_timeout(PATIENCE * 60).await.map(drop) }));
    let mut waiting = console().await;
    add("wait_for", call(async move { waiting.wait_for("never").await.map(drop) }));
    let mut waiting = console().await;
    add("login", call(async move { waiting.login("root", None).await }));
    let mut waiting = console().await;
    let silence = PATIENCE * 60;
    add("silence", call(async move { waiting.wait_for_silence(silence, None).await.map(drop) }));
    let mut reading = console().await;
    reading.wait_for("hello").await.unwrap();
    let mut reader = reading.reader();
    add("read", call(async move { reading.read(&mut [0; 9]).await.map(drop) }));
    let read = async move { reader.read(&mut [0; 9]).await.map(drop).map_err(Error::Io) };
    add("AsyncRead", call(read));
    let mut running = console().await;
    let command = async move { running.spawn("sleep", None)?.wait().await.map(drop) };
    add("spawn", call(command));
    let listener = vm.vsock_listen(PORT).await.unwrap();
    add("accept", call(async move { listener.accept().await.map(drop) }));
    all
}

/// Checks that calls return the error after the driver has failed.
async fn assert_calls_fail(vm: &VmHandle) {
    assert_driver_error("start", vm.start().await);
    assert_driver_error("stop", vm.stop().await);
    assert_driver_error("kill", vm.kill().await);
    assert_driver_error("wait", vm.wait().await);
    assert_driver_error("wait_timeout", vm.wait_timeout(Duration::ZERO).await);
    assert_driver_error("vsock_connect", vm.vsock_connect(PORT).await);
    assert_driver_error("vsock_connect", vm.vsock_connect_timeout(PORT, PATIENCE).await);
    assert_driver_error("vsock_listen", vm.vsock_listen(PORT + 1).await);
    let mut console = vm.console().await.unwrap();
    // Output from before the failure can be read.
    console.read_available().await.unwrap();
    assert_driver_error("read", console.read(&mut [0; 9]).await);
    assert_driver_error("write", console.write(b"more").await);
    assert_driver_error("wait_for", console.wait_for("never").await);
    assert_driver_error("run", console.run("true", None).await);
    assert_driver_error("spawn", console.spawn("true", None));
    let (reader, mut writer) = console.split();
    assert_driver_error("AsyncWrite", writer.write(b"more").await.map_err(Error::Io));
    let mut lines = reader.lines();
    assert_eq!(lines.next().await, None);
}

/// Starts a VM, lets calls of every kind wait, breaks pollers, and checks that all calls fail.
async fn assert_waits_fail(vm: &VmHandle, broken: impl FnOnce() -> Vec<RawFd>) {
    vm.start().await.unwrap();
    let pid = vm.hypervisor_pid().unwrap();
    let mut waits = waits(vm).await;
    for (name, wait) in &mut waits {
        let early = poll_once(wait).await;
        assert!(early.is_none(), "{name}: {early:?}");
    }
    break_pollers(broken());
    // The driver notices when it has work.
    assert_driver_error("kill", vm.kill().await);
    for (name, wait) in waits {
        assert_driver_error(name, wait.await);
    }
    assert_calls_fail(vm).await;
    assert_ne!(vm.status(), VmStatus::Running);
    eventually("the VMM is killed", || !runs(pid) || is_zombie(pid));
}

fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.contains(") Z ")
}

#[test]
fn thread_broken_vm_poller_fails_all_waits() {
    run_isolated!();
    let other = block_on(builder().build()).unwrap();
    let Some(before) = pollers() else { return skip("the kernel does not list descriptors") };
    let vm = block_on(builder().build()).unwrap();
    let broken = new_pollers(&before).into_iter().collect();
    in_time("every wait returns", {
        let vm = vm.clone();
        move || block_on(assert_waits_fail(&vm, || broken))
    });
    // The other VM has a driver still.
    block_on(other.start()).unwrap();
    block_on(other.kill()).unwrap();
    let pid = vm.hypervisor_pid();
    drop(vm);
    eventually("the VMM has exited", || pid.is_none_or(|pid| !runs(pid)));
}

#[test]
fn thread_broken_vm_poller_fails_start() {
    run_isolated!();
    let _other = block_on(builder().build()).unwrap();
    let Some(before) = pollers() else { return skip("the kernel does not list descriptors") };
    let vm = builder().build_blocking().unwrap();
    break_pollers(new_pollers(&before));
    assert_driver_error("start", in_time("the start returns", move || vm.start()));
}

#[test]
fn thread_broken_own_poller_fails_all_vms() {
    run_isolated!();
    if pollers().is_none() {
        return skip("the kernel does not list descriptors");
    }
    let vms = [(); 2].map(|()| block_on(builder().build()).unwrap());
    in_time("every wait returns", move || {
        block_on(async {
            vms[1].start().await.unwrap();
            let mut wait = Box::pin(vms[1].wait());
            assert!(poll_once(&mut wait).await.is_none());
            assert_waits_fail(&vms[0], || vec![outer_poller()]).await;
            assert_driver_error("wait", wait.await);
        });
    });
    // The next VM starts a new thread.
    let vm = block_on(builder().build()).unwrap();
    block_on(vm.start()).unwrap();
    block_on(vm.kill()).unwrap();
}

#[test]
fn future_broken_poller_fails_all_waits() {
    run_isolated!();
    // async-io has a poller too.
    drop(block_on(builder().build_driven()).unwrap());
    let Some(before) = pollers() else { return skip("the kernel does not list descriptors") };
    let (vm, driver) = block_on(builder().build_driven()).unwrap();
    let broken = new_pollers(&before).into_iter().collect();
    let driven = std::thread::spawn(move || block_on(driver));
    in_time("every wait returns", move || block_on(assert_waits_fail(&vm, || broken)));
    assert_driver_error("driver", in_time("the driver returns", || driven.join().unwrap()));
}

#[test]
fn forked_child_waits_return_an_error() {
    /// Set in the process that forks.
    const FORKS: &str = "CAPSA_TEST_FORKS";
    let run_dir = || PathBuf::from(env::var_os("CAPSA_RUN_DIR").unwrap());
    if env::var_os(FORKS).is_some() {
        tracing::subscriber::set_global_default(BlockingSubscriber).unwrap();
        let vm = fake::vm("up console=hello serve").build_blocking().unwrap();
        vm.start().unwrap();
        let mut console = vm.console().unwrap();
        console.wait_for("hello").unwrap();
        // The driver thread holds the lock of the VM at the fork, and in the child for ever.
        IS_ARMED.store(true, Ordering::SeqCst);
        // It wakes the driver.
        drop(console.reader());
        eventually("the driver is in the VM", || !IS_ARMED.load(Ordering::SeqCst));
        daemon(true, true).unwrap();
        let results = [
            vm.wait().map(drop),
            vm.wait_timeout(PATIENCE).map(drop),
            vm.kill(),
            console.wait_for("never").map(drop),
            console.login("root", None),
            console.run("true", None).map(drop),
            console.spawn("true", None).map(drop),
            console.write(b"x"),
            console.read(&mut [0]).map(drop),
            console.read_available().map(drop),
            vm.console().map(drop),
        ];
        drop(console);
        let status = vm.status();
        fs::write(run_dir().join("writing"), format!("{results:?} {status}")).unwrap();
        fs::rename(run_dir().join("writing"), run_dir().join("result")).unwrap();
        std::process::exit(0);
    }
    run_isolated!();
    let mut forks = Command::new(env::current_exe().unwrap());
    forks.args([&test_name(), "--exact"]).env(FORKS, "1").status().unwrap();
    let result = run_dir().join("result");
    eventually("the child's waits return", || result.exists());
    let result = fs::read_to_string(result).unwrap();
    assert_eq!(result.matches("used in a forked child").count(), 11, "{result}");
}

static IS_ARMED: AtomicBool = AtomicBool::new(false);

/// Blocks the driver thread in `on_ready`, which enters a span.
struct BlockingSubscriber;

impl tracing::Subscriber for BlockingSubscriber {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::Id {
        tracing::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::Id, _: &tracing::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {}

    fn enter(&self, _: &tracing::Id) {
        let is_driver = std::thread::current().name() == Some("capsa");
        if is_driver && IS_ARMED.swap(false, Ordering::SeqCst) {
            std::thread::sleep(PATIENCE);
        }
    }

    fn exit(&self, _: &tracing::Id) {}
}
