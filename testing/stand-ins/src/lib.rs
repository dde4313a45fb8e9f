//! Stand-ins for hypervisors that cannot run on every host. They have the command lines and APIs of the
//! real ones, and run a real guest in QEMU's software emulation, so that the backends can be tested on any
//! Linux host.
//!
//! - [`mod@cloud_hypervisor`] needs no KVM.
//! - [`mod@vfkit`] needs no Mac.
//! - [`mod@fake_qemu`] has no guest: it carries out the commands in its command line, or runs the agent
//!   of a guest ([`mod@agent_archive`]) as a process of this host.
//!
//! Common parts: [`mod@inherited`] takes inherited descriptors, `emulator` runs the guest, `child` starts processes that die with the stand-in, `http` is
//! a server, and [`FaultyStandIn`] makes a stand-in fail.

pub mod agent_archive;
mod child;
pub mod cloud_hypervisor;
mod emulator;
pub mod fake_qemu;
mod faulty;
mod http;
pub mod inherited;
pub mod vfkit;

pub use faulty::FaultyStandIn;
pub use http::BrokenReply;

use capsa_fixtures::programs::TestProgram;

/// The exit code of a stand-in whose configuration contains something unknown or not implemented.
pub const UNKNOWN_CONFIG: u8 = 70;
/// The exit code of a stand-in whose emulator exited while the guest was running.
pub const EMULATOR_EXITED: u8 = 71;

/// The stand-in for cloud-hypervisor.
pub const CLOUD_HYPERVISOR: TestProgram = TestProgram::new("stand-in-cloud-hypervisor");
/// The stand-in for vfkit.
pub const VFKIT: TestProgram = TestProgram::new("stand-in-vfkit");
