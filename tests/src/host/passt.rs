//! passt, which is NAT for hypervisors that have none, built from the source package of Debian's
//! trixie where the distribution has none that speaks vhost-user.
//!
//! trixie's program needs trixie's C library, and trixie's package would bring that along; its
//! source needs a compiler and nothing else. It is built into the target directory and not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::Apt;
use super::{Unmet, find_program, plan};
use crate::command;
use crate::workspace;

/// The suite whose source is taken: the first of Debian's whose passt speaks vhost-user.
const SUITE: &str = "trixie";

/// The passt to use: the one that `CAPSA_PASST` names, that of the `PATH`, or our own. Only one that
/// speaks vhost-user.
pub fn find() -> Option<PathBuf> {
    let named = std::env::var_os("CAPSA_PASST").map(PathBuf::from);
    let candidates = named.into_iter().chain(find_program("passt")).chain([built()]);
    candidates.into_iter().find(|path| {
        // It says its usage on either stream, by version, and the older ones fail at it.
        let help = Command::new(path).arg("--help").output();
        help.is_ok_and(|said| plan::passt_suffices(&[said.stdout, said.stderr].concat()))
    })
}

/// Builds it.
pub(super) fn build() -> Result<(), Unmet> {
    let apt = Apt::sources(SUITE)?;
    let to = built();
    let to = to.parent().expect("a program is in a directory");
    fs::create_dir_all(to).map_err(Unmet::Files)?;
    let scratch = tempfile::tempdir_in(to).map_err(Unmet::Files)?;
    // The archive as its authors made it: what Debian adds is for its package.
    let download = ["source", "--download-only", "--tar-only", "passt"];
    command::output(apt.get().args(download).current_dir(scratch.path()))?;
    let archive = only_entry(scratch.path())?;
    let source = scratch.path().join("source");
    fs::create_dir(&source).map_err(Unmet::Files)?;
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(&archive).args(["--strip-components=1", "-C"]).arg(&source);
    command::output(&mut unpack)?;

    // By its name: without git's history it would call its version unknown.
    let version = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let version = version.trim_start_matches("passt_").trim_end_matches(".orig.tar.xz");
    // The first looks for the second beside it, and grumbles where there is none.
    let programs: &[_] = match cfg!(target_arch = "x86_64") {
        true => &["passt.avx2", "passt"],
        false => &["passt"],
    };
    let mut make = Command::new("make");
    make.current_dir(&source).args(programs).arg(format!("VERSION={version}"));
    command::output(&mut make)?;
    for program in programs {
        fs::rename(source.join(program), to.join(program)).map_err(Unmet::Files)?;
    }
    Ok(())
}

/// Where [`build`] puts it.
fn built() -> PathBuf {
    workspace::target_directory().join("passt/passt")
}

fn only_entry(dir: &Path) -> Result<PathBuf, Unmet> {
    let mut entries = fs::read_dir(dir).map_err(Unmet::Files)?.flatten();
    let missing = || std::io::Error::other("apt-get downloaded nothing");
    Ok(entries.next().ok_or_else(missing).map_err(Unmet::Files)?.path())
}
