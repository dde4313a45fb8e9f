//! Disk images.

use std::path::PathBuf;

use crate::ImageFormat;

/// A disk image on the host.
///
/// Its format is named to the hypervisor, never probed by it: a guest could write a header with a
/// backing file of its choice into a raw image. A header that contradicts the format is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskImage {
    /// Where it is. A relative path counts from the working directory at `build`.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// The guest writes to a throw-away overlay, and the image is never written.
    pub ephemeral: bool,
}

impl DiskImage {
    /// An image whose format follows from its extension: `.qcow2` and `.qcow`, else raw.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let extension = path.extension().map(|e| e.to_string_lossy().into_owned());
        let format = ImageFormat::from_extension(extension.as_deref().unwrap_or_default());
        Self::with_format(path, format)
    }

    /// An image with its format named.
    pub fn with_format(path: impl Into<PathBuf>, format: ImageFormat) -> Self {
        Self { path: path.into(), format, read_only: false, ephemeral: false }
    }

    /// The same image, which the guest cannot write to.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// The same image under a throw-away overlay: the guest may write, and nothing of it stays.
    #[must_use]
    pub fn ephemeral(mut self) -> Self {
        self.ephemeral = true;
        self
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
