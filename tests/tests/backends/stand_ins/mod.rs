//! The stand-ins without Capsa.

mod cloud_hypervisor;
mod vfkit;
mod vfkit_oracle;
mod vfkit_program;
