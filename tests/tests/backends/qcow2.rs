//! Capsa's qcow2 against QEMU's: `qemu-img` accepts Capsa's overlays, and Capsa reads images of `qemu-img`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
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
    let (raw, qcow2) = (Some(ImageFormat::Raw), Some(ImageFormat::Qcow2));
    for (made, size, backing, format) in [
        ("create -q -f qcow2 plain 3M", 3 << 20, None, None),
        ("create -q -f qcow2 -o compat=0.10 old 700M", 700 << 20, None, None),
        ("create -q -f qcow2 -F qcow2 -b plain over", 3 << 20, Some("plain"), qcow2),
        ("create -q -f qcow2 -o compat=0.10 -F qcow2 -b plain old", 3 << 20, Some("plain"), qcow2),
        ("create -q -f qcow2 -u -F raw -b ./gone late 1M", 1 << 20, Some("./gone"), raw),
    ] {
        qemu_img(made, dir.path());
        let name = made.split(' ').rev().find(|word| dir.path().join(word).exists()).unwrap();
        let head = std::fs::read(dir.path().join(name)).unwrap();
        let header = Qcow2Header::parse(&head[..4096]).unwrap();
        assert_eq!(header.virtual_size, size, "{made}");
        assert_eq!(header.backing.as_deref(), backing, "{made}");
        assert_eq!(header.backing_format, format, "{made}");
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

/// The files that the hypervisor of this VM has open.
fn open_files(vm: &capsa::blocking::VmHandle) -> Vec<PathBuf> {
    let directory = format!("/proc/{}/fd", vm.hypervisor_pid().unwrap());
    let links = std::fs::read_dir(directory).unwrap();
    links.filter_map(|link| std::fs::read_link(link.unwrap().path()).ok()).collect()
}

#[test]
fn backing_file_not_allowed_is_rejected() {
    if !has_qemu_img() {
        return;
    }
    let guest = NanoGuest::for_any(nano::Nano::default());
    let dir = std::fs::canonicalize(guest.dir()).unwrap();
    std::fs::create_dir(dir.join("allowed")).unwrap();
    std::fs::write(dir.join("secret"), [0; 512]).unwrap();
    std::fs::write(dir.join("allowed/base"), [0; 512]).unwrap();
    std::os::unix::fs::symlink("../secret", dir.join("allowed/link")).unwrap();
    let check = |base: &str, allowed: &[&str]| {
        qemu_img(&format!("create -q -f qcow2 -F raw -b {base} top.qcow2 1M"), &dir);
        let mut disk = DiskImage::new(dir.join("top.qcow2")).ephemeral();
        disk.backing = allowed.iter().map(|path| dir.join(path)).collect();
        let builder = guest.builder().disk(disk);
        builder.plan().map_err(|error| error.violations()[0].clone())
    };
    for (base, allowed) in [
        ("secret", &[][..]),
        ("secret", &["allowed"]),
        ("allowed/link", &["allowed"]),
        ("allowed/../secret", &["allowed"]),
    ] {
        let violation = check(base, allowed).unwrap_err();
        assert_eq!(violation.kind, ViolationKind::NotAllowed, "{base}: {violation}");
        let (top, secret) = (dir.join("top.qcow2"), dir.join("secret"));
        let chain = format!("{} -> {}", top.display(), secret.display());
        assert!(violation.reason.contains(&chain), "{violation}");
    }
    check("allowed/base", &["allowed"]).unwrap();
    check("allowed/base", &["allowed/base"]).unwrap();
    check("allowed/link", &["allowed/link"]).unwrap();
}

/// The check alone would be a race: the image may change before the hypervisor opens it.
#[test]
fn backing_name_written_after_build_is_ignored() {
    let Some(guest) = NanoGuest::new().filter(|_| has_qemu_img()) else { return };
    let dir = std::fs::canonicalize(guest.dir()).unwrap();
    std::fs::write(dir.join("secret"), [0; 512]).unwrap();
    std::fs::write(dir.join("base"), [0; 512]).unwrap();
    for (base, opened) in [(None, false), (Some("base"), true)] {
        for ephemeral in [false, true] {
            match base {
                None => qemu_img("create -q -f qcow2 top.qcow2 1M", &dir),
                Some(base) => {
                    qemu_img(&format!("create -q -f qcow2 -F raw -b {base} top.qcow2 1M"), &dir)
                }
            };
            let mut disk = DiskImage::new(dir.join("top.qcow2")).backing(dir.join("base"));
            disk.ephemeral = ephemeral;
            let vm = guest.builder().disk(disk).build_blocking().unwrap();
            qemu_img("create -q -f qcow2 -F raw -b secret top.qcow2 1M", &dir);
            vm.start().unwrap();
            let open = open_files(&vm);
            assert!(open.contains(&dir.join("top.qcow2")), "{open:?}");
            assert_eq!(open.contains(&dir.join("base")), opened, "{open:?}");
            assert!(!open.contains(&dir.join("secret")), "{open:?}");
            vm.kill().unwrap();
        }
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
