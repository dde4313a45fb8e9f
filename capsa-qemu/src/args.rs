//! Turns a validated spec into QEMU's arguments and the launch plan.
//!
//! With `-nodefaults` and `-no-user-config` the VM has only the devices of this module. No path can
//! add an option: options with comma-separated values get paths with doubled commas, and disks are
//! JSON.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use capsa_proto::agent::protocol::SERIAL_NAME;
use capsa_proto::backend::ProbeReport;
use capsa_proto::capabilities::{PlannedMechanism, PlannedShare, ValidatedAgent, ValidatedSpec};
use capsa_proto::helper::{vhost_device_vsock, virtiofsd};
use capsa_proto::host::{Arch, FileFacts, HostFacts};
use capsa_proto::path::HostPath;
use capsa_proto::plan::{
    AgentPlan, AgentTransport, Body, CarrierPlan, ConsolePlan, ControlEndpoint, ControlPlan,
    CrashReporting, DescriptorKind, DescriptorPlan, LaunchPlan, Message, NetworkLink, NetworkPlan,
    Note, ProcessPlan, Protocol, Readiness, RunDirPlan, StopAction, VsockPlan, add_descriptor,
};
use capsa_proto::qcow2;
use capsa_proto::spec::{
    ConsoleMode, Disk, DiskErrorPolicy, ImageFormat, MountMode, RebootPolicy, VmSpec,
};
use serde_json::{Value, json};

use crate::{PROGRAM, accel};

/// At a reboot SeaBIOS resets the VM a second time, to get a clean copy of itself: 40 ms later on an
/// idle host. Resets within this time count as one.
const FIRMWARE_RESETS_WITHIN: Duration = Duration::from_millis(250);

/// The largest IP packet of the guest's network card. A guest in emulation sends twice as fast with it as
/// with 1500 bytes, because each frame costs it the same.
const MTU: u16 = 65520;

/// The bus of virtio consoles and ports. The guest's driver waits for each write, so a hand-over to another
/// thread only takes time.
const VIRTIO_SERIAL: &str = "virtio-serial-pci,ioeventfd=off";

/// The name of the network card's backend.
const NETDEV: &str = "net0";

pub(crate) fn plan(
    vm: &ValidatedSpec,
    at: &RunDirPlan,
    host: &HostFacts,
    found: &ProbeReport,
) -> LaunchPlan {
    let spec = vm.spec();
    let accel = accel::choose(spec.accelerator, host);
    let program = found.program(PROGRAM, &format!("qemu-system-{}", host.arch.as_str()));

    let mut notes: Vec<Note> = vm.notes().to_vec();
    notes.extend(accel.notes.iter().cloned());

    let mut args = QemuArgs::default();
    args.base(vm, host, accel.accel);
    args.sandbox(found);
    args.boot(vm, at);
    args.control();
    args.console(spec.console, spec.virtio_console, at);
    for (n, disk) in spec.disks.iter().enumerate() {
        args.disk(n, disk, spec.on_disk_error, host);
    }
    let network = NetworkPlan::new(spec, NetworkLink::Stream, MTU);
    let network = network.map(|plan| NetworkPlan { carrier: Some(carrier()), ..plan });
    if let Some(network) = &network {
        args.network(network);
    }
    if spec.vsock {
        args.vsock(at);
    }
    for (n, share) in vm.shares().iter().enumerate() {
        args.share(n, share, at);
    }
    if let Some(agent) = vm.agent() {
        args.agent(agent, spec);
    }

    let mut processes: Vec<ProcessPlan> = vm
        .shares()
        .iter()
        .enumerate()
        .filter(|(_, share)| matches!(share.mechanism, PlannedMechanism::VirtioFs { .. }))
        .map(|(n, share)| virtiofsd::process(share, n, at, found))
        .collect();
    if !processes.is_empty() {
        notes.extend(virtiofsd::note(host));
    }
    if spec.vsock {
        processes.push(vhost_device_vsock::process(at, &VsockPlan::socket(at), found));
    }
    processes.push(ProcessPlan {
        name: "qemu".into(),
        program,
        args: args.words,
        descriptors: args.descriptors,
        ready: Readiness::ControlConnected,
        ends_with_hypervisor: true,
    });

    LaunchPlan {
        network,
        backend: "qemu",
        run_dir: at.path().clone(),
        processes,
        control: ControlPlan { protocol: Protocol::Qmp, endpoint: ControlEndpoint::SocketPair },
        // QEMU creates the overlays (`snapshot=on`).
        overlays: Vec::new(),
        disks: spec.disks.clone(),
        console: match spec.console {
            ConsoleMode::Disabled => ConsolePlan::None,
            mode => ConsolePlan::SocketPair { mode },
        },
        shares: vm.mounts(),
        serial_port: spec.virtio_console.then(|| serial_port(at)),
        vsock: spec.vsock.then(|| VsockPlan::any_port(at)),
        agent: vm.agent().map(|agent| AgentPlan::new(agent, at)),
        boot: vec![
            Message::qmp("negotiate capabilities", "qmp_capabilities"),
            Message::qmp("start the guest", "cont"),
        ],
        power_button: Some(Message::qmp("ask the guest to power off", "system_powerdown")),
        pause: Message::qmp("pause the guest", "stop"),
        resume: Message::qmp("resume the guest", "cont"),
        quit: StopAction::Control(Message::qmp("quit", "quit")),
        // `-action` above configures this.
        crash_reporting: CrashReporting::EventThenExit,
        reset_debounce: FIRMWARE_RESETS_WITHIN,
        cmdline: vm.cmdline().to_string(),
        on_reboot: spec.on_reboot,
        time_limit: spec.time_limit,
        notes,
    }
}

