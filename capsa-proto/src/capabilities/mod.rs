//! What a backend can do, and the check that refuses everything else.
//!
//! [`validate`] compares a specification with the backend's table and with the facts about the host,
//! and reports **all** problems at once, each with the field, the reason and what to change. What it
//! lets through is a [`ValidatedSpec`], the only thing a backend will plan. So nothing a user asks for is
//! ever silently dropped: it is honoured, or it is in this list.
//!
//! What it does not do is look at anything: facts come in as values.

mod validate;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;

use crate::plan::Note;
use crate::spec::{Disk, MountMode, VmSpec};

pub use validate::validate;

/// The feature table of a backend.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BackendCapabilities {
    /// Guest operating systems.
    pub guest_os: GuestOsSupport,
    /// Ways to boot.
    pub boot_methods: BootMethodSupport,
    /// Disk image formats.
    pub image_formats: ImageFormatSupport,
    /// Network modes.
    pub network_modes: NetworkModeSupport,
    /// virtio-fs shares.
    pub virtio_fs: bool,
    /// virtio-9p shares.
    pub virtio_9p: bool,
    /// Shares that the host keeps read-only.
    pub share_read_only: bool,
    /// Disks whose image is never written.
    pub disk_ephemeral: bool,
    /// Disks the guest cannot write to.
    pub disk_read_only: bool,
    /// A reboot of the guest can end the machine, and none goes unseen.
    pub reboot_end: bool,
    /// A reboot of the guest can boot it again in the same machine.
    pub reboot_restart: bool,
    /// Sockets between host and guest.
    pub vsock: bool,
    /// Most virtual CPUs (`None`: no limit known).
    pub max_cpus: Option<u32>,
    /// Most memory in MiB (`None`: no limit known).
    pub max_memory_mb: Option<u32>,
}

/// Guest operating systems a backend runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GuestOsSupport {
    /// Linux.
    pub linux: bool,
}

/// Ways to boot that a backend has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BootMethodSupport {
    /// Linux with kernel, initrd and command line given directly.
    pub linux_direct: bool,
    /// The same without an initrd.
    pub linux_direct_without_initrd: bool,
}

/// Disk image formats a backend reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImageFormatSupport {
    /// Raw images.
    pub raw: bool,
    /// qcow2 images.
    pub qcow2: bool,
}

/// Network modes a backend has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NetworkModeSupport {
    /// No network device.
    pub none: bool,
    /// NAT: the guest has an address and a default route by DHCP, reaches out, and nothing reaches
    /// in. On QEMU and cloud-hypervisor it reaches the host's loopback at 10.0.2.2, so what listens
    /// on 127.0.0.1 alone is not hidden from it; elsewhere what listens on all of the host's
    /// addresses, at its default gateway.
    pub nat: bool,
}

/// One reason why a specification cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The field, as in a config file: `disks[0].path`.
    pub field: String,
    /// The backend that cannot do it; `None` where no backend could.
    pub backend: Option<&'static str>,
    /// The kind of problem, for programs.
    pub kind: ViolationKind,
    /// What is wrong: a lower-case sentence fragment.
    pub reason: String,
    /// What to change.
    pub remedy: String,
}

impl Violation {
    /// A problem that no backend could live with.
    pub fn new(
        field: impl Into<String>,
        kind: ViolationKind,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            backend: None,
            kind,
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    /// Marks the problem as one of this backend's.
    #[must_use]
    pub const fn on(mut self, backend: &'static str) -> Self {
        self.backend = Some(backend);
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)?;
        if let Some(backend) = self.backend {
            write!(f, " [{backend}]")?;
        }
        write!(f, "; {}", self.remedy)
    }
}

/// The kind of a [`Violation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ViolationKind {
    /// It must be given and was not.
    NotGiven,
    /// Nothing is there.
    Missing,
    /// It is there and cannot be read (or written, where that was asked for).
    NoAccess,
    /// It is something else: a directory for a file, a file for a directory.
    WrongType,
    /// It is empty.
    Empty,
    /// Its content is not what it was said to be.
    WrongFormat,
    /// A number outside of what is possible.
    OutOfRange,
    /// Two things that must differ are the same.
    Duplicate,
    /// Another process has it, and shares it with nobody.
    InUse,
    /// Text that cannot be carried to where it must go.
    Malformed,
    /// Text longer than where it must go.
    TooLong,
    /// The backend cannot do it, or not with what was found on this host.
    Unsupported,
}

/// A specification that passed the check, with every open choice made.
///
/// It can only be had from [`validate`].
#[derive(Debug, Clone)]
pub struct ValidatedSpec {
    spec: VmSpec,
    cmdline: String,
    shares: Vec<PlannedShare>,
    notes: Vec<Note>,
}

impl ValidatedSpec {
    /// The specification.
    pub const fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// The whole kernel command line.
    pub fn cmdline(&self) -> &str {
        &self.cmdline
    }

    /// The disks, in the guest's order.
    pub fn disks(&self) -> &[Disk] {
        &self.spec.disks
    }

    /// The shares, each with its mechanism and tag chosen.
    pub fn shares(&self) -> &[PlannedShare] {
        &self.shares
    }

    /// What the user should know.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }
}

/// A share with its mechanism and tag chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedShare {
    /// The directory on the host.
    pub host: crate::path::HostPath,
    /// Where the guest mounts it.
    pub guest: String,
    /// Whether the guest may write.
    pub mode: MountMode,
    /// The tag the guest mounts it by.
    pub tag: String,
    /// The mechanism.
    pub mechanism: PlannedMechanism,
    /// Why this mechanism.
    pub why: String,
}

/// The mechanism of a [`PlannedShare`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlannedMechanism {
    /// virtio-fs.
    VirtioFs {
        /// The cache mode.
        cache: CacheMode,
    },
    /// virtio-9p.
    #[serde(rename = "virtio-9p")]
    Virtio9p {
        /// The message size in bytes.
        msize: u32,
    },
}

/// A virtio-fs cache mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// The guest caches and asks again after a while.
    #[default]
    Auto,
    /// The guest caches for ever: for directories nobody else changes.
    Always,
    /// The guest caches nothing.
    None,
}

impl PlannedShare {
    /// The file system type the guest mounts: `virtiofs`, `9p`.
    pub const fn fs_type(&self) -> &'static str {
        match self.mechanism {
            PlannedMechanism::VirtioFs { .. } => "virtiofs",
            PlannedMechanism::Virtio9p { .. } => "9p",
        }
    }

    /// The mount options in the guest.
    pub fn mount_options(&self) -> String {
        let mode = match self.mode {
            MountMode::ReadOnly => "ro",
            MountMode::ReadWrite => "rw",
        };
        match self.mechanism {
            PlannedMechanism::VirtioFs { .. } => mode.into(),
            PlannedMechanism::Virtio9p { msize } => {
                alloc::format!("{mode},trans=virtio,version=9p2000.L,msize={msize}")
            }
        }
    }
}
