//! Drivers, handles and futures that are dropped at any moment.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use capsa::{Error, VmStatus};
use capsa_testkit::fake;
use capsa_testkit::processes::runs;
use capsa_testkit::run_isolated;
use capsa_testkit::vm::eventually;
use futures_lite::future::{block_on, or, poll_once, yield_now};

#[test]
fn driver_dropped_wakes_waiters() {
    run_isolated!();
    let (vm, driver) = block_on(fake::vm("up serve").build_driven()).unwrap();
    let waiting = {
        let vm = vm.clone();
        std::thread::spawn(move || block_on(vm.wait()))
    };
    let starting = async {
        vm.start().await.unwrap();
        Ok(VmStatus::Running)
    };
    block_on(or(driver, starting)).unwrap();
    assert_eq!(waiting.join().unwrap().unwrap(), VmStatus::Stopped { exit_code: None });
    block_on(vm.kill()).unwrap();
}

#[test]
fn driver_dropped_before_start_rejects_start() {
    run_isolated!();
    let (vm, driver) = block_on(fake::vm("up serve").build_driven()).unwrap();
    let waiting = {
        let vm = vm.clone();
        std::thread::spawn(move || block_on(vm.wait()))
    };
    drop(driver);
    // It has ended before its start, and a VM starts once.
    assert!(matches!(block_on(vm.start()), Err(Error::AlreadyRunning)));
    assert_eq!(waiting.join().unwrap().unwrap(), VmStatus::Stopped { exit_code: None });
}

#[test]
fn handle_dropped_at_any_moment_leaves_nothing() {
    run_isolated!();
    for n in 0..40 {
        let vm = block_on(fake::vm("up console=hello serve").build()).unwrap();
        let run_dir = vm.launch_plan().run_dir().display().to_string();
        let mut pid = None;
        block_on(async {
            let life = async {
                vm.start().await?;
                let mut console = vm.console().await?;
                console.wait_for("hello").await?;
                vm.stop_with_timeout(Duration::from_millis(1)).await
            };
            let moments = async {
                for _ in 0..n {
                    std::thread::sleep(Duration::from_micros(250));
                    pid = pid.or(vm.hypervisor_pid());
                    yield_now().await;
                }
                Ok(())
            };
            or(life, moments).await.unwrap();
        });
        drop(vm);
        assert!(!std::path::Path::new(&run_dir).exists());
        eventually("the VMM has exited", || pid.is_none_or(|pid| !runs(pid)));
    }
}

#[test]
fn futures_dropped_at_any_moment_lose_nothing() {
    run_isolated!();
    let vm = block_on(fake::vm("up console*5000 console=END serve").build()).unwrap();
    block_on(async {
        vm.start().await.unwrap();
        let mut console = vm.console().await.unwrap();
        for _ in 0..200 {
            poll_once(console.wait_for("never")).await;
            poll_once(console.run_command("true", "# ")).await;
            poll_once(vm.wait()).await;
            poll_once(vm.wait_timeout(Duration::from_secs(3600))).await;
        }
        let output = console.wait_for("END").await.unwrap();
        assert_eq!(output.len(), 5003);
        poll_once(vm.stop()).await;
        vm.kill().await.unwrap();
    });
}

#[test]
fn future_dropped_leaves_no_waker() {
    /// This test ignores wakes.
    struct FlagWaker(AtomicBool);
    impl Wake for FlagWaker {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    run_isolated!();
    let vm = block_on(fake::vm("up serve").build()).unwrap();
    block_on(vm.start()).unwrap();
    let mut console = block_on(vm.console()).unwrap();
    let task = Arc::new(FlagWaker(AtomicBool::new(false)));
    for _ in 0..3 {
        let waker = Waker::from(Arc::clone(&task));
        let mut cx = Context::from_waker(&waker);
        assert!(pin!(vm.wait()).poll(&mut cx).is_pending());
        assert!(pin!(vm.wait_timeout(Duration::MAX)).poll(&mut cx).is_pending());
        assert!(pin!(vm.wait_timeout(Duration::from_secs(3600))).poll(&mut cx).is_pending());
        assert!(pin!(console.wait_for("never")).poll(&mut cx).is_pending());
    }
    assert_eq!(Arc::strong_count(&task), 1, "the VM keeps a task alive");
}
