//! [`Net`]: the network behind one network card of a guest.
//!
//! This file has the calls of the driver. `receive` takes the frames of the guest apart, and `flows` has
//! what they open.

mod access;
mod answers;
mod audit;
mod dns;
mod echo;
mod flows;
mod fragments;
mod held;
mod interface;
mod limits;
mod names;
mod ndp;
mod opening;
mod receive;
mod records;
mod rules;
mod services;

use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::net::{Ipv6Addr, SocketAddr};
use core::time::Duration;

use capsa_proto::policy::{PolicyVerdict, VerdictReason};
use capsa_proto::time::{Deadline, Instant};

use self::access::Refusal;
use self::audit::AuditQueue;
use self::dns::NameServer;
use self::echo::EchoLimits;
use self::flows::{Flow, Transport};
use self::fragments::FragmentTable;
use self::limits::NetworkLimits;
use self::names::{NamePool, PinnedNames};
use self::ndp::RouterState;
use self::services::ServiceTable;
use crate::buffer::Budget;
use crate::flow_table::{FlowAddresses, FlowId, FlowProtocol, FlowTable, HashKey};
use crate::rate_limit::RateLimit;
use crate::tcp::Connection;
use crate::wire::ethernet::EtherType;
use crate::wire::icmp::Unreachable;
use crate::wire::tcp::TcpHeader;
use crate::wire::{ParseError, udp};

pub use interface::{
    ConnectError, Counters, Delivery, Destination, Ipv6Network, LinkOffload, NetAction,
    NetworkConfig, Payload, QueryId, QueryType, ResolveError, SegmentBody, SegmentOffload,
    ServiceName,
};

/// The address of the gateway on the link.
const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// The smallest MTU of a link with IPv6 (RFC 8200, 5).
const IPV6_MTU_MIN: u16 = 1280;

/// The largest payload of a segment that the card of the guest cuts: with the headers of IPv4 and TCP, a
/// packet of 65,535 bytes.
const LARGE_SEGMENT: usize = 65_535 - 40;

/// The hop limit of packets to the guest.
const HOP_LIMIT: u8 = 64;

/// ICMP errors to the guest: 1000 a second, and 100 at once.
const ERROR_INTERVAL: Duration = Duration::from_millis(1);
const ERROR_BURST: u32 = 100;

/// Answers that wait for the link, at most; further ones are dropped, as by a full queue of a router.
const ANSWERS: usize = 64;

/// The network behind one network card of a guest.
///
/// # Driving
///
/// 1. Give each frame of the guest to [`handle_frame`](Self::handle_frame), and the data of its
///    [`Delivery`] to a socket.
/// 2. Carry out every [`poll_action`](Self::poll_action), and report what sockets do.
/// 3. While the link takes frames, send what [`poll_frame`](Self::poll_frame) returns.
/// 4. When [`poll_timeout`](Self::poll_timeout) has passed, call
///    [`handle_timeout`](Self::handle_timeout).
///
/// A call with a flow that has ended does nothing: a socket may report something in the same moment.
#[derive(Debug)]
pub struct Net {
    config: NetworkConfig,
    services: ServiceTable,
    offload: LinkOffload,
    name_server: NameServer,
    secret: HashKey,
    budget: Budget,
    flows: FlowTable<Flow>,
    /// Flows that may have a segment to send.
    queue: VecDeque<FlowId>,
    /// Frames without a flow: answers to ARP, echo requests, refusals.
    answers: VecDeque<Vec<u8>>,
    actions: VecDeque<NetAction>,
    timers: BTreeSet<(Instant, FlowId)>,
    /// The connections that are complete, by the time at which they are forgotten: they make room for new
    /// flows.
    closed: BTreeSet<(Instant, FlowId)>,
    echo: EchoLimits,
    /// The last packet that was reassembled, if the last frame had its last fragment.
    reassembled: Vec<u8>,
    fragments: FragmentTable,
    router: RouterState,
    /// The identification of the last packet that was sent in fragments.
    fragment_id: u32,
    /// ICMP errors to the guest.
    error_rate: RateLimit,
    /// The time of the last call that has one.
    last_call: Instant,
    /// The flows of UDP and echo requests, by the time of their end.
    datagram_ends: BTreeSet<(Instant, FlowId)>,
    /// How many flows are connecting.
    connecting: usize,
    /// Flows that wait for their turn to connect. Some have ended.
    waiting_connects: VecDeque<(FlowId, Destination)>,
    counters: Counters,
    events: AuditQueue,
    /// The number of the next flow in events.
    next_flow: u64,
    names: NamePool,
    pinned: PinnedNames,
    /// When the first bytes of held connections must be complete.
    held_ends: BTreeSet<(Instant, FlowId)>,
    /// Of the policy.
    limits: Option<Box<NetworkLimits>>,
}

