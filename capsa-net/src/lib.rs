//! A user-mode network stack for VMs, without I/O.
//!
//! A guest's Ethernet frames go in; socket calls for the host and frames for the guest come out. This crate
//! opens no socket, reads no clock and starts no thread: [`Net`] is a state machine. So the stack is tested
//! against another TCP, with loss and reordering, in virtual time. `capsa-io` drives it.
//!
//! | module | contents |
//! | --- | --- |
//! | `net` | [`Net`]: the network behind one network card: flows, ARP, NDP, echo, fragments, refusals |
//! | `tcp` | one TCP connection of the guest, mirrored onto a socket |
//! | `buffer` | bytes of a stream in chunks, within the memory of one network |
//! | `flow_table` | flows by their addresses and by their number |
//! | `dhcp` | the DHCP server |
//! | `rate_limit` | a token bucket |
//! | [`vhost`] | the back end of a vhost-user network card |
//! | [`wire`] | packet formats |
//!
//! # Panics
//!
//! A panic in this crate is a bug in Capsa. Hostile frames are dropped and counted.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod buffer;
mod dhcp;
mod flow_table;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod inspect;
mod net;
mod rate_limit;
#[cfg(any(test, feature = "fuzz"))]
pub mod simulate;
mod tcp;
pub mod vhost;
pub mod wire;

pub use flow_table::FlowId;
pub use net::{
    ConnectError, Counters, Delivery, Destination, Ipv6Network, LinkOffload, Net, NetAction,
    NetworkConfig, Payload, QueryId, QueryType, ResolveError, SegmentBody, SegmentOffload,
    ServiceName,
};
pub use tcp::{Interest, SocketAction};
