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

/// A program of this package that was built beside the one that runs.
///
/// # Panics
///
/// When it was not built. Cargo builds it with the tests of this package.
pub fn built(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("whoever runs has a program");
    // A test's own program is in `deps`, one further down.
    let mut places = this.ancestors().skip(1).take(2);
    let found = places.find_map(|place| Some(place.join(name)).filter(|path| path.is_file()));
    found.unwrap_or_else(|| panic!("`cargo build -p capsa-test --bins` builds {name}"))
}

/// Builds the programs that [`built`] finds beside an xtask: stand-ins, suites, a guest's peers.
///
/// # Errors
/// When Cargo fails.
pub fn build_programs() -> Result<(), Failed> {
    let mut build = cargo();
    command::output(build.args(["build", "--quiet", "--package", "capsa-test", "--bins"])).map(drop)
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