impl Net {
    /// A network. `key` is random: it protects the flow table and the sequence numbers from guesses.
    pub fn new(mut config: NetworkConfig, key: [u8; 16]) -> Self {
        config.ipv6 = config.ipv6.filter(|_| config.mtu >= IPV6_MTU_MIN);
        let secret = HashKey::new(key);
        let limits = config.policy.as_ref().map(|policy| {
            config.flows = policy.limits().flows;
            Box::new(NetworkLimits::new(policy.limits()))
        });
        Self {
            budget: Budget::new(config.memory),
            services: ServiceTable::new(&config),
            flows: FlowTable::new(config.flows, secret.clone()),
            config,
            offload: LinkOffload::default(),
            secret,
            queue: VecDeque::new(),
            answers: VecDeque::new(),
            actions: VecDeque::new(),
            timers: BTreeSet::new(),
            closed: BTreeSet::new(),
            echo: EchoLimits::new(),
            reassembled: Vec::new(),
            fragments: FragmentTable::default(),
            router: RouterState::default(),
            fragment_id: 0,
            error_rate: RateLimit::new(ERROR_INTERVAL, ERROR_BURST),
            last_call: Instant::ZERO,
            datagram_ends: BTreeSet::new(),
            connecting: 0,
            waiting_connects: VecDeque::new(),
            name_server: NameServer::new(),
            counters: Counters::default(),
            events: AuditQueue::default(),
            next_flow: 0,
            names: NamePool::default(),
            pinned: PinnedNames::default(),
            held_ends: BTreeSet::new(),
            limits,
        }
    }

    /// The link was negotiated again: from now on, the guest's card has these offloads.
    pub fn set_link_offload(&mut self, offload: LinkOffload) {
        self.offload = offload;
    }

    /// What was dropped or refused.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The number of flows.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// The memory that is reserved beyond 16 KiB for each direction of a connection, in bytes.
    pub fn reserved(&self) -> usize {
        self.budget.reserved()
    }

    // What the guest does.

    /// A frame of the guest. Returns its data, if it has data for a socket.
    pub fn handle_frame(&mut self, frame: &[u8], now: Instant) -> Option<Delivery> {
        self.last_call = now;
        self.reassembled = Vec::new();
        self.end_flows_after_delivery(now);
        self.counters.bytes_from_guest += frame.len() as u64;
        self.count_frame_from_guest(frame.len(), now);
        match self.frame(frame, now) {
            Ok(delivery) => delivery,
            Err(ParseError::Unsupported) => {
                self.counters.ignored += 1;
                None
            }
            Err(_) => {
                self.counters.malformed += 1;
                None
            }
        }
    }

    /// The payload of a [`Delivery`] that [`handle_frame`](Self::handle_frame) returned for `frame`. Valid
    /// until the next frame.
    pub fn payload<'a>(&'a self, payload: &Payload, frame: &'a [u8]) -> &'a [u8] {
        let bytes = if payload.is_reassembled { &self.reassembled } else { frame };
        bytes.get(payload.range.clone()).unwrap_or_default()
    }

    /// The socket took the first `count` bytes of `data`, the data of a [`Delivery::Stream`].
    pub fn taken(&mut self, flow: FlowId, data: &[u8], count: usize, now: Instant) {
        self.with_connection(flow, |connection, budget| {
            connection.taken(data, count, now, budget);
        });
        self.count_payload(count, now);
    }

