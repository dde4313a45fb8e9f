//! All I/O of Capsa: processes, sockets, ptys, polling, the clock, directories.
//!
//! `capsa-proto` makes the decisions; this crate carries them out. It knows no hypervisor by name:
//! programs and control messages come from a [`LaunchPlan`](capsa_proto::plan::LaunchPlan), and a
//! [`HypervisorBackend`](capsa_proto::backend::HypervisorBackend) interprets replies and events.
//!
//! | module | contents |
//! | --- | --- |
//! | [`vm_io`] | the I/O of one VM: that of its processes, or of a simulated guest |
//! | [`network`] | the network of a VM: the stack's link to the guest and its sockets |
//! | [`context`] | says of an error what failed |
//! | [`random`] | distinct numbers and names |
//! | [`reactor`] | waits for many VMs at once |
//! | [`run_dir`] | the private directory of a VM, and the sweep |
//! | [`shared_file`] | files of a directory that a guest can write |
//! | [`mod@facts`] | host facts for validation |
//! | [`vsock`] | vsock connections in both directions |
//! | [`probe`] | probes programs for versions and options |
//! | `watchdog` | kills child processes when this program dies |
//! | [`ephemeral`] | ephemeral disks: overlays and clones |
//! | `oom` | whether the kernel killed a process for lack of memory |
//! | `process`, `inherited`, `stream`, `clock` | a child process, the descriptors that it inherits, a byte stream, the clock |
//! | `sys` | the system calls, and the only `unsafe` code |
//!
//! This crate installs no signal handler and reaps no child that it did not start.

pub mod clock;
pub mod context;
pub mod ephemeral;
pub mod facts;
mod inherited;
mod initrd;
#[cfg(feature = "kernel-modules")]
pub mod kernel_modules;
pub mod network;
mod oom;
pub mod probe;
mod process;
pub mod random;
pub mod reactor;
pub mod run_dir;
pub mod shared_file;
mod stream;
mod sys;
pub mod vm_io;
pub mod vsock;
mod watchdog;

pub use sys::ForkGuard;
#[cfg(all(target_os = "linux", feature = "testing"))]
pub use sys::tap;
