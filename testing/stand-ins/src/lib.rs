//! Stand-ins for hypervisors that cannot run everywhere: the real ones' command lines and APIs, and
//! behind them a real guest in QEMU's software emulation, so that what is said about the real ones
//! can be tried on any Linux machine.
//!
//! - [`mod@cloud_hypervisor`] needs no KVM.
//! - [`mod@vfkit`] needs no Mac.
//!
//! What they have in common is here: `emulator` runs the guest, `child` starts what must not
//! outlive a stand-in, `http` is what is the same in every server of HTTP, and [`Faulty`] orders
//! a stand-in to break.

mod child;
pub mod cloud_hypervisor;
mod emulator;
pub mod fake_qemu;
mod faulty;
mod http;
pub mod vfkit;

pub use faulty::Faulty;
pub use http::Broken;

use capsa_fixtures::programs::TestProgram;

/// The status a stand-in ends with when it does not know, or would ignore, a part of what it was
/// told.
pub const UNKNOWN_CONFIG: u8 = 70;
/// The status a stand-in ends with when its emulator died under a running guest.
pub const EMULATOR_DIED: u8 = 71;

/// The stand-in for cloud-hypervisor.
pub const CLOUD_HYPERVISOR: TestProgram = TestProgram::new("stand-in-cloud-hypervisor");
/// The stand-in for vfkit.
pub const VFKIT: TestProgram = TestProgram::new("stand-in-vfkit");
