//! Validates the disks of a VM spec.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;

use super::super::ViolationKind as Kind;
use super::Validation;
use crate::host::FileFacts;
use crate::path::HostPath;
use crate::qcow2::{self, BackingChainError};
use crate::spec::{Disk, ImageFormat};

impl Validation<'_> {
    pub(super) fn disks(&mut self) {
        let spec = self.spec;
        let mut seen = BTreeMap::new();
        for (n, disk) in spec.disks.iter().enumerate() {
            let field = format!("disks[{n}].path");
            self.allowed_backing(n, disk);
            let Some(head) = self.regular_file(&field, &disk.path) else { continue };
            self.disk_format(&field, disk.format, &disk.path, &head);
            if disk.format == ImageFormat::Qcow2 && head.starts_with(qcow2::MAGIC) {
                self.backing_chain(&field, disk);
            }
            let writes = !disk.read_only && !disk.ephemeral;
            if writes && let FileFacts::File { writable: false, .. } = self.host.file(&disk.path) {
                self.reject(
                    &field,
                    Kind::NoAccess,
                    format!("{} cannot be written", disk.path),
                    "make it writable for this user, or attach it as read-only or ephemeral",
                );
            }
            if writes && !disk.allow_mounted && self.host.used_devices.contains(&disk.path) {
                self.reject(
                    &field,
                    Kind::InUse,
                    format!(
                        "{} is in use by the host: it, or a part of it, is mounted, and two systems that \
                         write one file system destroy it",
                        disk.path
                    ),
                    "unmount it, attach it as read-only or ephemeral, or allow it: allow-mounted",
                );
            }
            if self.host.is_in_use(&disk.path, writes) {
                let how = if writes { "" } else { " for writing" };
                self.reject(
                    &field,
                    Kind::InUse,
                    format!("{} is in use: another process has it open{how}", disk.path),
                    "stop the other VM (`capsa ps` lists VMs), or copy the image",
                );
            }
            // A hypervisor locks an image that it writes, and cannot attach it a second time.
            let before = seen.get(&disk.path).copied();
            if before.is_some_and(|written| written || writes) {
                self.reject(
                    &field,
                    Kind::Duplicate,
                    format!("{} is attached more than once with write access", disk.path),
                    "attach it once, or always as read-only or ephemeral",
                );
            }
            seen.insert(&disk.path, writes || before == Some(true));
        }
    }

    /// The files and directories that may be backing files must exist.
    fn allowed_backing(&mut self, n: usize, disk: &Disk) {
        for (m, path) in disk.backing.iter().enumerate() {
            if !matches!(self.host.file(path), FileFacts::Directory { .. }) {
                self.regular_file(&format!("disks[{n}].backing[{m}]"), path);
            }
        }
    }

    /// Every image of a backing chain must be a readable file of this host that the disk allows. An image
    /// from elsewhere can name any file, which the hypervisor would open and the guest could read.
    fn backing_chain(&mut self, field: &str, disk: &Disk) {
        let path = &disk.path;
        let (kind, reason, remedy) = match qcow2::backing_chain(path, self.host) {
            Ok(chain) => {
                let is_allowed = |file: &HostPath| disk.backing.iter().any(|a| file.is_within(a));
                let Some(image) = chain.iter().find(|image| !is_allowed(&image.path)) else {
                    return;
                };
                let below: String =
                    chain.iter().map(|image| format!(" -> {}", image.path)).collect();
                (
                    Kind::NotAllowed,
                    format!("the backing file {} is not allowed: {path}{below}", image.path),
                    "if you trust the image, add the file or its directory to the disk's `backing`; an \
                     untrusted image can name any file of the host",
                )
            }
            Err(BackingChainError::Unreadable(image)) => (
                Kind::WrongFormat,
                format!("{image} has an invalid qcow2 header"),
                "check it: qemu-img info",
            ),
            Err(BackingChainError::NotALocalFile { image, backing }) => (
                Kind::Unsupported,
                format!("{image} has the backing file {backing:?}, which is not a local file"),
                "change the backing file: qemu-img rebase, or merge the chain: qemu-img convert",
            ),
            Err(BackingChainError::Missing { image, backing }) => (
                Kind::Missing,
                format!("the backing file {backing} of {image} does not exist or cannot be read"),
                "restore it, or set another backing file: qemu-img rebase -u",
            ),
            Err(BackingChainError::UnsupportedFeature { image, what }) => (
                Kind::Unsupported,
                format!("{image} has {what}"),
                "convert it to a plain image: qemu-img convert; do not trust it if a guest or someone else wrote it",
            ),
            Err(BackingChainError::FormatMismatch { image, backing, declared }) => (
                Kind::WrongFormat,
                format!(
                    "{image} declares its backing file {backing} as {}, but it has {} qcow2 header",
                    declared.as_str(),
                    if declared == ImageFormat::Raw { "a" } else { "no" },
                ),
                "if you created it, set its format: qemu-img rebase -u -F qcow2 (or raw); if a guest \
                 wrote it, do not trust it",
            ),
            Err(BackingChainError::TooLong) => (
                Kind::OutOfRange,
                format!(
                    "the backing chain of {path} has more than {} images, or a cycle",
                    qcow2::MAX_CHAIN
                ),
                "merge the chain into one image: qemu-img convert",
            ),
        };
        self.reject(field, kind, reason, remedy);
    }

    /// The header must match the given format. A guest can write a qcow2 header with any backing file
    /// into a raw disk; Capsa must never open that disk as qcow2.
    fn disk_format(&mut self, field: &str, format: ImageFormat, path: &HostPath, head: &[u8]) {
        let is_qcow2 = head.starts_with(qcow2::MAGIC);
        match format {
            ImageFormat::Raw if is_qcow2 => self.reject(
                field,
                Kind::WrongFormat,
                format!("the format is raw, but {path} has a qcow2 header"),
                "if you created it as qcow2, set the format to qcow2; if a guest wrote it, do not trust it",
            ),
            ImageFormat::Qcow2 if !is_qcow2 => self.reject(
                field,
                Kind::WrongFormat,
                format!("the format is qcow2, but {path} has no qcow2 header"),
                "set the format to raw, or check how the image was created",
            ),
            _ => {}
        }
    }
}