    // What the sockets do.

    /// The socket of an [`NetAction::Connect`] is connected.
    pub fn handle_connected(&mut self, flow: FlowId, now: Instant) {
        self.with_connection(flow, |connection, budget| {
            connection.handle_connected(now, budget);
        });
    }

    /// The socket of an [`NetAction::Connect`], [`NetAction::OpenUdp`] or [`NetAction::OpenEcho`] failed:
    /// the flow ends.
    pub fn handle_connect_error(&mut self, flow: FlowId, error: ConnectError) {
        if error == ConnectError::Prohibited {
            Refusal::Host.count(&mut self.counters);
            let verdict = PolicyVerdict::without_rule(false, VerdictReason::HostAddress);
            self.report_refused_flow(flow, verdict, self.last_call);
        }
        if !matches!(self.flows.get(flow), Some((_, Flow { transport: Transport::Tcp(_), .. }))) {
            self.handle_datagram_error(flow, error);
            return self.remove(flow);
        }
        let unreachable = match error {
            ConnectError::Refused | ConnectError::Prohibited => None,
            ConnectError::NetworkUnreachable => Some(Unreachable::Network),
            ConnectError::HostUnreachable => Some(Unreachable::Host),
        };
        let Some(reason) = unreachable else { return self.handle_socket_error(flow) };
        if let Some((addresses, Flow { transport: Transport::Tcp(connection), .. })) =
            self.flows.get(flow)
        {
            // The guest's kernel compares the sequence number.
            let (addresses, sequence) = (*addresses, connection.guest_sequence());
            self.remove(flow);
            self.answer_unreachable(&addresses, sequence, reason);
        }
    }

    /// The socket of a connection failed: the guest's connection is reset.
    pub fn handle_socket_error(&mut self, flow: FlowId) {
        self.with_connection(flow, |connection, budget| connection.handle_error(budget));
    }

    /// Space for at most `len` bytes of a TCP socket, in parts. None when no bytes can be read now. After
    /// reading, call [`filled`](Self::filled), even if there was nothing to read.
    pub fn spaces(&mut self, flow: FlowId, len: usize) -> impl Iterator<Item = &mut [u8]> {
        let connection = match self.flows.get_mut(flow) {
            Some((_, Flow { transport: Transport::Tcp(connection), .. })) => Some(connection),
            _ => None,
        };
        let len = self.limits.as_ref().map_or(len, |limits| limits.payload(len));
        let budget = &mut self.budget;
        connection.map(|connection| connection.spaces(len, budget)).into_iter().flatten()
    }

    /// A TCP socket gave `count` bytes, which are in its [`spaces`](Self::spaces).
    pub fn filled(&mut self, flow: FlowId, count: usize, now: Instant) {
        self.with_connection(flow, |connection, budget| connection.filled(count, now, budget));
        self.count_payload(count, now);
    }

    /// A TCP socket has no more bytes.
    pub fn handle_eof(&mut self, flow: FlowId) {
        self.with_connection(flow, |connection, _| connection.handle_eof());
    }

    /// The bytes that wait for a TCP socket, in parts. After writing, call [`drained`](Self::drained).
    pub fn waiting(&self, flow: FlowId) -> impl Iterator<Item = &[u8]> + Clone {
        let parts = match self.flows.get(flow) {
            Some((_, flow)) if flow.is_held() => None,
            Some((_, Flow { transport: Transport::Tcp(connection), .. })) => {
                Some(connection.waiting())
            }
            _ => None,
        };
        let left = self.limits.as_ref().map_or(usize::MAX, |limits| limits.payload(usize::MAX));
        parts.into_iter().flatten().scan(left, |left, part| {
            let part = &part[..part.len().min(*left)];
            *left -= part.len();
            (!part.is_empty()).then_some(part)
        })
    }

    /// A TCP socket took the first `count` of the waiting bytes.
    pub fn drained(&mut self, flow: FlowId, count: usize, now: Instant) {
        self.with_connection(flow, |connection, budget| {
            connection.drained(count, now, budget);
        });
        self.count_payload(count, now);
    }

