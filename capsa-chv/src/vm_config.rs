//! The body of `vm.create`: the `VmConfig` of `vmm/src/vm_config.rs` (v53).
//!
//! Fields it does not know are accepted without a word, so the names here are pinned by a test, and
//! every one of them exists since [`MIN_VERSION`](crate::MIN_VERSION).

use alloc::vec::Vec;

use serde_json::{Value, json};

use capsa_proto::capabilities::Checked;
use capsa_proto::helper::{passt, virtiofsd};
use capsa_proto::host::{FileFacts, HostFacts};
use capsa_proto::plan::{GUEST_CID, RunDirPlan, VsockPlan};
use capsa_proto::spec::{ConsoleMode, Disk, ImageFormat, NetworkMode};

pub(crate) fn vm_config(vm: &Checked, at: &RunDirPlan, host: &HostFacts) -> Value {
    let spec = vm.spec();
    let cpus = spec.resources.cpus;
    let mut config = json!({
        "cpus": { "boot_vcpus": cpus, "max_vcpus": cpus },
        "memory": { "size": memory_mb(spec.resources.memory_mb) << 20 },
        "payload": { "kernel": spec.kernel, "cmdline": vm.cmdline() },
        // Without these two it would give the guest a virtio-console on its own terminal.
        "serial": { "mode": if spec.console == ConsoleMode::Disabled { "Off" } else { "Tty" } },
        "console": { "mode": "Off" },
        "pvpanic": true,
    });
    if let Some(initrd) = &spec.initrd {
        config["payload"]["initramfs"] = json!(initrd);
    }
    if !vm.disks().is_empty() {
        config["disks"] = vm.disks().iter().map(|disk| disk_config(disk, host)).collect();
    }
    // virtiofsd and passt map the guest's memory, so it must be shared; nobody else needs that.
    let has_nat = spec.network == NetworkMode::Nat;
    if has_nat || !vm.shares().is_empty() {
        config["memory"]["shared"] = json!(true);
    }
    if has_nat {
        config["net"] = json!([{ "vhost_user": true, "vhost_socket": passt::socket(at) }]);
    }
    if spec.vsock {
        config["vsock"] = json!({ "cid": GUEST_CID, "socket": VsockPlan::at(at).socket });
    }
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

fn disk_config(disk: &Disk, host: &HostFacts) -> Value {
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

/// A qcow2 image names a backing file: the big-endian `backing_file_offset`, bytes 8 to 15 of its
/// header, is not zero.
pub(crate) fn has_backing_file(disk: &Disk, host: &HostFacts) -> bool {
    let FileFacts::File { head, .. } = host.file(&disk.path) else { return false };
    disk.format == ImageFormat::Qcow2
        && head.get(8..16).is_some_and(|offset| offset.iter().any(|byte| *byte != 0))
}

/// Guest memory in MiB: a multiple of 2, as it has to be, and never less than asked for.
pub(crate) fn memory_mb(asked: u32) -> u64 {
    u64::from(asked).next_multiple_of(2)
}
