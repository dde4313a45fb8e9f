//! The host facts: what was found on the host.
//!
//! Validation is a pure function. So `capsa-io` first collects the facts about the paths and devices
//! that a VM spec names, and passes them as [`HostFacts`]. Every violation is then a function of plain
//! values and has a unit test.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use serde::Serialize;

use crate::image_lock::{self, ImageLock};
use crate::path::HostPath;
use crate::plan::{AgentProgram, Note};

/// The host's operating system, as far as backends care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Os {
    /// Linux.
    Linux,
    /// macOS.
    MacOs,
    /// Anything else.
    Other,
}

/// The host's (and so the guest's) CPU architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Arch {
    /// x86-64.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
    /// Anything else.
    Other,
}

impl Arch {
    /// The name in program names such as `qemu-system-x86_64`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
            Self::Other => "unknown",
        }
    }
}

/// All facts about a host that validation needs.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// Operating system.
    pub os: Os,
    /// Architecture.
    pub arch: Arch,
    /// Memory in MiB.
    pub memory_mb: u64,
    /// The state of KVM.
    pub kvm: KvmFacts,
    /// The version of the Landlock interface; `None` where the kernel has none.
    pub landlock: Option<u32>,
    /// The longest path a unix socket can have, in bytes: 107 on Linux, 103 on macOS.
    pub socket_path_max: usize,
    /// The run directory of the next VM.
    pub run_dir: HostPath,
    /// The files that a VM spec names, and the backing files of its images.
    pub files: BTreeMap<HostPath, FileFacts>,
    /// The names of backing files in images, where they contain symbolic links or `..`, with the files
    /// that they lead to.
    pub resolved: BTreeMap<HostPath, HostPath>,
    /// The locks that other processes hold on the [probed bytes](crate::image_lock::PROBED_BYTES) of the
    /// disk images.
    pub image_locks: BTreeMap<HostPath, [Option<ImageLock>; 3]>,
    /// The block devices among the disk images that the host uses itself: a file system of theirs, or of
    /// one of their partitions, is mounted.
    pub used_devices: BTreeSet<HostPath>,
    /// How many files of a share virtiofsd can keep open: it needs a descriptor for each file that the
    /// guest's kernel remembers. `None` where it may open files by handles and needs none.
    pub share_files: Option<u64>,
    /// The guest agent of this build; without one, why not.
    pub agent: Result<AgentProgram, &'static str>,
}

impl HostFacts {
    /// The facts about `path`; [`FileFacts::Missing`] if it was not inspected.
    pub fn file(&self, path: &HostPath) -> &FileFacts {
        self.files.get(path).unwrap_or(&FileFacts::Missing)
    }

    /// The file that `name` leads to; `name` itself if it was not inspected.
    pub(crate) fn resolve<'a>(&'a self, name: &'a HostPath) -> &'a HostPath {
        self.resolved.get(name).unwrap_or(name)
    }

    /// Whether the locks of other processes prevent attaching this image, for writing or only for
    /// reading. `false` if the locks were not inspected.
    pub(crate) fn is_in_use(&self, image: &HostPath, writes: bool) -> bool {
        let locks = self.image_locks.get(image);
        locks.is_some_and(|locks| image_lock::conflicts(locks, writes))
    }
}

/// The number of leading bytes of a file in [`FileFacts::File`].
///
/// Enough for the x86 setup header (`HdrS` at 0x202), the arm64 image header (0x38), and the longest
/// name of a backing file (1023 bytes) behind the header and extensions of a qcow2 image.
pub const HEAD_BYTES: usize = 4096;

/// The facts about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileFacts {
    /// It does not exist.
    Missing,
    /// It cannot be opened for reading; the error text of the system.
    Unreadable(String),
    /// A directory.
    Directory {
        /// This process may create files in it.
        writable: bool,
    },
    /// A regular file or a block device.
    File {
        /// Its length in bytes.
        size: u64,
        /// Up to [`HEAD_BYTES`] leading bytes.
        head: Vec<u8>,
        /// This process may write to it.
        writable: bool,
        /// It is a block device.
        device: bool,
    },
    /// A socket, a pipe, a character device.
    Special,
}

/// The state of KVM on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmFacts {
    /// The state of `/dev/kvm`.
    pub device: KvmDevice,
    /// The CPU has the flag `vmx` or `svm` (x86-64), or the architecture needs no flag.
    pub cpu_flag: bool,
}

impl KvmFacts {
    /// No KVM, as on a host that is not Linux.
    pub const ABSENT: Self = Self { device: KvmDevice::Absent, cpu_flag: false };
}

/// The state of `/dev/kvm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmDevice {
    /// The device does not exist.
    Absent,
    /// The device exists, but this process has no permission to open it.
    NoPermission(KvmGroup),
    /// The device cannot be opened for another reason; the error text of the system.
    Broken(String),
    /// The device works and has this API version; every usable kernel has 12.
    Answers {
        /// The result of `KVM_GET_API_VERSION`.
        api: i32,
    },
}

/// Whether membership in its group would let the user open `/dev/kvm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmGroup {
    /// Members of this group can open it. Most distributions name it `kvm`.
    Open(String),
    /// As `Open`, and the user is a member in `/etc/group`, but not in this session.
    Pending(String),
    /// No: the group has no access, is `root`, or has no name.
    Closed,
}

/// The KVM API version, stable since Linux 2.6.22.
pub const KVM_API: i32 = 12;