/// `set_link` on a netdev changes its card too.
fn carrier() -> CarrierPlan {
    let message = |purpose, up| {
        let arguments = Some(json!({"name": NETDEV, "up": up}));
        Message { purpose, body: Body::Qmp { execute: "set_link", arguments } }
    };
    CarrierPlan {
        up: message("take the network link up", true),
        down: message("take the network link down", false),
    }
}

#[derive(Default)]
struct QemuArgs {
    words: Vec<String>,
    descriptors: Vec<DescriptorPlan>,
}

impl QemuArgs {
    fn push(&mut self, args: &[&str]) {
        self.words.extend(args.iter().map(ToString::to_string));
    }

    /// The machine type, CPUs and memory.
    fn base(&mut self, vm: &ValidatedSpec, host: &HostFacts, accel: &str) {
        let resources = &vm.spec().resources;
        self.push(&["-nodefaults", "-no-user-config", "-display", "none", "-S"]);
        let mut machine_type = match host.arch {
            Arch::Aarch64 => "virt".to_string(),
            _ => "q35".to_string(),
        };
        let has_fs =
            vm.shares().iter().any(|s| matches!(s.mechanism, PlannedMechanism::VirtioFs { .. }));
        if has_fs || vm.spec().vsock {
            // The helper processes map guest memory.
            let size = resources.memory_mb;
            let memory = format!("memory-backend-memfd,id=ram,size={size}M,share=on");
            self.push(&["-object", &memory]);
            machine_type.push_str(",memory-backend=ram");
        }
        self.push(&["-machine", &machine_type, "-accel", accel, "-cpu", "max"]);
        self.push(&["-smp", &resources.cpus.to_string()]);
        self.push(&["-m", &format!("{}M", resources.memory_mb)]);
        let reboot = match vm.spec().on_reboot {
            RebootPolicy::Restart => "reboot=reset",
            _ => "reboot=shutdown",
        };
        self.push(&["-action", &format!("{reboot},panic=shutdown")]);
        self.push(&["-device", "virtio-rng-pci", "-device", "pvpanic-pci"]);
    }

