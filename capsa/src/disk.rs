//! [`DiskImage`], a disk image on the host, and [`VmDisk`], what a guest may do with it.

use std::path::PathBuf;

use crate::ImageFormat;

/// A disk image on the host.
///
/// The format is always passed to the hypervisor, which never probes it: a guest could write a
/// header that names a backing file into a raw image. A header that contradicts the format is an
/// error.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the specification builds it by literal")]
pub struct DiskImage {
    /// The path. It is resolved when the VM is built: a relative one against the working directory, and
    /// symbolic links to the file they name.
    pub path: PathBuf,
    /// The image format.
    pub format: ImageFormat,
}

impl DiskImage {
    /// An image whose format follows from its extension: `.qcow2` and `.qcow` are qcow2, anything
    /// else is raw.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let extension = path.extension().map(|e| e.to_string_lossy().into_owned());
        let format = ImageFormat::from_extension(extension.as_deref().unwrap_or_default());
        Self::with_format(path, format)
    }

    /// An image with an explicit format.
    pub fn with_format(path: impl Into<PathBuf>, format: ImageFormat) -> Self {
        Self { path: path.into(), format }
    }

    /// A disk with this image that is read-only for the guest.
    #[must_use]
    pub fn read_only(self) -> VmDisk {
        VmDisk::new(self).read_only()
    }

    /// A disk with this image that is ephemeral: the guest can write, and its writes are discarded at
    /// the end of the VM.
    #[must_use]
    pub fn ephemeral(self) -> VmDisk {
        VmDisk::new(self).ephemeral()
    }

    /// A disk with this image that may have this backing file, as [`VmDisk::backing`].
    #[must_use]
    pub fn backing(self, allowed: impl Into<PathBuf>) -> VmDisk {
        VmDisk::new(self).backing(allowed)
    }
}

/// A disk of a VM: an image, and what the guest may do with it.
///
/// ```
/// use capsa::{VmDisk, DiskImage};
///
/// let disk: VmDisk = DiskImage::new("./data.qcow2").into();
/// assert!(!disk.read_only && !disk.ephemeral);
/// assert!(DiskImage::new("./rootfs.qcow2").ephemeral().ephemeral);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VmDisk {
    /// The image.
    pub image: DiskImage,
    /// Whether the guest is prevented from writing.
    pub read_only: bool,
    /// Whether the guest writes to an ephemeral overlay. The image itself is never written then.
    pub ephemeral: bool,
    /// The backing files that the image may have, directly and indirectly: files, and directories that
    /// contain them. Default: none; then an image with a backing file is rejected.
    pub backing: Vec<PathBuf>,
    /// Whether the guest may write to a block device that the host has mounted.
    pub allow_mounted: bool,
}

impl VmDisk {
    /// A disk that the guest writes.
    pub fn new(image: DiskImage) -> Self {
        Self {
            image,
            read_only: false,
            ephemeral: false,
            backing: Vec::new(),
            allow_mounted: false,
        }
    }

    /// Makes the disk read-only for the guest.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Makes the disk ephemeral: the guest can write, and its writes are discarded at the end of
    /// the VM.
    #[must_use]
    pub fn ephemeral(mut self) -> Self {
        self.ephemeral = true;
        self
    }

    /// Allows a backing file of the image, or all backing files in a directory and below. Call it once for
    /// each.
    ///
    /// A qcow2 image can name any file of the host as its backing file, and the guest could read that
    /// file. So each one must be allowed, also those of backing files. Symbolic links are resolved first.
    #[must_use]
    pub fn backing(mut self, allowed: impl Into<PathBuf>) -> Self {
        self.backing.push(allowed.into());
        self
    }

    /// Allows a block device that is mounted on the host, whole or in part. Two systems that write one file
    /// system destroy it, so such a device is rejected by default unless the disk is read-only or ephemeral.
    #[must_use]
    pub fn allow_mounted(mut self) -> Self {
        self.allow_mounted = true;
        self
    }
}

impl From<DiskImage> for VmDisk {
    fn from(image: DiskImage) -> Self {
        Self::new(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_names_the_format() {
        for (path, format) in [
            ("a.qcow2", ImageFormat::Qcow2),
            ("a.QCOW2", ImageFormat::Qcow2),
            ("a.raw", ImageFormat::Raw),
            ("a.img", ImageFormat::Raw),
            ("a", ImageFormat::Raw),
        ] {
            assert_eq!(DiskImage::new(path).format, format, "{path}");
        }
    }
}
