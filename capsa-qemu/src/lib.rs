//! The QEMU backend: its capabilities, its probes and the launch plan of a VM.
//!
//! This crate does no I/O: it computes data from the VM spec, the host facts and the probe report.
//!
//! This backend runs on every host: with KVM if it is usable, with Hypervisor.framework on macOS, and
//! otherwise in software emulation, with a warning because it is slow. It supports virtio-9p shares,
//! and its network card is a socket of Capsa's own network stack.
//!
//! The facts here were measured on QEMU 7.2 and 10.0 (q35, Debian's kernels 6.1 and 6.12). The VM
//! inherits the console and the control channel, and starts paused (`-S`) until Capsa sends `cont`, so
//! no early output is lost.
//!
//! | file | content |
//! | --- | --- |
//! | `lib.rs` | capabilities, probes, availability, validation, events |
//! | `args.rs` | turns a validated spec into arguments |
//! | `accel.rs` | chooses the accelerator |

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod accel;
mod args;

use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use capsa_proto::backend::{
    Availability, DiskError, DiskOperation, Feature, GuestEvent, HypervisorBackend, MissingFeature,
    Probe, ProbePlan, ProbeReport, Version, disk_error,
};
use capsa_proto::capabilities::{BackendCapabilities, ValidatedSpec, Violation, ViolationKind};
use capsa_proto::cmdline::KernelCmdline;
use capsa_proto::codec::qmp::QmpMessage;
use capsa_proto::helper::{vhost_device_vsock, virtiofsd};
use capsa_proto::host::{Arch, HostFacts, Os, Reason};
use capsa_proto::plan::{AgentTransport, LONGEST_SOCKET_NAME, LaunchPlan, Note, RunDirPlan};
use capsa_proto::spec::{Disk, ShareMechanism, VmSpec};
use serde_json::Value;

/// The oldest supported QEMU. `-action` exists since 6.0; 6.2 is the oldest version still in use.
pub const MIN_VERSION: Version = Version::new(6, 2, 0);

/// The key of the probe for QEMU's options and its version, which the first line has.
const PROGRAM: &str = "qemu";
/// The key of the probe for QEMU's devices.
const DEVICES: &str = "qemu.devices";

const CAPABILITIES: BackendCapabilities = {
    let mut supports = BackendCapabilities::NONE;
    supports.guest_os.linux = true;
    supports.boot_methods.linux_direct = true;
    supports.boot_methods.linux_direct_without_initrd = true;
    supports.image_formats.raw = true;
    supports.image_formats.qcow2 = true;
    supports.network_modes.none = true;
    supports.network_modes.nat = true;
    supports.virtio_fs = true;
    supports.virtio_9p = true;
    supports.share_read_only = true;
    supports.disk_ephemeral = true;
    supports.disk_read_only = true;
    supports.reboot_end = true;
    supports.reboot_restart = true;
    supports.disk_errors = true;
    supports.vsock = true;
    supports.virtio_console = true;
    // The limit of q35 without an IOMMU. More vCPUs need interrupt remapping.
    supports.max_cpus = Some(255);
    // The bus of q35 has 32 slots; the host bridge, the ISA bridge, virtio-rng and pvpanic use four. (The
    // bus of `virt` has one more.)
    supports.max_devices = Some(28);
    supports
};

/// The QEMU backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Qemu;

impl Qemu {
    /// The backend.
    pub const fn new() -> Self {
        Self
    }

    fn probe(arch: Arch, key: &'static str, args: Vec<&'static str>) -> Probe {
        let candidates = vec![
            format!("qemu-system-{}", arch.as_str()),
            // Red Hat and related distributions install it outside of PATH.
            "/usr/libexec/qemu-kvm".to_string(),
        ];
        Probe { key, program: PROGRAM, env: "CAPSA_QEMU", candidates, args }
    }
}

