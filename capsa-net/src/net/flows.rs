//! The flows of a network: their transports, sockets and timers.
//!
//! After each change of a flow, [`Net::update`] must be called.

use alloc::boxed::Box;
use core::hash::BuildHasher;
use core::time::Duration;

use capsa_proto::time::Instant;

use super::echo::ECHO_IDLE;
use super::records::FlowRecord;
use super::{Destination, Net, NetAction};
use crate::buffer::Budget;
use crate::flow_table::{FlowAddresses, FlowId};
use crate::tcp::{Connection, Interest, SocketAction};
use crate::wire::tcp::{self, TcpHeader};

/// A UDP flow whose remote end has not answered ends after this time without a datagram.
const UDP_ONE_WAY: Duration = Duration::from_secs(30);
/// A UDP flow with datagrams in both directions ends after this time without one.
const UDP_TWO_WAY: Duration = Duration::from_secs(120);

/// TCP connections that connect to a host at a time; further ones wait for their turn.
const CONNECTING: usize = 64;
/// Flows of UDP and echo requests at a time; a further UDP flow ends the one that is the nearest to its end.
const DATAGRAM_FLOWS: usize = 256;

#[derive(Debug)]
pub(super) enum Transport {
    Tcp(Box<Connection>),
    Udp { is_two_way: bool, active_at: Instant },
    Echo { active_at: Instant },
}

#[derive(Debug)]
pub(super) struct Flow {
    pub(super) transport: Transport,
    /// What the driver was last asked to wait for.
    pub(super) interest: Interest,
    /// The driver was asked to open a socket, and not to close it.
    pub(super) has_socket: bool,
    /// The driver was asked to connect, and the socket is not connected yet.
    pub(super) is_connecting: bool,
    pub(super) is_queued: bool,
    pub(super) timer: Option<Instant>,
    /// A client of a forward opened it, not the guest.
    pub(super) is_from_host: bool,
    /// With a policy, or with events.
    pub(super) record: Option<Box<FlowRecord>>,
}

impl Net {
    pub(super) fn insert(
        &mut self,
        addresses: FlowAddresses,
        transport: Transport,
    ) -> Option<FlowId> {
        if self.flows.len() >= self.config.flows
            && let Some(&(_, oldest)) = self.closed.first()
        {
            self.remove(oldest);
        }
        let flow = Flow {
            transport,
            interest: Interest::default(),
            has_socket: false,
            is_connecting: false,
            is_queued: false,
            timer: None,
            is_from_host: false,
            record: None,
        };
        let id = self.flows.insert(addresses, flow).ok()?;
        self.counters.flows += 1;
        self.update(id);
        Some(id)
    }

    /// Connects the socket of a new flow, once it is its turn.
    pub(super) fn connect(&mut self, flow: FlowId, destination: Destination) {
        if self.waiting_connects.len() >= 2 * self.config.flows {
            // Most of these have ended.
            self.waiting_connects.retain(|(flow, _)| self.flows.get(*flow).is_some());
        }
        self.waiting_connects.push_back((flow, destination));
        self.start_connects();
    }

    pub(super) fn start_connects(&mut self) {
        let limit =
            self.config.policy.as_ref().map_or(CONNECTING, |policy| policy.limits().connecting);
        while self.connecting < limit
            && let Some((id, destination)) = self.waiting_connects.pop_front()
        {
            let Some((_, flow)) = self.flows.get_mut(id) else { continue };
            if !matches!(&flow.transport, Transport::Tcp(connection) if connection.is_connecting())
            {
                // It was refused in the meantime.
                continue;
            }
            (flow.has_socket, flow.is_connecting) = (true, true);
            self.connecting += 1;
            self.actions.push_back(NetAction::Connect { flow: id, destination });
        }
    }

    /// Ends the flow of datagrams that is the nearest to its end, if there is no room for a further one.
    pub(super) fn make_room_for_datagrams(&mut self) {
        if (self.datagram_ends.len() >= DATAGRAM_FLOWS || self.flows.len() >= self.config.flows)
            && let Some(&(_, id)) = self.datagram_ends.first()
        {
            self.remove(id);
        }
    }

