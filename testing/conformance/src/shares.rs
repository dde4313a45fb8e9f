//! Shared directories: both ways, and read-only on the host.

use std::fs;
use std::path::{Path, PathBuf};

use capsa::{EndedBy, MountMode, ShareMechanism, Virtio9pConfig, VirtioFsConfig};

use super::machine::Machine;
use super::outside::processes_with;
use super::{Needs, Scenario, Stage};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::any("a_machine_with_shares_ends_and_so_do_its_helpers", helpers_end)
        .uses(&["virtio_fs"]),
    Scenario::linux("virtio_fs_shares_go_both_ways", virtio_fs).uses(&["virtio_fs"]),
    Scenario::linux("a_read_only_virtio_fs_share_holds_on_the_host", virtio_fs_read_only)
        .uses(&["virtio_fs", "share_read_only"]),
    Scenario {
        guest: Needs::Linux9p,
        ..Scenario::linux("virtio_9p_shares_go_both_ways_and_read_only_holds", virtio_9p)
            .uses(&["virtio_9p", "share_read_only"])
    },
];

fn helpers_end(stage: &Stage<'_>) {
    let mechanism = ShareMechanism::VirtioFs(VirtioFsConfig::default());
    let mode = match stage.subject.claims("share_read_only") {
        true => MountMode::ReadOnly,
        false => MountMode::ReadWrite,
    };
    let builder = ["first", "second"].into_iter().fold(stage.builder(), |builder, name| {
        let (host, mechanism) = (shared(stage, name), mechanism.clone());
        builder.share_with_mechanism(host, format!("/{name}"), mode, mechanism)
    });
    let mut machine = stage.boot(builder);
    let run_dir = machine.vm.launch_plan().run_dir.to_string();
    if stage.subject.nature.share_helpers {
        let processes = processes_with(&run_dir);
        assert!(processes.len() > 1, "only {processes:?} have {run_dir}");
    }
    machine.power_off();
    let report = machine.ended();
    assert_eq!((report.ended_by, report.steps), (EndedBy::GuestPowerOff, vec![]));
    assert_eq!(processes_with(&run_dir), Vec::<u32>::new(), "they were helpers of {run_dir}");
}

fn virtio_fs(stage: &Stage<'_>) {
    let open = shared(stage, if stage.subject.nature.commas { "open, dir" } else { "open dir" });
    let second = shared(stage, "second");
    // By the mechanism that the backend chooses itself: where it has virtio-fs, it takes that.
    let builder = stage.builder().share(&open, "/open", MountMode::ReadWrite).share(
        &second,
        "/second",
        MountMode::ReadWrite,
    );
    let mut machine = stage.boot(builder);
    assert_open(&mut machine, &open, "/open", "virtiofs");
    assert_open(&mut machine, &second, "/second", "virtiofs");
    stop(&machine);
}

fn virtio_fs_read_only(stage: &Stage<'_>) {
    let mechanism = ShareMechanism::VirtioFs(VirtioFsConfig::default());
    let closed = shared(stage, "closed");
    let builder =
        stage.builder().share_with_mechanism(&closed, "/closed", MountMode::ReadOnly, mechanism);
    let mut machine = stage.boot(builder);
    assert_closed(&mut machine, &closed, "/closed", "virtiofs");
    stop(&machine);
}

fn virtio_9p(stage: &Stage<'_>) {
    let mechanism = ShareMechanism::Virtio9p(Virtio9pConfig::default());
    let (open, closed) = (shared(stage, "open, dir"), shared(stage, "closed"));
    let builder = stage
        .builder()
        .share_with_mechanism(&open, "/open", MountMode::ReadWrite, mechanism.clone())
        .share_with_mechanism(&closed, "/closed", MountMode::ReadOnly, mechanism);
    let mut machine = stage.boot(builder);
    assert_open(&mut machine, &open, "/open", "9p");
    assert_closed(&mut machine, &closed, "/closed", "9p");
    stop(&machine);
}

/// A directory with a file in it.
fn shared(stage: &Stage<'_>, name: &str) -> PathBuf {
    let dir = stage.at(name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("from-host"), format!("hello from {name}")).unwrap();
    dir
}

fn assert_mounted(machine: &mut Machine, at: &str, fs_type: &str, mode: &str) {
    let mounts = machine.sh("mount");
    assert!(mounts.contains(&format!("on {at} type {fs_type} ({mode}")), "{mounts}");
}

fn assert_open(machine: &mut Machine, host: &Path, at: &str, fs_type: &str) {
    assert_mounted(machine, at, fs_type, "rw");
    let said = fs::read_to_string(host.join("from-host")).unwrap();
    assert_eq!(machine.sh(&format!("cat {at}/from-host")), said);
    machine.sh(&format!("echo hello host >{at}/from-guest"));
    assert_eq!(fs::read_to_string(host.join("from-guest")).unwrap(), "hello host\n");
    // A change of the host's while the guest runs.
    fs::write(host.join("later"), "and later").unwrap();
    assert_eq!(machine.sh(&format!("cat {at}/later")), "and later");
    machine.sh(&format!("rm {at}/from-host"));
    assert!(!host.join("from-host").exists());
}

fn assert_closed(machine: &mut Machine, host: &Path, at: &str, fs_type: &str) {
    assert_mounted(machine, at, fs_type, "ro");
    let said = fs::read_to_string(host.join("from-host")).unwrap();
    assert_eq!(machine.sh(&format!("cat {at}/from-host")), said);
    // Once as it was mounted, and once as a guest may mount it: its own mount option is no obstacle
    // to it, so the host has to hold.
    for remount in ["true", &format!("mount -o remount,rw {at}")] {
        machine.succeeds(remount);
        for harm in [
            format!("echo x >{at}/from-guest"),
            format!("echo x >{at}/from-host"),
            format!("echo x >>{at}/from-host"),
            format!("rm {at}/from-host"),
            format!("mv {at}/from-host {at}/moved"),
            format!("mkdir {at}/dir"),
            format!("chmod 777 {at}/from-host"),
            format!("ln -s / {at}/link"),
        ] {
            assert!(!machine.succeeds(&harm), "the guest did, after {remount}: {harm}");
        }
    }
    assert_eq!(fs::read_to_string(host.join("from-host")).unwrap(), said);
    assert_eq!(fs::read_dir(host).unwrap().count(), 1);
}

#[track_caller]
fn stop(machine: &Machine) {
    machine.vm.stop().unwrap();
    assert_eq!(machine.ended().ended_by, EndedBy::GuestPowerOff);
}
