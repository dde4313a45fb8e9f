//! The backends for cloud-hypervisor and vfkit: VMMs that misbehave, the stand-ins for both, and what the
//! real cloud-hypervisor does.

mod devices;
mod faults;
mod landlock;
mod qcow2;
mod stand_ins;
mod transcript;
