//! A compiler for macOS on a Debian-like Linux: Debian packages Rust's compiler, clippy and the
//! source of the standard library in one version, and with the source Cargo can check the library
//! for any target that the compiler knows.
//!
//! Nothing is installed (the packages clash with those of Debian's other Rust): they are downloaded
//! and unpacked in `target/macos/`, once, with whatever of their dependencies the machine lacks.
//! Remove that directory for newer ones. No root is needed.
//!
//! It checks; it cannot link, because that needs Apple's libraries.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{self, Failed};
use crate::host::apt::Apt;
use crate::workspace;

/// The target that is checked: Apple silicon.
pub const TARGET: &str = "aarch64-apple-darwin";

/// What is unpacked. Cargo itself is the one that runs us.
const PACKAGES: [&str; 3] = ["rustc-web", "rust-web-clippy", "rust-web-src"];

/// Why there is no such compiler here.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// There is no apt.
    #[error("the compiler comes from Debian packages, and there is no apt here")]
    NoApt,
    /// apt is there, and has them not, or not now.
    #[error("the compiler's packages {} cannot be had", PACKAGES.join(", "))]
    NoPackages(#[source] Failed),
    /// A package cannot be downloaded or unpacked.
    #[error("cannot unpack the package {package}")]
    Unpack {
        /// Which.
        package: String,
        /// What went wrong.
        source: io::Error,
    },
    /// A file operation of ours failed.
    #[error("cannot keep the compiler in {}", place.display())]
    Keep {
        /// Where.
        place: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// It is unpacked, and does not run.
    #[error("the unpacked compiler does not run here; remove {} to have it made anew", place.display())]
    Broken {
        /// Where it is.
        place: PathBuf,
        /// What it said.
        source: Failed,
    },
}

/// The unpacked compiler.
#[derive(Debug)]
pub struct Toolchain {
    /// What `/usr` would be, were it installed.
    usr: PathBuf,
    /// Where Cargo may keep what this compiler made; nothing of it suits another.
    build: PathBuf,
    /// `rustc 1.96.0 (…)`.
    pub version: String,
}

impl Toolchain {
    /// The toolchain, unpacked if it is not there yet: a download of 150 MB, and 900 on the disk.
    ///
    /// # Errors
    /// Why it cannot be had on this machine.
    pub fn get() -> Result<Self, Unavailable> {
        let all = workspace::target_directory().join("macos");
        let kept = all.join("toolchain");
        if !kept.exists() {
            let keep = |source| Unavailable::Keep { place: all.clone(), source };
            fs::create_dir_all(&all).map_err(keep)?;
            let scratch = tempfile::tempdir_in(&all).map_err(keep)?;
            let root = scratch.path().join("root");
            let apt = Apt::configured();
            for package in missing(&apt)? {
                apt.unpack(&package, scratch.path(), &root)
                    .map_err(|source| Unavailable::Unpack { package, source })?;
            }
            match fs::rename(&root, &kept) {
                Err(error) if !kept.exists() => return Err(keep(error)),
                _ => {} // Where another process was first, what it has made will do.
            }
        }
        let mut toolchain =
            Self { usr: kept.join("usr"), build: all.join("build"), version: String::new() };
        let mut rustc = toolchain.program("rustc");
        let version = command::text(rustc.arg("--version"));
        let version = version.map_err(|source| Unavailable::Broken { place: kept, source })?;
        toolchain.version = version.trim().to_owned();
        Ok(toolchain)
    }

    /// `cargo clippy` for [`TARGET`], in the workspace. The standard library is checked with it.
    ///
    /// # Errors
    /// When the unpacked directory cannot be read, or lacks something.
    pub fn clippy(&self) -> io::Result<Command> {
        let mut clippy = self.program("cargo-clippy");
        clippy.current_dir(workspace::root());
        clippy.args(["clippy", "--target", TARGET, "-Zbuild-std=std,panic_abort"]);
        let source = entry(&self.usr.join("src"), |name| name.starts_with("rustc-"))?;
        clippy
            .env("RUSTC", self.usr.join("bin/rustc"))
            .env("CARGO_TARGET_DIR", &self.build)
            // `-Z` and what the standard library is made of are for nightly compilers only.
            .env("RUSTC_BOOTSTRAP", "1")
            // Where Cargo looks for that source; otherwise it would ask rustup's compiler.
            .env("__CARGO_TESTS_ONLY_SRC_ROOT", source.join("library"));
        Ok(clippy)
    }

    /// A program of it, which finds its libraries though they are not installed.
    fn program(&self, name: &str) -> Command {
        let mut program = Command::new(self.usr.join("bin").join(name));
        let libraries = self.usr.join("lib");
        let mut path = vec![libraries.clone()];
        path.extend(entry(&libraries, |name| name.ends_with("-linux-gnu")));
        let inherited = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        path.extend(std::env::split_paths(&inherited));
        let path = std::env::join_paths(path).unwrap_or_else(|_| OsString::from(&self.usr));
        program.env("LD_LIBRARY_PATH", path);
        program
    }
}

/// Our packages, and all that they depend on and that is not installed.
fn missing(apt: &Apt) -> Result<BTreeSet<String>, Unavailable> {
    let mut found = BTreeSet::new();
    let mut todo = PACKAGES.map(str::to_owned).to_vec();
    while let Some(package) = todo.pop() {
        let dependencies = apt.depends(&package).map_err(|failed| match failed {
            Failed::Spawn { .. } => Unavailable::NoApt,
            failed => Unavailable::NoPackages(failed),
        })?;
        if found.insert(package) {
            // In angle brackets is what several packages provide: a C compiler, its headers. The
            // machine has them, or there would be nothing of Rust on it.
            let real = dependencies.into_iter().filter(|name| !name.starts_with('<'));
            todo.extend(real.filter(|name| !found.contains(name) && !is_installed(name)));
        }
    }
    Ok(found)
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}\n", package]);
    command::text(&mut query).is_ok_and(|all| all.lines().any(|status| status == "installed"))
}

/// The entry of a directory whose name is `like` that.
fn entry(directory: &Path, like: impl Fn(&str) -> bool) -> io::Result<PathBuf> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&like) {
            return Ok(entry.path());
        }
    }
    let text = format!("nothing that we look for in {}", directory.display());
    Err(io::Error::new(io::ErrorKind::NotFound, text))
}
