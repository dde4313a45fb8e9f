//! Virtual machines for other programs: one API, several hypervisors, any event loop.
//!
//! ```no_run
//! use capsa::{Capsa, DiskImage, LinuxDirectBootConfig, MountMode};
//!
//! # async fn main_() -> capsa::Result<()> {
//! let config = LinuxDirectBootConfig {
//!     kernel: "./bzImage".into(),
//!     initrd: "./initrd".into(),
//!     disk: DiskImage::new("./rootfs.qcow2"),
//! };
//! let vm = Capsa::vm(config)
//!     .cpus(2)
//!     .memory_mb(2048)
//!     .share("./workspace", "/workspace", MountMode::ReadWrite)
//!     .console_enabled()
//!     .build()
//!     .await?;
//! vm.start().await?;
//! let mut console = vm.console().await?;
//! console.login("root", None).await?;
//! println!("{}", console.run_command("uname -a", "# ").await?);
//! vm.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Where everything is
//!
//! | you want to | look at |
//! | --- | --- |
//! | describe a machine | [`Capsa::vm`], [`LinuxDirectBootConfig`], [`LinuxBootConfig`], [`LinuxVmBuilder`] |
//! | run it from async code, on any executor | [`VmHandle`], [`VmConsole`] |
//! | wait for what a guest says, log in, run commands | [`VmConsole`], [`Pattern`], [`manual::console`] |
//! | talk to a program in the guest | [`LinuxVmBuilder::vsock`], [`LinuxVmBuilder::vsock_port`], [`VmHandle::vsock_connect`], [`VmHandle::vsock_listen`] |
//! | run it from your own event loop | [`embed::Vm`]: one descriptor, one deadline, one call |
//! | run it without any of that | [`blocking`] (feature `blocking`) |
//! | test a program of yours without a hypervisor | [`testing`], [`manual::testing`] |
//! | record a console, and play it again | [`Recording`], [`testing::recording`] |
//! | see what would be started | [`LinuxVmBuilder::plan`] |
//! | see what this host can do | [`backends()`] |
//! | remove now what a program that was killed left, instead of at the next start | [`run_dir::sweep`] |
//! | replace a script that starts a hypervisor | `manual::migration`, and the service `examples/devvm.rs` |
//! | do it at a shell | [`manual::cli`] |
//! | understand how it is built | [`manual::architecture`], [`manual::embedding`] |
//!
//! # Promises
//!
//! - **Everything asked for is honoured or refused before anything is spawned**, all problems at
//!   once, each with the field, the reason and what to change ([`Error::InvalidConfig`]).
//! - **Nothing is left behind.** Dropping the last [`VmHandle`] kills the machine. When this program
//!   dies, even of SIGKILL, its hypervisors die too.
//! - **The console is kept from its first byte**, whether or not anybody reads: the last 1 MiB, with
//!   what was dropped counted, or all of it, with the guest held back
//!   ([`LinuxVmBuilder::scrollback`]).
//! - No signal handler is installed, and no child reaped that was not started here.
//!
//! # Environment
//!
//! | variable | what it does |
//! | --- | --- |
//! | `CAPSA_BACKEND` | the backend, where the program names none |
//! | `CAPSA_QEMU`, `CAPSA_CLOUD_HYPERVISOR`, `CAPSA_VFKIT`, `CAPSA_VIRTIOFSD`, `CAPSA_PASST`, `CAPSA_VHOST_DEVICE_VSOCK` | the program, instead of a search |
//! | `CAPSA_RUN_DIR` | where run directories are, instead of `$XDG_RUNTIME_DIR/capsa` or `/tmp/capsa-UID` |
//! | `TMPDIR` | where what a guest writes to an ephemeral disk goes on Linux, instead of `/var/tmp` |
//!
//! # Features
//!
//! `async` (default): [`VmHandle`] and [`VmConsole`]. `blocking`: the same without an executor.
//! `regex` (default): [`Pattern::regex`]. `mio`: [`embed::Vm`] as a source of mio's. `tokio`:
//! `embed::TokioVm`, and tokio's traits on the halves of a console. Without any: [`embed`] alone. Each
//! only adds; no runtime comes by default, and [`VmHandle`] needs none of these under tokio.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod backends;
mod builder;
mod config;
mod disk;
pub mod embed;
mod error;
pub mod manual;
mod recording;
mod share;
pub mod testing;

#[cfg(feature = "blocking")]
pub mod blocking;
#[cfg(feature = "async")]
mod console;
#[cfg(feature = "async")]
mod driver;
#[cfg(feature = "async")]
mod handle;
#[cfg(feature = "async")]
mod stdio;
#[cfg(feature = "async")]
mod vsock;

pub use backends::{BackendReport, HelperReport, Rejection, backends};
pub use builder::LinuxVmBuilder;
pub use config::{Capsa, LinuxBootConfig, LinuxDirectBootConfig, VmConfig};
pub use disk::DiskImage;
pub use error::{Error, Result, Violations};
pub use recording::Recording;
pub use share::SharedDir;

#[cfg(feature = "async")]
pub use console::{
    ConsoleLog, ConsoleReader, ConsoleWriter, Lines, Logged, Match, RunningCommand, VmConsole,
};
#[cfg(feature = "async")]
pub use driver::Driver;
#[cfg(feature = "async")]
pub use handle::VmHandle;
#[cfg(feature = "async")]
pub use vsock::{VsockListener, VsockStream};

pub use capsa_io::{ephemeral, run_dir};
pub use capsa_proto::backend::{Availability, Feature, MissingFeature, Version};
pub use capsa_proto::capabilities::{
    BackendCapabilities, BootMethodSupport, GuestOsSupport, ImageFormatSupport, NetworkModeSupport,
    Violation, ViolationKind,
};
pub use capsa_proto::cmdline::{CmdlineArg, CmdlineError, KernelCmdline};
pub use capsa_proto::codec::asciicast;
pub use capsa_proto::console::{
    CommandOutput, FaultReport, GuestFault, NearMatch, Overflow, Pattern, PatternError,
    ScriptError, Stripper,
};
pub use capsa_proto::host::Reason;
pub use capsa_proto::lifecycle::{DEFAULT_GRACE, EndedBy, Exit, StopReport, StopStep, VmStatus};
pub use capsa_proto::plan::{self, LaunchPlan, Note, NoteLevel};
pub use capsa_proto::spec::{
    Accelerator, ConsoleMode, GuestOs, ImageFormat, MountMode, NetworkMode, RebootPolicy,
    ResourceConfig, ShareMechanism, Virtio9pConfig, VirtioFsConfig, VsockDirection,
};
pub use capsa_proto::text::{escape_control, escape_control_line};

/// The program of the README is compiled, so that it cannot rot.
#[cfg(all(doctest, feature = "blocking"))]
#[doc = include_str!("../../README.md")]
struct Readme;
