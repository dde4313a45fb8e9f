//! Owner processes at their limits: few descriptors, closed standard streams, signal handling that gets
//! in the way, many idle VMs, and locked run directories.

mod closed_stdio;
mod idle;
mod owner_process;
mod resources;
mod run_dir_lock;
