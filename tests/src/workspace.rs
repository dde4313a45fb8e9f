//! The workspace that this crate tests: where it is, and what Cargo says about it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{self, Failed};

/// The directory of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a package in a workspace")
}

/// Cargo's target directory.
pub fn target_directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root().join(target)
}

/// A call of the Cargo that runs us, in the [`root`].
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Every package that `package` is built from on this host, itself included, as `name version`.
///
/// `features` are flags for Cargo, as `--no-default-features`.
///
/// # Errors
/// When Cargo fails.
pub fn tree(package: &str, features: &[&str]) -> Result<BTreeSet<String>, Failed> {
    let mut tree = cargo();
    tree.args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--package", package]);
    let listing = command::text(tree.args(features))?;
    let named = |line: &str| {
        let mut words = line.split_whitespace();
        Some(format!("{} {}", words.next()?, words.next()?))
    };
    Ok(listing.lines().filter_map(named).collect())
}
