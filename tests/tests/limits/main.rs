//! Owner processes at their limits: few descriptors, closed standard streams, signal handling that gets
//! in the way, and many idle VMs.

mod closed_stdio;
mod idle;
mod owner_process;
mod resources;
