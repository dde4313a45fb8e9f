//! Errors of the host at reading and writing disk images, e.g. because its file system is full.
//!
//! By default the guest gets an I/O error, as from a broken disk. With
//! [`LinuxVmBuilder::on_disk_error`](crate::LinuxVmBuilder::on_disk_error) the guest is paused instead.
//! Either way the error is in [`VmHandle::disk_errors`](crate::VmHandle::disk_errors), is an event of
//! [`embed`](crate::embed::VmEvent::DiskError) and a warning in the log, on backends that report it
//! ([`BackendCapabilities::disk_errors`](crate::backend::BackendCapabilities::disk_errors)).

pub use capsa_proto::backend::{DiskError, DiskOperation};
pub use capsa_proto::spec::DiskErrorPolicy;
