//! Helper processes: each serves one device of a VM to the hypervisor over a socket.
//!
//! Each module has the probe of its program, the blockers found, and the process plan. Helpers start
//! before the hypervisor, which connects to their sockets; the lifecycle supervises both alike. All
//! helpers speak vhost-user, so several backends use the same ones.

pub mod vhost_device_vsock;
pub mod virtiofsd;
