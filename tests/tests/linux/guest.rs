//! The real Linux guest under the real QEMU, in software emulation.
//!
//! On `q35`: on an emulated `microvm` whose host is busy, Linux now and then cannot calibrate its clock
//! and hangs before its first line.

use super::qemu::QemuGuest;

use capsa_testkit::guest::{self, LinuxGuest, Variant};
use capsa_testkit::skip;

/// Boots with the disk as root device; `None` where there is no guest or no QEMU.
fn boot() -> Option<QemuGuest> {
    if !cfg!(target_arch = "x86_64") {
        skip("guests are made for the host's architecture, and these are for x86-64");
        return None;
    }
    let guest = guest::linux(Variant::Cloud).map_err(skip).ok()?;
    let LinuxGuest { kernel, initrd, disk_qcow2, .. } = guest;
    let disk = format!("file={},format=qcow2,if=none,id=disk,snapshot=on", disk_qcow2.display());
    let cmdline = "console=ttyS0 quiet panic=-1 reboot=t mitigations=off root=/dev/vda rw";
    let arguments = [
        ["-m", "512"],
        ["-kernel", kernel.to_str().unwrap()],
        ["-initrd", initrd.to_str().unwrap()],
        ["-append", cmdline],
        ["-drive", &disk],
        ["-device", "virtio-blk-pci,drive=disk"],
    ];
    let mut qemu = QemuGuest::start("q35", arguments.concat())?;
    qemu.wait_for(b"capsa login: ");
    Some(qemu)
}

#[test]
fn guest_root_sees_disk_and_powers_off() {
    let Some(mut guest) = boot() else { return };
    guest.write(b"root\n");
    guest.wait_for(b"# ");
    guest.write(b"cat /mnt/root/hello\n");
    guest.wait_for(b"hello from the disk");
    guest.press_power_button();
    assert!(guest.wait_for_end().success());
}

#[test]
fn guest_user_needs_password() {
    let Some(mut guest) = boot() else { return };
    guest.write(b"user\n");
    guest.wait_for(b"Password: ");
    guest.write(b"secret\n");
    guest.wait_for(b"~ $ ");
    guest.write(b"exit\n");
    // The second prompt: the first one is still in the output.
    guest.wait_for(b"exit\r\n");
    guest.seen.clear();
    guest.wait_for(b"capsa login: ");
    guest.write(b"root\n");
    guest.wait_for(b"# ");
    guest.write(b"poweroff\n");
    assert!(guest.wait_for_end().success());
}
