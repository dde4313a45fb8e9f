//! Test support: VMs without a hypervisor, and console output in the reports of failed tests.
//!
//! This module needs the feature `testing`, which is not in the default build.
//!
//! A program that automates a guest can be tested in milliseconds without a kernel, a disk or a
//! hypervisor, and without changes: it gets the same [`VmHandle`](crate::VmHandle), the same
//! [`VmConsole`](crate::VmConsole), the same [`embed::Vm`]. Only the guest behind
//! the console is simulated; lifecycle, stop ladder, time limits, waits and reports are the real
//! ones.
//!
//! | a guest that | type |
//! | --- | --- |
//! | follows a script of the test: replies, fails, panics, hangs | [`ScriptedGuest`] |
//! | replays a recorded guest | [`recording`], from a file that [`Recording`](crate::recording::Recording) made |
//!
//! [`vm`] makes a builder for either; [`LinuxVmBuilder::simulated_guest`] replaces the guest of an
//! existing builder. There is no network, disk, share or vsock: only the console, the time limit,
//! the scrollback and the reboot policy of the builder are used.
//!
//! A login accepts a prompt only after it has been unchanged for a tenth of a second. With a
//! simulated guest, the VM's clock skips this delay when the guest waits for input. All other times
//! are real. Recordings use the clock of the VM, so they contain the skipped time.
//!
//! ```
//! # #[cfg(feature = "blocking")] {
//! use capsa::testing::{self, GuestReply, ScriptedGuest, TestResult};
//!
//! fn kernel(console: &mut capsa::blocking::VmConsole) -> capsa::Result<String> {
//!     console.login("root", Some("secret"))?;
//!     let reply = console.run("uname -r", None)?;
//!     Ok(String::from_utf8_lossy(&reply.output).trim().to_owned())
//! }
//!
//! # fn test() -> TestResult {
//! let guest = ScriptedGuest::new()
//!     .login("root", Some("secret"))
//!     .shell("# ")
//!     .on("uname -r", GuestReply::output("6.1.0\n"));
//! let vm = testing::vm(guest).build_blocking()?;
//! let _guard = testing::show_on_failure(&vm);
//! vm.start()?;
//! assert_eq!(kernel(&mut vm.console()?)?, "6.1.0");
//! vm.stop()?;
//! # Ok(())
//! # }
//! # test().unwrap();
//! # }
//! ```

#[cfg(feature = "async")]
mod show;
#[cfg(feature = "async")]
mod transcript;

use std::io;
use std::path::Path;
use std::sync::Arc;

use capsa_io::context;
use capsa_io::vm_io::SimulatedIo;
use capsa_proto::capabilities::{Violation, ViolationKind};
use capsa_proto::plan::{self, RunDirPlan};
use capsa_proto::sim;

#[cfg(feature = "async")]
#[cfg_attr(docsrs, doc(cfg(feature = "async")))]
pub use show::{Failure, ShowOnFailure, TestResult, show_on_failure};

pub use capsa_proto::sim::{
    GuestReply, Replay, ReplayError, ReplayInput, ReplaySpeed, ScriptedGuest, SimulatedGuest,
};

use crate::backend::choice::planned_run_dir;
use crate::embed::Options;
use crate::{Error, LinuxVmBuilder, ResourceConfig, Result, embed};

/// A builder of a VM with a simulated guest and a console.
pub fn vm(guest: impl Into<SimulatedGuest>) -> LinuxVmBuilder {
    LinuxVmBuilder::new("/dev/null".into(), None, Vec::new())
        .console_enabled()
        .simulated_guest(guest)
}

/// Reads a recording, to replay it.
///
/// # Errors
///
/// [`Error::Io`] when the file cannot be read, is not an asciicast v2 file, is longer than 64 MiB,
/// or has no end record because its recording was cut off.
pub fn recording(path: impl AsRef<Path>) -> Result<Replay> {
    let path = path.as_ref();
    let what = || format!("cannot replay {}", path.display());
    let file = std::fs::read(path).map_err(|error| context::failed(what(), error))?;
    let invalid = |error| context::failed_as(io::ErrorKind::InvalidData, what(), error);
    Ok(Replay::parse(&file).map_err(invalid)?)
}

impl LinuxVmBuilder {
    /// Replaces the guest by a simulated one; see [`testing`](crate::testing). The kernel, disks,
    /// shares and network are ignored, and no backend is chosen.
    #[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
    pub fn simulated_guest(mut self, guest: impl Into<SimulatedGuest>) -> Self {
        self.simulated = Some(guest.into());
        self
    }

    /// The simulated guest and its launch plan, if there is one. Inspects nothing on the host.
    pub(crate) fn simulated(&self) -> Result<Option<(SimulatedGuest, plan::LaunchPlan)>> {
        let Some(guest) = &self.simulated else { return Ok(None) };
        let spec = self.spec().map_err(Error::from_violations)?;
        for (field, device, is_set) in [
            ("vsock", "vsock device", spec.vsock),
            ("virtio_console", "virtio console", spec.virtio_console),
            ("forwards", "network", !spec.network_options.forwards.is_empty()),
            ("services", "network", !spec.network_options.services.is_empty()),
            ("network_pcap", "network", spec.network_options.pcap.is_some()),
            ("network_log", "network", spec.network_options.log.is_some()),
        ] {
            if is_set {
                return Err(Error::from_violations(vec![Violation::new(
                    field,
                    ViolationKind::Unsupported,
                    format!("a simulated guest has no {device}"),
                    format!("remove {field}, or test with a hypervisor"),
                )]));
            }
        }
        let at = RunDirPlan::new(planned_run_dir()?);
        let plan = sim::plan(&at, spec.console, spec.on_reboot, spec.time_limit);
        Ok(Some((guest.clone(), plan)))
    }
}

impl embed::Vm {
    /// A VM with a simulated guest. It has no run directory.
    pub(crate) fn simulated(
        plan: plan::LaunchPlan,
        guest: SimulatedGuest,
        options: Options,
        resources: ResourceConfig,
    ) -> Result<Self> {
        let io = SimulatedIo::new(guest, options.read_budget)?;
        let backend = Arc::new(sim::SimBackend::default());
        Ok(Self::with_io(Arc::new(plan), backend, Box::new(io), options, resources))
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn recording_missing_file_keeps_cause() {
        let error = recording("/nowhere/x.cast").unwrap_err();
        assert!(error.to_string().contains("cannot replay /nowhere/x.cast: "), "{error}");
        let cause = error.source().and_then(|error| error.source());
        let cause = cause.and_then(|error| error.downcast_ref::<std::io::Error>()).unwrap();
        assert!(cause.raw_os_error().is_some(), "{cause:?}");
    }
}
