//! The VM spec: the description of a VM that a user builds.
//!
//! A [`VmSpec`] is plain data and may be invalid. [`crate::capabilities::validate`] checks it, and a
//! backend plans only its result. A spec contains nothing specific to one hypervisor.

mod network;

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use serde::Serialize;

use crate::cmdline::KernelCmdline;
use crate::path::HostPath;

pub use network::{
    ForwardHost, NetworkMode, NetworkOptions, NetworkService, PortForward, ServiceTarget,
    TransportProtocol,
};

/// The description of a VM.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// The kernel image.
    pub kernel: HostPath,
    /// The initial RAM disk, if the guest needs one.
    pub initrd: Option<HostPath>,
    /// Disks in the order the guest sees them: the first is `/dev/vda`.
    pub disks: Vec<Disk>,
    /// vCPUs and memory.
    pub resources: ResourceConfig,
    /// Host directories shared with the guest.
    pub shares: Vec<Share>,
    /// The guest's network.
    pub network: NetworkMode,
    /// What a guest with NAT reaches beyond the internet, and what reaches it.
    pub network_options: NetworkOptions,
    /// Whether the VM has a vsock device, for sockets between host and guest.
    pub vsock: bool,
    /// The vsock ports to use, for a backend that must know them before the start.
    pub vsock_ports: Vec<VsockPort>,
    /// The guest's console.
    pub console: ConsoleMode,
    /// Whether the console is a virtio console even where the backend's default is a serial port.
    pub virtio_console: bool,
    /// The user's additions to the generated kernel command line, or the replacement for it.
    pub cmdline: KernelCmdline,
    /// How the CPU is virtualised.
    pub accelerator: Accelerator,
    /// What a reboot of the guest does.
    pub on_reboot: RebootPolicy,
    /// What an error of the host at reading or writing a disk's image does.
    pub on_disk_error: DiskErrorPolicy,
    /// How long the VM may run; `None`: without limit.
    pub time_limit: Option<Duration>,
    /// Whether the guest gets the agent.
    pub agent: AgentMode,
}

impl VmSpec {
    /// A VM with this kernel and the defaults: 1 vCPU, 512 MiB, NAT, no console.
    pub fn new(kernel: HostPath) -> Self {
        Self {
            kernel,
            initrd: None,
            disks: Vec::new(),
            resources: ResourceConfig::default(),
            shares: Vec::new(),
            network: NetworkMode::default(),
            network_options: NetworkOptions::default(),
            vsock: false,
            vsock_ports: Vec::new(),
            console: ConsoleMode::default(),
            virtio_console: false,
            cmdline: KernelCmdline::new(),
            accelerator: Accelerator::default(),
            on_reboot: RebootPolicy::default(),
            on_disk_error: DiskErrorPolicy::default(),
            time_limit: None,
            agent: AgentMode::default(),
        }
    }

    /// The number of disks, shares, network, vsock and virtio console devices.
    pub(crate) fn device_count(&self) -> usize {
        self.disks.len()
            + self.shares.len()
            + usize::from(self.network.has_card())
            + usize::from(self.vsock)
            + usize::from(self.virtio_console)
    }
}

/// The operating system in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum GuestOs {
    /// Linux.
    Linux,
}

/// The vCPUs and the memory of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResourceConfig {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
}

impl Default for ResourceConfig {
    /// 1 vCPU, 512 MiB.
    fn default() -> Self {
        Self { cpus: 1, memory_mb: 512 }
    }
}

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image on the host.
    pub path: HostPath,
    /// The format. The hypervisor always receives it and never probes it.
    pub format: ImageFormat,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// Writes are discarded: they go to a temporary overlay, and the image stays unchanged.
    pub ephemeral: bool,
    /// The backing files that the image may have, directly and indirectly: files, and directories that
    /// contain them. Empty: the image may have none.
    pub backing: Vec<HostPath>,
    /// The guest may write to a block device that the host has mounted.
    pub allow_mounted: bool,
}

/// The format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The plain bytes of the disk.
    #[default]
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

impl ImageFormat {
    /// The name hypervisors and config files use: `raw`, `qcow2`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The format for a file extension: qcow2 for `qcow2` and `qcow`, raw for all others.
    pub fn from_extension(extension: &str) -> Self {
        if extension.eq_ignore_ascii_case("qcow2") || extension.eq_ignore_ascii_case("qcow") {
            Self::Qcow2
        } else {
            Self::Raw
        }
    }
}

/// A host directory shared with the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The directory on the host.
    pub host: HostPath,
    /// Where the guest mounts it.
    pub guest: String,
    /// Whether the guest may write. Enforced on the host.
    pub mode: MountMode,
    /// The mechanism.
    pub mechanism: ShareMechanism,
}

