//! Wakers and subscribers of a program that use the VM while they run or are dropped, or panic.

use std::panic::panic_any;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::task::Wake;

use futures_lite::future::block_on;

use super::*;
#[cfg(target_os = "linux")]
use crate::testing::GuestReply;
use crate::testing::{self, ScriptedGuest};
use crate::{VmConsole, VmHandle};

const PATIENCE: Duration = Duration::from_secs(10);

/// Fails if `work` does not return in time.
fn in_time(work: impl FnOnce() + Send + 'static) {
    let (sender, done) = mpsc::channel();
    let working = std::thread::spawn(move || {
        work();
        sender.send(()).unwrap();
    });
    if done.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("a lock is held while a waker is dropped");
    }
    working.join().unwrap();
}

fn started() -> VmHandle {
    let vm = block_on(testing::vm(ScriptedGuest::new().hang()).build()).unwrap();
    block_on(vm.start()).unwrap();
    vm
}

/// A task that owns a console, as a future that an executor has dropped except for its waker.
struct ConsoleTask(#[expect(dead_code, reason = "dropped")] VmConsole);

// `Waker::noop` would own no console.
#[allow(unknown_lints, clippy::manual_noop_waker, reason = "a lint of clippy 1.96")]
impl Wake for ConsoleTask {
    fn wake(self: Arc<Self>) {}
}

fn task_of(vm: &VmHandle) -> Waker {
    Waker::from(Arc::new(ConsoleTask(block_on(vm.console()).unwrap())))
}

fn poll_with<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(waker))
}

#[test]
fn replaced_waker_may_drop_a_console() {
    in_time(|| {
        let vm = started();
        let mut wait = Box::pin(vm.wait());
        assert!(poll_with(&mut wait, &task_of(&vm)).is_pending());
        assert!(poll_with(&mut wait, Waker::noop()).is_pending());
    });
}

#[test]
fn dropped_wait_may_drop_a_console() {
    in_time(|| {
        let vm = started();
        let mut wait = Box::pin(vm.wait());
        assert!(poll_with(&mut wait, &task_of(&vm)).is_pending());
        drop(wait);
        let mut reader = block_on(vm.console()).unwrap();
        let mut read = Box::pin(reader.wait_for("never"));
        assert!(poll_with(&mut read, &task_of(&vm)).is_pending());
        drop(read);
        drop(reader);
    });
}

#[test]
fn driver_that_changes_executor_may_drop_a_console() {
    in_time(|| {
        let vm = testing::vm(ScriptedGuest::new().hang()).build_driven();
        let (vm, mut driver) = block_on(vm).unwrap();
        // As after a poll on another executor, whose other references are gone.
        let WakeTarget::Future(waker) = &vm.shared().wake_target else { panic!("a thread") };
        *waker.lock().unwrap() = Some(task_of(&vm));
        assert!(poll_with(&mut driver, Waker::noop()).is_pending());
    });
}

/// Panics in `wake`. If it has a handle, it drops that first, and the drop of the panic's value panics
/// too.
struct PanickingWaker(Mutex<Option<VmHandle>>);

struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic!("the value of a panic panics");
    }
}

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        let Some(vm) = self.0.lock().unwrap().take() else { panic!("a waker panics") };
        drop(vm);
        panic_any(PanicsOnDrop);
    }
}

#[test]
fn waker_that_drops_its_vm_and_panics_is_harmless() {
    in_time(|| {
        let (vm, other) = (started(), started());
        let shared = Arc::clone(vm.shared());
        let waiter = Waiter::for_status(&shared).unwrap();
        let waker = Waker::from(Arc::new(PanickingWaker(Mutex::new(Some(vm.clone())))));
        let wait: Poll<Result<()>> = waiter.wait(&mut shared.lock(), &Context::from_waker(&waker));
        assert!(wait.is_pending());
        drop(waker);
        block_on(vm.kill()).unwrap();
        drop(vm);
        block_on(other.kill()).unwrap();
    });
}

#[test]
fn panicking_waker_of_a_driver_reaches_no_handle() {
    in_time(|| {
        let vm = testing::vm(ScriptedGuest::new().hang()).build_driven();
        let (vm, mut driver) = block_on(vm).unwrap();
        let panics = || Waker::from(Arc::new(PanickingWaker(Mutex::new(None))));
        assert!(poll_with(&mut driver, &panics()).is_pending());
        assert!(block_on(vm.stop()).is_err(), "it was not started");
        assert!(poll_with(&mut driver, &panics()).is_pending());
        drop(vm);
        assert!(block_on(driver).unwrap().is_terminal());
    });
}

static ARMED: AtomicBool = AtomicBool::new(false);

struct PanickingSubscriber;

impl tracing::Subscriber for PanickingSubscriber {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &tracing::span::Id) {
        let is_driver = std::thread::current().name() == Some("capsa");
        assert!(!(is_driver && ARMED.swap(false, Ordering::SeqCst)), "a subscriber that panics");
    }
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn panic_in_a_drive_fails_one_vm() {
    const ALONE: &str = "CAPSA_TEST_ALONE";
    let name = "driver::hostile_tests::panic_in_a_drive_fails_one_vm";
    if std::env::var_os(ALONE).is_none() {
        let this = std::env::current_exe().unwrap();
        let status = Command::new(this).args([name, "--exact"]).env(ALONE, "1").status();
        assert!(status.unwrap().success());
        return;
    }
    tracing::subscriber::set_global_default(PanickingSubscriber).unwrap();
    in_time(|| {
        let (vm, other) = (started(), started());
        std::thread::sleep(Duration::from_millis(50));
        ARMED.store(true, Ordering::SeqCst);
        vm.shared().wake_driver();
        let error = block_on(vm.wait()).unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
        assert!(block_on(vm.kill()).is_err());
        block_on(other.kill()).unwrap();
    });
}

#[cfg(target_os = "linux")]
#[test]
fn ended_vms_that_were_kept_leave_no_descriptor() {
    const ALONE: &str = "CAPSA_TEST_ALONE";
    let name = "driver::hostile_tests::ended_vms_that_were_kept_leave_no_descriptor";
    if std::env::var_os(ALONE).is_none() {
        let this = std::env::current_exe().unwrap();
        let status = Command::new(this).args([name, "--exact"]).env(ALONE, "1").status();
        assert!(status.unwrap().success());
        return;
    }
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let run = |keep: bool| {
        let guest = ScriptedGuest::new().login("root", None).shell("# ");
        let guest = guest.on("id -u", GuestReply::output("0\n"));
        let vm = block_on(testing::vm(guest).build()).unwrap();
        block_on(vm.start()).unwrap();
        block_on(vm.kill()).unwrap();
        if keep {
            vm.keep_running();
        }
    };
    let settles_at = |limit: usize| {
        let deadline = Instant::now() + PATIENCE;
        while descriptors() > limit {
            assert!(Instant::now() < deadline, "{} descriptors, before {limit}", descriptors());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    run(false);
    std::thread::sleep(Duration::from_millis(50));
    let before = descriptors();
    for _ in 0..2000 {
        run(false);
        drop(block_on(testing::vm(ScriptedGuest::new().hang()).build()).unwrap());
    }
    settles_at(before);
    for _ in 0..100 {
        run(true);
    }
    settles_at(before);
}
