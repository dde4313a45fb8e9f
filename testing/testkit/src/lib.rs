//! VMs for tests, built through the library as any program would.
//!
//! - [`vm`] builds VMs from the guests of [`capsa_fixtures`].
//! - [`fake`] runs a test alone, on a hypervisor that misbehaves.
//! - [`cut`] drops futures at random moments.
//! - [`idle`] measures what VMs cost while nothing happens.
//! - [`lab`] is an emulated host with a working KVM.
//! - [`processes`] are what runs.
//!
//! What tests need besides is here by its name in [`capsa_fixtures`].

pub mod cut;
pub mod fake;
pub mod idle;
pub mod lab;
pub mod processes;
pub mod vm;

pub use capsa_fixtures::{
    command, guest, host, nano, programs, skip, skip_task, test_name, workspace,
};
