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
//! # Where to look
//!
//! The root has what nearly every program needs: the description of a VM, its handle, its console, its
//! status, and the error. The rest is in modules:
//!
//! | module | contents |
//! | --- | --- |
//! | [`console`] | patterns, readers and writers, commands; escapes for what a guest prints |
//! | [`network`] | what the guest reaches, forwarded ports, services for the guest |
//! | [`vsock`] | streams between host and guest without a network |
//! | [`agent`] | the agent in the guest: when a VM has one |
//! | [`exec`] | commands in the guest through its agent: outputs, input, exit status, signals |
//! | [`backend`] | what each hypervisor supports; why a description was rejected; the launch plan |
//! | [`host`] | run directories on this host, and their sweep |
//! | [`cmdline`] | the kernel command line: parse, change, build |
//! | [`embed`] | [`embed::Vm`] for your own event loop: one descriptor, one deadline, one call |
//! | [`blocking`] | the same API without async (feature `blocking`) |
//! | [`testing`] | tests without a hypervisor (feature `testing`) |
//! | [`recording`] | recordings of consoles, to play or to replay (feature `recording`) |
//! | [`manual`] | longer explanations |
//!
//! | task | start at |
//! | --- | --- |
//! | describe a VM | [`Capsa::vm`], [`LinuxDirectBootConfig`], [`LinuxBootConfig`], [`LinuxVmBuilder`] |
//! | run it from async code, on any executor | [`VmHandle`] |
//! | wait for console output, log in, run commands | [`VmConsole`], [`manual::console`] |
//! | connect to a program in the guest | [`LinuxVmBuilder::vsock`], [`VmHandle::vsock_connect`] |
//! | decide what the guest reaches, forward ports, serve the guest | [`network`], `manual::network` |
//! | allow a guest a few targets only | [`network::NetworkPolicy`], [`manual::policy`] |
//! | make it faster | [`manual::performance`] |
//! | share directories, read results safely | [`SharedDir`], `manual::shares` |
//! | run it from your own event loop | [`embed::Vm`], [`manual::embedding`] |
//! | test your program without a hypervisor | [`testing::vm`], [`manual::testing`] |
//! | see what would be started | [`LinuxVmBuilder::plan`] |
//! | see what this host supports | [`backend::backends`] |
//! | replace a script that starts a hypervisor | `manual::migration`, and the service `examples/devvm.rs` |
//! | use the command `capsa` | [`manual::cli`] |
//! | understand the implementation | [`manual::architecture`] |
//!
//! # Guarantees
//!
//! - **Every setting is applied, or the VM is rejected before anything is started.** All violations
//!   are reported at once, each with field, reason and remedy ([`Error::InvalidConfig`]).
//! - **Nothing is left behind.** Dropping the last [`VmHandle`] kills the VM. When this program
//!   dies, even by SIGKILL, its hypervisors die too.
//! - **The console is kept from its first byte**, with or without a reader: either the last 1 MiB,
//!   with a count of the dropped bytes, or all of it, pausing the guest
//!   ([`LinuxVmBuilder::scrollback`]).
//! - Capsa installs no signal handler and reaps no child that it did not start.
//!
//! # Environment
//!
//! | variable | effect |
//! | --- | --- |
//! | `CAPSA_BACKEND` | the backend, if the program forces none |
//! | `CAPSA_QEMU`, `CAPSA_CLOUD_HYPERVISOR`, `CAPSA_VFKIT`, `CAPSA_VIRTIOFSD`, `CAPSA_VHOST_DEVICE_VSOCK` | the path of the program; disables the search |
//! | `CAPSA_RUN_DIR` | the directory of run directories; default: `$XDG_RUNTIME_DIR/capsa`, otherwise `/tmp/capsa-UID` |
//! | `TMPDIR` | on Linux, the directory for data that guests write to ephemeral disks; default: `/var/tmp` |
//!
//! # Logging
//!
//! The library emits `tracing` events: probes, programs with their arguments, control messages and
//! the hypervisor's standard error at level `debug`, warnings about slow calls at `warn`. It installs
//! no subscriber. The variable `CAPSA_LOG` and the flag `--log-level` belong to the command `capsa`.
//!
//! # Features
//!
//! - `async` (default): [`VmHandle`] and [`VmConsole`].
//! - `blocking`: the same API without an executor.
//! - `regex` (default): [`console::Pattern::regex`].
//! - `mio`: [`embed::Vm`] implements mio's `Source`.
//! - `tokio`: `embed::TokioVm`, and tokio's traits for the halves of a console.
//! - `testing`: the module [`testing`], with simulated guests. Enable it in `[dev-dependencies]`.
//! - `recording`: the module [`recording`].
//! - `agent`: the program of the guest [`agent`]; without it no guest can have the agent.
//!
//! Without features there is no async code: [`embed`] runs VMs. A feature only adds API. No feature is needed to
//! use [`VmHandle`] under tokio, and no runtime is a default dependency.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]

pub mod agent;
pub mod backend;
mod builder;
pub mod cmdline;
mod config;
pub mod console;
mod disk;
pub mod disk_errors;
pub mod embed;
mod error;
pub mod host;
#[doc(hidden)]
pub mod internal;
pub mod manual;
pub mod network;
#[cfg(feature = "recording")]
#[cfg_attr(docsrs, doc(cfg(feature = "recording")))]
pub mod recording;
mod share;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;
pub mod vsock;

#[cfg(feature = "blocking")]
#[cfg_attr(docsrs, doc(cfg(feature = "blocking")))]
pub mod blocking;
#[cfg(feature = "async")]
mod driver;
#[cfg(feature = "async")]
#[cfg_attr(docsrs, doc(cfg(feature = "async")))]
pub mod exec;
#[cfg(feature = "async")]
mod handle;
#[cfg(feature = "async")]
mod stdio;

pub use builder::LinuxVmBuilder;
pub use config::{Capsa, LinuxBootConfig, LinuxDirectBootConfig, VmConfig};
pub use disk::{DiskImage, VmDisk};
pub use error::{Error, Result};
pub use share::SharedDir;

#[cfg(feature = "async")]
#[cfg_attr(docsrs, doc(cfg(feature = "async")))]
pub use console::vm_console::VmConsole;
#[cfg(feature = "async")]
#[cfg_attr(docsrs, doc(cfg(feature = "async")))]
pub use handle::VmHandle;

pub use capsa_proto::cmdline::{CmdlineArg, KernelCmdline};
pub use capsa_proto::lifecycle::{EndedBy, StartError, StopReport, StopStep, VmStatus};
pub use capsa_proto::spec::{
    Accelerator, ConsoleMode, GuestOs, ImageFormat, MountMode, NetworkMode, RebootPolicy,
    ResourceConfig, ShareMechanism, Virtio9pConfig, VirtioFsConfig,
};

/// Compiles the program in the README as a doctest.
#[cfg(all(doctest, feature = "blocking"))]
#[doc = include_str!("../../README.md")]
struct Readme;
