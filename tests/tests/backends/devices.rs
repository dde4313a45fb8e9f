//! Block devices of the host as disks.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use capsa::DiskImage;
use capsa::backend::ViolationKind;
use capsa_testkit::nano::Nano;
use capsa_testkit::skip;
use capsa_testkit::vm::NanoGuest;

/// What a program prints; `None` when it fails.
fn run(program: &str, args: &[&OsStr]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

/// A loop device with a file system; it is detached at the end.
struct LoopDevice(String);

impl LoopDevice {
    fn new(image: &Path) -> Option<Self> {
        File::create(image).unwrap().set_len(8 << 20).unwrap();
        run("mkfs.ext4", &["-q".as_ref(), image.as_ref()])?;
        run("losetup", &["-f".as_ref(), "--show".as_ref(), image.as_ref()]).map(Self)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        run("umount", &["-q".as_ref(), self.0.as_ref()]);
        run("losetup", &["-d".as_ref(), self.0.as_ref()]);
    }
}

#[test]
fn mounted_device_is_rejected_unless_allowed() {
    let guest = NanoGuest::for_any(Nano::default());
    let Some(device) = LoopDevice::new(&guest.dir().join("image")) else {
        return skip("no loop device, or no mkfs.ext4");
    };
    let disk = || DiskImage::new(&device.0);
    let reason = |disk: capsa::VmDisk| match guest.builder().disk(disk).plan() {
        Ok(_) => None,
        Err(error) => {
            let violation = error.violations()[0].clone();
            assert_eq!(violation.kind, ViolationKind::InUse, "{violation}");
            Some(violation.reason)
        }
    };
    assert_eq!(reason(disk().into()), None, "it is not mounted");
    let at = guest.dir().join("at");
    std::fs::create_dir(&at).unwrap();
    if run("mount", &[device.0.as_ref(), at.as_ref()]).is_none() {
        return skip("the loop device cannot be mounted");
    }
    let text = reason(disk().into()).expect("it is mounted");
    assert!(text.contains(&device.0) && text.contains("mounted"), "{text}");
    assert_eq!(reason(disk().read_only()), None);
    assert_eq!(reason(disk().ephemeral()), None);
    assert_eq!(reason(capsa::VmDisk::new(disk()).allow_mounted()), None);
}
