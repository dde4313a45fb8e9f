//! What drives VMs: `embed::Vm` in event loops, handles on async runtimes, and futures that are dropped.

mod basic_usage;
mod cancellation;
mod contract;
mod driver;
// It finds the descriptors of pollers in /proc.
#[cfg(target_os = "linux")]
mod driver_failure;
mod edge_triggered;
mod event_loops;
mod loops;
mod runtimes;
