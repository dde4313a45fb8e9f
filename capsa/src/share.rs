//! [`SharedDir`]: a directory shared with the guest.

use std::fs::File;
use std::path::{Path, PathBuf};

use capsa_io::shared_file;

use crate::{MountMode, Result, ShareMechanism};

/// A directory of the host that the guest can mount.
///
/// A guest with systemd 254 or later mounts it automatically: Capsa adds `systemd.mount-extra=` to
/// the kernel command line. In any other guest, mount it with `VmConsole::mount_shares`, or by its tag:
/// [`LaunchPlan::mounts`](crate::backend::LaunchPlan::mounts) has the command.
///
/// Treat everything that the guest writes as hostile: `std::fs::read` of a name in the share follows a
/// symbolic link that the guest made to any file of the host, and never returns if the guest made it a pipe.
/// [`open`](Self::open), [`read`](Self::read) and [`write`](Self::write) stay in the share. See
/// `manual::shares`.
///
/// ```
/// use capsa::{MountMode, SharedDir};
///
/// # let dir = tempfile::tempdir().unwrap();
/// let out = SharedDir::new(dir.path(), "/out", MountMode::ReadWrite);
/// // The VM of `builder.shares([out.clone()])` runs, and writes this name:
/// std::os::unix::fs::symlink("/etc/passwd", dir.path().join("result.json")).unwrap();
/// assert!(out.read("result.json", 1 << 20).is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the specification builds it by literal")]
pub struct SharedDir {
    /// The directory on the host.
    pub host_path: PathBuf,
    /// The mount point in the guest: an absolute path.
    pub guest_path: String,
    /// Whether the guest may write. Enforced on the host.
    pub mode: MountMode,
    /// The mechanism of the share.
    pub mechanism: ShareMechanism,
}

impl SharedDir {
    /// A share with the mechanism that the backend chooses.
    pub fn new(
        host_path: impl Into<PathBuf>,
        guest_path: impl Into<String>,
        mode: MountMode,
    ) -> Self {
        Self {
            host_path: host_path.into(),
            guest_path: guest_path.into(),
            mode,
            mechanism: ShareMechanism::Auto,
        }
    }

    /// Opens a regular file of the share for reading. `path` is relative to the share. Blocks as
    /// [`std::fs`] does.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) when `path` is absolute or contains `..`, when it leads out of the
    /// share by a symbolic link, or when it is not a regular file. On macOS, and on Linux before 5.6, a path
    /// with any symbolic link is an error.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<File> {
        Ok(shared_file::open(&self.host_path, path.as_ref())?)
    }

    /// Reads a regular file of the share, as [`open`](Self::open), of at most `limit` bytes: a guest can
    /// make a file of any size.
    ///
    /// # Errors
    ///
    /// The same as [`open`](Self::open), and of kind [`FileTooLarge`](std::io::ErrorKind::FileTooLarge)
    /// when the file is larger.
    pub fn read(&self, path: impl AsRef<Path>, limit: usize) -> Result<Vec<u8>> {
        Ok(shared_file::read(&self.host_path, path.as_ref(), limit)?)
    }

    /// Writes a file of the share, as [`open`](Self::open). It is a new file that replaces what has this
    /// name; its directory must exist.
    ///
    /// # Errors
    ///
    /// The same as [`open`](Self::open) for the directory of `path`, and when `path` is a directory.
    pub fn write(&self, path: impl AsRef<Path>, content: &[u8]) -> Result<()> {
        Ok(shared_file::write(&self.host_path, path.as_ref(), content)?)
    }
}
