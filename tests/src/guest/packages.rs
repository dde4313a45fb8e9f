//! Packages of the host's distribution, downloaded and unpacked, never installed.

use std::path::{Path, PathBuf};

use super::Unavailable;
use crate::command::Failed;
use crate::host::apt::Apt;

/// This machine's architecture as Debian calls it.
///
/// # Errors
/// Where Capsa's guests are not made for it.
pub(super) fn architecture() -> Result<&'static str, Unavailable> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => Err(Unavailable::new(format!("guests are not made for {other}"))),
    }
}

/// The one package starting with `prefix` that `package` depends on: how a distribution's
/// "current kernel" package names the kernel.
pub(super) fn dependency(apt: &Apt, package: &str, prefix: &str) -> Result<String, Unavailable> {
    let dependencies = apt.depends(package).map_err(|failed| match failed {
        Failed::Spawn { .. } => Unavailable::new(
            "guests are made from Debian packages, and there is no apt here; run this on Debian \
             or Ubuntu, or in a container of one",
        ),
        failed => failed.into(),
    })?;
    dependencies.into_iter().find(|name| name.starts_with(prefix)).ok_or_else(|| {
        Unavailable::new(format!("apt knows no package {package}; try `apt-get update`"))
    })
}

/// [`Apt::unpack`], with an error that names the package.
pub(super) fn unpack(
    apt: &Apt,
    package: &str,
    scratch: &Path,
    root: &Path,
) -> Result<(), Unavailable> {
    let failed = |error| Unavailable::new(format!("cannot unpack the package {package}: {error}"));
    apt.unpack(package, scratch, root).map_err(failed)
}

/// A program that is on the `PATH` or where only root's `PATH` reaches.
pub(super) fn program(name: &str, package: &str) -> Result<PathBuf, Unavailable> {
    crate::host::find_program(name)
        .ok_or_else(|| Unavailable::new(format!("{name} is not installed (package {package})")))
}
