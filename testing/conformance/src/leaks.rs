//! After many VMs, no descriptor, thread, process or file is left.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Fixture, Scenario};
use capsa_testkit::processes::{self, runs};
use capsa_testkit::vm::eventually;

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario { alone: true, ..Scenario::any("hundred_vms_leave_nothing_behind", hundred_vms) }];

fn hundred_vms(fixture: &Fixture<'_>) {
    let mut after_first = None;
    for n in 0..100 {
        let vm = fixture.builder().build_blocking().unwrap();
        let run_dir = vm.launch_plan().run_dir().display().to_string();
        let run_dir = Path::new(&run_dir);
        vm.start().unwrap();
        let pid = vm.hypervisor_pid().unwrap();
        assert!(run_dir.exists());
        vm.kill().unwrap();
        assert!(!runs(pid));
        assert!(!run_dir.exists());
        drop(vm);
        drop(fixture.builder().build_blocking().unwrap()); // never started
        if n == 0 {
            // The background thread, its poller and the watchdog start once and stay.
            std::thread::sleep(Duration::from_millis(500));
        }
        let base = run_dir.parent().expect("a run directory has a parent");
        let maximum = after_first.get_or_insert_with(|| Resources::now(base));
        eventually("the resources of the VM are released", || {
            Resources::now(base).is_within(maximum)
        });
    }
}

/// The resources of this process, and the files in the parent of the run directories.
#[derive(Debug)]
struct Resources {
    descriptors: usize,
    threads: usize,
    children: usize,
    files: usize,
}

impl Resources {
    fn now(base: &Path) -> Self {
        let count = |dir: &Path| fs::read_dir(dir).map_or(0, Iterator::count);
        Self {
            descriptors: processes::descriptors(),
            threads: processes::threads(),
            children: processes::children(std::process::id()).len(),
            files: count(base),
        }
    }

    fn is_within(&self, maximum: &Self) -> bool {
        self.descriptors <= maximum.descriptors
            && self.threads <= maximum.threads
            && self.children <= maximum.children
            && self.files <= maximum.files
    }
}