    /// A UDP socket received a datagram.
    pub fn handle_datagram(&mut self, flow: FlowId, payload: &[u8], now: Instant) {
        if !self.may_pass(payload.len(), now) {
            return;
        }
        let Some((addresses, flow_state)) = self.flows.get_mut(flow) else { return };
        let Transport::Udp { is_two_way, active_at } = &mut flow_state.transport else { return };
        (*is_two_way, *active_at) = (true, now);
        if let Some(record) = &mut flow_state.record {
            record.bytes_down += payload.len() as u64;
        }
        let addresses = *addresses;
        let header = self.ip_header(&addresses);
        let ports = (addresses.remote.port(), addresses.guest.port());
        if payload.len() <= udp::PAYLOAD_MAX {
            self.answer_packet(&header, |frame| udp::write(&header, ports, payload, frame));
        }
        self.update(flow);
        self.count_payload(payload.len(), now);
    }

    /// The socket of a UDP flow or of echo requests reports that a datagram did not arrive. The guest gets
    /// an ICMP error; [`ConnectError::Refused`] means that no program receives at the remote port.
    pub fn handle_datagram_error(&mut self, flow: FlowId, error: ConnectError) {
        let reason = match error {
            ConnectError::Refused => Unreachable::Port,
            ConnectError::NetworkUnreachable => Unreachable::Network,
            ConnectError::HostUnreachable => Unreachable::Host,
            ConnectError::Prohibited => Unreachable::Prohibited,
        };
        if let Some((addresses, Flow { transport, .. })) = self.flows.get(flow)
            && !matches!(transport, Transport::Tcp(_))
        {
            let addresses = *addresses;
            self.answer_unreachable(&addresses, 0, reason);
        }
    }

    /// Opens a connection to a port of the guest, which sees it as coming from `remote`. The flow ends
    /// with [`SocketAction::Reset`](crate::SocketAction::Reset) when the guest refuses it, or does not answer
    /// within 30 seconds.
    ///
    /// # Errors
    ///
    /// `None` when the table of flows is full, or has a flow with these addresses, when the limit of all bytes
    /// is reached, and when `remote` is not an IPv4 address.
    pub fn connect_guest(&mut self, port: u16, remote: SocketAddr, now: Instant) -> Option<FlowId> {
        if !remote.is_ipv4() || self.is_used_up() {
            return None;
        }
        let guest = SocketAddr::new(self.config.guest.into(), port);
        let addresses = FlowAddresses { protocol: FlowProtocol::Tcp, guest, remote };
        if self.flows.find(&addresses).is_some() {
            return None;
        }
        let sequence = self.initial_sequence(&addresses, now);
        let connection = Connection::to_guest(sequence, self.link_mss(&addresses), now);
        let id = self.insert(addresses, Transport::Tcp(Box::new(connection)))?;
        self.accept(id, now);
        Some(id)
    }

    /// Opens a UDP flow to a port of the guest, which sees the datagrams as coming from `remote`: give them
    /// to [`handle_datagram`](Self::handle_datagram).
    ///
    /// # Errors
    ///
    /// `None` when the table of flows is full, or has a flow with these addresses, and when the limit of all
    /// bytes is reached.
    pub fn open_guest_udp(
        &mut self,
        port: u16,
        remote: SocketAddr,
        now: Instant,
    ) -> Option<FlowId> {
        let guest = SocketAddr::new(self.config.guest.into(), port);
        let addresses = FlowAddresses { protocol: FlowProtocol::Udp, guest, remote };
        if self.flows.find(&addresses).is_some() || self.is_used_up() {
            return None;
        }
        let id = self.insert(addresses, Transport::Udp { is_two_way: false, active_at: now })?;
        self.accept(id, now);
        Some(id)
    }

    // What the driver does.

    /// What to do next on the host.
    pub fn poll_action(&mut self) -> Option<NetAction> {
        self.actions.pop_front()
    }

