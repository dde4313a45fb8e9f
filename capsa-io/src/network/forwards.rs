//! Connections and datagrams from clients on the host to the guest.
//!
//! A connection waits until the guest accepts it. A guest that boots does not answer, or refuses until its
//! program listens; so until a forward has worked once, a refusal is tried again for [`PATIENCE`], which
//! begins when the guest has sent its first frame. Later a refusal reaches the client as a reset.
//!
//! The guest sees the gateway as the other end, with a port for each client.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use capsa_net::{FlowId, NetworkConfig};
use capsa_proto::spec::{PortForward, TransportProtocol};
use capsa_proto::time::{Deadline, Instant};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recvfrom, sendto, sockopt};

use super::bind::{BoundSocket, ForwardSockets};
use super::sockets::reset;
use super::{Key, Network};
use crate::sys::{self, Poll, PollSource};

/// How long a connection waits for a guest that refuses it, if the forward has not worked yet.
const PATIENCE: Duration = Duration::from_secs(30);
/// When a refused connection is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(250);
/// Connections that wait to be tried again, at most.
const WAITING: usize = 128;

/// Connections that a listener accepts, and datagrams that a socket receives, in one call at most.
const ACCEPTED: usize = 16;
/// How long a listener rests when the process has no descriptor left: its readiness would not end.
const REST: Duration = Duration::from_millis(100);

/// The ports of the gateway that clients have for the guest (RFC 6335: the dynamic ones).
const PORTS: std::ops::RangeInclusive<u16> = 49152..=65535;
/// Ports that are tried for a client.
const PORT_ATTEMPTS: usize = 8;

/// The forwards of a network.
#[derive(Debug, Default)]
pub(super) struct ForwardTable {
    forwards: Vec<PortForward>,
    listeners: Vec<ForwardListener>,
    last_port: u16,
    /// When the guest sent its first frame. Before that, it has no network.
    guest_seen_at: Option<Instant>,
    /// Connections that the guest has not accepted yet.
    opening: HashMap<FlowId, ClientOrigin>,
    /// Connections that the guest refused, in the order in which they are tried again.
    waiting: VecDeque<WaitingClient>,
    /// Clients of UDP forwards, by listener and address.
    senders: HashMap<(usize, SocketAddr), FlowId>,
    receivers: HashMap<FlowId, (usize, SocketAddr)>,
}

#[derive(Debug)]
struct ForwardListener {
    source: PollSource<BoundSocket>,
    guest: u16,
    protocol: TransportProtocol,
    is_inet: bool,
    /// The guest has accepted a connection.
    has_worked: bool,
    /// It has no interest until then.
    rests_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct ClientOrigin {
    listener: usize,
    accepted_at: Instant,
}

#[derive(Debug)]
struct WaitingClient {
    source: PollSource<OwnedFd>,
    origin: ClientOrigin,
    retry_at: Instant,
}

impl ForwardTable {
    pub(super) fn new(bound: Vec<ForwardSockets>, poll: &Poll) -> std::io::Result<Self> {
        let mut table = Self { last_port: *PORTS.end(), ..Self::default() };
        for ForwardSockets { forward, sockets } in bound {
            for socket in sockets {
                let key = Key::Forward(table.listeners.len()).encode();
                table.listeners.push(ForwardListener {
                    is_inet: socket.is_inet(),
                    source: poll.add(socket, key)?,
                    guest: forward.guest,
                    protocol: forward.protocol,
                    has_worked: false,
                    rests_until: None,
                });
            }
            table.forwards.push(forward);
        }
        Ok(table)
    }

    /// The forwards, with the ports that they have.
    pub(super) fn forwards(&self) -> &[PortForward] {
        &self.forwards
    }

    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        let retry = self.waiting.front().map(|client| client.retry_at);
        let retry = retry.map(|at| Deadline { at, why: "guest refused a forwarded connection" });
        let rests = self.listeners.iter().filter_map(|listener| listener.rests_until).min();
        let rests =
            rests.map(|at| Deadline { at, why: "no descriptor for a forwarded connection" });
        Deadline::earliest(retry, rests)
    }

    /// The guest has sent a frame.
    pub(super) fn handle_guest_frame(&mut self, now: Instant) {
        self.guest_seen_at.get_or_insert(now);
    }

    /// The guest has accepted the connection of this flow.
    pub(super) fn handle_open(&mut self, flow: FlowId) {
        if let Some(origin) = self.opening.remove(&flow) {
            self.listeners[origin.listener].has_worked = true;
        }
    }

    /// The guest has reset a connection, refused it, or not answered. Keeps the socket of a client that is
    /// tried again; returns any other.
    pub(super) fn handle_refused(
        &mut self,
        flow: FlowId,
        mut source: PollSource<OwnedFd>,
        now: Instant,
    ) -> Option<PollSource<OwnedFd>> {
        let Some(origin) = self.opening.remove(&flow) else { return Some(source) };
        let begin = self.guest_seen_at.map(|seen_at| seen_at.max(origin.accepted_at));
        let is_over = begin.is_some_and(|at| now >= at + PATIENCE) || self.waiting.len() >= WAITING;
        let has_worked = self.listeners[origin.listener].has_worked;
        if is_over || has_worked || source.set_interest(false, false).is_err() {
            return Some(source);
        }
        self.waiting.push_back(WaitingClient { source, origin, retry_at: now + RETRY_DELAY });
        None
    }

