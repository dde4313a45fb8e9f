//! [`Net`]: the network behind one network card of a guest.
//!
//! [`receive`](self) takes the frames of the guest apart; this file has the flows, and what their sockets
//! do.

mod access;
mod answers;
mod dns;
mod echo;
mod fragments;
mod interface;
mod ndp;
mod receive;
mod services;

use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::hash::BuildHasher;
use core::net::{Ipv6Addr, SocketAddr};
use core::time::Duration;

use capsa_proto::time::{Deadline, Instant};

use self::access::Refusal;
use self::dns::NameServer;
use self::echo::{ECHO_IDLE, EchoLimits};
use self::fragments::FragmentTable;
use self::ndp::RouterState;
use self::services::ServiceTable;
use crate::buffer::Budget;
use crate::flow_table::{FlowAddresses, FlowId, FlowProtocol, FlowTable, HashKey};
use crate::rate_limit::RateLimit;
use crate::tcp::{Connection, Interest, SocketAction};
use crate::wire::ethernet::EtherType;
use crate::wire::icmp::Unreachable;
use crate::wire::tcp::TcpHeader;
use crate::wire::{ParseError, tcp, udp};

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

/// A UDP flow whose remote end has not answered ends after this time without a datagram.
const UDP_ONE_WAY: Duration = Duration::from_secs(30);
/// A UDP flow with datagrams in both directions ends after this time without one.
const UDP_TWO_WAY: Duration = Duration::from_secs(120);

/// ICMP errors to the guest: 1000 a second, and 100 at once.
const ERROR_INTERVAL: Duration = Duration::from_millis(1);
const ERROR_BURST: u32 = 100;
/// TCP connections that connect to a host at a time; further ones wait for their turn.
const CONNECTING: usize = 64;
/// Flows of UDP and echo requests at a time; a further UDP flow ends the one that is the nearest to its end.
const DATAGRAM_FLOWS: usize = 256;

/// Answers that wait for the link, at most; further ones are dropped, as by a full queue of a router.
const ANSWERS: usize = 64;

#[derive(Debug)]
enum Transport {
    Tcp(Box<Connection>),
    Udp { is_two_way: bool, active_at: Instant },
    Echo { active_at: Instant },
}

#[derive(Debug)]
struct Flow {
    transport: Transport,
    /// What the driver was last asked to wait for.
    interest: Interest,
    /// The driver was asked to open a socket, and not to close it.
    has_socket: bool,
    /// The driver was asked to connect, and the socket is not connected yet.
    is_connecting: bool,
    is_queued: bool,
    timer: Option<Instant>,
}

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
}

