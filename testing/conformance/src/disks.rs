//! Disks: formats, order, read-only, thrown away.
//!
//! A disk of ours begins with its own name and has room behind: the guest writes into its second
//! sector and reads that back past its cache, and what the host finds in the file afterwards is what
//! counts.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use capsa::{DiskImage, EndedBy, ImageFormat, StopStep};

use super::machine::Machine;
use super::stage::qemu_img;
use super::{Scenario, Stage};
use capsa_fixtures::command;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::linux("raw_disks_come_in_order_and_read_only_holds", raw_and_read_only)
        .uses(&["image_formats.raw", "disk_read_only"]),
    Scenario::linux("qcow2_disks_are_written_and_their_backing_file_is_not", qcow2)
        .uses(&["image_formats.qcow2"]),
    Scenario::linux("what_is_written_to_a_throw_away_disk_is_gone", ephemeral)
        .uses(&["disk_ephemeral", "image_formats.raw"]),
];

/// What the guest writes into the second sector.
const WRITTEN: &str = "the guest was here";

fn raw_and_read_only(stage: &Stage<'_>) {
    let root = stage.copy(&stage.linux().disk_raw, "root.raw");
    let read_only = stage.raw_image("read-only.raw");
    // Commas are what an option parser would stumble over.
    let name = if stage.subject.nature.commas { "a,comma.img" } else { "no comma.img" };
    let written = stage.raw_image(name);
    let last = stage.raw_image("last.raw");
    let before = [&root, &read_only, &written, &last].map(|path| checksum(path));
    let mut machine = stage.boot(
        stage
            .builder()
            .disk(DiskImage::new(&root))
            .disk(DiskImage::with_format(&read_only, ImageFormat::Raw).read_only())
            .disk(DiskImage::new(&written))
            .disk(DiskImage::new(&last))
            .cmdline_arg("rw"),
    );
    // The first is the root device, which the guest has mounted.
    assert_eq!(machine.sh("cat /mnt/root/hello"), "hello from the disk");
    machine.sh("echo written >/mnt/root/new && sync");
    assert_eq!(begins(&mut machine, "vdb"), "read-only.raw");
    assert_eq!(begins(&mut machine, "vdc"), name);
    assert_eq!(begins(&mut machine, "vdd"), "last.raw");
    assert_eq!(machine.sh("cat /sys/block/vdb/ro /sys/block/vdc/ro"), "1\n0");
    // The guest may tell itself what it likes: the host has to hold.
    machine.succeeds("blockdev --setrw /dev/vdb");
    assert!(!writes(&mut machine, "vdb"), "a read-only disk was written");
    assert!(writes(&mut machine, "vdc"));
    assert_eq!(reads_back(&mut machine, "vdc"), WRITTEN);
    stop(&machine);
    let after = [&root, &read_only, &written, &last].map(|path| checksum(path));
    let changed: Vec<_> = before.iter().zip(&after).map(|(a, b)| a != b).collect();
    assert_eq!(changed, [true, false, true, false]);
    assert_eq!(second_sector(&fs::read(&written).unwrap()), WRITTEN);
}

