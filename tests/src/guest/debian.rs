//! The Debian guest: systemd, logind and a getty, on a disk, as real guests are.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::linux::{CLOUD_KERNEL, make_ext4, make_kernel_and_initrd};
use super::{Unavailable, initramfs, kept, packages};
use crate::command;
use crate::host::{self, apt::Apt};

const INIT: &str = include_str!("root/init-debian");
/// `libpam-systemd` is what makes logind, and so the power button, work.
const PACKAGES: &str = "systemd-sysv,udev,dbus,libpam-systemd,login";
/// The password is `capsa`.
const ROOT: &str = "root:$6$capsa$eL.W3f6LmXVgEBX7NTO58rF.jzJSzEygx5JZmOEkPuJw5HrCmabmkQSNKDQFAwp4.\
                    qgqji.fvMJ.2t81P.UQG0:19000:0:99999:7:::";
const DISK_SIZE: &str = "1G";

/// What to boot, with `root=/dev/vda rw`. A getty is on whatever `console=` names; `root` has
/// the password `capsa`. `systemd.mount-extra=` needs systemd 254, Debian 13.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebianGuest {
    /// The distribution's cloud kernel.
    pub kernel: PathBuf,
    /// Loads the drivers of what is there and switches to the root device.
    pub initrd: PathBuf,
    /// The root file system: ext4 without partitions, raw, 1 GiB, sparse.
    pub disk: PathBuf,
}

/// The Debian guest, of the host's own release, made if it is not there yet: a minute.
///
/// # Errors
/// As [`linux`](super::linux()), and where mmdebstrap is missing or the caller is not root.
pub fn debian() -> Result<DebianGuest, Unavailable> {
    let recipe = format!("{}{PACKAGES}{ROOT}{DISK_SIZE}", initramfs::recipe(INIT, &[]));
    let dir = kept("debian", &recipe, |dir| {
        let mmdebstrap = packages::program("mmdebstrap", "mmdebstrap")?;
        let mkfs = packages::program("mkfs.ext4", "e2fsprogs")?;
        if !host::is_root() {
            return Err(Unavailable::new("a Debian root file system can be made only by root"));
        }
        let archive = host::main_archive().ok_or_else(|| {
            Unavailable::new("apt has no list of a Debian release; try `apt-get update`")
        })?;
        make_kernel_and_initrd(&Apt::configured(), CLOUD_KERNEL, INIT, &[], dir)?;
        let scratch =
            tempfile::tempdir_in(dir).map_err(Unavailable::io("create a directory in", dir))?;
        let root = scratch.path().join("root");
        let mut bootstrap = Command::new(mmdebstrap);
        bootstrap.args(["--quiet", "--variant=minbase"]).arg(format!("--include={PACKAGES}"));
        bootstrap.args([
            "--aptopt=APT::Install-Recommends \"0\"",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
        ]);
        command::output(bootstrap.arg(&archive.codename).arg(&root).arg(&archive.uri))?;

        let shadow = root.join("etc/shadow");
        let lines = fs::read_to_string(&shadow).map_err(Unavailable::io("read", &shadow))?;
        let lines = lines.lines().map(|line| if line.starts_with("root:") { ROOT } else { line });
        let lines: String = lines.map(|line| format!("{line}\n")).collect();
        fs::write(&shadow, lines).map_err(Unavailable::io("write", &shadow))?;
        for (name, content) in [("etc/hostname", "capsa\n"), ("etc/fstab", "")] {
            let path = root.join(name);
            fs::write(&path, content).map_err(Unavailable::io("write", &path))?;
        }
        make_ext4(&mkfs, &root, &dir.join("disk.raw"), DISK_SIZE)
    })?;
    Ok(DebianGuest {
        kernel: dir.join("kernel"),
        initrd: dir.join("initrd"),
        disk: dir.join("disk.raw"),
    })
}
