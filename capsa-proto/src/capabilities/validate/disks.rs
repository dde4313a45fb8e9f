//! The check's part on disks.

use alloc::collections::BTreeMap;
use alloc::format;

use super::super::ViolationKind as Kind;
use super::Validation;
use crate::host::FileFacts;
use crate::path::HostPath;
use crate::qcow2::{self, BackingChainError};
use crate::spec::ImageFormat;

impl Validation<'_> {
    pub(super) fn disks(&mut self) {
        let spec = self.spec;
        let capabilities = self.backend.capabilities().clone();
        let mut seen = BTreeMap::new();
        for (n, disk) in spec.disks.iter().enumerate() {
            let field = format!("disks[{n}].path");
            let Some(head) = self.regular_file(&field, &disk.path) else { continue };
            self.disk_format(&field, disk.format, &disk.path, &head);
            if disk.format == ImageFormat::Qcow2 && head.starts_with(qcow2::MAGIC) {
                self.backing_chain(&field, &disk.path);
            }
            let writes = !disk.read_only && !disk.ephemeral;
            if writes && let FileFacts::File { writable: false, .. } = self.host.file(&disk.path) {
                self.reject(
                    &field,
                    Kind::NoAccess,
                    format!("{} cannot be written", disk.path),
                    "make it writable for this user, or attach it read-only or ephemeral",
                );
            }
            if self.host.is_in_use(&disk.path, writes) {
                let how = if writes { "" } else { " for writing" };
                self.reject(
                    &field,
                    Kind::InUse,
                    format!("another machine or program has {} open{how}", disk.path),
                    "end that one (`capsa ps` shows machines), or copy the image",
                );
            }
            // A hypervisor locks what it writes, and then cannot attach it again.
            let before = seen.get(&disk.path).copied();
            if before.is_some_and(|written| written || writes) {
                self.reject(
                    &field,
                    Kind::Duplicate,
                    format!("{} is attached twice, and for writing", disk.path),
                    "attach it once, or every time read-only or ephemeral",
                );
            }
            seen.insert(&disk.path, writes || before == Some(true));
            let formats = &capabilities.image_formats;
            if disk.format == ImageFormat::Qcow2 && !formats.qcow2 {
                self.unsupported(
                    &field,
                    "qcow2 images are not supported",
                    format!("convert it: qemu-img convert -O raw {} disk.raw", disk.path),
                );
            }
            if disk.format == ImageFormat::Raw && !formats.raw {
                self.unsupported(
                    &field,
                    "raw images are not supported",
                    "convert it with qemu-img",
                );
            }
            if disk.ephemeral && !capabilities.disk_ephemeral {
                self.unsupported(
                    &format!("disks[{n}].ephemeral"),
                    "throw-away overlays are not supported",
                    "copy the image and attach the copy, or use another backend",
                );
            }
            if disk.read_only && !capabilities.disk_read_only {
                self.unsupported(
                    &format!("disks[{n}].read_only"),
                    "read-only disks are not supported",
                    "use another backend",
                );
            }
        }
    }

    /// An image that stands on others needs them all, and they are files of this host: what an image
    /// names is opened by the hypervisor, so it names neither the network nor options.
    fn backing_chain(&mut self, field: &str, path: &HostPath) {
        let (kind, reason, remedy) = match qcow2::backing_chain(path, self.host) {
            Ok(_) => return,
            Err(BackingChainError::Unreadable(image)) => (
                Kind::WrongFormat,
                format!("the qcow2 header of {image} cannot be understood"),
                "check it: qemu-img info",
            ),
            Err(BackingChainError::NotALocalFile { image, backing }) => (
                Kind::Unsupported,
                format!("{image} stands on {backing:?}, which is no file"),
                "put it on a file: qemu-img rebase, or make it whole: qemu-img convert",
            ),
            Err(BackingChainError::Missing { image, backing }) => (
                Kind::Missing,
                format!("{image} stands on {backing}, which is not there or cannot be read"),
                "bring it back, or put the image on another: qemu-img rebase -u",
            ),
            Err(BackingChainError::UnsupportedFeature { image, what }) => (
                Kind::Unsupported,
                format!("{image} has {what}"),
                "make it whole: qemu-img convert; if a guest or a stranger made it, do not trust it",
            ),
            Err(BackingChainError::FormatMismatch { image, backing }) => (
                Kind::WrongFormat,
                format!("{image} takes {backing} for a raw image, which has a qcow2 header"),
                "name its format if you made it so: qemu-img rebase -u -F qcow2; if a guest wrote \
                 it, do not trust it",
            ),
            Err(BackingChainError::TooLong) => (
                Kind::OutOfRange,
                format!("{path} stands on more than {} images, or on itself", qcow2::MAX_CHAIN),
                "make it whole: qemu-img convert",
            ),
        };
        self.reject(field, kind, reason, remedy);
    }

    /// The header must say what the format says. A guest can write a qcow2 header, with a backing
    /// file of its choice, into a raw disk: it must never turn into one.
    fn disk_format(&mut self, field: &str, format: ImageFormat, path: &HostPath, head: &[u8]) {
        let is_qcow2 = head.starts_with(qcow2::MAGIC);
        match format {
            ImageFormat::Raw if is_qcow2 => self.reject(
                field,
                Kind::WrongFormat,
                format!("{path} is taken for a raw image but has a qcow2 header"),
                "name the format qcow2 if you made it so; if a guest wrote it, do not trust it",
            ),
            ImageFormat::Qcow2 if !is_qcow2 => self.reject(
                field,
                Kind::WrongFormat,
                format!("{path} is taken for a qcow2 image but has no qcow2 header"),
                "name the format raw, or check how the image was made",
            ),
            _ => {}
        }
    }
}