fn qcow2(stage: &Stage<'_>) {
    let root = stage.copy(&stage.linux().disk_qcow2, "root.qcow2");
    let base = stage.raw_image("base.raw");
    let over = stage.at("over.qcow2");
    let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(OsStr::new);
    qemu_img(words.into_iter().chain([base.as_os_str(), over.as_os_str()]));
    let before = [&root, &base, &over].map(|path| checksum(path));
    let disks = [&root, &over].map(DiskImage::new);
    let builder = disks.into_iter().fold(stage.builder(), |builder, disk| builder.disk(disk));
    let mut machine = stage.boot(builder.cmdline_arg("rw"));
    assert_eq!(machine.sh("cat /mnt/root/hello"), "hello from the disk");
    machine.sh("echo written >/mnt/root/new && sync");
    // What was never written comes from the backing file.
    assert_eq!(begins(&mut machine, "vdb"), "base.raw");
    assert!(writes(&mut machine, "vdb"));
    assert_eq!(reads_back(&mut machine, "vdb"), WRITTEN);
    stop(&machine);
    let after = [&root, &base, &over].map(|path| checksum(path));
    let changed: Vec<_> = before.iter().zip(&after).map(|(a, b)| a != b).collect();
    assert_eq!(changed, [true, false, true]);
    for image in [&root, &over] {
        qemu_img([OsStr::new("check"), OsStr::new("-q"), image.as_os_str()]);
    }
    let flat = stage.at("flat.raw");
    let words = ["convert", "-O", "raw"].map(OsStr::new);
    qemu_img(words.into_iter().chain([over.as_os_str(), flat.as_os_str()]));
    assert_eq!(second_sector(&fs::read(&flat).unwrap()), WRITTEN);
}

fn ephemeral(stage: &Stage<'_>) {
    let raw = stage.raw_image("a,comma.raw");
    let mut images = vec![DiskImage::new(&raw).ephemeral()];
    if stage.subject.claims("image_formats.qcow2") {
        let qcow2 = stage.at("another, comma.qcow2");
        let words = ["convert", "-f", "raw", "-O", "qcow2"].map(OsStr::new);
        qemu_img(words.into_iter().chain([raw.as_os_str(), qcow2.as_os_str()]));
        images.push(DiskImage::new(&qcow2).ephemeral());
    }
    let before: Vec<_> = images.iter().map(|image| checksum(&image.path)).collect();
    let builder = images.iter().fold(stage.builder(), |builder, image| builder.disk(image.clone()));
    let mut machine = stage.boot(builder);
    for disk in ["vda", "vdb"].into_iter().take(images.len()) {
        assert_eq!(begins(&mut machine, disk), "a,comma.raw");
        assert!(writes(&mut machine, disk), "{disk}");
        assert_eq!(reads_back(&mut machine, disk), WRITTEN);
    }
    stop(&machine);
    let after: Vec<_> = images.iter().map(|image| checksum(&image.path)).collect();
    assert_eq!(before, after, "a base was written");
    let left: Vec<_> = fs::read_dir(stage.dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), images.len(), "beside the bases there is {left:?}");
}

/// The text that a disk begins with, as the guest sees it.
fn begins(machine: &mut Machine, disk: &str) -> String {
    sector(machine, disk, 0)
}

/// Writes into the second sector; whether that arrived on the disk.
fn writes(machine: &mut Machine, disk: &str) -> bool {
    machine.succeeds(&format!(
        "printf '{WRITTEN}' | dd of=/dev/{disk} bs=512 seek=1 conv=notrunc,fsync"
    ))
}

/// The second sector, read past the guest's cache.
fn reads_back(machine: &mut Machine, disk: &str) -> String {
    machine.sh("sync; echo 3 >/proc/sys/vm/drop_caches");
    sector(machine, disk, 1)
}

fn sector(machine: &mut Machine, disk: &str, number: usize) -> String {
    machine.sh(&format!("dd if=/dev/{disk} bs=512 count=1 skip={number} 2>/dev/null | tr -d '\\0'"))
}

fn second_sector(image: &[u8]) -> String {
    String::from_utf8_lossy(&image[512..1024]).trim_end_matches('\0').to_owned()
}

/// A polite stop: what the guest wrote is to be on the disk.
#[track_caller]
fn stop(machine: &Machine) {
    machine.vm.stop().unwrap();
    let report = machine.ended();
    assert_eq!(
        (report.ended_by, report.steps),
        (EndedBy::GuestPowerOff, vec![StopStep::PowerButton])
    );
}

fn checksum(file: &Path) -> String {
    let said = command::text(Command::new("sha256sum").arg(file)).expect("sha256sum");
    said.split(' ').next().unwrap_or_default().to_owned()
}
