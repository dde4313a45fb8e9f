//! Disks: formats, order, read-only, ephemeral.
//!
//! A test disk begins with its own name. The guest writes into the second sector and reads it back
//! past its cache; afterwards the scenario checks the file on the host.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use capsa::disk_errors::{DiskErrorPolicy, DiskOperation};
use capsa::{DiskImage, EndedBy, ImageFormat, StopStep, VmStatus};

use super::fixture::qemu_img;
use super::vm::TestVm;
use super::{Fixture, Scenario};
use capsa_fixtures::command;
use capsa_testkit::skip;
use capsa_testkit::vm::eventually;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::linux("raw_disks_keep_order_and_read_only", raw_and_read_only)
        .uses(&["image_formats.raw", "disk_read_only"]),
    Scenario::linux("qcow2_write_keeps_backing_file_unchanged", qcow2)
        .uses(&["image_formats.qcow2"]),
    Scenario::linux("ephemeral_disk_write_is_discarded", ephemeral)
        .uses(&["disk_ephemeral", "image_formats.raw"]),
    Scenario::linux("disk_error_reaches_guest_and_owner", disk_error).uses(&["disk_errors"]),
    Scenario::linux("disk_error_pauses_guest_until_resume", disk_error_pause)
        .uses(&["disk_errors"]),
];

/// The text that the guest writes into the second sector.
const WRITTEN: &str = "the guest was here";

fn raw_and_read_only(fixture: &Fixture<'_>) {
    let root = fixture.copy(&fixture.linux().disk_raw, "root.raw");
    let read_only = fixture.raw_image("read-only.raw");
    // A comma in a path must not end an option.
    let name = if fixture.subject.traits.commas { "a,comma.img" } else { "no comma.img" };
    let written = fixture.raw_image(name);
    let last = fixture.raw_image("last.raw");
    let before = [&root, &read_only, &written, &last].map(|path| checksum(path));
    let mut vm = fixture.boot(
        fixture
            .builder()
            .disk(DiskImage::new(&root))
            .disk(DiskImage::with_format(&read_only, ImageFormat::Raw).read_only())
            .disk(DiskImage::new(&written))
            .disk(DiskImage::new(&last))
            .cmdline_arg("rw"),
    );
    // The guest has mounted the first disk as its root device.
    assert_eq!(vm.sh("cat /mnt/root/hello"), "hello from the disk");
    vm.sh("echo written >/mnt/root/new && sync");
    assert_eq!(begins(&mut vm, "vdb"), "read-only.raw");
    assert_eq!(begins(&mut vm, "vdc"), name);
    assert_eq!(begins(&mut vm, "vdd"), "last.raw");
    assert_eq!(vm.sh("cat /sys/block/vdb/ro /sys/block/vdc/ro"), "1\n0");
    // The guest can lift its own protection; the host must reject the write.
    vm.succeeds("blockdev --setrw /dev/vdb");
    assert!(!writes(&mut vm, "vdb"), "a read-only disk was written");
    assert!(writes(&mut vm, "vdc"));
    assert_eq!(reads_back(&mut vm, "vdc"), WRITTEN);
    stop(&vm);
    let after = [&root, &read_only, &written, &last].map(|path| checksum(path));
    let changed: Vec<_> = before.iter().zip(&after).map(|(a, b)| a != b).collect();
    assert_eq!(changed, [true, false, true, false]);
    assert_eq!(second_sector(&fs::read(&written).unwrap()), WRITTEN);
}

fn qcow2(fixture: &Fixture<'_>) {
    let root = fixture.copy(&fixture.linux().disk_qcow2, "root.qcow2");
    let base = fixture.raw_image("base.raw");
    let over = fixture.path("over.qcow2");
    let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(OsStr::new);
    qemu_img(words.into_iter().chain([base.as_os_str(), over.as_os_str()]));
    let before = [&root, &base, &over].map(|path| checksum(path));
    let builder =
        fixture.builder().disk(DiskImage::new(&root)).disk(DiskImage::new(&over).backing(&base));
    let mut vm = fixture.boot(builder.cmdline_arg("rw"));
    assert_eq!(vm.sh("cat /mnt/root/hello"), "hello from the disk");
    vm.sh("echo written >/mnt/root/new && sync");
    // Sectors that were never written come from the backing file.
    assert_eq!(begins(&mut vm, "vdb"), "base.raw");
    assert!(writes(&mut vm, "vdb"));
    assert_eq!(reads_back(&mut vm, "vdb"), WRITTEN);
    stop(&vm);
    let after = [&root, &base, &over].map(|path| checksum(path));
    let changed: Vec<_> = before.iter().zip(&after).map(|(a, b)| a != b).collect();
    assert_eq!(changed, [true, false, true]);
    for image in [&root, &over] {
        qemu_img([OsStr::new("check"), OsStr::new("-q"), image.as_os_str()]);
    }
    let flat = fixture.path("flat.raw");
    let words = ["convert", "-O", "raw"].map(OsStr::new);
    qemu_img(words.into_iter().chain([over.as_os_str(), flat.as_os_str()]));
    assert_eq!(second_sector(&fs::read(&flat).unwrap()), WRITTEN);
}

