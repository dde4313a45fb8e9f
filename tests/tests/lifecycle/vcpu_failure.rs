//! A vCPU that KVM cannot run is reported as a failure, although cloud-hypervisor exits as after a
//! power-off, and QEMU does not exit.

use std::path::Path;

use capsa::blocking::VmHandle;
use capsa::{Accelerator, EndedBy, LinuxVmBuilder, VmStatus};
use capsa_conformance::Subject;
use capsa_testkit::nano::{self, Nano};
use capsa_testkit::vm::{NanoGuest, PATIENCE};
use capsa_testkit::{host, skip};

fn fails(name: &str, builder: LinuxVmBuilder) {
    let vm: VmHandle = builder.accelerator(Accelerator::Kvm).build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.wait_for_timeout("NANO READY\r\n", PATIENCE).unwrap();
    console.write(&[nano::UNMAPPED]).unwrap();
    vm.wait_timeout(PATIENCE).unwrap().expect("it ends");
    assert!(matches!(vm.status(), VmStatus::Failed { .. }), "{}", vm.status());
    let report = vm.stop_report().unwrap();
    let reason = format!("{name} reported a vCPU failure");
    assert_eq!(report.ended_by, EndedBy::HypervisorLost { reason }, "{report:?}");
}

#[test]
fn cloud_hypervisor() {
    let subject = match Subject::cloud_hypervisor() {
        Ok(subject) => subject,
        Err(why) => return skip(why),
    };
    let guest = NanoGuest::for_any(Nano::default());
    fails("cloud-hypervisor", subject.on_backend(guest.builder()));
}

#[test]
fn qemu() {
    let Some(guest) = NanoGuest::new() else { return };
    if !Path::new("/dev/kvm").exists() || !host::kvm_has_hardware() {
        return skip("no KVM with hardware behind it");
    }
    fails("qemu", guest.builder());
}
