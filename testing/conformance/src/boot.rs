//! What was asked for arrives in the guest, and what cannot boot says so.

use std::fs;

use capsa::{Capsa, Error, LinuxBootConfig, NetworkMode, VmStatus};

use super::machine::{PATIENCE, Speech};
use super::{Scenario, Stage};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::linux("what_was_asked_for_arrives_and_nothing_else", what_was_asked_for).uses(&[
        "guest_os.linux",
        "boot_methods.linux_direct",
        "network_modes.none",
    ]),
    Scenario::any("a_kernel_boots_without_an_initrd", without_initrd)
        .uses(&["boot_methods.linux_direct_without_initrd"]),
    Scenario::any("a_kernel_that_is_none_fails_the_start_with_a_reason", bad_kernel),
    Scenario::any("more_cpus_than_claimed_are_refused", too_many_cpus).uses(&["max_cpus"]),
];

fn what_was_asked_for(stage: &Stage<'_>) {
    // An odd number of MiB: a backend may round up, never down.
    let builder = stage.builder().cpus(2).memory_mb(301).cmdline_arg("capsa.mark=arrived");
    let mut machine = stage.boot(builder.network(NetworkMode::None));
    assert_eq!(machine.sh("grep -c ^processor /proc/cpuinfo"), "2", "CPUs");
    let kib: u32 = machine.sh("awk '/MemTotal/ { print $2 }' /proc/meminfo").parse().unwrap();
    assert!((230_000..301 * 1024).contains(&kib), "{kib} KiB of 301 MiB");
    let cmdline = machine.sh("cat /proc/cmdline");
    // An argument may have been put before ours by the kernel's own configuration, none behind.
    assert!(cmdline.ends_with(&machine.vm.launch_plan().cmdline), "{cmdline}");
    assert!(cmdline.ends_with(" capsa.mark=arrived"), "{cmdline}");
    assert_eq!(machine.sh("ls -1 /sys/class/net"), "lo", "network devices");
    assert_eq!(machine.sh("ls -1 /sys/block | grep -v -e loop -e ram | wc -l"), "0", "disks");
}

fn without_initrd(stage: &Stage<'_>) {
    if stage.speech() == Speech::Nano {
        stage.boot(stage.builder()).echoes("no initrd");
        return;
    }
    // With nothing to mount and nothing to run, Linux comes as far as saying so.
    let config = LinuxBootConfig::new(&stage.linux().kernel);
    let builder = stage.subject.builds(Capsa::vm(config)).memory_mb(256);
    let builder = builder.no_network().console_enabled().cmdline_arg("quiet");
    let mut machine = stage.machine(builder);
    machine.start();
    machine.expect("Unable to mount root fs");
}

fn bad_kernel(stage: &Stage<'_>) {
    let kernel = stage.at("kernel");
    // A header and nothing behind it: a check from outside cannot tell, the hypervisor can.
    let mut head = b"\x7fELF and no more".to_vec();
    if cfg!(target_arch = "aarch64") {
        head.resize(0x38, 0);
        head.extend_from_slice(b"ARM\x64");
    }
    fs::write(&kernel, head).unwrap();
    let builder = stage.subject.builds(Capsa::vm(stage.subject.boots(kernel, stage.dir())));
    let vm = builder.memory_mb(256).no_network().build_blocking().unwrap();
    let error = vm.start().unwrap_err();
    let Error::StartFailed(why) = &error else { panic!("{error:?}") };
    for part in stage.subject.nature.bad_kernel {
        assert!(why.contains(part), "no {part:?} in {why}");
    }
    let ended = vm.wait_timeout(PATIENCE).unwrap();
    assert!(matches!(ended, Some(VmStatus::Failed { .. })), "{ended:?}");
}

fn too_many_cpus(stage: &Stage<'_>) {
    let most = stage.subject.capabilities().max_cpus.expect("it is claimed");
    let error = stage.builder().cpus(most + 1).build_blocking().unwrap_err();
    assert!(matches!(error, Error::UnsupportedFeature(_)), "{error:?}");
    let violation = &error.violations()[0];
    assert_eq!(violation.field, "cpus");
    assert!(violation.remedy.contains(&most.to_string()), "{violation}");
}
