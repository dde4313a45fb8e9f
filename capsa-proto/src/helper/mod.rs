//! The programs beside the hypervisor: each serves one device of a machine over a socket.
//!
//! Data only, as a backend is: what to look for, what speaks against what was found, and the exact
//! process. They start before the hypervisor, which connects to their sockets, and they are
//! supervised as it is. Backends share them, because all of them speak vhost-user.

pub mod passt;
pub mod vhost_device_vsock;
pub mod virtiofsd;