    /// The next frame for the guest: writes its header, or all of it, to `head`, whose old content is
    /// discarded. The frame is `head`, followed by the [`parts`](Self::parts) of the body.
    pub fn poll_frame(&mut self, head: &mut Vec<u8>, now: Instant) -> Option<SegmentBody> {
        self.last_call = now;
        if self.is_paused_to_guest(now) {
            return None;
        }
        let body = self.next_frame(head, now)?;
        let len = head.len() + (body.range.end - body.range.start) as usize;
        self.counters.bytes_to_guest += len as u64;
        self.count_frame_to_guest(len, now);
        Some(body)
    }

    fn next_frame(&mut self, head: &mut Vec<u8>, now: Instant) -> Option<SegmentBody> {
        let empty = |flow| SegmentBody { flow, range: 0..0, offload: None };
        if let Some(answer) = self.answers.pop_front() {
            *head = answer;
            return Some(empty(FlowId::NONE));
        }
        while let Some(&id) = self.queue.front() {
            self.queue.pop_front();
            let Some((addresses, flow)) = self.flows.get_mut(id) else { continue };
            let addresses = *addresses;
            flow.is_queued = false;
            let Transport::Tcp(connection) = &mut flow.transport else { continue };
            let is_ipv6 = addresses.guest.is_ipv6();
            let is_large = match is_ipv6 {
                true => self.offload.large_ipv6,
                false => self.offload.large_ipv4,
            };
            let limit = if is_large { LARGE_SEGMENT } else { 0 };
            let Some((header, range)) = connection.poll_segment(limit, now) else {
                self.update_idle(id);
                continue;
            };
            let mss = connection.mss();
            let header = TcpHeader {
                source: addresses.remote.port(),
                destination: addresses.guest.port(),
                ..header
            };
            let ip = self.ip_header(&addresses);
            self.begin_frame(EtherType::of(addresses.guest.ip()), head);
            let mut offload = None;
            let len = (range.end - range.start) as usize;
            if self.offload.completes_checksums {
                let tcp_start = header.write_partial(&ip, len, head) as u16;
                let mss = (len > usize::from(mss)).then_some(mss);
                offload = Some(SegmentOffload { tcp_start, is_ipv6, mss });
            } else if let Some((_, Flow { transport: Transport::Tcp(connection), .. })) =
                self.flows.get(id)
            {
                header.write(&ip, connection.parts(range.clone()), head);
            }
            // Other flows are next.
            self.update(id);
            return Some(SegmentBody { flow: id, range, offload });
        }
        None
    }

    /// The bytes of a body, in parts. Valid until the next call that changes the network.
    pub fn parts(&self, body: &SegmentBody) -> impl Iterator<Item = &[u8]> + Clone {
        let parts = match self.flows.get(body.flow) {
            Some((_, Flow { transport: Transport::Tcp(connection), .. })) => {
                Some(connection.parts(body.range.clone()))
            }
            _ => None,
        };
        parts.into_iter().flatten()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let flows = [self.timers.first(), self.datagram_ends.first()].into_iter().flatten();
        let at = flows
            .map(|(at, _)| *at)
            .chain(self.name_server.poll_timeout())
            .chain(self.fragments.poll_timeout())
            .chain(self.held_poll_timeout())
            .chain(self.limits_poll_timeout())
            .chain(self.events.poll_timeout())
            .min()?;
        Some(Deadline { at, why: "network timer" })
    }

    /// The deadline of [`poll_timeout`](Self::poll_timeout) has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.last_call = now;
        self.end_flows_after_delivery(now);
        self.fragments.handle_timeout(now);
        self.held_timeout(now);
        while let Some(&(at, id)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            self.closed.remove(&(at, id));
            if let Some((_, flow)) = self.flows.get_mut(id) {
                flow.timer = None;
            }
            self.with_connection(id, |connection, budget| connection.handle_timeout(now, budget));
        }
        while let Some(&(at, id)) = self.datagram_ends.first()
            && at <= now
        {
            self.remove(id);
        }
        self.name_server_timeout(now);
        self.events.handle_timeout(now);
    }
}

#[cfg(test)]
mod tests;