    /// Whether a client of a UDP forward has this flow. Sends it the datagram.
    pub(super) fn reply(&self, flow: FlowId, payload: &[u8]) -> bool {
        let Some((listener, client)) = self.receivers.get(&flow) else { return false };
        let socket = self.listeners[*listener].source.io_ref();
        // A datagram may be lost.
        let _ = sendto(socket, payload, sys::NO_SIGPIPE, client);
        true
    }

    /// A flow has ended.
    pub(super) fn forget(&mut self, flow: FlowId) {
        self.opening.remove(&flow);
        if let Some(client) = self.receivers.remove(&flow) {
            self.senders.remove(&client);
        }
    }

    /// The gateway's port for the next client.
    fn next_remote(&mut self) -> SocketAddr {
        self.last_port = match self.last_port {
            port if port >= *PORTS.end() => *PORTS.start(),
            port => port + 1,
        };
        (NetworkConfig::GATEWAY, self.last_port).into()
    }
}

impl Network {
    /// A listener may be ready.
    pub(super) fn on_listener(&mut self, index: usize, buffer: &mut [u8], now: Instant) {
        match self.forwards.listeners.get(index).map(|listener| listener.protocol) {
            Some(TransportProtocol::Tcp) => self.accept(index, now),
            Some(TransportProtocol::Udp) => self.receive_datagrams(index, buffer, now),
            None => {}
        }
        self.act(now);
    }

    /// Tries again what is due.
    pub(super) fn retry_forwards(&mut self, now: Instant) {
        while self.forwards.waiting.front().is_some_and(|client| client.retry_at <= now)
            && let Some(client) = self.forwards.waiting.pop_front()
        {
            self.open_client(client.source, client.origin, now);
        }
        for listener in &mut self.forwards.listeners {
            if listener.rests_until.is_some_and(|until| until <= now) {
                let watched = listener.source.set_interest(true, false);
                listener.rests_until = watched.is_err().then_some(now + REST);
            }
        }
        self.act(now);
    }

    fn accept(&mut self, index: usize, now: Instant) {
        for _ in 0..ACCEPTED {
            let listener = &mut self.forwards.listeners[index];
            match sys::accept(listener.source.io_ref()) {
                Ok(socket) => {
                    if listener.is_inet {
                        // Only a socket that is closed already refuses these.
                        let _ = sockopt::set_socket_keepalive(&socket, true);
                        let _ = sockopt::set_tcp_nodelay(&socket, true);
                    }
                    let origin = ClientOrigin { listener: index, accepted_at: now };
                    let source = self.poll.add_idle(socket, 0);
                    self.open_client(source, origin, now);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => {}
                Err(error) => {
                    tracing::warn!("cannot accept a forwarded connection: {error}");
                    self.refused_by_host += 1;
                    let _ = listener.source.set_interest(false, false);
                    listener.rests_until = Some(now + REST);
                    return;
                }
            }
        }
        self.more = true;
    }

    /// Connects a client to the guest. The client gets a reset when there are too many flows.
    fn open_client(&mut self, source: PollSource<OwnedFd>, origin: ClientOrigin, now: Instant) {
        let guest = self.forwards.listeners[origin.listener].guest;
        let flow = (0..PORT_ATTEMPTS).find_map(|_| {
            let remote = self.forwards.next_remote();
            self.net.connect_guest(guest, remote, now)
        });
        match flow {
            Some(flow) => {
                self.forwards.opening.insert(flow, origin);
                self.insert_stream(flow, source);
            }
            None => {
                self.refused_by_host += 1;
                reset(source.io_ref());
            }
        }
    }

    fn receive_datagrams(&mut self, index: usize, buffer: &mut [u8], now: Instant) {
        for _ in 0..ACCEPTED {
            let socket = self.forwards.listeners[index].source.io_ref();
            match recvfrom(socket, &mut *buffer, RecvFlags::empty()) {
                Ok((count, _, Some(client))) => {
                    let Ok(client) = SocketAddr::try_from(client) else { continue };
                    if let Some(flow) = self.client_flow(index, client, now) {
                        self.net.handle_datagram(flow, &buffer[..count], now);
                    }
                }
                Err(Errno::AGAIN) => return,
                // An error of an earlier datagram to a client that is gone.
                Ok(_) | Err(_) => {}
            }
        }
        self.more = true;
    }

    /// The flow of a client of a UDP forward.
    fn client_flow(&mut self, index: usize, client: SocketAddr, now: Instant) -> Option<FlowId> {
        if let Some(flow) = self.forwards.senders.get(&(index, client)) {
            return Some(*flow);
        }
        let guest = self.forwards.listeners[index].guest;
        let flow = (0..PORT_ATTEMPTS).find_map(|_| {
            let remote = self.forwards.next_remote();
            self.net.open_guest_udp(guest, remote, now)
        });
        let Some(flow) = flow else {
            self.refused_by_host += 1;
            return None;
        };
        self.forwards.senders.insert((index, client), flow);
        self.forwards.receivers.insert(flow, (index, client));
        Some(flow)
    }
}