impl Share {
    /// Where this share is mounted inside `outer`, on the host; `None` if it is mounted elsewhere.
    pub(crate) fn mount_point_in(&self, outer: &Self) -> Option<HostPath> {
        let below =
            self.guest.trim_end_matches('/').strip_prefix(outer.guest.trim_end_matches('/'))?;
        let below = below.strip_prefix('/')?.trim_start_matches('/');
        (!below.is_empty() && !below.contains('\0')).then(|| outer.host.join(below))
    }

    /// The share that this one is mounted inside, directly, and the mount point on the host.
    pub fn outer<'a>(&self, all: &'a [Self]) -> Option<(&'a Self, HostPath)> {
        let outer = all.iter().filter_map(|outer| Some((outer, self.mount_point_in(outer)?)));
        outer.max_by_key(|(outer, _)| outer.guest.trim_end_matches('/').len())
    }
}

/// Whether a guest may write to a share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum MountMode {
    /// Reading only; the host enforces it.
    #[default]
    #[serde(rename = "ro")]
    ReadOnly,
    /// Reading and writing.
    #[serde(rename = "rw")]
    ReadWrite,
}

/// How a directory is shared between host and guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ShareMechanism {
    /// virtio-fs if the backend supports it on this host, otherwise virtio-9p.
    #[default]
    Auto,
    /// virtio-fs: best performance, needs Linux 5.4 in the guest.
    VirtioFs(VirtioFsConfig),
    /// virtio-9p: for guests or hosts without virtio-fs.
    Virtio9p(Virtio9pConfig),
}

/// Options of a virtio-fs share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VirtioFsConfig {
    /// Mount tag, at most 36 bytes; default: `capsa0`, `capsa1`, …
    pub tag: Option<String>,
    /// Cache mode: `auto`, `always` or `none`; default: `auto`.
    pub cache: Option<String>,
}

/// Options of a virtio-9p share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Virtio9pConfig {
    /// Mount tag, at most 31 bytes; default: `capsa0`, `capsa1`, …
    pub tag: Option<String>,
    /// Message size in bytes; default: 262144.
    pub msize: Option<u32>,
}

/// A vsock port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct VsockPort {
    /// The port number.
    pub port: u32,
    /// Which side connects.
    pub direction: VsockDirection,
}

/// Which side connects to a vsock port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VsockDirection {
    /// The host connects to a port of the guest.
    ToGuest,
    /// The guest connects to a port of the host.
    ToHost,
}

/// The guest's console.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleMode {
    /// No console device.
    #[default]
    Disabled,
    /// A console that the owner reads and writes.
    Enabled,
    /// A console on the owner's standard input and output.
    Stdio,
}

/// How the guest's CPU is virtualised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Accelerator {
    /// Hardware virtualisation if it is usable, otherwise software emulation, with a warning.
    #[default]
    Auto,
    /// KVM of the Linux kernel; rejected if `/dev/kvm` does not work. The check of the CPU's flags, which
    /// hosts with paravirtual KVM fail although guests run on them, is only a warning then.
    Kvm,
    /// Hypervisor.framework of macOS; rejected if it is not usable.
    Hvf,
    /// Software emulation: slow, but works on every host.
    Emulation,
}

/// Whether the guest gets Capsa's agent: a program that runs commands in the guest for the host.
///
/// Capsa adds it to a copy of the initrd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AgentMode {
    /// No agent.
    #[default]
    Off,
    /// The agent if the VM can have it and the backend has more than vsock for it, otherwise a note with the
    /// reason: many guests lack the driver of vsock.
    Auto,
    /// The agent. A VM that cannot have it is rejected: one without an initrd, with an initrd that is not an
    /// initramfs, or with an overridden kernel command line.
    Required,
}

/// What an error of the host at reading or writing a disk's image does, e.g. a full file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DiskErrorPolicy {
    /// The guest gets an I/O error, as from a broken disk. A file system in the guest may become
    /// read-only.
    #[default]
    Report,
    /// The guest is paused, and the operation is repeated when it is resumed. Rejected if the backend
    /// cannot do that.
    Pause,
}

/// What a guest reboot does, or a kernel panic that reboots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RebootPolicy {
    /// The VM ends at every reboot that the backend detects; all backends accept this policy. It is the
    /// default because `panic=-1` in the default kernel command line turns a panic into a reboot, and a
    /// guest must not panic and reboot in a loop.
    ///
    /// vfkit does not report reboots. There the VM ends when the console shows that the guest's kernel
    /// panicked (by default it halts then) or restarts. Newer kernels do not print the restart message
    /// on a virtio console: then the guest boots again.
    #[default]
    Auto,
    /// The VM ends at every reboot. Rejected if the backend cannot detect every reboot.
    End,
    /// The guest boots again in the same VM.
    Restart,
}
