//! The capabilities of a backend, and the validation of a VM spec against them.
//!
//! [`validate`] compares a VM spec with the backend's capabilities and with the host facts, and
//! returns **all** violations at once, each with the field, the reason and the remedy. If there are
//! none it returns a [`ValidatedSpec`], the only input that a backend plans. So no option is ever
//! dropped silently: it is in the plan, or it is a violation.
//!
//! Validation does not look at the host: the host facts are an argument.

mod validate;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;

use crate::agent::protocol::MountSpec;
use crate::path::HostPath;
use crate::plan::{AgentProgram, AgentTransport, Note, RunDirPlan, initrd_path};
use crate::spec::{Disk, MountMode, VmSpec};
use crate::text::shell_word;

pub use validate::{options_beside_policy, policy_rules, validate};

/// What a backend supports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
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
    /// Read-only shares, enforced by the host.
    pub share_read_only: bool,
    /// Disks whose image is never written.
    pub disk_ephemeral: bool,
    /// Disks the guest cannot write to.
    pub disk_read_only: bool,
    /// A guest reboot can end the VM, and every reboot is detected.
    pub reboot_end: bool,
    /// A guest reboot can restart the guest in the same VM.
    pub reboot_restart: bool,
    /// Errors of the host at reading and writing disk images are reported, and can pause the guest.
    pub disk_errors: bool,
    /// Sockets between host and guest.
    pub vsock: bool,
    /// A virtio console.
    pub virtio_console: bool,
    /// The maximum number of vCPUs (`None`: no known limit).
    pub max_cpus: Option<u32>,
    /// The maximum number of disks, shares, network, vsock and virtio console devices together (`None`:
    /// no known limit).
    pub max_devices: Option<u32>,
    /// The maximum memory in MiB (`None`: no known limit).
    pub max_memory_mb: Option<u32>,
}

impl BackendCapabilities {
    /// Nothing is supported, and nothing is limited: the same as `default`, for constants.
    pub const NONE: Self = Self {
        guest_os: GuestOsSupport { linux: false },
        boot_methods: BootMethodSupport { linux_direct: false, linux_direct_without_initrd: false },
        image_formats: ImageFormatSupport { raw: false, qcow2: false },
        network_modes: NetworkModeSupport { none: false, nat: false },
        virtio_fs: false,
        virtio_9p: false,
        share_read_only: false,
        disk_ephemeral: false,
        disk_read_only: false,
        reboot_end: false,
        reboot_restart: false,
        disk_errors: false,
        vsock: false,
        virtio_console: false,
        max_cpus: None,
        max_devices: None,
        max_memory_mb: None,
    };
}

/// The guest operating systems that a backend supports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GuestOsSupport {
    /// Linux.
    pub linux: bool,
}

/// The boot methods that a backend supports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BootMethodSupport {
    /// Linux with kernel, initrd and command line given directly.
    pub linux_direct: bool,
    /// The same without an initrd.
    pub linux_direct_without_initrd: bool,
}

/// The disk image formats that a backend supports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ImageFormatSupport {
    /// Raw images.
    pub raw: bool,
    /// qcow2 images.
    pub qcow2: bool,
}

/// The network modes that a backend supports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NetworkModeSupport {
    /// No network device.
    pub none: bool,
    /// NAT: the guest gets an address and a default route by DHCP and can open connections. Capsa's own
    /// network stack serves it.
    pub nat: bool,
}

/// One part of a VM spec that cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Violation {
    /// The field, as in a config file: `disks[0].path`.
    pub field: String,
    /// The backend that does not support it; `None` if no backend does.
    pub backend: Option<&'static str>,
    /// The kind of violation, for programs.
    pub kind: ViolationKind,
    /// What is wrong: a lower-case sentence fragment.
    pub reason: String,
    /// What to change.
    pub remedy: String,
}

impl Violation {
    /// A violation that holds for every backend.
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