fn ephemeral(fixture: &Fixture<'_>) {
    let raw = fixture.raw_image("a,comma.raw");
    let mut images = vec![DiskImage::new(&raw).ephemeral()];
    if fixture.subject.supports("image_formats.qcow2") {
        let qcow2 = fixture.path("another, comma.qcow2");
        let words = ["convert", "-f", "raw", "-O", "qcow2"].map(OsStr::new);
        qemu_img(words.into_iter().chain([raw.as_os_str(), qcow2.as_os_str()]));
        images.push(DiskImage::new(&qcow2).ephemeral());
    }
    let before: Vec<_> = images.iter().map(|disk| checksum(&disk.image.path)).collect();
    let builder =
        images.iter().fold(fixture.builder(), |builder, image| builder.disk(image.clone()));
    let mut vm = fixture.boot(builder);
    for disk in ["vda", "vdb"].into_iter().take(images.len()) {
        assert_eq!(begins(&mut vm, disk), "a,comma.raw");
        assert!(writes(&mut vm, disk), "{disk}");
        assert_eq!(reads_back(&mut vm, disk), WRITTEN);
    }
    stop(&vm);
    let after: Vec<_> = images.iter().map(|disk| checksum(&disk.image.path)).collect();
    assert_eq!(before, after, "a base image was written");
    let left: Vec<_> =
        fs::read_dir(fixture.dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), images.len(), "files beside the base images: {left:?}");
}

fn disk_error(fixture: &Fixture<'_>) {
    let Some(full) = SmallFileSystem::mount(fixture) else { return };
    let image = full.sparse_image();
    let mut vm = fixture.boot(fixture.builder().disk(DiskImage::new(&image)));
    assert_eq!(vm.handle.disk_errors(), []);
    assert!(!vm.succeeds(FILL), "the write succeeded");
    let errors = vm.handle.disk_errors();
    assert_eq!(errors[0].path, image.to_str().unwrap());
    assert_eq!(errors[0].operation, DiskOperation::Write);
    assert_eq!(errors[0].reason, "No space left on device");
    assert_eq!(vm.sh("echo alive"), "alive");
    stop(&vm);
}

fn disk_error_pause(fixture: &Fixture<'_>) {
    let Some(full) = SmallFileSystem::mount(fixture) else { return };
    let (image, other) = (full.sparse_image(), full.0.join("other"));
    fs::write(&other, vec![1; 7 << 20]).unwrap();
    let builder = fixture.builder().disk(DiskImage::new(&image));
    let mut vm = fixture.boot(builder.on_disk_error(DiskErrorPolicy::Pause));
    let handle = vm.handle.clone();
    let owner = std::thread::spawn(move || {
        eventually("the VM is paused", || handle.status() == VmStatus::Paused);
        assert_eq!(handle.disk_errors()[0].reason, "No space left on device");
        // Nothing has changed, so the guest is paused again.
        handle.resume().unwrap();
        eventually("the VM is paused", || handle.status() == VmStatus::Paused);
        fs::remove_file(&other).unwrap();
        handle.resume().unwrap();
    });
    let write = "dd if=/dev/zero of=/dev/vda bs=1M count=4 conv=fsync 2>/dev/null";
    assert!(vm.succeeds(write), "the write failed");
    owner.join().unwrap();
    stop(&vm);
}

/// Writes more into the first disk than a [`SmallFileSystem`] has.
const FILL: &str = "dd if=/dev/zero of=/dev/vda bs=1M count=16 conv=fsync 2>/dev/null";

/// A mounted file system of 8 MiB.
struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    fn mount(fixture: &Fixture<'_>) -> Option<Self> {
        let path = fixture.path("small");
        fs::create_dir(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(&path).stderr(Stdio::null());
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(Self(path));
        }
        skip("this user may not mount a file system");
        None
    }

    /// An image of 32 MiB that takes no space yet.
    fn sparse_image(&self) -> PathBuf {
        let path = self.0.join("disk.raw");
        File::create(&path).and_then(|file| file.set_len(32 << 20)).unwrap();
        path
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // Lazily: the VM of a test that failed may still have the image open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The text at the begin of a disk, read in the guest.
fn begins(vm: &mut TestVm, disk: &str) -> String {
    sector(vm, disk, 0)
}

/// Writes into the second sector; true if the write succeeds.
fn writes(vm: &mut TestVm, disk: &str) -> bool {
    vm.succeeds(&format!("printf '{WRITTEN}' | dd of=/dev/{disk} bs=512 seek=1 conv=notrunc,fsync"))
}

/// The text of the second sector, read past the guest's cache.
fn reads_back(vm: &mut TestVm, disk: &str) -> String {
    vm.sh("sync; echo 3 >/proc/sys/vm/drop_caches");
    sector(vm, disk, 1)
}

fn sector(vm: &mut TestVm, disk: &str, number: usize) -> String {
    vm.sh(&format!("dd if=/dev/{disk} bs=512 count=1 skip={number} 2>/dev/null | tr -d '\\0'"))
}

fn second_sector(image: &[u8]) -> String {
    String::from_utf8_lossy(&image[512..1024]).trim_end_matches('\0').to_owned()
}

/// Stops with the power button, so that the guest writes its caches to the disk.
#[track_caller]
fn stop(vm: &TestVm) {
    vm.handle.stop().unwrap();
    let report = vm.wait_for_end();
    assert_eq!(
        (report.ended_by, report.steps),
        (EndedBy::GuestPowerOff, vec![StopStep::PowerButton])
    );
}

fn checksum(file: &Path) -> String {
    let output = command::text(Command::new("sha256sum").arg(file)).expect("sha256sum");
    output.split(' ').next().unwrap_or_default().to_owned()
}
