//! QEMU as a Capsa backend: data only.
//!
//! It is the backend that runs anywhere: with KVM where that is really usable, with
//! Hypervisor.framework on macOS, and in software emulation otherwise, which is slow and said to be.
//! It is also the one with virtio-9p shares and with NAT that needs no privileges.
//!
//! The facts behind this were measured on QEMU 7.2 and 10.0 (q35, Debian's kernels 6.1 and 6.12).
//! The machine starts paused (`-S`): console and control are connected first, and then `cont` lets
//! the guest go, so not one byte of early output is lost.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `lib.rs` | what it can do, what it needs, how it is talked to |
//! | `args.rs` | how a checked specification becomes arguments |
//! | `accel.rs` | which accelerator, and why |

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
    Availability, Feature, GuestEvent, HypervisorBackend, Lack, ProbePlan, ProbeReport, Question,
    Version,
};
use capsa_proto::capabilities::{
    BackendCapabilities, BootMethodSupport, Checked, GuestOsSupport, ImageFormatSupport,
    NetworkModeSupport, Violation, ViolationKind,
};
use capsa_proto::cmdline::KernelCmdline;
use capsa_proto::codec::qmp::QmpMessage;
use capsa_proto::helper::{vhost_device_vsock, virtiofsd};
use capsa_proto::host::{Arch, HostFacts, Os, Reason};
use capsa_proto::plan::{LaunchPlan, Note, RunDirPlan};
use capsa_proto::spec::{NetworkMode, ShareMechanism, VmSpec};

/// The oldest QEMU this can drive: `-action` came with 6.0, and 6.2 is the oldest still in use.
pub const MIN_VERSION: Version = Version::new(6, 2, 0);

/// What QEMU is asked: its options (the first line has the version).
const PROGRAM: &str = "qemu";
/// What QEMU is asked: its devices.
const DEVICES: &str = "qemu.devices";

const CAPABILITIES: BackendCapabilities = BackendCapabilities {
    guest_os: GuestOsSupport { linux: true },
    boot_methods: BootMethodSupport { linux_direct: true, linux_direct_without_initrd: true },
    image_formats: ImageFormatSupport { raw: true, qcow2: true },
    network_modes: NetworkModeSupport { none: true, nat: true },
    virtio_fs: true,
    virtio_9p: true,
    share_read_only: true,
    disk_ephemeral: true,
    disk_read_only: true,
    reboot_end: true,
    reboot_restart: true,
    vsock: true,
    // q35 without an IOMMU; more need interrupt remapping.
    max_cpus: Some(255),
    max_memory_mb: None,
};

/// The QEMU backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Qemu;

impl Qemu {
    /// The backend.
    pub const fn new() -> Self {
        Self
    }

    fn question(arch: Arch, key: &'static str, args: Vec<&'static str>) -> Question {
        let candidates = vec![
            format!("qemu-system-{}", arch.as_str()),
            // Red Hat and its kin keep it out of PATH.
            "/usr/libexec/qemu-kvm".to_string(),
        ];
        Question { key, program: PROGRAM, env: "CAPSA_QEMU", candidates, args }
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
        let mut questions = vec![Self::question(arch, PROGRAM, vec!["-help"])];
        if spec.is_none_or(|spec| spec.vsock || !spec.shares.is_empty()) {
            questions.push(Self::question(arch, DEVICES, vec!["-M", "none", "-device", "help"]));
        }
        if spec.is_none_or(|spec| !spec.shares.is_empty()) {
            questions.push(virtiofsd::question());
        }
        if spec.is_none_or(|spec| spec.vsock) {
            questions.push(vhost_device_vsock::question());
        }
        ProbePlan { questions }
    }

    fn judge(&self, host: &HostFacts, found: &ProbeReport) -> Availability {
        let how = match host.os {
            Os::MacOs => "brew install qemu",
            _ => {
                "apt-get install qemu-system-x86 (Debian), dnf install qemu-kvm (Fedora), or set \
                 CAPSA_QEMU"
            }
        };
        let install = format!("install QEMU {MIN_VERSION} or later: {how}");
        let name = format!("qemu-system-{}", host.arch.as_str());
        let what = found.against(PROGRAM, &name, MIN_VERSION, "nobody tried that");
        let against = what.map(|what| Reason::new(what, install)).into_iter().collect();
        let shares = Lack::of(Feature::VirtioFs, self.against_virtio_fs(host, found));
        let shares_9p = Lack::of(Feature::Virtio9p, lacks_device(found, "virtio-9p-pci"));
        let nat = Lack::of(Feature::Nat, against_nat(found));
        let vsock = Lack::of(Feature::Vsock, against_vsock(host, found));
        Availability {
            version: found.version(PROGRAM),
            program: found.found(PROGRAM),
            against,
            lacks: shares.chain(shares_9p).chain(nat).chain(vsock).collect(),
            notes: accel::choose(Default::default(), host).notes,
        }
    }

