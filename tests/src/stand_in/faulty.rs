//! A stand-in that breaks on order: one fault a line of the file `faults` beside the program.
//!
//! A file, because the environment of a hypervisor is allow-listed, and because a fault may have
//! to happen before anything else can be said.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fs, io};

use tempfile::TempDir;

use super::cloud_hypervisor::Fault as CloudHypervisorFault;
use super::vfkit::Fault as VfkitFault;

/// The file beside the program, as it was called, that orders faults.
const FAULTS: &str = "faults";

/// A stand-in of a test's own, in a directory of its own, that breaks on order.
#[derive(Debug)]
pub struct Faulty {
    dir: TempDir,
    name: &'static str,
}

impl Faulty {
    /// A `cloud-hypervisor` with all of `faults`.
    ///
    /// # Panics
    ///
    /// When its directory cannot be made.
    pub fn cloud_hypervisor(faults: &[CloudHypervisorFault]) -> Self {
        Self::new("cloud-hypervisor", &super::cloud_hypervisor(), faults)
    }

    /// A `vfkit` with all of `faults`.
    ///
    /// # Panics
    ///
    /// When its directory cannot be made.
    pub fn vfkit(faults: &[VfkitFault]) -> Self {
        Self::new("vfkit", &super::vfkit(), faults)
    }

    /// Where it is.
    pub fn program(&self) -> PathBuf {
        self.dir.path().join(self.name)
    }

    fn new(name: &'static str, program: &Path, faults: &[impl Display]) -> Self {
        let make = || -> io::Result<Self> {
            let this = Self { dir: tempfile::tempdir()?, name };
            let lines: String = faults.iter().map(|fault| format!("{fault}\n")).collect();
            fs::write(this.dir.path().join(FAULTS), lines)?;
            std::os::unix::fs::symlink(program, this.program())?;
            Ok(this)
        };
        make().expect("a directory for a faulty stand-in")
    }
}

/// The faults that are ordered of a program that was `called` by this path.
///
/// # Errors
///
/// When the order cannot be read, or a line of it is no fault.
pub(super) fn ordered<F: FromStr<Err = String>>(called: &Path) -> Result<Vec<F>, String> {
    let order = called.with_file_name(FAULTS);
    let in_order = |why: String| format!("{}: {why}", order.display());
    match fs::read_to_string(&order) {
        Ok(text) => text.lines().map(str::parse).collect::<Result<_, _>>().map_err(in_order),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(in_order(error.to_string())),
    }
}
