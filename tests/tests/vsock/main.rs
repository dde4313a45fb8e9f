//! vsock listeners and connections on the host's side.

mod connections;
mod listeners;
