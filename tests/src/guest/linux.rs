//! The Linux guest: the distribution's kernel, a busybox initramfs with a login on the
//! console, and a small disk in two formats.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Unavailable, initramfs, kept, packages};
use crate::command;
use crate::host::apt::Apt;

const INIT: &str = include_str!("root/init");
/// What is in `/hello` on the disk.
const HELLO: &str = "hello from the disk\n";
const DISK_SIZE: &str = "64M";
/// The package of the kernel for virtual machines. Debian's for arm64 has no `gpio_keys`, and with it no
/// power button where there is no ACPI, as on a Mac: there the one for everything stands in.
pub(super) const CLOUD_KERNEL: &str =
    if cfg!(target_arch = "aarch64") { "linux-image-" } else { "linux-image-cloud-" };

/// Which of the distribution's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// The one for virtual machines: half the time to the prompt. Debian's has no 9p.
    Cloud,
    /// The one for everything. Do not pair it with QEMU's `microvm`.
    Generic,
    /// The cloud one of the release's backports, which is new enough for Landlock (6.2) where the
    /// release's own may not be, with what it takes to run machines inside.
    Lab,
}

/// What to boot. On the console, `capsa login: ` takes `root` without a password and `user`
/// with the password `secret`. The prompts end in `# ` and `$ `.
///
/// On the kernel command line it heeds the last `console=`, `root=` with `ro` or `rw` (unless
/// `capsa.shell` is there too), and `systemd.mount-extra=WHAT:WHERE:TYPE:OPTIONS`.
///
/// Busybox's shell sends the escape sequence `ESC [ 6 n` behind every prompt but the first: it
/// asks the terminal where the cursor is, and lives without an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinuxGuest {
    /// The kernel: a bzImage on x86-64, an Image on arm64.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// An ext4 file system with a file `/hello`, 64 MiB, raw. Mounted at `/mnt/root` where
    /// `root=` names its device.
    pub disk_raw: PathBuf,
    /// The same as qcow2.
    pub disk_qcow2: PathBuf,
}

/// The Linux guest, made if it is not there yet: about 7 s and a download of some tens of MB.
///
/// # Errors
/// Where it cannot be made: no apt, no network, no `mkfs.ext4`, no `qemu-img`.
pub fn linux(variant: Variant) -> Result<LinuxGuest, Unavailable> {
    let (name, package) = match variant {
        Variant::Cloud => ("linux-cloud", CLOUD_KERNEL),
        Variant::Generic => ("linux-generic", "linux-image-"),
        Variant::Lab => ("linux-lab", CLOUD_KERNEL),
    };
    let more = if variant == Variant::Lab { initramfs::LAB_MODULES } else { &[] };
    let recipe = format!("{}{HELLO}{DISK_SIZE}", initramfs::recipe(INIT, more));
    let dir = kept(name, &recipe, |dir| {
        let mkfs = packages::program("mkfs.ext4", "e2fsprogs")?;
        let qemu_img = packages::program("qemu-img", "qemu-utils")?;
        let apt = match variant {
            Variant::Lab => Apt::backports().map_err(Unavailable::backports)?,
            _ => Apt::configured(),
        };
        make_kernel_and_initrd(&apt, package, INIT, more, dir)?;
        let content = tempfile::tempdir().map_err(Unavailable::io("create", Path::new("/tmp")))?;
        let hello = content.path().join("hello");
        fs::write(&hello, HELLO).map_err(Unavailable::io("write", &hello))?;
        let raw = dir.join("disk.raw");
        make_ext4(&mkfs, content.path(), &raw, DISK_SIZE)?;
        let mut convert = Command::new(qemu_img);
        convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw);
        command::output(convert.arg(dir.join("disk.qcow2")))?;
        Ok(())
    })?;
    Ok(LinuxGuest {
        kernel: dir.join("kernel"),
        initrd: dir.join("initrd"),
        disk_raw: dir.join("disk.raw"),
        disk_qcow2: dir.join("disk.qcow2"),
    })
}

/// Writes `kernel` and an `initrd` that runs `init` into `dir`, with `modules` besides those that
/// all have. `package` names the current kernel that `apt` has, without the architecture at its end.
pub(super) fn make_kernel_and_initrd(
    apt: &Apt,
    package: &str,
    init: &str,
    modules: &[&str],
    dir: &Path,
) -> Result<(), Unavailable> {
    let current = format!("{package}{}", packages::architecture()?);
    let image = packages::dependency(apt, &current, "linux-image-")?;
    let scratch =
        tempfile::tempdir_in(dir).map_err(Unavailable::io("create a directory in", dir))?;
    let root = scratch.path().join("root");
    packages::unpack(apt, &image, scratch.path(), &root)?;
    packages::unpack(&Apt::configured(), "busybox-static", scratch.path(), &root)?;
    let boot = root.join("boot");
    let kernel = fs::read_dir(&boot).map_err(Unavailable::io("list", &boot))?.flatten();
    let mut kernel =
        kernel.filter(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz-"));
    let kernel = kernel.next().ok_or_else(|| Unavailable::new(format!("{image} has no kernel")))?;
    let to = dir.join("kernel");
    fs::copy(kernel.path(), &to).map_err(Unavailable::io("write", &to))?;
    initramfs::write(&root, init, modules, &dir.join("initrd"))
}

/// Makes an ext4 image of `size` from the files in `content`, with no mount and so no root.
pub(super) fn make_ext4(
    mkfs: &Path,
    content: &Path,
    image: &Path,
    size: &str,
) -> Result<(), Unavailable> {
    let mut make = Command::new(mkfs);
    make.args(["-q", "-F", "-d"]).arg(content).arg(image).arg(size);
    command::output(&mut make)?;
    Ok(())
}
