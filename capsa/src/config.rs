//! What a machine boots: the configuration types, and the one door to their builders.

use std::path::PathBuf;

use crate::{DiskImage, LinuxVmBuilder};

/// The entry point.
#[derive(Debug, Clone, Copy)]
pub struct Capsa;

impl Capsa {
    /// A builder for this configuration. The configuration's type decides which builder.
    pub fn vm<C: VmConfig>(config: C) -> C::Builder {
        config.into_builder()
    }
}

/// A configuration that a machine can be built from.
pub trait VmConfig {
    /// What builds it.
    type Builder;

    /// The builder, with this configuration in it.
    fn into_builder(self) -> Self::Builder;
}

/// A Linux guest with kernel, initrd and a disk given directly: the fastest way to boot one.
#[derive(Debug, Clone)]
pub struct LinuxDirectBootConfig {
    /// The kernel: a bzImage or PVH vmlinux on x86-64, an uncompressed `Image` on arm64.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
    /// The first disk, `/dev/vda`. [`LinuxVmBuilder::disk`] adds more.
    pub disk: DiskImage,
}

impl VmConfig for LinuxDirectBootConfig {
    type Builder = LinuxVmBuilder;

    fn into_builder(self) -> LinuxVmBuilder {
        LinuxVmBuilder::new(self.kernel, Some(self.initrd), vec![self.disk])
    }
}

/// A Linux guest without a disk, or without an initrd, or with neither.
///
/// ```no_run
/// use capsa::{Capsa, LinuxBootConfig};
///
/// let builder = Capsa::vm(LinuxBootConfig::new("./vmlinuz").initrd("./initrd"));
/// ```
#[derive(Debug, Clone)]
pub struct LinuxBootConfig {
    /// The kernel, as in [`LinuxDirectBootConfig::kernel`].
    pub kernel: PathBuf,
    /// The initial RAM disk, if there is one.
    pub initrd: Option<PathBuf>,
    /// The disks, in the guest's order.
    pub disks: Vec<DiskImage>,
}

impl LinuxBootConfig {
    /// A kernel and nothing else.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self { kernel: kernel.into(), initrd: None, disks: Vec::new() }
    }

    /// With this initial RAM disk.
    #[must_use]
    pub fn initrd(mut self, initrd: impl Into<PathBuf>) -> Self {
        self.initrd = Some(initrd.into());
        self
    }

    /// With one more disk.
    #[must_use]
    pub fn disk(mut self, disk: DiskImage) -> Self {
        self.disks.push(disk);
        self
    }
}

impl VmConfig for LinuxBootConfig {
    type Builder = LinuxVmBuilder;

    fn into_builder(self) -> LinuxVmBuilder {
        LinuxVmBuilder::new(self.kernel, self.initrd, self.disks)
    }
}
