//! What idle VMs cost: threads, descriptors, memory and wakeups.

use std::path::Path;
use std::time::Duration;

use capsa_testkit::idle::{self, IdleCost};
use capsa_testkit::nano::Nano;
use capsa_testkit::vm::NanoGuest;
use capsa_testkit::{fake, skip};

const VMS: usize = 200;

/// `None` where the kernel does not report it, or outside the test's own process.
fn cost(
    measure: impl Fn(&Path) -> Result<IdleCost, Box<dyn std::error::Error>>,
) -> Option<IdleCost> {
    if !Path::new("/proc/self/smaps_rollup").exists() {
        skip("the kernel does not report the memory of a process");
        return None;
    }
    if !fake::isolated(&[]) {
        return None;
    }
    let guest = NanoGuest::for_any(Nano::default());
    Some(measure(guest.kernel()).unwrap())
}

fn assert_cheap(cost: IdleCost, threads: usize) {
    assert_eq!((cost.threads, cost.wakeups), (threads, 0), "{cost:?}");
    assert!(cost.bytes <= VMS * 64 * 1024, "{cost:?}");
    assert!(cost.descriptors <= VMS * 10, "{cost:?}");
}

#[test]
fn idle_handles_share_one_thread_without_wakeups() {
    let measure = |kernel: &Path| {
        let fake = fake::qemu();
        let vm = || idle::vm(&fake, kernel);
        idle::handles(VMS, Duration::from_secs(2), vm)
    };
    if let Some(cost) = cost(measure) {
        assert_cheap(cost, 1);
    }
}

#[test]
fn idle_embedded_vms_have_no_thread_or_wakeups() {
    let measure = |kernel: &Path| {
        let fake = fake::qemu();
        let vm = || idle::vm(&fake, kernel);
        idle::embedded(VMS, Duration::from_secs(2), vm)
    };
    if let Some(cost) = cost(measure) {
        assert_cheap(cost, 0);
    }
}
