//! The system-call layer: all `unsafe` code and all differences between operating systems.
//!
//! The rest of the crate uses these items and has no `cfg`:
//!
//! | item | Linux | macOS |
//! | --- | --- | --- |
//! | [`Poll`], [`PollSource`] | epoll | kqueue |
//! | [`ForkGuard`] | the same | the same |
//! | [`addresses_of`] | `getaddrinfo` | the same |
//! | [`ExitWatch`] | a pidfd | a kqueue with a process filter |
//! | [`spawn`] | a child in the memory of its parent, as `vfork` | `fork` |
//! | [`connect`], [`listen`] | Unix sockets, on paths of any length | on paths of 103 bytes |
//! | [`prepare_exec`] | close-on-exec for every descriptor, default signals | the same |
//! | [`clone_file`] | `FICLONE`, otherwise a sparse copy | `clonefile`, or an error |
//! | [`open_beneath`], [`open_directory_beneath`] | `openat2`, otherwise no symbolic links | no symbolic links |
//! | [`lock_on`] | the lock of another process on a byte | none |
//! | [`lock_holder`] | the process with a `flock` on a file: `/proc/locks` | none |
//! | [`start_time`] | `/proc` | `libproc` |
//! | [`host`] | `/proc`, `/dev/kvm` | `sysctl` |
//! | [`is_route_to_host`] | a request to the routing tables | the addresses of the interfaces |
//! | [`open_pty`] | the same | the same |
//! | [`is_event_counter`] | an eventfd | never |
//! | [`is_memory_file`] | a file of tmpfs | never |

#[cfg(target_os = "linux")]
mod byte_lock;
mod fork_guard;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "linux")]
mod netlink;
mod poll;
mod resolve;
mod socket;
#[cfg(all(target_os = "linux", feature = "testing"))]
pub mod tap;
mod unix;
#[cfg(target_os = "linux")]
mod vfork;

#[cfg(target_os = "linux")]
use linux as os;
#[cfg(target_os = "macos")]
use macos as os;

pub use fork_guard::ForkGuard;
#[cfg(test)]
pub(crate) use fork_guard::run_in_fork;
pub(crate) use os::{
    DESCRIPTORS, ExitWatch, NO_SIGPIPE, SOCKET_PATH_MAX, clone_file, host, is_event_counter,
    is_memory_file, is_route_to_host, lock_holder, lock_on, open_beneath, open_directory_beneath,
    spawn, start_time,
};
pub(crate) use poll::{Poll, PollSource, PollWaker, ReadyEvents};
pub(crate) use resolve::{NameError, addresses_of};
#[cfg(test)]
pub(crate) use socket::listen_with_a_short_queue;
pub(crate) use socket::{
    accept, connect, connect_blocking, datagram_pair, inet_socket, listen, listen_privately,
    receive_with_descriptors, socket_pair,
};
pub(crate) use unix::{
    ExitState, Pty, ReservedNumbers, at_exit, create_fifo, exit_state, is_writable, null, open_pty,
    prepare_exec, reap, set_nonblocking, signal_group, wait_exited,
};

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, OwnedFd};

/// A process that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockHolder {
    /// Its process id.
    pub pid: u32,
    /// The name of its program.
    pub program: String,
    /// It is suspended, for example by Ctrl-Z or a debugger.
    pub is_stopped: bool,
}

/// A program to start, with everything that its process gets from this one. It leads a process group
/// in `/`, with default signals and no other descriptors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SpawnRequest<'a> {
    /// The absolute path.
    pub(crate) program: &'a str,
    pub(crate) args: &'a [String],
    /// The whole environment.
    pub(crate) env: &'a [(&'static str, OsString)],
    /// Its standard streams. Their numbers are not 0 to 2: see [`ReservedNumbers`].
    pub(crate) streams: &'a [OwnedFd; 3],
    /// Its other descriptors.
    pub(crate) numbered: &'a [InheritedDescriptor],
    /// The watchdog's socket, with which it registers before it executes the program.
    pub(crate) watchdog: Option<BorrowedFd<'a>>,
}

/// The protocol of a packet to route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RouteProtocol {
    Tcp,
    Udp,
    Icmp,
}

/// The first descriptor number after the standard streams.
pub(crate) const FIRST_NUMBER: u32 = 3;

/// A descriptor, and its number in the process that inherits it.
#[derive(Debug)]
pub(crate) struct InheritedDescriptor {
    pub(crate) number: u32,
    pub(crate) descriptor: OwnedFd,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    #[test]
    fn start_time_is_stable() {
        let me = std::process::id();
        let first = start_time(me).expect("this process runs");
        assert_eq!(start_time(me), Some(first));
        assert_eq!(start_time(u32::MAX), None);
    }

    #[test]
    fn exit_watch_stays_readable_after_exit() {
        let (poll, mut ready) = (Poll::new().unwrap(), ReadyEvents::new());
        for has_exited in [false, true] {
            let mut shell = Command::new("sh");
            shell.args(["-c", "read -r line"]).stdin(Stdio::piped());
            let mut child = shell.spawn().unwrap();
            let line = child.stdin.take();
            let watch = |pid| ExitWatch::new(&poll, pid, 7).unwrap();
            let mut watched = None;
            if !has_exited {
                watched = Some(watch(child.id()));
                poll.wait(Some(Duration::from_millis(20)), &mut ready).unwrap();
                assert!(!ready.has(7), "the child runs");
            }
            drop(line);
            if has_exited {
                let patience = Duration::from_secs(60);
                assert_eq!(wait_exited(child.id(), patience), ExitState::Exited);
                watched = Some(watch(child.id()));
            }
            for _ in 0..3 {
                poll.wait(Some(Duration::from_secs(60)), &mut ready).unwrap();
                assert!(ready.has(7), "the child has exited");
            }
            drop(watched);
            poll.wait(Some(Duration::ZERO), &mut ready).unwrap();
            assert!(!ready.has(7), "the watch was dropped");
            child.wait().unwrap();
            // As when SIGCHLD is ignored, or the embedding program reaps all children.
            let _watched = watch(child.id());
            poll.wait(Some(Duration::from_secs(60)), &mut ready).unwrap();
            assert!(ready.has(7), "the child was reaped");
        }
    }
}
