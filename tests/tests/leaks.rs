//! Nothing is left after many lives. Alone in its program, so that it can count exactly.

use std::fs;
use std::time::Duration;

use capsa_test::vm::{NanoGuest, eventually, runs};

#[test]
fn a_hundred_lives_leave_nothing_behind() {
    let Some(guest) = NanoGuest::new("a hundred lives") else { return };
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    let mut after_the_first = None;
    for life in 0..100 {
        let vm = guest.builder().build_blocking().unwrap();
        vm.start().unwrap();
        let pid = vm.hypervisor_pid().unwrap();
        let run_dir = vm.launch_plan().run_dir.to_string();
        vm.kill().unwrap();
        assert!(!runs(pid));
        assert!(!fs::exists(&run_dir).unwrap());
        drop(vm);
        drop(guest.builder().build_blocking().unwrap()); // never started
        if life == 0 {
            // The hidden thread, its poller and the guardian have come to stay.
            std::thread::sleep(Duration::from_millis(500));
        }
        let most = *after_the_first.get_or_insert_with(|| (descriptors(), threads()));
        eventually("the machine is let go", || (descriptors(), threads()) == most);
    }
}
