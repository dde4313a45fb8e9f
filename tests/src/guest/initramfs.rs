//! The initramfs: busybox with a link for every applet, modules, and an `init` of ours.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::Unavailable;
use super::cpio::Archive;
use super::modules::Modules;
use crate::command;

/// What our guests may meet. Only those whose hardware is there are loaded.
pub(super) const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "virtio-rng",
    "vmw_vsock_virtio_transport",
    "virtiofs",
    "9pnet_virtio",
    "9p",
    "ext4",
    "crc32c_generic", // ext4 asks for it by algorithm, not by dependency
    "button",
    "gpio_keys", // the power button where there is no ACPI
    "evdev",
    "pvpanic-pci",
    "pvpanic-mmio",
];

/// What a machine that runs machines of its own needs besides.
pub(super) const LAB_MODULES: &[&str] = &["dummy", "kvm_amd", "overlay", "tun", "vhost_vsock"];

/// The parts of the file system that do not depend on the host's packages.
pub(super) const FILES: &[(&str, u32, &str)] = &[
    ("bin/coldplug", 0o755, include_str!("root/coldplug")),
    ("etc/acpi/PWRF/00000080", 0o755, "#!/bin/sh\npoweroff\n"),
    ("etc/dhcp", 0o755, include_str!("root/dhcp")),
    ("etc/group", 0o644, "root:x:0:\ntty:x:5:\nuser:x:1000:\n"),
    ("etc/passwd", 0o644, "root::0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"),
    ("etc/profile", 0o644, include_str!("root/profile")),
    // The password is `secret`.
    (
        "etc/shadow",
        0o600,
        "root::19000::::::\nuser:$6$capsa$lczvdcnCB.8.MLAw7CX1RnlWtOdSET1he7V/7fFmlLEqiZ1TJm4mhVH5\
         a8uUy1ZY2ngAZLWw61g43V9hVbzOp.:19000::::::\n",
    ),
];

const DIRECTORIES: &[(&str, u32)] = &[
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("etc/acpi", 0o755),
    ("etc/acpi/PWRF", 0o755),
    ("home", 0o755),
    ("lib", 0o755),
    ("lib/modules", 0o755),
    ("mnt", 0o755),
    ("mnt/root", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/log", 0o755),
];

/// Writes the initramfs that runs `init` to `path`, with `more` modules. `packages` holds the
/// unpacked kernel and busybox packages.
pub(super) fn write(
    packages: &Path,
    init: &str,
    more: &[&str],
    path: &Path,
) -> Result<(), Unavailable> {
    let busybox = [packages.join("bin/busybox"), packages.join("usr/bin/busybox")];
    let busybox = busybox.iter().find(|path| path.exists());
    let busybox = busybox.ok_or_else(|| Unavailable::new("busybox-static has no bin/busybox"))?;
    let trees = [packages.join("lib/modules"), packages.join("usr/lib/modules")];
    let release = trees.iter().find_map(|tree| fs::read_dir(tree).ok()?.next()?.ok());
    let release = release.ok_or_else(|| Unavailable::new("the kernel package has no modules"))?;
    let modules = Modules::collect(&release.path(), &[MODULES, more].concat(), busybox)?;

    let mut archive = Archive::new();
    for (name, mode) in DIRECTORIES {
        archive.directory(name, *mode);
    }
    // The kernel opens it for init before there is a devtmpfs.
    archive.character_device("dev/console", 0o600, (5, 1));
    archive.symlink("sbin", "bin");
    archive.file("init", 0o755, init.as_bytes());
    for (name, mode, content) in FILES {
        archive.file(name, *mode, content.as_bytes());
    }
    let content = fs::read(busybox).map_err(Unavailable::io("read", busybox))?;
    archive.file("bin/busybox", 0o755, &content);
    for applet in command::text(Command::new(busybox).arg("--list"))?.lines() {
        if applet != "busybox" {
            archive.symlink(&format!("bin/{applet}"), "busybox");
        }
    }
    let tree = format!("lib/modules/{}", release.file_name().to_string_lossy());
    archive.directory(&tree, 0o755);
    for (name, content) in modules.files() {
        archive.file(&format!("{tree}/{name}"), 0o644, content);
    }
    archive.file(&format!("{tree}/modules.dep"), 0o644, modules.dep_table().as_bytes());
    archive.file(&format!("{tree}/modules.alias"), 0o644, modules.alias_table().as_bytes());
    fs::write(path, archive.finish()).map_err(Unavailable::io("write", path))
}

/// The text of everything that goes into an initramfs with this `init` and `more` modules, for a
/// recipe.
pub(super) fn recipe(init: &str, more: &[&str]) -> String {
    let modules = [MODULES, more].concat();
    format!("{init}\n{modules:?}\n{FILES:?}\n{DIRECTORIES:?}\n")
}