/// A reason why something cannot be used, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Reason {
    /// What is wrong: a lower-case sentence fragment.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Reason {
    /// A reason and its remedy.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} ({})", self.what, self.remedy)
    }
}

impl KvmFacts {
    /// The reasons why KVM cannot be used; empty if it can.
    ///
    /// A working `/dev/kvm` is not enough. Under paravirtual nesting the device opens and works, but a
    /// stock Linux guest hangs, because the CPU has no virtualisation extensions.
    pub fn blockers(&self) -> Vec<Reason> {
        let mut out = Vec::new();
        match &self.device {
            KvmDevice::Absent => out.push(Reason::new(
                "/dev/kvm does not exist",
                "enable virtualisation in the firmware and load the module kvm-intel or kvm-amd; \
                 in a container or VM, pass the device in or enable nesting",
            )),
            KvmDevice::NoPermission(KvmGroup::Open(group)) => out.push(Reason::new(
                "/dev/kvm cannot be opened: permission denied",
                alloc::format!(
                    "add the user to the device's group: sudo usermod -aG {group} $USER, then log in \
                     again"
                ),
            )),
            KvmDevice::NoPermission(KvmGroup::Closed) => out.push(Reason::new(
                "/dev/kvm cannot be opened: permission denied",
                "no group has access to it; to get access until the next boot: \
                 sudo chown $USER /dev/kvm",
            )),
            KvmDevice::NoPermission(KvmGroup::Pending(group)) => out.push(Reason::new(
                alloc::format!(
                    "/dev/kvm cannot be opened: the user is in group {group}, but this session is not yet"
                ),
                alloc::format!("log in again, or run: newgrp {group}"),
            )),
            KvmDevice::Broken(why) => out.push(Reason::new(
                alloc::format!("/dev/kvm cannot be opened: {why}"),
                "check that the kvm module is loaded and the device is not stale",
            )),
            KvmDevice::Answers { api } if *api != KVM_API => out.push(Reason::new(
                alloc::format!("/dev/kvm has API version {api}; supported: {KVM_API}"),
                "use a kernel with the stable KVM API",
            )),
            KvmDevice::Answers { .. } => {}
        }
        // Also reported beside a missing permission, which alone would not help.
        let denied = matches!(self.device, KvmDevice::NoPermission(_));
        if (out.is_empty() || denied) && !self.cpu_flag {
            let enable = "enable it in the firmware, or nested virtualisation if the host is a VM";
            let remedy = match self.answers() {
                true => alloc::format!(
                    "{enable}; if /dev/kvm works without these flags, as paravirtual KVM does, set the \
                     accelerator to kvm"
                ),
                false => enable.into(),
            };
            out.push(Reason::new(
                "the CPU has no hardware virtualisation: neither the flag vmx nor svm",
                remedy,
            ));
        }
        out
    }

    /// `/dev/kvm` opens and works, regardless of the CPU flags. Enough for an explicit `kvm`.
    pub fn answers(&self) -> bool {
        matches!(self.device, KvmDevice::Answers { api: KVM_API })
    }

    /// The warning for a VM that uses KVM explicitly although a check fails.
    pub fn explicit_use_warning(&self) -> Option<Note> {
        let failed: Vec<_> = self.blockers().into_iter().map(|reason| reason.what).collect();
        (!failed.is_empty()).then(|| {
            Note::warning(alloc::format!(
                "KVM is used as requested, although {}: some guests hang at boot on such a host",
                failed.join("; ")
            ))
        })
    }

    /// KVM runs stock guests here.
    pub fn is_usable(&self) -> bool {
        self.blockers().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_without_cpu_flag_is_not_usable() {
        let kvm = KvmFacts { device: KvmDevice::Answers { api: KVM_API }, cpu_flag: false };
        assert!(kvm.answers());
        assert!(!kvm.is_usable());
        assert!(kvm.blockers()[0].what.contains("neither the flag vmx nor svm"));
        assert!(kvm.blockers()[0].remedy.contains("set the accelerator to kvm"));
        let warning = kvm.explicit_use_warning().unwrap().text;
        assert!(warning.contains("as requested, although the CPU has no"), "{warning}");
    }

    #[test]
    fn kvm_without_permission_remedy_names_group() {
        for (group, remedy) in [
            (KvmGroup::Open("virt".into()), "usermod -aG virt $USER"),
            (KvmGroup::Pending("kvm".into()), "newgrp kvm"),
            (KvmGroup::Closed, "chown $USER /dev/kvm"),
        ] {
            let device = KvmDevice::NoPermission(group);
            let denied = KvmFacts { device: device.clone(), cpu_flag: true }.blockers();
            assert!(denied.len() == 1 && denied[0].remedy.contains(remedy), "{denied:?}");
            let both = KvmFacts { device, cpu_flag: false }.blockers();
            assert_eq!(both.len(), 2, "{both:?}");
            assert!(both[1].what.contains("neither the flag vmx nor svm"), "{both:?}");
            assert!(!both[1].remedy.contains("set the accelerator"), "{both:?}");
        }
    }

    #[test]
    fn kvm_with_device_and_flag_is_usable() {
        let kvm = KvmFacts { device: KvmDevice::Answers { api: KVM_API }, cpu_flag: true };
        assert!(kvm.is_usable());
        assert_eq!(kvm.explicit_use_warning(), None);
    }
}
