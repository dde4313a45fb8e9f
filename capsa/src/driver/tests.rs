//! The work of the driver thread, counted, and the locks that handles do not wait for.

use std::sync::mpsc;

use futures_lite::future::{block_on, or, poll_once};

use super::*;
use crate::testing::{self, GuestReply, ScriptedGuest};
use crate::{VmConsole, VmHandle};

const PATIENCE: Duration = Duration::from_secs(60);

fn shell() -> ScriptedGuest {
    let guest = ScriptedGuest::new().login("root", None).shell("# ");
    guest.on("id -u", GuestReply::output("0\n"))
}

fn started(guest: ScriptedGuest) -> (VmHandle, VmConsole) {
    block_on(async {
        let vm = testing::vm(guest).build().await.unwrap();
        vm.start().await.unwrap();
        let console = vm.console().await.unwrap();
        (vm, console)
    })
}

fn drives(vm: &VmHandle) -> u64 {
    vm.shared().lock().drives
}

#[test]
fn working_vm_drives_no_idle_vm() {
    let idle: Vec<_> =
        (0..50).map(|_| started(ScriptedGuest::new().print("ready").hang())).collect();
    for (vm, _) in &idle {
        block_on(vm.console()).unwrap();
    }
    let (vm, mut console) = started(shell());
    block_on(console.login("root", None)).unwrap();
    let count = || idle.iter().map(|(vm, _)| drives(vm)).collect::<Vec<_>>();
    // The thread may still have to drive idle VMs for their start.
    let mut before = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while before != count() {
        assert!(Instant::now() < deadline, "idle VMs are driven without end");
        before = count();
        block_on(console.run("id -u", None)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let worked = drives(&vm);
    for _ in 0..100 {
        assert_eq!(block_on(console.run("id -u", None)).unwrap().output, b"0\n");
    }
    block_on(vm.wait_timeout(Duration::from_millis(1))).unwrap();
    block_on(vm.stop()).unwrap();
    assert!(drives(&vm) > worked + 100, "drives are not counted");
    assert_eq!(count(), before, "idle VMs were driven");
}

#[test]
fn work_of_handles_is_never_delayed() {
    let thread = DriverThread::start().unwrap();
    let vm = thread.register(testing::vm(shell()).build_embedded().unwrap()).unwrap();
    for _ in 0..100 {
        let before = vm.lock().drives;
        vm.change(|_| ());
        let deadline = Instant::now() + PATIENCE;
        while vm.lock().drives == before {
            assert!(Instant::now() < deadline, "the VM is not driven");
        }
    }
    assert_eq!(thread.pauses.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn timers_of_many_vms_drive_only_their_own() {
    let vms: Vec<_> = (0..20).map(|_| started(ScriptedGuest::new().hang())).collect();
    let (late, rest) = vms.split_last().unwrap();
    block_on(async {
        // Nineteen timers that do not pass, and one that does.
        let mut waits: Vec<_> =
            rest.iter().map(|(vm, _)| Box::pin(vm.wait_timeout(PATIENCE))).collect();
        for wait in &mut waits {
            assert!(poll_once(wait).await.is_none());
        }
        late.0.wait_timeout(Duration::from_millis(50)).await.unwrap();
        let before: Vec<_> = rest.iter().map(|(vm, _)| drives(vm)).collect();
        for _ in 0..10 {
            assert_eq!(late.0.wait_timeout(Duration::from_millis(2)).await.unwrap(), None);
        }
        assert_eq!(rest.iter().map(|(vm, _)| drives(vm)).collect::<Vec<_>>(), before);
    });
}

#[test]
fn status_never_waits_for_the_driver() {
    let vm = block_on(testing::vm(ScriptedGuest::new().hang()).build()).unwrap();
    let other = vm.clone();
    // The driver holds this lock in `on_ready`, so for as long as a spawn lasts.
    let driving = vm.shared().lock();
    let (sender, looks) = mpsc::channel();
    let looking = std::thread::spawn(move || {
        let resources = other.resources().clone();
        let pid = other.hypervisor_pid();
        sender
            .send((other.status(), other.guest_os(), resources, pid, other.stop_report()))
            .unwrap();
    });
    let (status, _, _, pid, report) = looks.recv_timeout(PATIENCE).expect("a look waits");
    assert_eq!((status, pid, report), (VmStatus::Created, None, None));
    drop(driving);
    looking.join().unwrap();
}

#[test]
fn status_never_lags_behind_a_future() {
    let (vm, mut console) = started(shell());
    assert_eq!(vm.status(), VmStatus::Running);
    block_on(console.login("root", None)).unwrap();
    block_on(vm.stop()).unwrap();
    assert!(vm.status().is_terminal(), "{}", vm.status());
    assert!(vm.stop_report().is_some());

    // A future that is polled by hand: nothing drives the VM.
    let (vm, driver) = block_on(testing::vm(ScriptedGuest::new().hang()).build_driven()).unwrap();
    block_on(async {
        let mut start = Box::pin(vm.start());
        assert!(poll_once(&mut start).await.is_none());
        assert_eq!(vm.status(), VmStatus::Starting);
        or(start, async { driver.await.map(drop) }).await.unwrap();
    });
    assert!(vm.status().is_terminal(), "the driver was dropped");
}

#[test]
fn wait_timeout_passes_while_output_is_written() {
    let (vm, _console) = started(ScriptedGuest::new().hang());
    // A thread that writes the console's output, and does not finish.
    vm.shared().prepare(|state| state.relays += 1);
    vm.shared().change(|state| state.vm.kill()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !vm.status().is_terminal() {
        assert!(Instant::now() < deadline, "the VM does not end");
        std::thread::yield_now();
    }
    let (sender, timeout) = mpsc::channel();
    let other = vm.clone();
    let waiting = std::thread::spawn(move || {
        sender.send(block_on(other.wait_timeout(Duration::from_millis(20)))).unwrap();
    });
    let status = timeout.recv_timeout(PATIENCE).expect("the timer does not pass");
    assert_eq!(status.unwrap(), None);
    waiting.join().unwrap();
    vm.shared().relay_finished();
    assert!(block_on(vm.wait()).unwrap().is_terminal());
}

#[test]
fn deadlines_are_those_that_were_set_last() {
    let (mut deadlines, begin) = (Deadlines::default(), Instant::now());
    let at = |n: u64| begin + Duration::from_secs(n);
    for (key, time) in [(1, 50), (2, 20), (3, 30), (2, 40), (4, 10), (1, 5)] {
        deadlines.set(key, Some(at(time)));
    }
    deadlines.set(4, None);
    let mut keys = Vec::new();
    deadlines.take_due(at(4), &mut keys);
    assert!(keys.is_empty(), "{keys:?}");
    deadlines.take_due(at(35), &mut keys);
    assert_eq!(keys, [1, 3]);
    deadlines.take_due(at(100), &mut keys);
    assert_eq!(keys, [1, 3, 2]);
    assert_eq!(deadlines.next_timeout(), None);
}

#[test]
fn wake_of_an_ended_vm_is_ignored() {
    let (vm, mut console) = started(shell());
    block_on(vm.kill()).unwrap();
    let WakeTarget::Thread(thread, key) = &vm.shared().wake_target else { panic!("no thread") };
    let deadline = Instant::now() + PATIENCE;
    while thread.vms().by_key.contains_key(key) {
        assert!(Instant::now() < deadline, "the thread keeps a VM that has ended");
        std::thread::yield_now();
    }
    vm.shared().wake_driver();
    assert!(block_on(console.wait_for("never")).is_err());
    assert!(block_on(vm.wait_timeout(Duration::ZERO)).unwrap().is_some());
}

#[test]
fn handle_debug_is_one_short_line() {
    let (vm, console) = started(shell());
    let debug = format!("{vm:?}");
    assert!(debug.starts_with("VmHandle { run_dir: \"") && debug.ends_with("status: Running }"));
    assert!(debug.len() < 200, "{debug}");
    assert!(format!("{console:?}").len() < 300, "{console:?}");
    let embedded = testing::vm(shell()).build_embedded().unwrap();
    assert!(format!("{embedded:?}").len() < 200, "{embedded:?}");
}
