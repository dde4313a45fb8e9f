//! The hypervisor backends: what each supports, why one was rejected, and the launch plan of a VM.
//!
//! | question | items |
//! | --- | --- |
//! | what can this host run? | [`backends()`], [`BackendReport`], [`Availability`], [`HelperReport`] |
//! | what does a backend support? | [`BackendCapabilities`], [`Feature`], [`MissingFeature`] |
//! | why was a description rejected? | [`Violation`], [`ViolationKind`], [`Violations`] |
//! | why was a backend rejected? | [`Rejection`], [`Reason`] |
//! | what is started? | [`LaunchPlan`], [`PlannedProcess`], [`PlannedMount`], [`Note`] |
//! | how did the hypervisor exit? | [`Exit`] |
//!
//! The backends themselves are not part of the API: a program selects one by name with
//! [`LinuxVmBuilder::backend`](crate::LinuxVmBuilder::backend).

pub(crate) mod choice;
mod launch_plan;

pub use choice::{BackendReport, HelperReport, Rejection, backends};
pub use launch_plan::{LaunchPlan, PlannedMount, PlannedProcess};

pub use crate::error::Violations;
pub use capsa_proto::backend::{Availability, Feature, MissingFeature, Version};
pub use capsa_proto::capabilities::{
    BackendCapabilities, BootMethodSupport, GuestOsSupport, ImageFormatSupport, NetworkModeSupport,
    Violation, ViolationKind,
};
pub use capsa_proto::host::Reason;
pub use capsa_proto::lifecycle::Exit;
pub use capsa_proto::plan::{Note, NoteLevel};
