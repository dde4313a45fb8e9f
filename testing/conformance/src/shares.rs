//! Shared directories: both directions, and read-only on the host.

use std::fs;
use std::path::{Path, PathBuf};

use capsa::{EndedBy, MountMode, ShareMechanism, Virtio9pConfig, VirtioFsConfig};

use super::outside::processes_with;
use super::vm::{PATIENCE, TestVm};
use super::{Fixture, GuestKind, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::any("vm_end_ends_share_helpers", helpers_end).uses(&["virtio_fs"]),
    Scenario::linux("virtio_fs_share_carries_both_directions", virtio_fs).uses(&["virtio_fs"]),
    Scenario::linux("virtio_fs_read_only_holds_on_host", virtio_fs_read_only)
        .uses(&["virtio_fs", "share_read_only"]),
    Scenario {
        guest: GuestKind::Linux9p,
        ..Scenario::linux("virtio_9p_share_and_read_only_work", virtio_9p)
            .uses(&["virtio_9p", "share_read_only"])
    },
];

fn helpers_end(fixture: &Fixture<'_>) {
    let mechanism = ShareMechanism::VirtioFs(VirtioFsConfig::default());
    let mode = match fixture.subject.supports("share_read_only") {
        true => MountMode::ReadOnly,
        false => MountMode::ReadWrite,
    };
    let builder = ["first", "second"].into_iter().fold(fixture.builder(), |builder, name| {
        let (host, mechanism) = (shared(fixture, name), mechanism.clone());
        builder.share_with_mechanism(host, format!("/{name}"), mode, mechanism)
    });
    let mut vm = fixture.boot(builder);
    let share = fixture.path("first").display().to_string();
    if fixture.subject.traits.share_helpers {
        assert_ne!(processes_with(&share), Vec::<u32>::new(), "no virtiofsd serves {share}");
    }
    vm.power_off();
    let report = vm.wait_for_end();
    assert_eq!((report.ended_by, report.steps), (EndedBy::GuestPowerOff, vec![]));
    assert_eq!(processes_with(&share), Vec::<u32>::new(), "helper processes of {share}");
}

fn virtio_fs(fixture: &Fixture<'_>) {
    let open =
        shared(fixture, if fixture.subject.traits.commas { "open, dir" } else { "open dir" });
    let second = shared(fixture, "second");
    // Without an explicit mechanism, a backend that supports virtio-fs uses it.
    let builder = fixture.builder().share(&open, "/open", MountMode::ReadWrite).share(
        &second,
        "/second",
        MountMode::ReadWrite,
    );
    let mut vm = fixture.boot(builder);
    assert_writable(&mut vm, &open, "/open", "virtiofs");
    assert_writable(&mut vm, &second, "/second", "virtiofs");
    // As in a guest that does not mount them by itself.
    vm.sh("umount /open /second && rmdir /open");
    for _ in 0..2 {
        vm.console.mount_shares(Some(PATIENCE)).unwrap();
        let tags = vm.handle.launch_plan().mounts().map(|mount| mount.tag().to_owned());
        for tag in tags.collect::<Vec<_>>() {
            assert_eq!(vm.sh(&format!("grep -c '^{tag} ' /proc/mounts")), "1");
        }
    }
    assert_eq!(vm.sh("cat /open/from-guest"), "hello host");
    stop(&vm);
}

fn virtio_fs_read_only(fixture: &Fixture<'_>) {
    let mechanism = ShareMechanism::VirtioFs(VirtioFsConfig::default());
    let closed = shared(fixture, "closed");
    let builder =
        fixture.builder().share_with_mechanism(&closed, "/closed", MountMode::ReadOnly, mechanism);
    let mut vm = fixture.boot(builder);
    assert_read_only(&mut vm, &closed, "/closed", "virtiofs");
    stop(&vm);
}

fn virtio_9p(fixture: &Fixture<'_>) {
    let mechanism = ShareMechanism::Virtio9p(Virtio9pConfig::default());
    let (open, closed) = (shared(fixture, "open, dir"), shared(fixture, "closed"));
    let builder = fixture
        .builder()
        .share_with_mechanism(&open, "/open", MountMode::ReadWrite, mechanism.clone())
        .share_with_mechanism(&closed, "/closed", MountMode::ReadOnly, mechanism);
    let mut vm = fixture.boot(builder);
    assert_writable(&mut vm, &open, "/open", "9p");
    assert_read_only(&mut vm, &closed, "/closed", "9p");
    stop(&vm);
}

/// A directory with a file in it.
fn shared(fixture: &Fixture<'_>, name: &str) -> PathBuf {
    let dir = fixture.path(name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("from-host"), format!("hello from {name}")).unwrap();
    dir
}

fn assert_mounted(vm: &mut TestVm, at: &str, fs_type: &str, mode: &str) {
    let mounts = vm.sh("mount");
    assert!(mounts.contains(&format!("on {at} type {fs_type} ({mode}")), "{mounts}");
}

fn assert_writable(vm: &mut TestVm, host: &Path, at: &str, fs_type: &str) {
    assert_mounted(vm, at, fs_type, "rw");
    let content = fs::read_to_string(host.join("from-host")).unwrap();
    assert_eq!(vm.sh(&format!("cat {at}/from-host")), content);
    vm.sh(&format!("echo hello host >{at}/from-guest"));
    assert_eq!(fs::read_to_string(host.join("from-guest")).unwrap(), "hello host\n");
    // A change on the host while the guest runs.
    fs::write(host.join("later"), "and later").unwrap();
    assert_eq!(vm.sh(&format!("cat {at}/later")), "and later");
    vm.sh(&format!("rm {at}/from-host"));
    assert!(!host.join("from-host").exists());
}

fn assert_read_only(vm: &mut TestVm, host: &Path, at: &str, fs_type: &str) {
    assert_mounted(vm, at, fs_type, "ro");
    let content = fs::read_to_string(host.join("from-host")).unwrap();
    assert_eq!(vm.sh(&format!("cat {at}/from-host")), content);
    // First as mounted, then remounted: the guest can change its own mount option, so the host must
    // reject the writes.
    for remount in ["true", &format!("mount -o remount,rw {at}")] {
        vm.succeeds(remount);
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
            assert!(!vm.succeeds(&harm), "the guest succeeded, after {remount}: {harm}");
        }
    }
    assert_eq!(fs::read_to_string(host.join("from-host")).unwrap(), content);
    assert_eq!(fs::read_dir(host).unwrap().count(), 1);
}

#[track_caller]
fn stop(vm: &TestVm) {
    vm.handle.stop().unwrap();
    assert_eq!(vm.wait_for_end().ended_by, EndedBy::GuestPowerOff);
}
