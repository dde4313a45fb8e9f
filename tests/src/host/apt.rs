//! apt over a source list of our own: what the configured one does not offer can be looked at and
//! downloaded, and the machine's own lists, cache and `/etc/apt` stay as they are.
//!
//! It downloads and unpacks, and never installs. No root is needed.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::{Unmet, main_archive, plan};
use crate::command::{self, Failed};

/// Where packages are looked up and downloaded from.
#[derive(Debug, Default)]
pub struct Apt {
    options: Vec<OsString>,
    /// Lists and cache; gone with this.
    _state: Option<TempDir>,
}

impl Apt {
    /// As the machine has it configured.
    pub fn configured() -> Self {
        Self::default()
    }

    /// The backports of this machine's release, and nothing else.
    ///
    /// # Errors
    /// Where apt has no release configured, or its mirror no backports for it.
    pub fn backports() -> Result<Self, Unmet> {
        let archive = main_archive().ok_or(Unmet::NoArchive)?;
        Self::of(&plan::backports_source(&archive, Path::exists))
    }

    /// The source packages of this suite, from this machine's mirror.
    ///
    /// # Errors
    /// Where apt has no release configured, or its mirror has no such suite.
    pub fn sources(suite: &str) -> Result<Self, Unmet> {
        let archive = main_archive().ok_or(Unmet::NoArchive)?;
        Self::of(&plan::source_line("deb-src", &archive.uri, suite, Path::exists))
    }

    /// What this source list, in the format of one line each, names.
    fn of(list: &str) -> Result<Self, Unmet> {
        let state = tempfile::tempdir().map_err(Unmet::Sources)?;
        let directory = |name: &str| -> io::Result<OsString> {
            let path = state.path().join(name);
            fs::create_dir_all(path.join("partial"))?;
            Ok(path.into())
        };
        let option = |key: &str, value: OsString| {
            let mut option = OsString::from(format!("{key}="));
            option.push(value);
            ["-o".into(), option]
        };
        let write = || -> io::Result<Vec<OsString>> {
            let parts = directory("parts")?;
            fs::write(state.path().join("parts/ours.list"), list)?;
            Ok([
                option("Dir::Etc::sourceparts", parts),
                option("Dir::Etc::sourcelist", "/dev/null".into()),
                option("Dir::State::lists", directory("lists")?),
                option("Dir::Cache", directory("cache")?),
                // The user that apt would download as cannot write where we want it.
                option("APT::Sandbox::User", "root".into()),
            ]
            .concat())
        };
        let options = write().map_err(Unmet::Sources)?;
        let apt = Self { options, _state: Some(state) };
        command::output(apt.get().args(["--error-on=any", "update"]))?;
        Ok(apt)
    }

    /// `apt-get`.
    pub fn get(&self) -> Command {
        let mut get = super::apt_get();
        get.args(&self.options);
        get
    }

    /// The packages that `package` depends on.
    ///
    /// # Errors
    /// When apt is not there or does not know the package.
    pub fn depends(&self, package: &str) -> Result<Vec<String>, Failed> {
        let mut cache = Command::new("apt-cache");
        let listing = command::text(cache.args(&self.options).args(["depends", package]))?;
        let lines = listing.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(lines.map(str::to_owned).collect())
    }

    /// Downloads `package` and unpacks it into `root`. `scratch` holds the archive meanwhile.
    ///
    /// # Errors
    /// When it cannot be downloaded, or not be unpacked there.
    pub fn unpack(&self, package: &str, scratch: &Path, root: &Path) -> io::Result<()> {
        let downloads = scratch.join(package);
        fs::create_dir_all(&downloads)?;
        let mut download = self.get();
        download.args(["download", package]).current_dir(&downloads);
        command::output(&mut download).map_err(io::Error::other)?;
        let archive = fs::read_dir(&downloads)?.next();
        let archive = archive.ok_or_else(|| io::Error::other("apt-get downloaded nothing"))??;
        let mut unpack = Command::new("dpkg");
        unpack.arg("-x").arg(archive.path()).arg(root);
        command::output(&mut unpack).map_err(io::Error::other)?;
        fs::remove_dir_all(&downloads)
    }
}
