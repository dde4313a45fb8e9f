//! The system-call contract: everything that is unsafe or differs between operating systems.
//!
//! The rest of the crate sees these items and no `cfg`:
//!
//! | item | Linux | macOS |
//! | --- | --- | --- |
//! | [`Poll`], [`Source`] | epoll | kqueue |
//! | [`ExitWatch`] | a pidfd | a kqueue process filter |
//! | [`before_exec`] | name given to the guardian, descriptors passed on | the same |
//! | [`prepare_exec`] | close-on-exec for every descriptor, default signals | default signals |
//! | [`host`] | `/proc`, `/dev/kvm` | `sysctl` |
//! | [`open_pty`] | the same | the same |

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
mod poll;
mod unix;

#[cfg(target_os = "linux")]
use linux as os;
#[cfg(target_os = "macos")]
use macos as os;

pub(crate) use os::{DESCRIPTORS, ExitWatch, SOCKET_PATH_MAX, host, start_time};
pub(crate) use poll::{Poll, Ready, Source};
#[cfg(test)]
pub(crate) use unix::listen_with_a_short_queue;
pub(crate) use unix::{
    Peek, Pty, before_exec, connect, open_pty, peek, prepare_exec, set_nonblocking, signal_group,
    wait_exited,
};