impl HypervisorBackend for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn capabilities(&self) -> &BackendCapabilities {
        &CAPABILITIES
    }

    fn probe(&self, arch: Arch, spec: Option<&VmSpec>) -> ProbePlan {
        let mut probes = vec![Self::probe(arch, PROGRAM, vec!["-help"])];
        if spec.is_none_or(|spec| spec.vsock || spec.virtio_console || !spec.shares.is_empty()) {
            probes.push(Self::probe(arch, DEVICES, vec!["-M", "none", "-device", "help"]));
        }
        if spec.is_none_or(|spec| !spec.shares.is_empty()) {
            probes.push(virtiofsd::probe());
        }
        if spec.is_none_or(|spec| spec.vsock) {
            probes.push(vhost_device_vsock::probe());
        }
        ProbePlan { probes }
    }

    fn availability(&self, host: &HostFacts, found: &ProbeReport) -> Availability {
        let command = match host.os {
            Os::MacOs => "brew install qemu",
            _ => {
                "apt-get install qemu-system-x86 (Debian), dnf install qemu-kvm (Fedora), or set \
                 CAPSA_QEMU"
            }
        };
        let install = format!("install QEMU {MIN_VERSION} or later: {command}");
        let name = format!("qemu-system-{}", host.arch.as_str());
        let what =
            found.version_blocker(PROGRAM, &name, MIN_VERSION, "older versions are untested");
        let install = found.version_remedy(PROGRAM, install);
        let blockers = what.map(|what| Reason::new(what, install)).into_iter().collect();
        let shares = MissingFeature::of(Feature::VirtioFs, self.virtio_fs_blockers(host, found));
        let shares_9p = MissingFeature::of(
            Feature::Virtio9p,
            missing_device(found, "virtio-9p-pci", "use virtio-fs"),
        );
        let nat = MissingFeature::of(Feature::Nat, nat_blocker(found));
        let vsock = MissingFeature::of(Feature::Vsock, vsock_blocker(host, found));
        let console = MissingFeature::of(Feature::VirtioConsole, virtio_console_blocker(found));
        let missing = shares.chain(shares_9p).chain(nat).chain(vsock).chain(console);
        let mut availability = found.availability(PROGRAM, blockers);
        availability.missing_features.extend(missing);
        availability.warnings = accel::choose(Default::default(), host).notes;
        availability
    }

    fn kernel_cmdline_defaults(&self, spec: &VmSpec, host: &HostFacts) -> KernelCmdline {
        let mut cmdline = KernelCmdline::new();
        cmdline.consoles(host.arch, spec.virtio_console);
        cmdline.arg("reboot=t");
        cmdline.arg("panic=-1");
        cmdline
    }

    fn default_root_device(&self) -> &str {
        "/dev/vda"
    }

    fn agent_transports(&self, arch: Arch) -> &'static [AgentTransport] {
        match arch {
            Arch::X86_64 => &[AgentTransport::VirtioSerial, AgentTransport::SerialPort],
            // `virt` has one serial port.
            _ => &[AgentTransport::VirtioSerial],
        }
    }

    fn virtio_fs_blockers(&self, host: &HostFacts, found: &ProbeReport) -> Vec<Reason> {
        let mut blockers = virtiofsd::blockers(found);
        if host.os != Os::Linux {
            blockers.push(Reason::new("virtiofsd runs on Linux only", "use virtio-9p"));
        }
        blockers.extend(missing_device(found, "vhost-user-fs-pci", "use virtio-9p"));
        blockers
    }

    fn validate(&self, spec: &VmSpec, host: &HostFacts, found: &ProbeReport) -> Vec<Violation> {
        let mut out = Vec::new();
        let mut reject = |field: &str, reason: Reason| {
            let kind = ViolationKind::Unsupported;
            out.push(Violation::new(field, kind, reason.what, reason.remedy).on("qemu"));
        };
        for reason in accel::choose(spec.accelerator, host).blockers {
            reject("accelerator", reason);
        }
        let nat = nat_blocker(found).into_iter().filter(|_| spec.network.has_card());
        nat.for_each(|reason| reject("network", reason));
        let vsock = vsock_blocker(host, found).into_iter().filter(|_| spec.vsock);
        vsock.for_each(|reason| reject("vsock", reason));
        let console = virtio_console_blocker(found).filter(|_| spec.virtio_console);
        console.into_iter().for_each(|reason| reject("virtio_console", reason));
        let is_9p = |share: &_| matches!(share, ShareMechanism::Virtio9p(_));
        if spec.shares.iter().any(|share| is_9p(&share.mechanism))
            && let Some(reason) = missing_device(found, "virtio-9p-pci", "use virtio-fs")
        {
            reject("shares", reason);
        }
        out
    }

    /// The control channel and the console are inherited.
    fn longest_socket_name(&self, spec: &VmSpec) -> usize {
        match spec.vsock {
            true => LONGEST_SOCKET_NAME,
            false => virtiofsd::longest_socket_name(&spec.shares),
        }
    }

    fn plan(
        &self,
        vm: &ValidatedSpec,
        at: &RunDirPlan,
        host: &HostFacts,
        found: &ProbeReport,
    ) -> LaunchPlan {
        args::plan(vm, at, host, found)
    }

    /// A failed vCPU. QEMU keeps running with the guest paused.
    fn stderr_line(&self, line: &str) -> Option<GuestEvent> {
        let failed = ["KVM internal error", "error: kvm run failed", "KVM: entry failed"];
        failed.iter().any(|words| line.starts_with(words)).then_some(GuestEvent::CpuFailed)
    }

    fn event(&self, event: &QmpMessage) -> Option<GuestEvent> {
        let QmpMessage::Event { name, data, .. } = event else { return None };
        let reason = data.get("reason").and_then(|r| r.as_str()).unwrap_or_default();
        match (name.as_str(), reason) {
            ("GUEST_PANICKED", _) | ("SHUTDOWN", "guest-panic") => Some(GuestEvent::Panicked),
            ("SHUTDOWN" | "RESET", "guest-reset") => Some(GuestEvent::Reset),
            ("SHUTDOWN", "guest-shutdown") => Some(GuestEvent::PoweredOff),
            ("VSERPORT_CHANGE", _) if data.get("open") == Some(&Value::Bool(true)) => {
                Some(GuestEvent::ConsoleOpened)
            }
            ("SHUTDOWN", "host-signal" | "host-qmp-quit" | "host-ui") => {
                Some(GuestEvent::ExternalQuit)
            }
            ("STOP", _) => Some(GuestEvent::Paused),
            ("RESUME", _) => Some(GuestEvent::Resumed),
            _ => None,
        }
    }

    /// With `-blockdev` the node has the name of the disk, with `-drive` the device.
    fn disk_error(&self, event: &QmpMessage, disks: &[Disk]) -> Option<DiskError> {
        let QmpMessage::Event { name, data, .. } = event else { return None };
        if name != "BLOCK_IO_ERROR" {
            return None;
        }
        let text = |key| data.get(key).and_then(|text| text.as_str()).unwrap_or_default();
        let operation = match text("operation") {
            "read" => DiskOperation::Read,
            _ => DiskOperation::Write,
        };
        let names = [text("device"), text("node-name")];
        let disk = names.iter().find_map(|name| name.strip_prefix("disk")?.parse().ok())?;
        disk_error(disks, disk, operation, text("reason"))
    }
}