    pub(super) fn remove(&mut self, id: FlowId) {
        self.report_closed(id);
        self.forget_held(id);
        let Some(flow) = self.flows.remove(id) else { return };
        if let Some(record) = &flow.record {
            match (record.name_index, &record.name, record.addresses.first()) {
                (Some(index), ..) => self.names.release(index, self.last_call),
                (None, Some(name), Some(address)) => self.pinned.release(name, *address),
                _ => {}
            }
        }
        self.name_server.remove(id);
        let is_datagrams = !matches!(flow.transport, Transport::Tcp(_));
        match flow.transport {
            Transport::Tcp(mut connection) => connection.clear(&mut self.budget),
            Transport::Udp { .. } => {}
            Transport::Echo { .. } => self.echo.flows -= 1,
        }
        if is_datagrams && flow.has_socket {
            self.actions.push_back(NetAction::Close { flow: id });
        }
        if let Some(at) = flow.timer {
            self.timers.remove(&(at, id));
            self.datagram_ends.remove(&(at, id));
            self.closed.remove(&(at, id));
        }
        if flow.is_connecting {
            self.connecting -= 1;
            self.start_connects();
        }
    }

    pub(super) fn with_connection(
        &mut self,
        id: FlowId,
        call: impl FnOnce(&mut Connection, &mut Budget),
    ) {
        if let Some((_, Flow { transport: Transport::Tcp(connection), .. })) =
            self.flows.get_mut(id)
        {
            call(connection, &mut self.budget);
            self.update(id);
        }
    }

    /// After a change of a flow: its actions, its timer, its place in the queue.
    pub(super) fn update(&mut self, id: FlowId) {
        self.update_idle(id);
        if let Some((_, flow)) = self.flows.get_mut(id)
            && matches!(flow.transport, Transport::Tcp(_))
            && !flow.is_queued
        {
            flow.is_queued = true;
            self.queue.push_back(id);
            if self.queue.len() > 2 * self.config.flows {
                // Most of these have ended while the link took no frames.
                self.queue.retain(|id| self.flows.get(*id).is_some());
            }
        }
    }

    /// Like [`update`](Self::update), for a flow that has nothing to send.
    pub(super) fn update_idle(&mut self, id: FlowId) {
        let Some((_, flow)) = self.flows.get_mut(id) else { return };
        let is_held = flow.is_held();
        let (deadline, is_gone) = match &mut flow.transport {
            Transport::Tcp(connection) => {
                if let Some(action) = connection.poll_action()
                    && flow.has_socket
                {
                    self.actions.push_back(NetAction::Socket { flow: id, action });
                    flow.has_socket = action == SocketAction::ShutDown;
                }
                if flow.is_connecting && !connection.is_connecting() {
                    flow.is_connecting = false;
                    self.connecting -= 1;
                }
                let mut interest = connection.interest(&mut self.budget);
                interest.writable &= !is_held;
                if flow.has_socket && interest != flow.interest {
                    flow.interest = interest;
                    self.actions.push_back(NetAction::Interest { flow: id, interest });
                }
                (connection.poll_timeout().map(|deadline| deadline.at), connection.is_gone())
            }
            Transport::Udp { is_two_way, active_at } => {
                let limit = if *is_two_way { UDP_TWO_WAY } else { UDP_ONE_WAY };
                (Some(*active_at + limit), false)
            }
            Transport::Echo { active_at } => (Some(*active_at + ECHO_IDLE), false),
        };
        let timers = match flow.transport {
            Transport::Tcp(_) => &mut self.timers,
            Transport::Udp { .. } | Transport::Echo { .. } => &mut self.datagram_ends,
        };
        if flow.timer != deadline {
            if let Some(at) = flow.timer {
                timers.remove(&(at, id));
            }
            flow.timer = deadline;
            timers.extend(deadline.map(|at| (at, id)));
            if matches!(&flow.transport, Transport::Tcp(connection) if connection.is_closed()) {
                self.closed.extend(deadline.map(|at| (at, id)));
                self.report_closed(id);
            }
        }
        if is_gone {
            self.remove(id);
        }
        self.start_connects();
    }

    /// RFC 6528: a keyed hash of the addresses, plus a clock. It advances 16 times in a microsecond, so that
    /// the numbers of a connection are soon behind those of the next one with its addresses.
    pub(super) fn initial_sequence(&self, addresses: &FlowAddresses, now: Instant) -> u32 {
        let hash = self.secret.hash_one(addresses) as u32;
        hash.wrapping_add((now.as_micros() << 4) as u32)
    }

    pub(super) fn link_mss(&self, addresses: &FlowAddresses) -> u16 {
        let headers = self.ip_header(addresses).header_len() + tcp::HEADER_LEN;
        self.config.mtu - headers as u16
    }
}

impl Flow {
    pub(super) fn is_received(&self) -> bool {
        matches!(&self.transport, Transport::Tcp(connection) if connection.is_received())
    }

    /// If a SYN replaces it: the first number that the next connection may start with.
    pub(super) fn replaced_by(&self, syn: &TcpHeader) -> Option<u32> {
        match &self.transport {
            Transport::Tcp(connection) => connection.replaced_by(syn),
            _ => None,
        }
    }
}
