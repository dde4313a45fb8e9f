//! Real Linux guests, made from the host distribution's own packages and kept in
//! `target/guest/`.
//!
//! Nothing is installed on the host: packages are downloaded and unpacked into a scratch
//! directory. [`linux()`] needs no root, only a Debian-like host with its package lists;
//! [`debian()`] needs root, because a Debian root file system has many owners.
//!
//! A guest that is there already is returned at once. It is made anew when its recipe in this
//! crate has changed, not when the distribution has a newer kernel: remove its directory for
//! that. Making is serialized between processes by a lock file, and a guest appears whole or
//! not at all.
//!
//! Measured with QEMU 10.0.2 in emulation on two cores, spawn to `capsa login: `, kernels 6.1 and
//! 6.12: cloud on `microvm` 3.0 to 4.9 s, cloud on `q35` 3.2 to 5.2 s, generic on `q35` 6 to 9 s,
//! Debian with systemd 16 s. From the power button to QEMU's end: 0.1 s, Debian 1.9 s.
//!
//! The disk images are shared by all tests: boot them read-only or through an overlay.

mod cpio;
mod debian;
mod initramfs;
mod linux;
mod modules;
mod packages;

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::host::Unmet;
use crate::{command, workspace};

pub use debian::{DebianGuest, debian};
pub use linux::{LinuxGuest, Variant, linux};

/// Why a guest cannot be had on this machine, and what would change that.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no guest: {why}")]
pub struct Unavailable {
    /// One line.
    pub why: String,
}

impl Unavailable {
    fn new(why: impl Into<String>) -> Self {
        Self { why: why.into() }
    }

    /// Where the release's backports cannot be had.
    fn backports(unmet: Unmet) -> Self {
        let cause = unmet.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        Self::new(format!("its kernel comes from the backports of the release: {unmet}{cause}"))
    }

    /// For a file operation: what was done, to which path.
    fn io(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let what = format!("cannot {what} {}", path.display());
        move |error| Self::new(format!("{what}: {error}"))
    }
}

impl From<command::Failed> for Unavailable {
    fn from(failed: command::Failed) -> Self {
        match &failed {
            command::Failed::Spawn { source, .. } => Self::new(format!("{failed}: {source}")),
            command::Failed::Status { .. } => Self::new(failed.to_string()),
        }
    }
}

/// Where guests are kept: `guest/` in Cargo's target directory.
pub fn directory() -> PathBuf {
    workspace::target_directory().join("guest")
}

/// Returns the directory of the guest `name`, calling `make` on an empty one unless the guest
/// is there and was made by the same `recipe`.
fn kept(
    name: &str,
    recipe: &str,
    make: impl FnOnce(&Path) -> Result<(), Unavailable>,
) -> Result<PathBuf, Unavailable> {
    let all = directory();
    let done = all.join(name);
    let is_made = || fs::read_to_string(done.join("recipe")).is_ok_and(|made| made == recipe);
    if is_made() {
        return Ok(done);
    }
    fs::create_dir_all(&all).map_err(Unavailable::io("create", &all))?;
    let lock = all.join(format!("{name}.lock"));
    let locked = File::create(&lock).map_err(Unavailable::io("create", &lock))?;
    locked.lock().map_err(Unavailable::io("lock", &lock))?;
    if is_made() {
        return Ok(done); // by another process while this one waited
    }
    let scratch = tempfile::Builder::new()
        .prefix(&format!("{name}."))
        .tempdir_in(&all)
        .map_err(Unavailable::io("create a directory in", &all))?;
    let (new, old) = (scratch.path().join("new"), scratch.path().join("old"));
    fs::create_dir(&new).map_err(Unavailable::io("create", &new))?;
    make(&new)?;
    let stamp = new.join("recipe");
    fs::write(&stamp, recipe).map_err(Unavailable::io("write", &stamp))?;
    if done.exists() {
        fs::rename(&done, &old).map_err(Unavailable::io("set aside", &done))?;
    }
    fs::rename(&new, &done).map_err(Unavailable::io("create", &done))?;
    Ok(done)
}