/// The blocker of NAT. `None` if QEMU was not probed (a dry run for another host).
fn nat_blocker(found: &ProbeReport) -> Option<Reason> {
    let has = found.output(PROGRAM)?.contains("-netdev stream");
    let version = found.version(PROGRAM).map(|version| format!(" {version}")).unwrap_or_default();
    (!has).then(|| {
        Reason::new(
            format!("QEMU{version} has no network over a socket (-netdev stream)"),
            "install QEMU 7.2 or later, or set network to none",
        )
    })
}

fn vsock_blocker(host: &HostFacts, found: &ProbeReport) -> Vec<Reason> {
    let mut blockers = vhost_device_vsock::blockers(found);
    blockers.extend(missing_device(found, "vhost-user-vsock-pci", "disable vsock"));
    if host.os != Os::Linux {
        blockers.push(Reason::new("vhost-device-vsock runs on Linux only", "disable vsock"));
    }
    blockers
}

fn virtio_console_blocker(found: &ProbeReport) -> Option<Reason> {
    missing_device(found, "virtconsole", "use the serial console")
}

/// The blocker for a device that this QEMU build does not list, with the `alternative` to installing
/// another build. `None` if it was not probed.
fn missing_device(found: &ProbeReport, device: &str, alternative: &str) -> Option<Reason> {
    let devices = found.output(DEVICES)?;
    let has = devices.contains(&format!("name \"{device}\""));
    (!has).then(|| {
        Reason::new(
            format!("this QEMU was built without the device {device}"),
            format!("install a QEMU build with it, or {alternative}"),
        )
    })
}

/// A warning for every guest that runs in software emulation.
fn emulation_note(reason: &str) -> Note {
    Note::warning(format!("the guest runs in software emulation, 10 to 30 times slower: {reason}"))
}

#[cfg(test)]
mod tests;
