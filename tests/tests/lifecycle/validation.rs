//! Violations are found before anything is started, are reported together, and name a remedy.

use std::fs;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

use capsa::backend::{LaunchPlan, Violation, ViolationKind as Kind};
use capsa::{
    Capsa, DiskImage, Error, LinuxBootConfig, LinuxVmBuilder, MountMode, ShareMechanism,
    Virtio9pConfig, VmDisk,
};
use capsa_testkit::vm::NanoGuest;

/// The violations; fails if a process was started to find them.
fn violations(builder: LinuxVmBuilder) -> Vec<(String, Kind)> {
    let error = builder.build_blocking().unwrap_err();
    let found: Vec<Violation> = error.violations().to_vec();
    assert!(!found.is_empty(), "{error}");
    for violation in &found {
        assert!(!violation.reason.is_empty() && !violation.remedy.is_empty(), "{violation:?}");
        assert!(error.to_string().contains(&violation.reason));
    }
    found.into_iter().map(|v| (v.field, v.kind)).collect()
}

/// The hypervisor's arguments.
#[track_caller]
fn args(plan: &LaunchPlan) -> String {
    capsa::internal::parts(plan).processes.last().unwrap().args.join(" ")
}

fn one(builder: LinuxVmBuilder, field: &str, kind: Kind) {
    assert_eq!(violations(builder), [(field.to_owned(), kind)]);
}

#[test]
fn violation_names_field_and_kind() {
    let Some(guest) = NanoGuest::new() else { return };
    let dir = guest.dir();
    let at = |name: &str| dir.join(name);
    let boot =
        |kernel: &str| Capsa::vm(LinuxBootConfig::new(at(kernel))).backend("qemu").no_network();
    fs::write(at("empty"), b"").unwrap();
    fs::write(at("script"), b"#!/bin/sh\n").unwrap();
    fs::write(at("qcow2.raw"), b"QFI\xfb\0\0\0\x03 and so on").unwrap();
    fs::write(at("raw.qcow2"), [0; 512]).unwrap();
    fs::create_dir(at("dir")).unwrap();

    one(boot("missing"), "kernel", Kind::Missing);
    one(boot("dir"), "kernel", Kind::WrongType);
    one(boot("empty"), "kernel", Kind::Empty);
    one(boot("script"), "kernel", Kind::WrongFormat);
    let good = || guest.builder();
    one(good().disk(DiskImage::new(at("empty"))), "disks[0].path", Kind::Empty);
    one(good().disk(DiskImage::new(at("qcow2.raw"))), "disks[0].path", Kind::WrongFormat);
    one(good().disk(DiskImage::new(at("raw.qcow2"))), "disks[0].path", Kind::WrongFormat);
    fs::write(at("disk"), [0; 512]).unwrap();
    let disk = || VmDisk::new(DiskImage::new(at("disk")));
    for (first, second) in [
        (disk(), disk()),
        (disk(), disk().read_only()),
        (disk().ephemeral(), disk()),
        (disk(), disk().ephemeral()),
    ] {
        one(good().disk(first).disk(second), "disks[1].path", Kind::Duplicate);
    }
    good()
        .disk(disk().read_only())
        .disk(disk().ephemeral())
        .disk(disk().ephemeral())
        .plan()
        .unwrap();
    one(good().cpus(0), "cpus", Kind::OutOfRange);
    one(good().memory_mb(0), "memory", Kind::OutOfRange);
    one(good().memory_mb(u32::MAX), "memory", Kind::OutOfRange);
    one(good().memory_mb(1), "memory", Kind::OutOfRange);
    fs::File::create(at("initrd")).unwrap().set_len(64 << 20).unwrap();
    let heavy = LinuxBootConfig::new(guest.kernel()).initrd(at("initrd"));
    let heavy = || Capsa::vm(heavy.clone()).backend("qemu").no_network();
    one(heavy().memory_mb(64), "memory", Kind::OutOfRange);
    heavy().memory_mb(128).plan().unwrap();
    one(good().share(at("missing"), "/w", MountMode::ReadOnly), "shares[0].host", Kind::Missing);
    one(good().cmdline_arg("a=b\nc=d"), "cmdline", Kind::Malformed);
    one(good().cmdline_arg("a=b\0c"), "cmdline", Kind::Malformed);
    one(good().cmdline_override("a\nb"), "cmdline", Kind::Malformed);
    one(good().cmdline_override("a").cmdline_arg("b"), "cmdline", Kind::Duplicate);
    let long = format!("a={}", "x".repeat(2048));
    one(good().cmdline_arg(long.as_str()), "cmdline", Kind::TooLong);
    let tagged = |builder: LinuxVmBuilder, place: &str| {
        let tag = Some("same".to_owned());
        let mechanism = ShareMechanism::Virtio9p(Virtio9pConfig { tag, msize: None });
        builder.share_with_mechanism(dir, place, MountMode::ReadOnly, mechanism)
    };
    one(tagged(tagged(good(), "/a"), "/b"), "shares[1].tag", Kind::Duplicate);
}

