//! vsock listeners without a running guest. Connections are in the conformance suite.

use std::path::Path;
use std::thread;
use std::time::Duration;

use capsa::blocking::VmHandle;
use capsa::{Accelerator, Error};
use capsa_conformance::Subject;
use capsa_testkit::vm::{NanoGuest, eventually};
use capsa_testkit::{nano, skip};

/// A VM that is not started.
fn vm_not_started(guest: &NanoGuest) -> Option<VmHandle> {
    match Subject::cloud_hypervisor_stand_in() {
        Ok(subject) => {
            let builder =
                subject.on_backend(guest.builder()).accelerator(Accelerator::Auto).vsock();
            Some(builder.build_blocking().unwrap())
        }
        Err(why) => {
            skip(why);
            None
        }
    }
}

#[test]
fn accept_vm_dropped_returns_error() {
    let guest = NanoGuest::for_any(nano::Nano::default());
    let Some(vm) = vm_not_started(&guest) else { return };
    let listener = vm.vsock_listen(1).unwrap();
    let accepting = thread::spawn(move || listener.accept());
    thread::sleep(Duration::from_millis(50)); // Until accept waits. The result is the same without this.
    drop(vm);
    eventually("accept returns", || accepting.is_finished());
    assert!(matches!(accepting.join().unwrap(), Err(Error::GuestEnded { .. })));
}

#[test]
fn listeners_vm_never_started_leave_nothing() {
    let guest = NanoGuest::for_any(nano::Nano::default());
    let Some(vm) = vm_not_started(&guest) else { return };
    let run_dir = vm.launch_plan().run_dir().display().to_string();
    assert!(Path::new(&run_dir).exists());
    let listeners: Vec<_> =
        [0, 1, u32::MAX].map(|port| vm.vsock_listen(port).unwrap()).into_iter().collect();
    assert!(vm.vsock_listen(0).is_err(), "a listener exists already");
    drop(vm);
    assert!(!Path::new(&run_dir).exists());
    drop(listeners);
}
