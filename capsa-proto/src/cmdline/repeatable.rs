//! The keys that mean something when they occur more than once.
//!
//! Most parameters keep the last value. For these each occurrence counts, so
//! [`KernelCmdline::args`](super::KernelCmdline::args) keeps them all.
//!
//! `module_blacklist` is *not* here though it is a list: the kernel stores one string
//! (`core_param(.., charp, ..)` in `kernel/module/main.c`), its items are separated by commas, and a
//! second occurrence replaces the first. `modprobe.blacklist`, which kmod reads, does add up.

use super::arg::same_key;

/// Whether every occurrence of `key` counts, instead of only the last one.
///
/// Known are keys of the kernel, of systemd, kmod and dracut. An unknown key is not repeatable;
/// [`append`](super::KernelCmdline::append) repeats it all the same.
///
/// ```
/// # use capsa_proto::cmdline::is_repeatable;
/// assert!(is_repeatable("console"));
/// assert!(is_repeatable("systemd.mount_extra"), "`-` and `_` are alike");
/// assert!(!is_repeatable("root"));
/// ```
pub fn is_repeatable(key: &str) -> bool {
    // systemd reads most of its keys inside an initrd with this prefix as well.
    let key = key.strip_prefix("rd.").filter(|k| k.starts_with("systemd.")).unwrap_or(key);
    REPEATABLE.iter().any(|known| same_key(known, key))
}

#[rustfmt::skip]
const REPEATABLE: &[&str] = &[
    // Kernel: the handler runs once for each occurrence and adds to what is there.
    "console", "earlycon", "virtio_mmio.device", "memmap", "hugepagesz", "hugepages",
    "crashkernel", "initcall_blacklist", "acpi_osi", "cgroup_disable", "cgroup_enable", "md", "pci",
    "video",
    // Kernel (one `ip=`) and dracut (one for each interface).
    "ip",
    // kmod and systemd-modules-load.
    "modprobe.blacklist", "modules-load", "rd.modules-load",
    // systemd(1), kernel-command-line(7), systemd-fstab-generator(8), systemd-cryptsetup-generator(8).
    "systemd.wants", "systemd.mask", "systemd.setenv", "systemd.run", "systemd.pull",
    "systemd.mount-extra", "systemd.swap-extra", "systemd.set_credential",
    "systemd.set_credential_binary",
    "luks.uuid", "rd.luks.uuid", "luks.name", "rd.luks.name", "luks.options", "rd.luks.options",
    "luks.key", "rd.luks.key", "luks.data", "rd.luks.data",
    // dracut.cmdline(7).
    "nameserver", "ifname", "bond", "bridge", "team", "vlan", "rd.route", "rd.znet", "rd.lvm.lv",
    "rd.lvm.vg", "rd.md.uuid", "rd.dm.uuid", "rd.driver.blacklist", "rd.driver.pre",
    "rd.driver.post", "rd.break",
];
