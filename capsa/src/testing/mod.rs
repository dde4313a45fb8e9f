//! For tests: machines without a hypervisor, and transcripts of those that fail.
//!
//! A program that automates a guest can be tested in milliseconds, without a kernel, a disk or a
//! hypervisor, and with no change to it: what it gets is the same [`VmHandle`](crate::VmHandle), the
//! same [`VmConsole`](crate::VmConsole), the same [`embed::Vm`](crate::embed::Vm). Only the guest is
//! played, at the other end of the console; the machine's life, its stop ladder, its time limits,
//! waits and reports are the real ones.
//!
//! | the guest | is made by |
//! | --- | --- |
//! | does what the test says: answers, fails, panics, hangs | [`ScriptedGuest`] |
//! | does again what a real one did | [`recording`], of a file that [`Recording`](crate::Recording) made |
//!
//! [`vm`] makes a machine of either; [`LinuxVmBuilder::simulated_guest`] one of a builder that a program
//! has already. There is no network, disk, share or vsock behind it: the builder is asked for its
//! console, its time limit, its scrollback and what a reboot does, and nothing else is looked at.
//!
//! Where a prompt has to stand unchanged for a tenth of a second before a login believes in it, the
//! clock of a machine that is played is put forward: nobody else could break that silence. All other
//! times are real.
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
//! let _shown = testing::show_on_failure(&vm);
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

#[cfg(feature = "async")]
pub use show::{Failure, ShowOnFailure, TestResult, show_on_failure};

pub use capsa_proto::sim::{
    GuestReply, Replay, ReplayError, ReplayInput, ReplaySpeed, ScriptedGuest, SimulatedGuest,
};

use crate::{Error, LinuxVmBuilder, Result};

/// A machine whose guest is played, with a console. Goes on as any builder does.
pub fn vm(guest: impl Into<SimulatedGuest>) -> LinuxVmBuilder {
    LinuxVmBuilder::new("/dev/null".into(), None, Vec::new())
        .console_enabled()
        .simulated_guest(guest)
}

/// The recording in this file, to be replayed.
///
/// # Errors
///
/// [`Error::Io`] when the file cannot be read, is no asciicast v2 file, or is longer than 64 MiB.
pub fn recording(path: impl AsRef<Path>) -> Result<Replay> {
    let path = path.as_ref();
    let named = |kind, error: &dyn std::fmt::Display| {
        Error::Io(io::Error::new(kind, format!("cannot replay {}: {error}", path.display())))
    };
    let file = std::fs::read(path).map_err(|error| named(error.kind(), &error))?;
    Replay::parse(&file).map_err(|error| named(io::ErrorKind::InvalidData, &error))
}

impl LinuxVmBuilder {
    /// Has the guest played instead of running one; see [`testing`](crate::testing). The kernel, the
    /// disks, the shares and the network are not looked at then, and no backend is chosen.
    pub fn simulated_guest(mut self, guest: impl Into<SimulatedGuest>) -> Self {
        self.simulated = Some(guest.into());
        self
    }
}
