//! The network in a simulated world: between a model guest and a model host, in virtual time.
//!
//! A seed chooses a schedule: connections in both directions and datagrams, programs that are fast, slow
//! or stop, sides that abort or vanish, connects that fail, and a link that loses, repeats, delays and
//! corrupts frames. The [`Net`](crate::Net) is the real one. The same seed is the same schedule, step by
//! step. Nothing here is part of the API.
//!
//! | module | what it has |
//! | --- | --- |
//! | `plan` | what a schedule consists of |
//! | `policy` | the resolvers of both sides under a policy, and its laws, in one schedule of four |
//! | `policy_plan` | the policies of a schedule, and what the guest tries |
//! | `random` | the decisions, from the seed |
//! | `link` | one direction of the link |
//! | `guest_tcp` | one connection of the guest: a small TCP with its own logic |
//! | `guest` | the programs and the kernel of the guest |
//! | `smoltcp_guest` | a guest with the TCP of smoltcp and the same programs, in one schedule of four |
//! | `host` | the sockets of the host |
//! | `world` | the turns, time, and the laws |
//! | `trace` | the last steps, for the message of a failure |
//!
//! # Laws
//!
//! - each byte arrives at its position: none is lost, repeated or changed, in both directions;
//! - a stream ends where its sender ended it: the end is passed on after the last byte;
//! - a connection that nothing disturbs is whole, whatever the link does in its first 8 seconds;
//! - every flow ends, its socket with it, and returns its memory;
//! - a socket is closed or reset once, and nothing is asked of it afterwards;
//! - the network never sends beyond the window of the guest, except one byte to probe it;
//! - memory and flows stay within their limits;
//! - after a deadline was handled, the next one is not in the past;
//! - datagrams arrive unchanged, from the remote end of their flow;
//! - under a policy, no socket is opened and no query leaves for what the pure verdict denies, and what the
//!   policy that replaces another denies is closed at once;
//! - each event has the rule and the reason of the pure verdict;
//! - first bytes that are to be checked do not reach a socket before that, and the limit of all bytes is kept;
//! - the work of a turn, and the number of turns, are bounded.

mod guest;
mod guest_tcp;
mod host;
mod link;
mod plan;
mod policy;
mod policy_plan;
mod random;
mod smoltcp_guest;
#[cfg(test)]
mod tests;
mod trace;
mod world;

pub use trace::NetTrace;

/// What a schedule covered.
#[derive(Debug, Clone, Default)]
pub struct NetScheduleOutcome {
    /// TCP connections.
    pub connections: u64,
    /// Connections whose both streams arrived whole.
    pub complete: u64,
    /// Bytes that arrived, in both directions.
    pub bytes: u64,
    /// Datagrams that arrived at the host.
    pub datagrams: u64,
    /// Connections of the host that found the table full.
    pub refused: u64,
    /// Connections that nothing disturbs, and that a defect of the guest ended.
    pub lost_by_guest: u64,
    /// Queries of the host's resolver, and sockets, that a policy allowed.
    pub allowed: u64,
    /// Refusals of a policy that were reported.
    pub denied: u64,
    /// The most memory that was reserved.
    pub memory: u64,
}

impl NetScheduleOutcome {
    /// Adds what another schedule covered.
    pub fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.complete += other.complete;
        self.bytes += other.bytes;
        self.datagrams += other.datagrams;
        self.refused += other.refused;
        self.lost_by_guest += other.lost_by_guest;
        self.allowed += other.allowed;
        self.denied += other.denied;
        self.memory = self.memory.max(other.memory);
    }
}

/// Runs the schedule of a seed. The caller keeps the trace, also if the network panics.
///
/// # Panics
///
/// When a law does not hold. The message has the seed and the last steps.
pub fn run_seed(seed: u64, trace: &mut NetTrace) -> NetScheduleOutcome {
    world::NetSimulation::new(seed, trace).run()
}
