//! Shared directories.

use std::path::PathBuf;

use crate::{MountMode, ShareMechanism};

/// A directory of the host that the guest can reach.
///
/// A guest with systemd 254 or later mounts it by itself: Capsa puts `systemd.mount-extra=` on the
/// kernel command line. Any other guest mounts it by its tag; the plan's notes
/// ([`crate::LaunchPlan::notes`]) hold the exact command.
///
/// What a guest writes, symbolic links among it, is the guest's: treat it as hostile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedDir {
    /// The directory on the host.
    pub host_path: PathBuf,
    /// Where the guest mounts it: an absolute path.
    pub guest_path: String,
    /// Whether the guest may write. Enforced on the host.
    pub mode: MountMode,
    /// How it is shared.
    pub mechanism: ShareMechanism,
}

impl SharedDir {
    /// A share by the best mechanism there is.
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