    /// Marks the violation as specific to this backend.
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
    /// A required field is not set.
    NotGiven,
    /// The file or directory does not exist.
    Missing,
    /// It exists but cannot be read, or cannot be written although write access is needed.
    NoAccess,
    /// The file type is wrong: a directory instead of a file, or a file instead of a directory.
    WrongType,
    /// The file is empty.
    Empty,
    /// The content does not match the declared format.
    WrongFormat,
    /// The content names another file, which the VM spec does not allow.
    NotAllowed,
    /// A number is out of range.
    OutOfRange,
    /// Two values that must differ are equal.
    Duplicate,
    /// Another process uses it exclusively.
    InUse,
    /// The text contains characters that are not allowed there.
    Malformed,
    /// The text is too long.
    TooLong,
    /// The backend does not support it, or not with the programs found on this host.
    Unsupported,
}

/// A VM spec without violations, with every default resolved. Only [`validate`] creates one.
#[derive(Debug, Clone)]
pub struct ValidatedSpec {
    spec: VmSpec,
    cmdline: String,
    shares: Vec<PlannedShare>,
    agent: Option<ValidatedAgent>,
    notes: Vec<Note>,
}

impl ValidatedSpec {
    /// The VM spec.
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

    /// The shares in the order in which the guest mounts them: one inside another after that one.
    pub fn mounts(&self) -> Vec<PlannedShare> {
        validate::in_mount_order(&self.shares)
    }

    /// The guest agent; `None` if the VM has none.
    pub const fn agent(&self) -> Option<&ValidatedAgent> {
        self.agent.as_ref()
    }

    /// The initrd that the hypervisor opens: the one [with the agent](crate::plan::AgentInitrd), or the
    /// user's.
    pub fn initrd(&self, at: &RunDirPlan) -> Option<HostPath> {
        match &self.agent {
            Some(_) => Some(initrd_path(at)),
            None => self.spec.initrd.clone(),
        }
    }

    /// Warnings and notes for the user.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }
}

/// What the guest agent needs in a VM that can have it.
#[derive(Debug, Clone)]
pub struct ValidatedAgent {
    /// How the backend connects it.
    pub transports: &'static [AgentTransport],
    /// The user's initrd.
    pub initrd: HostPath,
    /// The guest's own init, if the user set `rdinit=`.
    pub init: Option<String>,
    /// The agent.
    pub program: AgentProgram,
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
    /// The mount tag.
    pub tag: String,
    /// The mechanism.
    pub mechanism: PlannedMechanism,
    /// Why this mechanism was chosen.
    pub reason: String,
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
    /// The guest caches, and revalidates after a timeout.
    #[default]
    Auto,
    /// The guest caches without revalidation: for directories that only this guest changes.
    Always,
    /// The guest caches nothing.
    None,
}

impl PlannedShare {
    /// The file system type the guest mounts: `virtiofs`, `9p`.
    pub(crate) const fn fs_type(&self) -> &'static str {
        match self.mechanism {
            PlannedMechanism::VirtioFs { .. } => "virtiofs",
            PlannedMechanism::Virtio9p { .. } => "9p",
        }
    }

    /// The command that mounts the share in a guest that does not by itself.
    pub fn mount_command(&self) -> String {
        let (fs_type, options) = (self.fs_type(), self.mount_options());
        format!("mount -t {fs_type} -o {options} {} {}", self.tag, shell_word(&self.guest))
    }

    /// The mount, as the guest agent makes it.
    pub fn mount_spec(&self) -> MountSpec {
        MountSpec {
            kind: self.fs_type().into(),
            source: self.tag.clone().into(),
            target: self.guest.clone().into(),
            options: self.mount_data().unwrap_or_default().into(),
            read_only: self.mode == MountMode::ReadOnly,
        }
    }

    /// The mount options in the guest.
    pub(crate) fn mount_options(&self) -> String {
        let mode = match self.mode {
            MountMode::ReadOnly => "ro",
            MountMode::ReadWrite => "rw",
        };
        match self.mount_data() {
            None => mode.into(),
            Some(data) => format!("{mode},{data}"),
        }
    }

    /// The options of the file system itself.
    fn mount_data(&self) -> Option<String> {
        match self.mechanism {
            PlannedMechanism::VirtioFs { .. } => None,
            PlannedMechanism::Virtio9p { msize } => {
                Some(format!("trans=virtio,version=9p2000.L,msize={msize}"))
            }
        }
    }
}
