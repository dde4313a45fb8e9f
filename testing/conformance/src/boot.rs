//! The guest has the hardware of the spec; a start that cannot work fails with a reason.

use std::fs;

use capsa::{Capsa, DiskImage, Error, LinuxBootConfig, NetworkMode, VmStatus};

use super::vm::{GuestInterface, PATIENCE};
use super::{Fixture, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::linux("guest_has_the_described_hardware_only", described_hardware).uses(&[
        "guest_os.linux",
        "boot_methods.linux_direct",
        "network_modes.none",
    ]),
    Scenario::any("kernel_without_initrd_boots", without_initrd)
        .uses(&["boot_methods.linux_direct_without_initrd"]),
    Scenario::any("kernel_invalid_start_fails_with_reason", bad_kernel),
    Scenario::any("cpus_above_maximum_are_rejected", too_many_cpus).uses(&["max_cpus"]),
    Scenario::any("devices_above_maximum_are_rejected", too_many_devices).uses(&["max_devices"]),
];

fn described_hardware(fixture: &Fixture<'_>) {
    // An odd number of MiB: a backend may round up, never down.
    let builder = fixture.builder().cpus(2).memory_mb(301).cmdline_arg("capsa.mark=arrived");
    let mut vm = fixture.boot(builder.network(NetworkMode::None));
    assert_eq!(vm.sh("grep -c ^processor /proc/cpuinfo"), "2", "CPUs");
    let kib: u32 = vm.sh("awk '/MemTotal/ { print $2 }' /proc/meminfo").parse().unwrap();
    assert!((230_000..301 * 1024).contains(&kib), "{kib} KiB of 301 MiB");
    let cmdline = vm.sh("cat /proc/cmdline");
    // The kernel's configuration may add arguments before Capsa's, not after them.
    assert!(cmdline.ends_with(vm.handle.launch_plan().cmdline()), "{cmdline}");
    assert!(cmdline.ends_with(" capsa.mark=arrived"), "{cmdline}");
    assert_eq!(vm.sh("ls -1 /sys/class/net"), "lo", "network devices");
    assert_eq!(vm.sh("ls -1 /sys/block | grep -v -e loop -e ram | wc -l"), "0", "disks");
}

fn without_initrd(fixture: &Fixture<'_>) {
    if fixture.interface() == GuestInterface::Nano {
        fixture.boot(fixture.builder()).echoes("no initrd");
        return;
    }
    // Without a root file system, Linux boots until it reports that.
    let config = LinuxBootConfig::new(&fixture.linux().kernel);
    let builder = fixture.subject.on_backend(Capsa::vm(config)).memory_mb(256);
    let builder = builder.no_network().console_enabled().cmdline_arg("quiet");
    let mut vm = fixture.vm(builder);
    vm.start();
    vm.expect("Unable to mount root fs");
}

fn bad_kernel(fixture: &Fixture<'_>) {
    let kernel = fixture.path("kernel");
    // Only a header: Capsa accepts the file, and the hypervisor rejects it.
    let mut head = b"\x7fELF and no more".to_vec();
    if cfg!(target_arch = "aarch64") {
        head.resize(0x38, 0);
        head.extend_from_slice(b"ARM\x64");
    }
    fs::write(&kernel, head).unwrap();
    let builder =
        fixture.subject.on_backend(Capsa::vm(fixture.subject.boot_config(kernel, fixture.dir())));
    let vm = builder.memory_mb(256).no_network().build_blocking().unwrap();
    let error = vm.start().unwrap_err();
    let Error::StartFailed(why) = &error else { panic!("{error:?}") };
    let why = why.to_string();
    for part in fixture.subject.traits.bad_kernel {
        assert!(why.contains(part), "{part:?} is missing in {why}");
    }
    let ended = vm.wait_timeout(PATIENCE).unwrap();
    assert!(matches!(ended, Some(VmStatus::Failed { .. })), "{ended:?}");
}

fn too_many_devices(fixture: &Fixture<'_>) {
    let maximum = fixture.subject.capabilities().max_devices.expect("the backend has a limit");
    let image = fixture.raw_image("disk.raw");
    let with = |count| {
        let disk = || DiskImage::new(&image).read_only();
        (0..count).fold(fixture.builder().no_network(), |builder, _| builder.disk(disk()))
    };
    with(maximum).plan().unwrap();
    // vsock takes one of them.
    for builder in [with(maximum + 1), with(maximum).vsock()] {
        let error = builder.build_blocking().unwrap_err();
        assert!(matches!(error, Error::UnsupportedFeature(_)), "{error:?}");
        let violation = &error.violations()[0];
        assert_eq!(violation.field, "disks");
        assert!(violation.reason.contains(&format!("the limit of {maximum}")), "{violation}");
    }
}

fn too_many_cpus(fixture: &Fixture<'_>) {
    let maximum = fixture.subject.capabilities().max_cpus.expect("the backend has a limit");
    let error = fixture.builder().cpus(maximum + 1).build_blocking().unwrap_err();
    assert!(matches!(error, Error::UnsupportedFeature(_)), "{error:?}");
    let violation = &error.violations()[0];
    assert_eq!(violation.field, "cpus");
    assert!(violation.remedy.contains(&maximum.to_string()), "{violation}");
}
