//! `VmHandle` on async runtimes, and what happens to a VM when its runtime or task ends.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use capsa::embed::TokioVm;
use capsa::{EndedBy, Result, VmHandle, VmStatus};
use capsa_testkit::fake;
use capsa_testkit::processes::runs;
use capsa_testkit::run_isolated;
use capsa_testkit::vm::{NanoGuest, PATIENCE, eventually, poll_fd};
use futures_lite::future::{self, block_on};
use tokio::runtime::{Builder, Runtime};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
type Runs = (&'static str, fn(Task));

/// An executor without a runtime.
const RUNTIMES: &[Runs] = &[
    ("tokio on many threads", |task| {
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async { runtime.spawn(task).await.unwrap() });
    }),
    // Its timer and its I/O are not needed.
    ("tokio with nothing enabled", |task| {
        Builder::new_current_thread().build().unwrap().block_on(task);
    }),
    ("smol", |task| smol::block_on(smol::spawn(task))),
    ("pollster", pollster::block_on),
    ("a plain thread", |task| std::thread::spawn(|| block_on(task)).join().unwrap()),
];

async fn conversation(vm: &VmHandle) -> Result<()> {
    assert_eq!(vm.wait_timeout(Duration::from_millis(10)).await?, None);
    vm.start().await?;
    let mut console = vm.console().await?;
    console.wait_for_timeout("NANO READY\r\n", PATIENCE).await?;
    console.write_str("hello").await?;
    console.wait_for_timeout("hello", PATIENCE).await?;
    let silence = console.wait_for_timeout("more", Duration::from_millis(10)).await;
    assert!(matches!(silence, Err(capsa::Error::Timeout { .. })), "{silence:?}");
    let ended = future::zip(vm.wait(), vm.stop()).await;
    ended.1?;
    assert!(ended.0?.is_terminal());
    assert_eq!(vm.stop_report().unwrap().ended_by, EndedBy::GuestPowerOff);
    Ok(())
}

#[test]
fn runtimes_run_handle() {
    for (name, run) in RUNTIMES {
        let Some(guest) = NanoGuest::new() else { return };
        println!("{name}");
        run(Box::pin(async move {
            let vm = guest.builder().build().await.unwrap();
            conversation(&vm).await.unwrap();
        }));
    }
}

#[test]
fn runtimes_run_driven_handle() {
    for (name, run) in RUNTIMES {
        let Some(guest) = NanoGuest::new() else { return };
        println!("{name}");
        run(Box::pin(async move {
            let (vm, driver) = guest.builder().build_driven().await.unwrap();
            let (driven, conversed) = future::zip(driver, conversation(&vm)).await;
            conversed.unwrap();
            assert_eq!(driven.unwrap(), vm.status());
        }));
    }
}

#[test]
fn blocking_api_works_inside_runtime() {
    run_isolated!();
    // It blocks the runtime's only thread, which it does not need.
    Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let vm = fake::vm("up console=hello echo serve").build_blocking().unwrap();
        vm.start().unwrap();
        let mut console = vm.console().unwrap();
        console.wait_for_timeout("hello", PATIENCE).unwrap();
        console.write_str("again").unwrap();
        console.wait_for_timeout("again", PATIENCE).unwrap();
        let pid = vm.as_async().hypervisor_pid().unwrap();
        drop(vm);
        eventually("the VMM has exited", || !runs(pid));
    });
}

#[test]
fn driver_in_own_task_serves_other_threads() {
    let Some(guest) = NanoGuest::new() else { return };
    let runtime = Runtime::new().unwrap();
    let (vm, driver) = block_on(guest.builder().build_driven()).unwrap();
    let driven = runtime.spawn(driver);
    block_on(conversation(&vm)).unwrap();
    assert!(block_on(driven).unwrap().unwrap().is_terminal());
}

#[test]
fn runtime_shutdown_kills_vms_of_its_tasks() {
    run_isolated!();
    let runtime = Runtime::new().unwrap();
    let vm = runtime.block_on(fake::vm("up serve").build()).unwrap();
    runtime.block_on(vm.start()).unwrap();
    let pid = vm.hypervisor_pid().unwrap();
    runtime.spawn(async move { vm.wait().await });
    assert!(runs(pid));
    drop(runtime);
    eventually("the VMM has exited", || !runs(pid));
}

