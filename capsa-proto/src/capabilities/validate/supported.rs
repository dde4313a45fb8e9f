//! Validates a VM spec against the capabilities of a backend, whatever the host.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::super::{BackendCapabilities, Violation, ViolationKind};
use crate::spec::{
    DiskErrorPolicy, ImageFormat, MountMode, NetworkMode, RebootPolicy, ShareMechanism, VmSpec,
};

impl BackendCapabilities {
    /// Validates the description of a VM against these capabilities. `LinuxVmBuilder::validate` calls it.
    ///
    /// No file, program or resource of the host is an argument, so a description that passes can still
    /// be rejected on this host: `LinuxVmBuilder::plan` checks all of it.
    ///
    /// # Errors
    ///
    /// All violations of these capabilities, in the order of the fields. Never empty.
    pub fn validate(&self, spec: &VmSpec) -> Result<(), Vec<Violation>> {
        let mut out = Vec::new();
        let mut unsupported = |field: &str, reason: &str, remedy: &str| {
            out.push(Violation::new(field, ViolationKind::Unsupported, reason, remedy));
        };
        if !self.guest_os.linux || !self.boot_methods.linux_direct {
            let reason = "booting a Linux kernel directly is not supported";
            unsupported("kernel", reason, "use another backend");
        }
        if spec.initrd.is_none() && !self.boot_methods.linux_direct_without_initrd {
            let reason = "booting without an initrd is not supported";
            unsupported("initrd", reason, "set an initrd");
        }
        for (n, disk) in spec.disks.iter().enumerate() {
            let field = |part: &str| format!("disks[{n}].{part}");
            if disk.format == ImageFormat::Qcow2 && !self.image_formats.qcow2 {
                let remedy = format!("convert it: qemu-img convert -O raw {} disk.raw", disk.path);
                unsupported(&field("path"), "qcow2 images are not supported", &remedy);
            }
            if disk.format == ImageFormat::Raw && !self.image_formats.raw {
                let remedy = "convert it: qemu-img convert -O qcow2";
                unsupported(&field("path"), "raw images are not supported", remedy);
            }
            if disk.ephemeral && !self.disk_ephemeral {
                let remedy = "copy the image and attach the copy, or use another backend";
                unsupported(&field("ephemeral"), "ephemeral disks are not supported", remedy);
            }
            if disk.read_only && !self.disk_read_only {
                let reason = "read-only disks are not supported";
                unsupported(&field("read_only"), reason, "use another backend");
            }
        }
        if let Some((field, reason, remedy)) = self.too_many_devices(spec) {
            unsupported(field, &reason, &remedy);
        }
        let resources = &spec.resources;
        if let Some(max) = self.max_cpus.filter(|max| resources.cpus > *max) {
            let reason = format!("{} CPUs exceed the limit of {max}", resources.cpus);
            unsupported("cpus", &reason, &format!("set cpus to {max} or fewer"));
        }
        if let Some(max) = self.max_memory_mb.filter(|max| resources.memory_mb > *max) {
            let reason = format!("{} MiB exceed the limit of {max} MiB", resources.memory_mb);
            unsupported("memory", &reason, &format!("set memory to {max} MiB or less"));
        }
        for (n, share) in spec.shares.iter().enumerate() {
            let field = |part: &str| format!("shares[{n}].{part}");
            if share.mode == MountMode::ReadOnly && !self.share_read_only {
                let remedy = "share it read-write, or use the qemu or cloud-hypervisor backend";
                unsupported(&field("mode"), "read-only shares are not supported", remedy);
            }
            let (reason, remedy) = match share.mechanism {
                ShareMechanism::Auto if self.virtio_fs || self.virtio_9p => continue,
                ShareMechanism::VirtioFs(_) if self.virtio_fs => continue,
                ShareMechanism::Virtio9p(_) if self.virtio_9p => continue,
                ShareMechanism::Virtio9p(_) => {
                    ("virtio-9p is not supported", "use virtio-fs or auto, or use the qemu backend")
                }
                _ => ("virtio-fs is not supported", "use another backend"),
            };
            unsupported(&field("mechanism"), reason, remedy);
        }
        match &spec.network {
            NetworkMode::None if !self.network_modes.none => {
                let reason = "VMs without a network are not supported";
                unsupported("network", reason, "set network to nat");
            }
            NetworkMode::Nat | NetworkMode::Policy(_) if !self.network_modes.nat => {
                let remedy = "set network to none, or use the qemu backend";
                unsupported("network", "NAT is not supported", remedy);
            }
            _ => {}
        }
        if spec.vsock && !self.vsock {
            let remedy = "disable vsock, or use the cloud-hypervisor or qemu backend";
            unsupported("vsock", "vsock is not supported", remedy);
        }
        if spec.virtio_console && !self.virtio_console {
            let remedy = "remove virtio_console";
            unsupported("virtio_console", "a virtio console is not supported", remedy);
        }
        match spec.on_reboot {
            RebootPolicy::End if !self.reboot_end => unsupported(
                "on_reboot",
                "reboot detection is not supported, so a reboot could go unnoticed",
                "use the default (auto), which ends the VM at a panic or reboot that the console \
                 shows, or use the qemu backend",
            ),
            RebootPolicy::Restart if !self.reboot_restart => {
                let reason = "rebooting inside the same VM is not supported";
                unsupported("on_reboot", reason, "start a new VM after a reboot");
            }
            _ => {}
        }
        if spec.on_disk_error == DiskErrorPolicy::Pause && !self.disk_errors {
            let reason = "pausing the guest at a disk error is not supported";
            let remedy = "use the default (report), or the qemu backend";
            unsupported("on_disk_error", reason, remedy);
        }
        if out.is_empty() { Ok(()) } else { Err(out) }
    }

