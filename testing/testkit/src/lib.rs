//! VMs for tests, built through Capsa's public API.
//!
//! - [`vm`]: VMs with the guests of [`capsa_fixtures`].
//! - [`fake`]: isolated tests, and VMs on the fake QEMU.
//! - [`drop_futures`]: drops futures at random awaits.
//! - [`idle`]: measures the resources of idle VMs.
//! - [`lab`]: an emulated host with a working KVM.
//! - [`processes`]: lists the processes of the host.
//! - [`soak`]: random commands in real guests.
//! - [`run_dirs`]: leftovers and held locks in the base directory of run directories.
//!
//! The modules of [`capsa_fixtures`] that most tests use are exported under the same names.

pub mod drop_futures;
pub mod fake;
pub mod idle;
pub mod lab;
pub mod processes;
pub mod run_dirs;
pub mod soak;
pub mod vm;

pub use capsa_fixtures::{
    command, guest, host, nano, programs, skip, skip_task, test_name, workspace,
};