#[test]
fn handle_outlives_its_first_runtime() {
    run_isolated!();
    let first = Runtime::new().unwrap();
    let vm = first.block_on(fake::vm("up echo serve").build()).unwrap();
    first.block_on(vm.start()).unwrap();
    let mut console = first.block_on(vm.console()).unwrap();
    drop(first);
    smol::block_on(async {
        console.write_str("still here").await.unwrap();
        console.wait_for_timeout("still here", PATIENCE).await.unwrap();
        vm.kill().await.unwrap();
    });
}

#[test]
fn runtime_shutdown_ends_driven_vm() {
    run_isolated!();
    let runtime = Runtime::new().unwrap();
    let (vm, driver) = runtime.block_on(fake::vm("up serve").build_driven()).unwrap();
    runtime.spawn(driver);
    block_on(vm.start()).unwrap();
    drop(runtime);
    // The driver is gone, and waits return nevertheless.
    assert_eq!(block_on(vm.wait()).unwrap(), VmStatus::Stopped { exit_code: None });
}

#[test]
fn tokio_vm_into_inner_after_runtime_shutdown() {
    run_isolated!();
    let runtime = Runtime::new().unwrap();
    let mut vm = fake::vm("up serve").build_embedded().unwrap();
    vm.start().unwrap();
    let mut vm = runtime.block_on(async {
        let mut vm = TokioVm::new(vm).unwrap();
        while vm.status() != VmStatus::Running {
            vm.next_event().await.unwrap();
        }
        vm
    });
    drop(runtime);
    let error = Runtime::new().unwrap().block_on(vm.next_event()).unwrap_err();
    assert!(error.to_string().contains("shutdown"), "{error}");
    let mut vm = vm.into_inner();
    vm.kill().unwrap();
    while !vm.status().is_terminal() {
        poll_fd(&vm, vm.next_timeout());
        vm.on_ready().unwrap();
    }
}

#[test]
fn task_panic_kills_only_its_vm() {
    run_isolated!();
    let runtime = Runtime::new().unwrap();
    let start = async || {
        let vm = fake::vm("up echo serve").build().await.unwrap();
        vm.start().await.unwrap();
        vm
    };
    let other = runtime.block_on(start());
    let (sender, result) = std::sync::mpsc::channel();
    let task = runtime.spawn(async move {
        let vm = start().await;
        sender.send(vm.hypervisor_pid().unwrap()).unwrap();
        panic!("as intended");
    });
    assert!(runtime.block_on(task).unwrap_err().is_panic());
    let pid = result.recv().unwrap();
    eventually("the VMM has exited", || !runs(pid));
    runtime.block_on(async {
        let mut console = other.console().await.unwrap();
        console.write_str("unharmed").await.unwrap();
        console.wait_for_timeout("unharmed", PATIENCE).await.unwrap();
        other.kill().await.unwrap();
    });
}

#[test]
fn loop_panic_kills_vm() {
    run_isolated!();
    let mut pid = None;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let mut vm = fake::vm("up serve").build_embedded().unwrap();
        vm.start().unwrap();
        loop {
            vm.on_ready().unwrap();
            if vm.status() == VmStatus::Running {
                pid = vm.hypervisor_pid();
                panic!("as intended");
            }
        }
    }));
    assert!(panicked.is_err());
    // The drop has waited for the VMM.
    assert!(!runs(pid.unwrap()));
}

#[test]
fn waker_panic_does_not_affect_others() {
    struct Panics(AtomicUsize);
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
            panic!("as intended");
        }
    }
    run_isolated!();
    let vm = block_on(fake::vm("up echo serve").build()).unwrap();
    block_on(vm.start()).unwrap();
    let woken = Arc::new(Panics(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut console = block_on(vm.console()).unwrap();
    let mut other = block_on(vm.console()).unwrap();
    let mut waiting = Box::pin(console.wait_for("hello"));
    assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    block_on(async {
        other.write_str("hello").await.unwrap();
        other.wait_for_timeout("hello", PATIENCE).await.unwrap();
    });
    eventually("the waker was called", || woken.0.load(Ordering::SeqCst) == 1);
    // The next call returns the output at once.
    assert_eq!(block_on(waiting).unwrap(), "hello");
    block_on(vm.kill()).unwrap();
}
