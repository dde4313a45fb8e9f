//! Commands through the agent, with the real agent as a process of this host in place of a guest.

#[cfg(target_os = "linux")]
mod commands;