    /// Each disk, share, network and vsock device needs a slot of the VM's bus. Returns the field, the
    /// reason and the remedy of a VM with too many.
    fn too_many_devices(&self, spec: &VmSpec) -> Option<(&'static str, String, String)> {
        let (disks, shares) = (spec.disks.len(), spec.shares.len());
        let network = usize::from(spec.network.has_card());
        let vsock = usize::from(spec.vsock);
        let console = usize::from(spec.virtio_console);
        let count = spec.device_count();
        let max = self.max_devices.filter(|max| count > *max as usize)?;
        let reason = format!(
            "{count} devices exceed the limit of {max}: {disks} disks, {shares} shares, {network} \
             network, {vsock} vsock, {console} virtio console"
        );
        let field = if disks >= shares { "disks" } else { "shares" };
        Some((field, reason, format!("attach {max} devices or fewer")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::HostPath;
    use crate::spec::{Disk, Share};
    use alloc::vec;

    /// A VM that uses every capability, and what remains of it without any.
    #[test]
    fn nothing_supported_rejects_each_field() {
        let path = || HostPath::new("/x").unwrap();
        let disk = |read_only| Disk {
            path: path(),
            format: if read_only { ImageFormat::Raw } else { ImageFormat::Qcow2 },
            read_only,
            ephemeral: !read_only,
            backing: Vec::new(),
            allow_mounted: false,
        };
        let share = |mechanism| Share {
            host: path(),
            guest: "/x".into(),
            mode: MountMode::ReadOnly,
            mechanism,
        };
        let mechanisms = [
            ShareMechanism::Auto,
            ShareMechanism::VirtioFs(Default::default()),
            ShareMechanism::Virtio9p(Default::default()),
        ];
        let spec = VmSpec {
            disks: vec![disk(true), disk(false)],
            shares: mechanisms.into_iter().map(share).collect(),
            vsock: true,
            virtio_console: true,
            on_reboot: RebootPolicy::End,
            on_disk_error: DiskErrorPolicy::Pause,
            ..VmSpec::new(path())
        };
        let mut limits = BackendCapabilities::NONE;
        (limits.max_cpus, limits.max_memory_mb, limits.max_devices) = (Some(0), Some(1), Some(2));
        let violations = limits.validate(&spec).unwrap_err();
        let fields: Vec<_> = violations.iter().map(|v| v.field.as_str()).collect();
        let share = |n: usize| [format!("shares[{n}].mode"), format!("shares[{n}].mechanism")];
        let shares = [share(0), share(1), share(2)].concat();
        let mut want = vec!["kernel", "initrd", "disks[0].path", "disks[0].read_only"];
        want.extend(["disks[1].path", "disks[1].ephemeral", "shares", "cpus", "memory"]);
        want.extend(shares.iter().map(String::as_str));
        want.extend(["network", "vsock", "virtio_console", "on_reboot", "on_disk_error"]);
        assert_eq!(fields, want);
        assert!(violations.iter().all(|v| v.kind == ViolationKind::Unsupported));

        let mut supports = BackendCapabilities::NONE;
        supports.guest_os.linux = true;
        supports.boot_methods.linux_direct = true;
        supports.boot_methods.linux_direct_without_initrd = true;
        supports.image_formats.raw = true;
        supports.image_formats.qcow2 = true;
        supports.network_modes.nat = true;
        (supports.virtio_fs, supports.virtio_9p, supports.share_read_only) = (true, true, true);
        (supports.disk_ephemeral, supports.disk_read_only) = (true, true);
        (supports.reboot_end, supports.vsock, supports.disk_errors) = (true, true, true);
        supports.virtio_console = true;
        assert_eq!(supports.validate(&spec), Ok(()));
    }
}