impl Net {
    /// A network. `key` is random: it protects the flow table and the sequence numbers from guesses.
    pub fn new(mut config: NetworkConfig, key: [u8; 16]) -> Self {
        config.ipv6 = config.ipv6.filter(|_| config.mtu >= IPV6_MTU_MIN);
        let secret = HashKey::new(key);
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
        }
    }

    /// The link was negotiated again: the network keeps to `offload` from now on.
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

    /// Space for bytes of a TCP socket. Empty when none can be read now. After reading, call
    /// [`filled`](Self::filled).
    pub fn space(&mut self, flow: FlowId) -> &mut [u8] {
        match self.flows.get_mut(flow) {
            Some((_, Flow { transport: Transport::Tcp(connection), .. })) => {
                connection.space(&mut self.budget)
            }
            _ => &mut [],
        }
    }

    /// A TCP socket gave `count` bytes, which are in its [`space`](Self::space).
    pub fn filled(&mut self, flow: FlowId, count: usize, now: Instant) {
        self.with_connection(flow, |connection, _| connection.filled(count, now));
    }

    /// A TCP socket has no more bytes.
    pub fn handle_eof(&mut self, flow: FlowId) {
        self.with_connection(flow, |connection, _| connection.handle_eof());
    }

    /// The bytes that wait for a TCP socket, in parts. After writing, call [`drained`](Self::drained).
    pub fn waiting(&self, flow: FlowId) -> impl Iterator<Item = &[u8]> + Clone {
        let parts = match self.flows.get(flow) {
            Some((_, Flow { transport: Transport::Tcp(connection), .. })) => {
                Some(connection.waiting())
            }
            _ => None,
        };
        parts.into_iter().flatten()
    }

    /// A TCP socket took the first `count` of the waiting bytes.
    pub fn drained(&mut self, flow: FlowId, count: usize, now: Instant) {
        self.with_connection(flow, |connection, budget| {
            connection.drained(count, now, budget);
        });
    }

    /// A UDP socket received a datagram.
    pub fn handle_datagram(&mut self, flow: FlowId, payload: &[u8], now: Instant) {
        let Some((addresses, flow_state)) = self.flows.get_mut(flow) else { return };
        let Transport::Udp { is_two_way, active_at } = &mut flow_state.transport else { return };
        (*is_two_way, *active_at) = (true, now);
        let addresses = *addresses;
        let header = self.ip_header(&addresses);
        let ports = (addresses.remote.port(), addresses.guest.port());
        if payload.len() <= udp::PAYLOAD_MAX {
            self.answer_packet(&header, |frame| udp::write(&header, ports, payload, frame));
        }
        self.update(flow);
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
        self.answer_datagram_error(flow, reason);
    }

    /// A datagram of a UDP flow or an echo request is longer than packets to the remote end may be
    /// (`EMSGSIZE`): `mtu` bytes with the IP header. The guest gets an ICMP error.
    pub fn handle_too_big(&mut self, flow: FlowId, mtu: u16) {
        self.answer_datagram_error(flow, Unreachable::TooBig { mtu });
    }

    fn answer_datagram_error(&mut self, flow: FlowId, reason: Unreachable) {
        if let Some((addresses, Flow { transport, .. })) = self.flows.get(flow)
            && !matches!(transport, Transport::Tcp(_))
        {
            let addresses = *addresses;
            self.answer_unreachable(&addresses, 0, reason);
        }
    }

    /// Opens a connection to a port of the guest, which sees it as coming from `remote`. The flow ends
    /// with [`SocketAction::Reset`] when the guest refuses it, or does not answer within a minute.
    ///
    /// # Errors
    ///
    /// `None` when the table of flows is full, or has a flow with these addresses, and when `remote` is
    /// not an IPv4 address.
    pub fn connect_guest(&mut self, port: u16, remote: SocketAddr, now: Instant) -> Option<FlowId> {
        if !remote.is_ipv4() {
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
        if let Some((_, flow)) = self.flows.get_mut(id) {
            flow.has_socket = true;
        }
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
            .min()?;
        Some(Deadline { at, why: "network timer" })
    }

    /// The deadline of [`poll_timeout`](Self::poll_timeout) has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.last_call = now;
        self.fragments.handle_timeout(now);
        while let Some(&(at, id)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
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
    }

    // Flows.

    fn insert(&mut self, addresses: FlowAddresses, transport: Transport) -> Option<FlowId> {
        let flow = Flow {
            transport,
            interest: Interest::default(),
            has_socket: false,
            is_connecting: false,
            is_queued: false,
            timer: None,
        };
        let id = self.flows.insert(addresses, flow).ok()?;
        self.update(id);
        Some(id)
    }

    /// Connects the socket of a new flow, once it is its turn.
    fn connect(&mut self, flow: FlowId, destination: Destination) {
        if self.waiting_connects.len() >= 2 * self.config.flows {
            // Most of these have ended.
            self.waiting_connects.retain(|(flow, _)| self.flows.get(*flow).is_some());
        }
        self.waiting_connects.push_back((flow, destination));
        self.start_connects();
    }

    fn start_connects(&mut self) {
        while self.connecting < CONNECTING
            && let Some((id, destination)) = self.waiting_connects.pop_front()
        {
            let Some((_, flow)) = self.flows.get_mut(id) else { continue };
            (flow.has_socket, flow.is_connecting) = (true, true);
            self.connecting += 1;
            self.actions.push_back(NetAction::Connect { flow: id, destination });
        }
    }

    /// Ends the flow of datagrams that is the nearest to its end, if there is no room for a further one.
    fn make_room_for_datagrams(&mut self) {
        if (self.datagram_ends.len() >= DATAGRAM_FLOWS || self.flows.len() >= self.config.flows)
            && let Some(&(_, id)) = self.datagram_ends.first()
        {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: FlowId) {
        let Some(flow) = self.flows.remove(id) else { return };
        self.name_server.remove(id);
        match flow.transport {
            Transport::Tcp(mut connection) => connection.clear(&mut self.budget),
            Transport::Udp { .. } => self.actions.push_back(NetAction::Close { flow: id }),
            Transport::Echo { .. } => {
                self.echo.flows -= 1;
                self.actions.push_back(NetAction::Close { flow: id });
            }
        }
        if let Some(at) = flow.timer {
            self.timers.remove(&(at, id));
            self.datagram_ends.remove(&(at, id));
        }
        if flow.is_connecting {
            self.connecting -= 1;
            self.start_connects();
        }
    }

    fn with_connection(&mut self, id: FlowId, call: impl FnOnce(&mut Connection, &mut Budget)) {
        if let Some((_, Flow { transport: Transport::Tcp(connection), .. })) =
            self.flows.get_mut(id)
        {
            call(connection, &mut self.budget);
            self.update(id);
        }
    }

    /// After a change of a flow: its actions, its timer, its place in the queue.
    fn update(&mut self, id: FlowId) {
        self.update_idle(id);
        if let Some((_, flow)) = self.flows.get_mut(id)
            && matches!(flow.transport, Transport::Tcp(_))
            && !flow.is_queued
        {
            flow.is_queued = true;
            self.queue.push_back(id);
        }
    }

    /// Like [`update`](Self::update), for a flow that has nothing to send.
    fn update_idle(&mut self, id: FlowId) {
        let Some((_, flow)) = self.flows.get_mut(id) else { return };
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
                let interest = connection.interest(&mut self.budget);
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
        }
        if is_gone {
            self.remove(id);
        }
        self.start_connects();
    }

    /// RFC 6528: a keyed hash of the addresses, plus a clock that advances by one every 4 microseconds.
    fn initial_sequence(&self, addresses: &FlowAddresses, now: Instant) -> u32 {
        let hash = self.secret.hash_one(addresses) as u32;
        hash.wrapping_add((now.as_micros() / 4) as u32)
    }

    fn link_mss(&self, addresses: &FlowAddresses) -> u16 {
        let headers = self.ip_header(addresses).header_len() + tcp::HEADER_LEN;
        self.config.mtu - headers as u16
    }
}

impl Flow {
    fn is_received(&self) -> bool {
        matches!(&self.transport, Transport::Tcp(connection) if connection.is_received())
    }

    fn is_replaceable(&self) -> bool {
        matches!(&self.transport, Transport::Tcp(connection) if connection.is_replaceable())
    }
}

#[cfg(test)]
mod tests;
