//! What a user asks for, in the words of the specification.
//!
//! A [`VmSpec`] is plain data and may be wrong in every way: it is the input of
//! [`crate::capabilities::validate`], and only what comes out of there is planned and run.
//! What it does not hold is anything about *how* a hypervisor does it.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use serde::Serialize;

use crate::cmdline::KernelCmdline;
use crate::path::HostPath;

/// A virtual machine as asked for.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// The kernel image.
    pub kernel: HostPath,
    /// The initial RAM disk, where the guest has one.
    pub initrd: Option<HostPath>,
    /// Disks in the order the guest sees them: the first is `/dev/vda`.
    pub disks: Vec<Disk>,
    /// CPUs and memory.
    pub resources: ResourceConfig,
    /// Host directories the guest can reach.
    pub shares: Vec<Share>,
    /// The guest's network.
    pub network: NetworkMode,
    /// A device for sockets between host and guest.
    pub vsock: bool,
    /// Ports of that device that will be used, for a backend that has to know them before the start.
    pub vsock_ports: Vec<VsockPort>,
    /// The guest's console.
    pub console: ConsoleMode,
    /// What the user adds to, or puts in place of, the generated kernel command line.
    pub cmdline: KernelCmdline,
    /// How the CPU is virtualised.
    pub accelerator: Accelerator,
    /// What a reboot of the guest does.
    pub on_reboot: RebootPolicy,
    /// The machine is stopped when it has run this long.
    pub time_limit: Option<Duration>,
}

impl VmSpec {
    /// A machine with this kernel and the defaults: 1 CPU, 512 MiB, NAT, no console.
    pub fn new(kernel: HostPath) -> Self {
        Self {
            kernel,
            initrd: None,
            disks: Vec::new(),
            resources: ResourceConfig::default(),
            shares: Vec::new(),
            network: NetworkMode::default(),
            vsock: false,
            vsock_ports: Vec::new(),
            console: ConsoleMode::default(),
            cmdline: KernelCmdline::new(),
            accelerator: Accelerator::default(),
            on_reboot: RebootPolicy::default(),
            time_limit: None,
        }
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

/// CPUs and memory of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResourceConfig {
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
}

impl Default for ResourceConfig {
    /// 1 CPU, 512 MiB.
    fn default() -> Self {
        Self { cpus: 1, memory_mb: 512 }
    }
}

/// A disk of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image on the host.
    pub path: HostPath,
    /// Its format. It is always named to the hypervisor, never probed by it.
    pub format: ImageFormat,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// The guest writes to a throw-away overlay; the image is never written.
    pub ephemeral: bool,
}

/// The format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The bytes of the disk, as they are.
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

    /// The format a file extension stands for: `qcow2` and `qcow` for qcow2, all else raw.
    pub fn from_extension(extension: &str) -> Self {
        if extension.eq_ignore_ascii_case("qcow2") || extension.eq_ignore_ascii_case("qcow") {
            Self::Qcow2
        } else {
            Self::Raw
        }
    }
}

/// A host directory shared with the guest, checked path and all.
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
    /// The best the backend has: virtio-fs where it can, else virtio-9p.
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
    /// Mount tag, at most 36 bytes; `capsa0`, `capsa1`, … when absent.
    pub tag: Option<String>,
    /// Cache mode: `auto`, `always` or `none`.
    pub cache: Option<String>,
}

/// Options of a virtio-9p share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Virtio9pConfig {
    /// Mount tag, at most 31 bytes; `capsa0`, `capsa1`, … when absent.
    pub tag: Option<String>,
    /// Message size in bytes; 262144 when absent.
    pub msize: Option<u32>,
}

/// The guest's network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NetworkMode {
    /// No network device at all.
    None,
    /// A network behind the host's own: the guest reaches out, nothing reaches in.
    ///
    /// On Linux the guest is 10.0.2.15 (by DHCP) and finds a name server at 10.0.2.3. **The host
    /// itself is 10.0.2.2, services on its loopback included**: a guest that must not reach those
    /// gets no network.
    #[default]
    Nat,
}

/// A vsock port that will be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct VsockPort {
    /// Its number.
    pub port: u32,
    /// Who connects to whom.
    pub direction: VsockDirection,
}

/// Who connects to whom.
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
    /// A console that the program reads and writes.
    Enabled,
    /// A console on the program's own standard input and output.
    Stdio,
}

/// How the guest's CPU is virtualised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Accelerator {
    /// Hardware where it is really usable, software emulation otherwise, with a warning.
    #[default]
    Auto,
    /// The Linux kernel's KVM, or a refusal.
    Kvm,
    /// macOS' Hypervisor.framework, or a refusal.
    Hvf,
    /// Software emulation: slow, works anywhere.
    Emulation,
}

/// What a reboot (or a kernel panic that reboots) of the guest does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RebootPolicy {
    /// The machine ends wherever a reboot can be told, and every backend runs it. The default, because
    /// `panic=-1` in the default kernel command line turns a panic into a reboot, and a guest that
    /// panics should not do so for ever.
    ///
    /// vfkit does not tell. There the machine ends when the guest's kernel says on the console that it
    /// panicked (after which it stands still by default) or restarts. Newer kernels do not get to say
    /// the latter on a virtio console: their reboot boots the guest again.
    #[default]
    Auto,
    /// The machine ends, or is refused where a reboot might go unseen.
    End,
    /// The guest boots again in the same machine.
    Restart,
}
