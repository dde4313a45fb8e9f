//! The I/O of a VM: carries out what its core returns, and passes back what happens.
//!
//! There are two kinds: [`ProcessIo`] for the processes of this host, `SimulatedIo` (feature `testing`) for a
//! simulated guest. Neither makes a decision about a VM: that belongs in [`VmCore`].

mod log;
pub(crate) mod process_io;
#[cfg(feature = "testing")]
mod simulated_io;

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use capsa_proto::policy::{NetworkEvent, PolicyRules};
use capsa_proto::time::{Deadline, Instant};
use capsa_proto::vm::VmCore;

use crate::clock::MonotonicClock;
use crate::network::Counters;
use crate::vsock::PortListener;

pub use process_io::ProcessIo;
#[cfg(feature = "testing")]
pub use simulated_io::SimulatedIo;

/// The I/O of a VM. Its descriptor is readable when there is work.
pub trait VmIo: AsFd + fmt::Debug + Send {
    /// Does the pending work, bounded: reads, passes bytes and exits to the core, passes the time, and
    /// carries out the outputs. It reads at most 256 KiB of console output, and 64 KiB each of control
    /// traffic, events and standard error of a process; of each at most the read budget.
    ///
    /// # Errors
    ///
    /// In a forked child of the program, and when the poller fails. All other failures change the
    /// status of the VM.
    fn on_ready(&mut self, core: &mut VmCore, clock: &mut MonotonicClock) -> io::Result<()>;

    /// Carries out the outputs of the core, and writes what its channels accept.
    fn act(&mut self, core: &mut VmCore, clock: &MonotonicClock);

    /// Writes what the channels accept, after a request of the owner.
    fn sync(&mut self, core: &mut VmCore, now: Instant);

    /// Whether there is work that the descriptor may not report, because a budget was exhausted.
    fn has_work(&self) -> bool;

    /// The deadline of the I/O itself.
    fn poll_timeout(&self) -> Option<Deadline>;

    /// Checks that this is the process that created the VM.
    ///
    /// # Errors
    ///
    /// In a forked child.
    fn check_process(&self) -> io::Result<()>;

    /// The process id of the hypervisor while it runs.
    fn hypervisor_pid(&self) -> Option<u32>;

    /// The nonce that a command must use whose output is read from this offset of the console: a
    /// replayed recording contains its result. `None`: any.
    fn nonce(&self, offset: u64) -> Option<u64>;

    /// Listens on a vsock port of the host. `None` when the VM has no such port.
    ///
    /// # Errors
    ///
    /// `AddrInUse` when the port has a listener already; also when the run directory was removed.
    fn vsock_listen(&mut self, port: u32) -> io::Result<Option<PortListener>>;

    /// Listens on the socket of a service of the network that the owner serves, by its index. `None` when
    /// the VM has no such service.
    ///
    /// # Errors
    ///
    /// `AddrInUse` when the service has a listener already; also when the run directory was removed.
    fn service_listen(&mut self, index: usize) -> io::Result<Option<PortListener>>;

    /// What the network counted, also after the end.
    fn network_counters(&self) -> Counters;

    /// Takes the link of the network up or down.
    fn set_network_link(&mut self, is_up: bool);

    /// Replaces the policy of the network.
    fn set_network_policy(&mut self, policy: PolicyRules, now: Instant);

    /// Takes the events of the network since the last call, also after the end. Of too many the oldest are
    /// dropped.
    fn take_network_events(&mut self) -> Vec<NetworkEvent>;

    /// Removes the VM's files now.
    fn remove_files(&mut self);
}
