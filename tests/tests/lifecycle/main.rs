//! The life of a VM: validation, starts that fail, QEMU processes that misbehave, and stops.
//! What every backend must do is in the conformance suite.

mod failed_starts;
mod misbehaving_qemu;
mod network_policy;
mod run_dir;
mod stops;
mod validation;
mod vcpu_failure;
