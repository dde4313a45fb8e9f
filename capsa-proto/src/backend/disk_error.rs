//! [`DiskError`]: an error of the host at reading or writing a disk's image, and [`DiskErrors`], those of
//! a VM.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::Serialize;

use crate::spec::Disk;
use crate::time::Instant;

/// How long the same error of a disk is not reported again: a guest can cause thousands a second.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// An error of the host at reading or writing a disk's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DiskError {
    /// The place of the disk in the description of the VM; 0 is `/dev/vda`.
    pub disk: usize,
    /// The path of its image.
    pub path: String,
    /// The disk is ephemeral: the guest's writes go to a temporary file on the host.
    pub ephemeral: bool,
    /// What failed.
    pub operation: DiskOperation,
    /// The host's error, e.g. `No space left on device`.
    pub reason: String,
}

/// An access to a disk's image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DiskOperation {
    /// Read.
    Read,
    /// Write or flush.
    Write,
}

/// An error of `disks[disk]`; `None` if there is no such disk.
pub fn disk_error(
    disks: &[Disk],
    disk: usize,
    operation: DiskOperation,
    reason: &str,
) -> Option<DiskError> {
    let Disk { path, ephemeral, .. } = disks.get(disk)?;
    let (path, reason) = (path.to_string(), reason.to_string());
    Some(DiskError { disk, path, ephemeral: *ephemeral, operation, reason })
}

impl fmt::Display for DiskError {
    /// One line: `disk /images/root.raw: write failed: No space left on device`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operation = match self.operation {
            DiskOperation::Read => "read",
            DiskOperation::Write => "write",
        };
        let what = match (self.ephemeral, self.operation) {
            (true, DiskOperation::Write) => " (ephemeral: writes go to a temporary file)",
            _ => "",
        };
        write!(f, "disk {}{what}: {operation} failed: {}", self.path, self.reason)
    }
}

/// The last error of each disk and operation.
#[derive(Debug, Clone, Default)]
pub struct DiskErrors(Vec<(Instant, DiskError)>);

impl DiskErrors {
    /// Adds an error. Returns whether to report it: it is new, or the last report was long ago.
    pub fn add(&mut self, now: Instant, error: DiskError) -> bool {
        let is_same =
            |known: &DiskError| (known.disk, known.operation) == (error.disk, error.operation);
        match self.0.iter_mut().find(|(_, known)| is_same(known)) {
            Some((reported, _)) if now < *reported + REPORT_INTERVAL => return false,
            Some(known) => *known = (now, error),
            None => self.0.push((now, error)),
        }
        true
    }

    /// The errors, the first disk that failed first.
    pub fn iter(&self) -> impl Iterator<Item = &DiskError> {
        self.0.iter().map(|(_, error)| error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::HostPath;
    use crate::spec::ImageFormat;

    fn disks() -> [Disk; 2] {
        [("/a.raw", false), ("/b.raw", true)].map(|(path, ephemeral)| Disk {
            path: HostPath::new(path).unwrap(),
            format: ImageFormat::Raw,
            read_only: false,
            ephemeral,
            backing: Vec::new(),
            allow_mounted: false,
        })
    }

    fn error(disk: usize, operation: DiskOperation) -> DiskError {
        disk_error(&disks(), disk, operation, "No space left on device").unwrap()
    }

    #[test]
    fn disk_error_names_image_and_cause() {
        let text = error(0, DiskOperation::Write).to_string();
        assert_eq!(text, "disk /a.raw: write failed: No space left on device");
        let text = error(1, DiskOperation::Write).to_string();
        assert!(
            text.starts_with("disk /b.raw (ephemeral: writes go to a temporary file)"),
            "{text}"
        );
        assert_eq!(disk_error(&disks(), 2, DiskOperation::Read, "x"), None);
    }

    #[test]
    fn disk_errors_in_a_flood_are_reported_rarely() {
        let mut errors = DiskErrors::default();
        let at = |seconds| Instant::ZERO + Duration::from_secs(seconds);
        let mut add = |seconds, disk, operation| errors.add(at(seconds), error(disk, operation));
        assert!(add(0, 0, DiskOperation::Write));
        assert!(!add(9, 0, DiskOperation::Write));
        assert!(add(9, 0, DiskOperation::Read) && add(9, 1, DiskOperation::Write));
        assert!(add(10, 0, DiskOperation::Write));
        assert!(!add(19, 0, DiskOperation::Write));
        assert_eq!(errors.iter().count(), 3);
    }
}
