//! The body of `vm.create`: the `VmConfig` of `vmm/src/vm_config.rs` (v53).
//!
//! Cloud Hypervisor ignores unknown fields. So a test checks the field names, and each field exists
//! since [`MIN_VERSION`](crate::MIN_VERSION).

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use serde_json::{Value, json};

use capsa_proto::capabilities::ValidatedSpec;
use capsa_proto::helper::virtiofsd;
use capsa_proto::host::HostFacts;
use capsa_proto::path::HostPath;
use capsa_proto::plan::{GUEST_CID, MacAddress, OverlayPlan, RunDirPlan, VsockPlan};
use capsa_proto::qcow2::{self, Overlay};
use capsa_proto::spec::{ConsoleMode, Disk, ImageFormat};

use crate::{NETWORK_SOCKET, landlock};

pub(crate) fn vm_config(vm: &ValidatedSpec, at: &RunDirPlan, host: &HostFacts) -> Value {
    let spec = vm.spec();
    let cpus = spec.resources.cpus;
    let mut config = json!({
        "cpus": { "boot_vcpus": cpus, "max_vcpus": cpus },
        "memory": { "size": memory_mb(spec.resources.memory_mb) << 20 },
        "payload": { "kernel": spec.kernel, "cmdline": vm.cmdline() },
        // Without these two the guest gets a virtio-console on the hypervisor's own terminal.
        "serial": { "mode": "Off" },
        "console": { "mode": "Off" },
        "pvpanic": true,
    });
    match (spec.console, spec.virtio_console) {
        (ConsoleMode::Disabled, _) => {}
        (_, false) => config["serial"]["mode"] = json!("Tty"),
        (_, true) => {
            config["serial"] = json!({ "mode": "File", "file": serial_port(at) });
            config["console"]["mode"] = json!("Tty");
        }
    }
    if let Some(initrd) = vm.initrd(at) {
        config["payload"]["initramfs"] = json!(initrd);
    }
    if !vm.disks().is_empty() {
        let disks = vm.disks().iter().enumerate();
        config["disks"] = disks.map(|(n, disk)| disk_config(n, disk, at, host)).collect();
    }
    // virtiofsd and the network access guest memory, so it must be shared. Nothing else needs that.
    let has_nat = spec.network.has_card();
    if has_nat || !vm.shares().is_empty() {
        config["memory"]["shared"] = json!(true);
    }
    if has_nat {
        config["net"] = json!([{
            "vhost_user": true,
            "vhost_socket": at.socket(NETWORK_SOCKET),
            "mac": MacAddress::GUEST.to_string(),
            "num_queues": 2,
            "queue_size": 1024,
        }]);
    }
    if spec.vsock || vm.agent().is_some() {
        config["vsock"] = json!({ "cid": GUEST_CID, "socket": VsockPlan::socket(at) });
    }
    landlock::add_to(&mut config, vm, host);
    if !vm.shares().is_empty() {
        let shares = vm.shares().iter().enumerate().map(|(n, share)| {
            json!({
                "tag": share.tag,
                "socket": virtiofsd::socket(n, at),
                "num_queues": 1,
                "queue_size": 1024,
            })
        });
        config["fs"] = shares.collect::<Vec<_>>().into();
    }
    config
}

/// The id of the virtio console in events: `CONSOLE_DEVICE_NAME` in `vmm/src/device_manager.rs` (v53).
pub(crate) const CONSOLE_ID: &str = "__console";

/// The FIFO of the serial port beside a virtio console. An inherited pipe would not do: Landlock has no
/// rules for its path.
pub(crate) fn serial_port(at: &RunDirPlan) -> HostPath {
    at.path().join("serial")
}

/// The overlay images of the VM's ephemeral disks.
pub(crate) fn overlays(vm: &ValidatedSpec, at: &RunDirPlan, host: &HostFacts) -> Vec<OverlayPlan> {
    let ephemeral = vm.disks().iter().enumerate().filter(|(_, disk)| needs_overlay(disk));
    ephemeral
        .filter_map(|(n, disk)| {
            let overlay = Overlay::new(&disk.path, disk.format, host.file(&disk.path))?;
            Some(OverlayPlan::Qcow2 { at: overlay_path(n, at), overlay })
        })
        .collect()
}

/// Whether the disk gets an overlay. A read-only disk gets none, since an overlay would be writable.
pub(crate) fn needs_overlay(disk: &Disk) -> bool {
    disk.ephemeral && !disk.read_only
}

fn overlay_path(n: usize, at: &RunDirPlan) -> HostPath {
    at.path().join(&format!("disk{n}.overlay"))
}

fn disk_config(n: usize, disk: &Disk, at: &RunDirPlan, host: &HostFacts) -> Value {
    if needs_overlay(disk) {
        return json!({
            "path": overlay_path(n, at),
            "readonly": false,
            "image_type": "Qcow2",
            "backing_files": true,
        });
    }
    let mut config = json!({
        "path": disk.path,
        "readonly": disk.read_only,
        "image_type": match disk.format {
            ImageFormat::Raw => "Raw",
            ImageFormat::Qcow2 => "Qcow2",
        },
    });
    if has_backing_file(disk, host) {
        config["backing_files"] = json!(true);
    }
    config
}

pub(crate) fn has_backing_file(disk: &Disk, host: &HostFacts) -> bool {
    disk.format == ImageFormat::Qcow2
        && qcow2::backing_chain(&disk.path, host).is_ok_and(|below| !below.is_empty())
}

/// Guest memory in MiB, rounded up to a multiple of 2, which Cloud Hypervisor requires.
pub(crate) fn memory_mb(requested: u32) -> u64 {
    u64::from(requested).next_multiple_of(2)
}
