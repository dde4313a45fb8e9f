//! Nothing is left after many lives: descriptors, threads, processes, files.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Scenario, Stage};
use capsa_testkit::processes::{self, runs};
use capsa_testkit::vm::eventually;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    alone: true,
    ..Scenario::any("a_hundred_lives_leave_nothing_behind", hundred_lives)
}];

fn hundred_lives(stage: &Stage<'_>) {
    let mut after_the_first = None;
    for life in 0..100 {
        let vm = stage.builder().build_blocking().unwrap();
        let run_dir = vm.launch_plan().run_dir.to_string();
        let run_dir = Path::new(&run_dir);
        vm.start().unwrap();
        let pid = vm.hypervisor_pid().unwrap();
        assert!(run_dir.exists());
        vm.kill().unwrap();
        assert!(!runs(pid));
        assert!(!run_dir.exists());
        drop(vm);
        drop(stage.builder().build_blocking().unwrap()); // never started
        if life == 0 {
            // The hidden thread, its poller and the watchdog have come to stay.
            std::thread::sleep(Duration::from_millis(500));
        }
        let base = run_dir.parent().expect("a run directory is in another");
        let most = after_the_first.get_or_insert_with(|| Held::now(base));
        eventually("the machine is let go", || Held::now(base).is_within(most));
    }
}

/// What this process holds, and what lies where its machines have their directories.
#[derive(Debug)]
struct Held {
    descriptors: usize,
    threads: usize,
    children: usize,
    files: usize,
}

impl Held {
    fn now(base: &Path) -> Self {
        let count = |dir: &Path| fs::read_dir(dir).map_or(0, Iterator::count);
        Self {
            descriptors: processes::descriptors(),
            threads: processes::threads(),
            children: processes::children(std::process::id()).len(),
            files: count(base),
        }
    }

    fn is_within(&self, most: &Self) -> bool {
        self.descriptors <= most.descriptors
            && self.threads <= most.threads
            && self.children <= most.children
            && self.files <= most.files
    }
}
