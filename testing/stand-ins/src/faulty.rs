//! Stand-ins with faults. The file `faults` beside the program lists them: one fault as JSON on each line.
//!
//! It is a file because Capsa passes only allow-listed environment variables to a hypervisor, and because
//! a fault may have to occur before any request.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use super::cloud_hypervisor::ChvFault;
use super::vfkit::VfkitFault;

/// The name of the file with the faults, beside the path with which the program was started.
const FAULTS: &str = "faults";

/// A stand-in with faults, in a directory of its own. Dropping it removes the directory.
#[derive(Debug)]
pub struct FaultyStandIn {
    dir: TempDir,
    name: &'static str,
}

impl FaultyStandIn {
    /// A `cloud-hypervisor` with all of `faults`.
    ///
    /// # Panics
    ///
    /// When its directory cannot be created.
    pub fn cloud_hypervisor(faults: &[ChvFault]) -> Self {
        Self::new("cloud-hypervisor", super::CLOUD_HYPERVISOR.path(), faults)
    }

    /// A `vfkit` with all of `faults`.
    ///
    /// # Panics
    ///
    /// When its directory cannot be created.
    pub fn vfkit(faults: &[VfkitFault]) -> Self {
        Self::new("vfkit", super::VFKIT.path(), faults)
    }

    /// The path of the program.
    pub fn program(&self) -> PathBuf {
        self.dir.path().join(self.name)
    }

    fn new(name: &'static str, program: &Path, faults: &[impl Serialize]) -> Self {
        let make = || -> io::Result<Self> {
            let this = Self { dir: tempfile::tempdir()?, name };
            let lines: Result<Vec<_>, _> = faults.iter().map(serde_json::to_string).collect();
            fs::write(this.dir.path().join(FAULTS), lines?.join("\n"))?;
            std::os::unix::fs::symlink(program, this.program())?;
            Ok(this)
        };
        make().expect("a directory for a faulty stand-in")
    }
}

/// The faults of the program that was started with the path `called`.
///
/// # Errors
///
/// When the file cannot be read, or a line is not a fault.
pub(super) fn read_faults<F: DeserializeOwned>(called: &Path) -> Result<Vec<F>, String> {
    let file = called.with_file_name(FAULTS);
    let text = match fs::read_to_string(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(|error| format!("{}: {error}", file.display()))?,
    };
    let fault = |line: &str| {
        serde_json::from_str(line)
            .map_err(|why| format!("{}: invalid fault `{line}`: {why}", file.display()))
    };
    text.lines().map(fault).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::BrokenReply;
    use super::super::vfkit::VfkitCall;
    use super::*;

    #[test]
    fn faults_round_trip_through_the_file() {
        let faults = [
            VfkitFault::SocketAfter(Duration::from_millis(300)),
            VfkitFault::BreaksReply(BrokenReply::Half, VfkitCall::HardStop),
            VfkitFault::Exits(VfkitCall::Stop, 3),
            VfkitFault::NoSocket,
        ];
        let faulty = FaultyStandIn::vfkit(&faults);
        assert_eq!(read_faults(&faulty.program()), Ok(faults.to_vec()));
        for line in ["nothing", "\"Nothing\"", "{\"Exits\":[\"Stop\",300]}"] {
            fs::write(faulty.dir.path().join(FAULTS), line).unwrap();
            assert!(
                read_faults::<VfkitFault>(&faulty.program()).unwrap_err().contains(line),
                "{line}"
            );
        }
    }
}
