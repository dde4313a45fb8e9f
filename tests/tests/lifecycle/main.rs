//! The life of a VM: validation, starts that fail, QEMU processes that misbehave, stops, and owners
//! that die. What every backend must do is in the conformance suite.

mod failed_starts;
mod misbehaving_qemu;
mod owner_death;
mod run_dir;
mod stops;
mod validation;
mod vcpu_failure;