    fn kernel_cmdline_defaults(&self, _: &VmSpec, host: &HostFacts) -> KernelCmdline {
        let mut cmdline = KernelCmdline::new();
        cmdline.console(if host.arch == Arch::Aarch64 { "ttyAMA0" } else { "ttyS0" });
        cmdline.arg("reboot=t");
        cmdline.arg("panic=-1");
        cmdline
    }

    fn default_root_device(&self) -> &str {
        "/dev/vda"
    }

    fn against_virtio_fs(&self, host: &HostFacts, found: &ProbeReport) -> Vec<Reason> {
        let mut against = virtiofsd::against(found);
        if host.os != Os::Linux {
            against.push(Reason::new("virtiofsd runs on Linux only", "ask for virtio-9p"));
        }
        against.extend(lacks_device(found, "vhost-user-fs-pci"));
        against
    }

    fn refuse(&self, spec: &VmSpec, host: &HostFacts, found: &ProbeReport) -> Vec<Violation> {
        let mut out = Vec::new();
        let mut refuse = |field: &str, reason: Reason| {
            let kind = ViolationKind::Unsupported;
            out.push(Violation::new(field, kind, reason.what, reason.remedy).on("qemu"));
        };
        for reason in accel::choose(spec.accelerator, host).against {
            refuse("accelerator", reason);
        }
        let nat = against_nat(found).into_iter().filter(|_| spec.network == NetworkMode::Nat);
        nat.for_each(|reason| refuse("network", reason));
        let vsock = against_vsock(host, found).into_iter().filter(|_| spec.vsock);
        vsock.for_each(|reason| refuse("vsock", reason));
        let asks_9p = |share: &_| matches!(share, ShareMechanism::Virtio9p(_));
        if spec.shares.iter().any(|share| asks_9p(&share.mechanism))
            && let Some(reason) = lacks_device(found, "virtio-9p-pci")
        {
            refuse("shares", reason);
        }
        out
    }

    fn plan(
        &self,
        vm: &Checked,
        at: &RunDirPlan,
        host: &HostFacts,
        found: &ProbeReport,
    ) -> LaunchPlan {
        args::plan(vm, at, host, found)
    }

    /// It stays then, with the guest paused for good.
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
            ("SHUTDOWN", "host-signal" | "host-qmp-quit" | "host-ui") => {
                Some(GuestEvent::ExternalQuit)
            }
            _ => None,
        }
    }
}

/// What speaks against NAT. Where QEMU was not asked (a dry run for another host), nothing does.
fn against_nat(found: &ProbeReport) -> Option<Reason> {
    let has = found.output(PROGRAM)?.contains("-netdev user");
    (!has).then(|| {
        Reason::new(
            "this QEMU was built without user-mode networking (slirp)",
            "ask for no network, or install a QEMU with it",
        )
    })
}

fn against_vsock(host: &HostFacts, found: &ProbeReport) -> Vec<Reason> {
    let mut against = vhost_device_vsock::against(found);
    against.extend(lacks_device(found, "vhost-user-vsock-pci"));
    if host.os != Os::Linux {
        against.push(Reason::new("vhost-device-vsock runs on Linux only", "leave it out"));
    }
    against
}

/// The device this QEMU was built without, if it was asked and did not name it.
fn lacks_device(found: &ProbeReport, device: &str) -> Option<Reason> {
    let devices = found.output(DEVICES)?;
    let has = devices.contains(&format!("name \"{device}\""));
    (!has).then(|| {
        Reason::new(
            format!("this QEMU was built without the device {device}"),
            "install a QEMU with it, or share by the other mechanism",
        )
    })
}

/// A warning for every guest that runs in software emulation.
fn emulation_note(why: &str) -> Note {
    Note::warning(format!("the guest runs in software emulation, 10 to 30 times slower: {why}"))
}

#[cfg(test)]
mod tests;