/// `/dev/fd/N` would be another file in the hypervisor.
#[cfg(target_os = "linux")]
#[test]
fn descriptor_path_is_the_open_file() {
    let Some(guest) = NanoGuest::new() else { return };
    let dir = fs::canonicalize(guest.dir()).unwrap();
    let kernel = fs::File::open(guest.kernel()).unwrap();
    fs::write(dir.join("disk"), [0; 512]).unwrap();
    let disk = fs::File::open(dir.join("disk")).unwrap();
    let builder = |links: &str| {
        let link = |file: &fs::File| format!("{links}/{}", file.as_raw_fd());
        let config = LinuxBootConfig::new(link(&kernel)).initrd(link(&disk));
        Capsa::vm(config).backend("qemu").no_network().disk(DiskImage::new(link(&disk)))
    };
    for links in ["/dev/fd", "/proc/self/fd"] {
        let plan = builder(links).plan().unwrap();
        let args = args(&plan);
        assert!(!args.contains("/fd/"), "{args}");
        let (kernel, disk) = (guest.kernel().display(), dir.join("disk"));
        assert!(args.contains(&format!("-kernel {kernel} ")), "{args}");
        assert!(args.contains(&format!("-initrd {} ", disk.display())), "{args}");
        assert!(args.contains(&format!("{disk:?}")), "{args}");
    }
    fs::remove_file(dir.join("disk")).unwrap();
    assert_eq!(
        violations(builder("/dev/fd")),
        [("initrd".into(), Kind::WrongType), ("disks[0].path".into(), Kind::WrongType)]
    );
    let (pipe, _writer) = std::io::pipe().unwrap();
    let pipe = DiskImage::new(format!("/dev/fd/{}", pipe.as_raw_fd()));
    one(guest.builder().disk(pipe), "disks[0].path", Kind::WrongType);
}

/// virtiofsd rejects a link.
#[test]
fn share_link_is_the_directory() {
    let Some(guest) = NanoGuest::new() else { return };
    let dir = fs::canonicalize(guest.dir()).unwrap();
    fs::create_dir(dir.join("work")).unwrap();
    std::os::unix::fs::symlink("work", dir.join("link")).unwrap();
    let plan = guest
        .builder()
        .share_with_mechanism(
            dir.join("link"),
            "/w",
            MountMode::ReadOnly,
            ShareMechanism::Virtio9p(Virtio9pConfig::default()),
        )
        .plan()
        .unwrap();
    let args = args(&plan);
    assert!(args.contains(&format!("path={},", dir.join("work").display())), "{args}");
}

#[test]
fn violations_are_reported_together() {
    let Some(guest) = NanoGuest::new() else { return };
    let builder = guest
        .builder()
        .cpus(0)
        .memory_mb(0)
        .disk(DiskImage::new("/no/such/disk"))
        .share("/no/such/share", "relative", MountMode::ReadWrite)
        .cmdline_arg("a=\"");
    assert_eq!(violations(builder).len(), 6);
}

#[test]
fn kernel_unreadable_is_not_missing() {
    let Some(guest) = NanoGuest::new() else { return };
    fs::set_permissions(guest.kernel(), fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(guest.kernel()).is_ok() {
        return capsa_testkit::skip("root reads everything");
    }
    one(guest.builder(), "kernel", Kind::NoAccess);
}

#[test]
fn backend_unavailable_names_reason() {
    let Some(guest) = NanoGuest::new() else { return };
    let error = guest.builder().backend("vfkit").build_blocking().unwrap_err();
    let Error::BackendUnavailable { name, reasons } = error else { panic!("{error}") };
    assert_eq!(name, "vfkit");
    assert!(!reasons.is_empty());
}
