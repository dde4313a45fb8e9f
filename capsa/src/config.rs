//! What a VM boots: the configuration types and [`Capsa::vm`].

use std::path::PathBuf;

use crate::{DiskImage, LinuxVmBuilder, VmDisk};

/// The entry point of the API.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::exhaustive_structs, reason = "it has no fields and gets none")]
pub struct Capsa;

impl Capsa {
    /// Returns a builder for this configuration. The type of the configuration determines the
    /// builder.
    pub fn vm<C: VmConfig>(config: C) -> C::Builder {
        config.into_builder()
    }
}

/// A boot configuration from which a VM can be built.
pub trait VmConfig {
    /// The builder of this kind of VM.
    type Builder;

    /// Turns the configuration into a builder.
    fn into_builder(self) -> Self::Builder;
}

/// A Linux guest with kernel, initrd and disk given directly: the fastest way to boot.
#[derive(Debug, Clone)]
#[expect(clippy::exhaustive_structs, reason = "the specification builds it by literal")]
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
        LinuxVmBuilder::new(self.kernel, Some(self.initrd), vec![self.disk.into()])
    }
}

/// A Linux guest whose initrd and disks are optional.
///
/// ```no_run
/// use capsa::{Capsa, LinuxBootConfig};
///
/// let builder = Capsa::vm(LinuxBootConfig::new("./vmlinuz").initrd("./initrd"));
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LinuxBootConfig {
    /// The kernel, as in [`LinuxDirectBootConfig::kernel`].
    pub kernel: PathBuf,
    /// The initial RAM disk, if any.
    pub initrd: Option<PathBuf>,
    /// The disks, in the guest's order.
    pub disks: Vec<VmDisk>,
}

impl LinuxBootConfig {
    /// A configuration with a kernel only.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self { kernel: kernel.into(), initrd: None, disks: Vec::new() }
    }

    /// Sets the initial RAM disk.
    #[must_use]
    pub fn initrd(mut self, initrd: impl Into<PathBuf>) -> Self {
        self.initrd = Some(initrd.into());
        self
    }

    /// Adds a disk.
    #[must_use]
    pub fn disk(mut self, disk: impl Into<VmDisk>) -> Self {
        self.disks.push(disk.into());
        self
    }
}

impl VmConfig for LinuxBootConfig {
    type Builder = LinuxVmBuilder;

    fn into_builder(self) -> LinuxVmBuilder {
        LinuxVmBuilder::new(self.kernel, self.initrd, self.disks)
    }
}
