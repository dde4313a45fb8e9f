//! Capsa's qcow2 against QEMU's: `qemu-img` accepts Capsa's overlays, and Capsa reads images of `qemu-img`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use capsa::backend::ViolationKind;
use capsa::{Capsa, DiskImage, LinuxBootConfig};
use capsa_conformance::Subject;
use capsa_proto::path::HostPath;
use capsa_proto::qcow2::{MAGIC, Overlay, Qcow2Header};
use capsa_proto::spec::ImageFormat;
use capsa_testkit::vm::NanoGuest;
use capsa_testkit::{host, nano, skip};

/// Whether `qemu-img` is installed; if not, the test counts as skipped.
fn has_qemu_img() -> bool {
    let found = host::find_program("qemu-img").is_some();
    if !found {
        skip("qemu-img is not installed");
    }
    found
}

fn qemu_img(args: &str, dir: &Path) -> String {
    let output = Command::new("qemu-img").args(args.split(' ')).current_dir(dir).output().unwrap();
    assert!(
        output.status.success(),
        "qemu-img {args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn host_path(path: &Path) -> HostPath {
    HostPath::new(path.to_str().unwrap()).unwrap()
}

#[test]
fn overlay_passes_qemu_img_check() {
    if !has_qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.raw");
    for size in [512, 1 << 20, 5 << 30, (1 << 40) + 512] {
        File::create(&base).unwrap().set_len(size).unwrap();
        let over = host_path(&base);
        let overlay = Overlay { over, format: ImageFormat::Raw, virtual_size: size };
        let image = overlay.image();
        let file = File::create(dir.path().join("overlay")).unwrap();
        file.set_len(image.len).unwrap();
        for (offset, bytes) in &image.pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        assert!(qemu_img("check -f qcow2 overlay", dir.path()).contains("No errors were found"));
        let info = qemu_img("info -f qcow2 overlay", dir.path());
        assert!(info.contains(&format!("({size} bytes)")), "{info}");
        assert!(info.contains("backing file format: raw"), "{info}");
        let same = qemu_img("compare -f qcow2 -F raw overlay base.raw", dir.path());
        assert!(same.contains("identical"), "{same}");
    }
}

#[test]
fn header_of_qemu_img_images_is_read() {
    if !has_qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (made, size, backing, is_raw) in [
        ("create -q -f qcow2 plain 3M", 3 << 20, None, false),
        ("create -q -f qcow2 -o compat=0.10 old 700M", 700 << 20, None, false),
        ("create -q -f qcow2 -F qcow2 -b plain over", 3 << 20, Some("plain"), false),
        ("create -q -f qcow2 -o compat=0.10 -F qcow2 -b plain old", 3 << 20, Some("plain"), false),
        ("create -q -f qcow2 -u -F raw -b ./gone late 1M", 1 << 20, Some("./gone"), true),
    ] {
        qemu_img(made, dir.path());
        let name = made.split(' ').rev().find(|word| dir.path().join(word).exists()).unwrap();
        let head = std::fs::read(dir.path().join(name)).unwrap();
        let header = Qcow2Header::parse(&head[..4096]).unwrap();
        assert_eq!(header.virtual_size, size, "{made}");
        assert_eq!(header.backing.as_deref(), backing, "{made}");
        assert_eq!(header.backing_is_raw, is_raw, "{made}");
    }
}

#[test]
fn raw_base_gaining_qcow2_header_stays_raw() {
    let subject = match Subject::cloud_hypervisor() {
        Ok(subject) => subject,
        Err(why) => return skip(why),
    };
    let guest = NanoGuest::for_any(nano::Nano::default());
    let base = guest.dir().join("base.raw");
    std::fs::write(&base, vec![0; 1 << 20]).unwrap();
    let builder = subject.on_backend(guest.builder()).memory_mb(64);
    let vm = builder.disk(DiskImage::new(&base).ephemeral()).build_blocking().unwrap();
    // The guest of another VM writes the image between the check and the start.
    std::fs::write(&base, [MAGIC.as_slice(), &[0xff; 1 << 20]].concat()).unwrap();
    vm.start().unwrap();
    vm.kill().unwrap();
}

#[test]
fn external_data_file_is_rejected() {
    if !has_qemu_img() {
        return;
    }
    let guest = NanoGuest::for_any(nano::Nano::default());
    qemu_img("create -q -f qcow2 -o data_file=secret,data_file_raw=on trap.qcow2 1M", guest.dir());
    qemu_img("create -q -f qcow2 -F qcow2 -b trap.qcow2 over.qcow2", guest.dir());
    for image in ["trap.qcow2", "over.qcow2"] {
        let config =
            LinuxBootConfig::new(guest.kernel()).disk(DiskImage::new(guest.dir().join(image)));
        let error = Capsa::vm(config).backend("qemu").no_network().plan().unwrap_err();
        assert!(error.violations()[0].reason.contains("an external data file"), "{error}");
    }
}

#[test]
fn base_missing_or_remote_is_rejected_before_spawn() {
    if !has_qemu_img() {
        return;
    }
    let guest = NanoGuest::for_any(nano::Nano::default());
    for (backing, kind) in [
        ("gone", ViolationKind::Missing),
        ("nbd://192.0.2.1/disk", ViolationKind::Unsupported),
        ("json:{\"driver\":\"raw\"}", ViolationKind::Unsupported),
    ] {
        let make = format!("create -q -f qcow2 -u -F raw -b {backing} broken.qcow2 1M");
        qemu_img(&make, guest.dir());
        let disk = DiskImage::new(guest.dir().join("broken.qcow2"));
        let config = LinuxBootConfig::new(guest.kernel()).disk(disk);
        let error = Capsa::vm(config).backend("qemu").no_network().plan().unwrap_err();
        let violation = &error.violations()[0];
        assert_eq!((violation.field.as_str(), violation.kind), ("disks[0].path", kind), "{error}");
        assert!(violation.reason.contains("backing file"), "{error}");
    }
}
