//! [`SharedDir`]: a directory shared with the guest.

use std::path::PathBuf;

use crate::{MountMode, ShareMechanism};

/// A directory of the host that the guest can mount.
///
/// A guest with systemd 254 or later mounts it automatically: Capsa adds `systemd.mount-extra=` to
/// the kernel command line. In any other guest, mount it by its tag; the plan's notes
/// ([`crate::backend::LaunchPlan::notes`]) contain the command.
///
/// Treat everything that the guest writes as hostile, including symbolic links.
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
}
