//! The host: what Capsa keeps on it, and how to remove what a killed program left behind.
//!
//! | task | items |
//! | --- | --- |
//! | find the directory of run directories | [`run_dirs`] |
//! | remove what dead programs left, instead of at the next build | [`sweep`] |
//! | find out which process holds their lock | [`LockTimeout`], [`LockHolder`] |
//! | find out which hypervisors can be used | [`backend::backends`](crate::backend::backends) |

use std::path::PathBuf;

use capsa_io::run_dir;

use crate::{Error, Result};

pub use capsa_io::run_dir::{LOCK_TIMEOUT, LockHolder, LockTimeout, RemovedRunDir};

/// The directory that holds the run directories of VMs: `$CAPSA_RUN_DIR`, otherwise
/// `$XDG_RUNTIME_DIR/capsa`, otherwise `/tmp/capsa-UID`. It need not exist.
pub fn run_dirs() -> PathBuf {
    run_dir::base()
}

/// Removes the run directories of dead programs, and kills their VMs that still run.
///
/// A build does the same. A directory that cannot be removed is logged and skipped. Blocks.
///
/// # Errors
///
/// [`Error::RunDirLocked`] when another process holds the lock of [`run_dirs`] for more than
/// [`LOCK_TIMEOUT`]; [`Error::Io`] when [`run_dirs`] cannot be read or belongs to another user. A
/// missing directory is not an error.
pub fn sweep() -> Result<Vec<RemovedRunDir>> {
    run_dir::sweep(&run_dir::base()).map_err(|error| match LockTimeout::of(&error) {
        Some(timeout) => Error::RunDirLocked(timeout.clone()),
        None => Error::Io(error),
    })
}