    /// QEMU's seccomp filter, if this QEMU was built with it.
    fn sandbox(&mut self, found: &ProbeReport) {
        if found.output(PROGRAM).is_some_and(|help| help.contains("-sandbox on")) {
            self.push(&[
                "-sandbox",
                "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            ]);
        }
    }

    fn boot(&mut self, vm: &ValidatedSpec, at: &RunDirPlan) {
        self.push(&["-kernel", vm.spec().kernel.as_str()]);
        if let Some(initrd) = vm.initrd(at) {
            self.push(&["-initrd", initrd.as_str()]);
            if vm.agent().is_some() {
                add_descriptor(&mut self.descriptors, DescriptorKind::Initrd { at: initrd });
            }
        }
        self.push(&["-append", vm.cmdline()]);
    }

    /// QEMU greets on the socket pair as soon as it is up, so Capsa does not poll.
    fn control(&mut self) {
        self.inherited("control", DescriptorKind::Control);
        self.push(&["-mon", "chardev=control,mode=control"]);
    }

    fn console(&mut self, mode: ConsoleMode, is_virtio: bool, at: &RunDirPlan) {
        if mode == ConsoleMode::Disabled {
            return;
        }
        if !is_virtio {
            self.inherited("console", DescriptorKind::Console);
            self.push(&["-serial", "chardev:console"]);
            return;
        }
        self.push(&["-chardev", &format!("file,id=serial,path={}", comma(&serial_port(at)))]);
        self.push(&["-serial", "chardev:serial"]);
        // A virtconsole drops what its socket does not take: `flush_buf` in `hw/char/virtio-console.c`
        // (7.2, 10.0).
        self.inherited("console", DescriptorKind::BlockingConsole);
        self.push(&["-device", VIRTIO_SERIAL]);
        // With an id, QEMU reports when the guest opens it: `VSERPORT_CHANGE`.
        self.push(&["-device", "virtconsole,id=console,chardev=console"]);
    }

    /// The agent's ports: they come last, so that the other devices have the same slots without them.
    fn agent(&mut self, agent: &ValidatedAgent, spec: &VmSpec) {
        for &transport in agent.transports {
            let id = match transport {
                AgentTransport::VirtioSerial => "agent",
                AgentTransport::SerialPort => "agent-serial",
                AgentTransport::Vsock => continue,
            };
            self.inherited(id, DescriptorKind::Agent { transport });
            if transport == AgentTransport::SerialPort {
                self.push(&["-device", &format!("isa-serial,chardev={id},index=1")]);
                continue;
            }
            if !spec.virtio_console {
                self.push(&["-device", VIRTIO_SERIAL]);
            }
            // Without an id, so that QEMU reports no `VSERPORT_CHANGE`, which is that of the console.
            self.push(&["-device", &format!("virtserialport,chardev={id},name={SERIAL_NAME}")]);
        }
    }

    /// A character device on an inherited socket that is connected already. `fd=` exists since 2.12.
    fn inherited(&mut self, id: &str, kind: DescriptorKind) {
        let fd = add_descriptor(&mut self.descriptors, kind);
        self.push(&["-chardev", &format!("socket,id={id},fd={fd}")]);
    }

    fn disk(&mut self, n: usize, disk: &Disk, on_error: DiskErrorPolicy, host: &HostFacts) {
        let mut image = image(disk, host);
        // A read-only disk gets no overlay, since an overlay would be writable.
        if disk.ephemeral && !disk.read_only {
            // The overlay is an unlinked temporary file, so a crash leaves no file behind.
            let image = image.to_string().replace(',', ",,");
            self.push(&["-drive", &format!("if=none,id=disk{n},snapshot=on,file=json:{image}")]);
        } else {
            image["node-name"] = json!(format!("disk{n}"));
            image["read-only"] = json!(disk.read_only);
            image["discard"] = json!("unmap");
            image["file"]["discard"] = json!("unmap");
            self.push(&["-blockdev", &image.to_string()]);
        }
        // QEMU's default pauses the guest when the host's file system is full.
        let action = match on_error {
            DiskErrorPolicy::Pause => "stop",
            _ => "report",
        };
        let device = format!("virtio-blk-pci,drive=disk{n},werror={action},rerror={action}");
        self.push(&["-device", &device]);
    }

    /// The network card on an inherited socket. `stream` exists since 7.2.
    fn network(&mut self, plan: &NetworkPlan) {
        let fd = add_descriptor(&mut self.descriptors, DescriptorKind::Network);
        let netdev = format!("stream,id={NETDEV},server=off,addr.type=fd,addr.str={fd}");
        let NetworkPlan { mac, mtu, .. } = plan;
        // No boot ROM: QEMU boots the kernel directly, and loading a ROM takes time.
        let device = format!("virtio-net-pci,netdev={NETDEV},romfile=,mac={mac},host_mtu={mtu}");
        self.push(&["-netdev", &netdev, "-device", &device]);
    }

    fn vsock(&mut self, at: &RunDirPlan) {
        let path = comma(&vhost_device_vsock::device_socket(at));
        self.push(&["-chardev", &format!("socket,id=vsock,path={path}")]);
        self.push(&["-device", "vhost-user-vsock-pci,chardev=vsock"]);
    }

    fn share(&mut self, n: usize, share: &PlannedShare, at: &RunDirPlan) {
        let tag = &share.tag;
        match share.mechanism {
            PlannedMechanism::VirtioFs { .. } => {
                // A path, because QEMU passes no descriptors to virtiofsd over a socket that it
                // inherits (10.1).
                let path = comma(&virtiofsd::socket(n, at));
                self.push(&["-chardev", &format!("socket,id=fs{n},path={path}")]);
                self.push(&["-device", &format!("vhost-user-fs-pci,chardev=fs{n},tag={tag}")]);
            }
            PlannedMechanism::Virtio9p { .. } => {
                let path = comma(&share.host);
                let readonly = match share.mode {
                    MountMode::ReadOnly => "on",
                    MountMode::ReadWrite => "off",
                };
                self.push(&[
                    "-fsdev",
                    &format!(
                        "local,id=fs{n},path={path},security_model=none,multidevs=remap,\
                         readonly={readonly}"
                    ),
                ]);
                self.push(&["-device", &format!("virtio-9p-pci,fsdev=fs{n},mount_tag={tag}")]);
            }
        }
    }
}

/// The block node of a disk's image, with a node for each backing file that validation allowed. So QEMU
/// opens no file that an image names, even if the image was changed since it was checked.
///
/// QEMU (10.0) has no option to reject an external data file: `data-file` cannot be null, and a node there is
/// an error for an image without such a file. Validation rejects it.
fn image(disk: &Disk, host: &HostFacts) -> Value {
    let chain = match disk.format {
        ImageFormat::Raw => Vec::new(),
        ImageFormat::Qcow2 => qcow2::backing_chain(&disk.path, host).unwrap_or_default(),
    };
    let backing = chain.iter().rev().fold(Value::Null, |backing, image| {
        let mut node = block_node(&image.path, image.format, backing, host);
        node["read-only"] = json!(true);
        node
    });
    block_node(&disk.path, disk.format, backing, host)
}

fn block_node(path: &HostPath, format: ImageFormat, backing: Value, host: &HostFacts) -> Value {
    let is_device = matches!(host.file(path), FileFacts::File { device: true, .. });
    let file = if is_device { "host_device" } else { "file" };
    let mut node = json!({
        "driver": format.as_str(),
        "file": { "driver": file, "filename": path.as_str() },
    });
    if format == ImageFormat::Qcow2 {
        node["backing"] = backing;
    }
    node
}

/// The FIFO of the serial port beside a virtio console.
fn serial_port(at: &RunDirPlan) -> HostPath {
    at.path().join("serial")
}

/// A path in a comma-separated value: QEMU parses a doubled comma as one comma.
fn comma(path: &HostPath) -> String {
    path.as_str().replace(',', ",,")
}
