//! What the host was found to have.
//!
//! A check that needs to look at the host would not be a pure function. So the driver looks first,
//! at exactly the paths and devices a specification names, and passes what it saw in here. Every
//! refusal is then a function of plain values, with a unit test.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::Serialize;

use crate::image_lock::{self, ImageLock};
use crate::path::HostPath;

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

/// The host's (and so the guest's) processor architecture.
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

/// Everything the checks want to know about a host.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// Operating system.
    pub os: Os,
    /// Architecture.
    pub arch: Arch,
    /// Memory in MiB.
    pub memory_mb: u64,
    /// What KVM looks like from here.
    pub kvm: KvmFacts,
    /// The version of the Landlock interface; `None` where the kernel has none.
    pub landlock: Option<u32>,
    /// The longest path a unix socket can have, in bytes: 107 on Linux, 103 on macOS.
    pub socket_path_max: usize,
    /// The run directory the next machine would get.
    pub run_dir: HostPath,
    /// The files a specification names, and those that its images stand on.
    pub files: BTreeMap<HostPath, FileFacts>,
    /// The locks that others hold on the [probes](crate::image_lock::PROBED_BYTES) of the disks' images.
    pub image_locks: BTreeMap<HostPath, [Option<ImageLock>; 3]>,
}

impl HostFacts {
    /// What is known of `path`; [`FileFacts::Missing`] when nobody looked.
    pub fn file(&self, path: &HostPath) -> &FileFacts {
        self.files.get(path).unwrap_or(&FileFacts::Missing)
    }

    /// Whether another has this image so that it cannot be attached beside: for writing, or only for
    /// reading. Not when nobody looked.
    pub fn is_in_use(&self, image: &HostPath, writes: bool) -> bool {
        let locks = self.image_locks.get(image);
        locks.is_some_and(|locks| image_lock::conflicts(locks, writes))
    }
}

/// How many leading bytes of a file the driver reads for [`FileFacts::File`].
///
/// Enough for the x86 setup header (`HdrS` at 0x202), the arm64 image header (0x38), and the longest
/// name of a backing file (1023 bytes) behind the header and extensions of a qcow2 image.
pub const HEAD_BYTES: usize = 4096;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileFacts {
    /// Nothing.
    Missing,
    /// Something that could not be opened for reading; the system's words.
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

/// What KVM looks like on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmFacts {
    /// `/dev/kvm`, from absent to answering.
    pub device: KvmDevice,
    /// The CPU shows `vmx` or `svm` (x86-64), or needs no such flag.
    pub cpu_flag: bool,
}

impl KvmFacts {
    /// No KVM at all: what a host that is not Linux has.
    pub const ABSENT: Self = Self { device: KvmDevice::Absent, cpu_flag: false };
}

/// `/dev/kvm`, from absent to answering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmDevice {
    /// There is no such device.
    Absent,
    /// It is there, and this process may not open it.
    NoPermission(KvmGroup),
    /// It cannot be opened for another reason; the system's words.
    Broken(String),
    /// It answers with this API version; every usable kernel says 12.
    Answers {
        /// The answer to `KVM_GET_API_VERSION`.
        api: i32,
    },
}

/// What its group may do for a user who may not open `/dev/kvm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmGroup {
    /// Whoever is in this group may open it. Most distributions call it `kvm`.
    Open(String),
    /// The same, and the user is in it by `/etc/group`, but this session is not yet.
    Pending(String),
    /// Nothing: it has no access either, is root's own, or has no name.
    Closed,
}

/// The one KVM API version there is, stable since Linux 2.6.22.
pub const KVM_API: i32 = 12;

/// A reason why something cannot be used, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
    /// Everything that speaks against using KVM here; empty when it is usable.
    ///
    /// That `/dev/kvm` exists is not enough. Under paravirtual nesting it opens and answers, and a
    /// stock Linux guest still hangs on it, because the CPU behind it has no virtualisation.
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
                "no group gives access to it here; until the next boot this does: \
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
                alloc::format!("/dev/kvm answers API version {api}, not {KVM_API}"),
                "use a kernel with the stable KVM API",
            )),
            KvmDevice::Answers { .. } => {}
        }
        // Said beside a permission too, which would be got in vain.
        let denied = matches!(self.device, KvmDevice::NoPermission(_));
        if (out.is_empty() || denied) && !self.cpu_flag {
            out.push(Reason::new(
                "KVM has no hardware behind it: the CPU shows neither vmx nor svm",
                "enable nested virtualisation for this machine, or run on hardware",
            ));
        }
        out
    }

    /// KVM opens and answers, whatever the CPU says. Enough for a forced choice.
    pub fn answers(&self) -> bool {
        matches!(self.device, KvmDevice::Answers { api: KVM_API })
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
    fn an_answering_device_without_cpu_flag_is_not_usable() {
        let kvm = KvmFacts { device: KvmDevice::Answers { api: KVM_API }, cpu_flag: false };
        assert!(kvm.answers());
        assert!(!kvm.is_usable());
        assert!(kvm.blockers()[0].what.contains("neither vmx nor svm"));
    }

    #[test]
    fn a_permission_is_to_be_had_by_what_the_device_says() {
        for (group, remedy) in [
            (KvmGroup::Open("virt".into()), "usermod -aG virt $USER"),
            (KvmGroup::Pending("kvm".into()), "newgrp kvm"),
            (KvmGroup::Closed, "chown $USER /dev/kvm"),
        ] {
            let device = KvmDevice::NoPermission(group);
            let denied = KvmFacts { device: device.clone(), cpu_flag: true }.blockers();
            assert!(denied.len() == 1 && denied[0].remedy.contains(remedy), "{denied:?}");
            let in_vain = KvmFacts { device, cpu_flag: false }.blockers();
            assert_eq!(in_vain.len(), 2, "{in_vain:?}");
            assert!(in_vain[1].what.contains("neither vmx nor svm"), "{in_vain:?}");
        }
    }

    #[test]
    fn usable_has_nothing_against() {
        let kvm = KvmFacts { device: KvmDevice::Answers { api: KVM_API }, cpu_flag: true };
        assert!(kvm.is_usable());
    }
}
