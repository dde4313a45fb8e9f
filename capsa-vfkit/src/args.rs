//! The command line of a VM.
//!
//! `--device` splits its value at each comma and supports no quotes. A path in a spec must not contain
//! a comma: [`validate`](crate::validate) rejects it. The three kernel flags accept any text unchanged;
//! `--bootloader linux,…`, which vfkit's manual prefers, would corrupt a quoted kernel argument.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use capsa_proto::agent::protocol::VSOCK_PORT;
use capsa_proto::capabilities::ValidatedSpec;
use capsa_proto::path::HostPath;
use capsa_proto::plan::{
    DescriptorKind, DescriptorPlan, NamedPort, NetworkPlan, OverlayPlan, RunDirPlan, VsockPlan,
    add_descriptor,
};
use capsa_proto::spec::{ConsoleMode, Disk, VsockDirection, VsockPort};

/// The arguments, and the descriptors that they name.
pub(crate) fn args(
    vm: &ValidatedSpec,
    network: Option<&NetworkPlan>,
    at: &RunDirPlan,
    rest: &HostPath,
) -> (Vec<String>, Vec<DescriptorPlan>) {
    let spec = vm.spec();
    let (mut args, mut descriptors) = (Vec::new(), Vec::new());
    let mut flag = |name: &str, value: String| args.extend([name.to_string(), value]);

    flag("--cpus", spec.resources.cpus.to_string());
    flag("--memory", spec.resources.memory_mb.to_string());
    // vfkit requires all three or none. The capability table requires an initrd.
    flag("--kernel", spec.kernel.to_string());
    if let Some(initrd) = vm.initrd(at) {
        flag("--initrd", initrd.to_string());
    }
    flag("--kernel-cmdline", vm.cmdline().to_string());

    // The guest's device names follow this order: vda, vdb, …
    for (n, disk) in vm.disks().iter().enumerate() {
        let read_only = if disk.read_only { ",readonly" } else { "" };
        let path = if is_cloned(disk) { clone_path(n, at) } else { disk.path.clone() };
        flag("--device", format!("virtio-blk,path={path}{read_only}"));
    }
    for share in vm.shares() {
        flag("--device", format!("virtio-fs,sharedDir={},mountTag={}", share.host, share.tag));
    }
    if let Some(NetworkPlan { mac, .. }) = network {
        let fd = add_descriptor(&mut descriptors, DescriptorKind::Network);
        // Without `mac` the address is random.
        flag("--device", format!("virtio-net,fd={fd},mac={mac}"));
    }
    // The guest has one vsock device. Each `--device virtio-vsock` adds a port to it.
    let own = vm.agent().map(|_| AGENT_PORT);
    let ports: Vec<_> = spec.vsock_ports.iter().copied().chain(own).collect();
    if let VsockPlan::NamedPorts(ports) = VsockPlan::named_ports(at, &ports) {
        for NamedPort { port, socket } in ports {
            let mode = match port.direction {
                VsockDirection::ToGuest => "connect",
                VsockDirection::ToHost => "listen",
            };
            let port = port.port;
            flag("--device", format!("virtio-vsock,port={port},socketURL={socket},{mode}"));
        }
    }
    if spec.console != ConsoleMode::Disabled {
        flag("--device", "virtio-serial,stdio".to_string());
    }
    flag("--device", "virtio-rng".to_string());
    flag("--restful-uri", format!("unix://{rest}"));
    (args, descriptors)
}

/// The vsock port of the guest agent.
const AGENT_PORT: VsockPort = VsockPort { port: VSOCK_PORT, direction: VsockDirection::ToGuest };

/// The vsock device with the agent's port.
pub(crate) fn agent_port(at: &RunDirPlan) -> VsockPlan {
    VsockPlan::named_ports(at, &[AGENT_PORT])
}

/// Whether the guest writes to a clone of this disk. A read-only disk needs none.
pub(crate) fn is_cloned(disk: &Disk) -> bool {
    disk.ephemeral && !disk.read_only
}

/// The clones of the VM's ephemeral disks. vfkit supports raw images only, so there are no overlays.
pub(crate) fn clones(vm: &ValidatedSpec, at: &RunDirPlan) -> Vec<OverlayPlan> {
    let cloned = vm.disks().iter().enumerate().filter(|(_, disk)| is_cloned(disk));
    cloned
        .map(|(n, disk)| OverlayPlan::Clone { at: clone_path(n, at), of: disk.path.clone() })
        .collect()
}

fn clone_path(n: usize, at: &RunDirPlan) -> HostPath {
    at.path().join(&format!("disk{n}.raw"))
}
