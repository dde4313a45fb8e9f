//! The sockets of the flows: opens, reads, writes and closes them as the stack asks.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use capsa_net::{ConnectError, Delivery, Destination, FlowId, Interest, NetAction, SocketAction};
use capsa_proto::time::Instant;
use rustix::io::{Errno, readv};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, Shutdown, SocketType, connect, ipproto, recv, send,
    shutdown, sockopt,
};

use super::{BYTES, Key, Network, link};
use crate::sys::{self, PollSource, RouteProtocol};

/// Datagrams that are read from a socket in one call, at most.
const DATAGRAMS: usize = 16;

/// Bytes of the first read from a stream in a call, at most.
pub(super) const READ_FIRST: usize = 16 << 10;

/// How often the route of a flow of datagrams is checked.
const ROUTE_CHECK: Duration = Duration::from_secs(1);

/// Parts of a stream that are written with one system call, at most.
const PARTS: usize = 64;

/// The sockets of the flows, by the index of the flow.
#[derive(Debug, Default)]
pub(super) struct SocketTable {
    slots: Vec<Option<FlowSocket>>,
    len: usize,
}

/// The socket of a flow.
#[derive(Debug)]
pub(super) struct FlowSocket {
    flow: FlowId,
    source: PollSource<OwnedFd>,
    state: SocketState,
    /// Where datagrams go, if that is beyond the host.
    route: Option<CheckedRoute>,
}

/// A route that does not lead to the host itself. The kernel may change it while the socket is open.
#[derive(Debug, Clone, Copy)]
struct CheckedRoute {
    remote: SocketAddr,
    protocol: RouteProtocol,
    /// When it was checked; `None`: when the socket was opened.
    at: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SocketState {
    /// A connected stream.
    Stream { interest: Interest },
    /// A connected socket for datagrams.
    Datagram,
    /// A connected socket for echo requests.
    Echo,
}

impl SocketTable {
    fn get(&mut self, flow: FlowId) -> Option<&mut FlowSocket> {
        self.at(flow.index()).filter(|socket| socket.flow == flow)
    }

    fn at(&mut self, index: usize) -> Option<&mut FlowSocket> {
        self.slots.get_mut(index)?.as_mut()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn insert(&mut self, socket: FlowSocket) {
        let index = socket.flow.index();
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.len += usize::from(self.slots[index].is_none());
        self.slots[index] = Some(socket);
    }

    fn remove(&mut self, flow: FlowId) -> Option<FlowSocket> {
        self.get(flow)?;
        let socket = self.slots[flow.index()].take();
        self.len -= 1;
        if self.len == 0 {
            self.slots = Vec::new();
        }
        socket
    }
}

impl Network {
    #[cfg(test)]
    pub(super) fn has_no_socket(&self) -> bool {
        self.sockets.is_empty() && self.connects.is_empty()
    }

    // The guest to sockets.

    pub(super) fn handle_frame(&mut self, frame: &[u8], now: Instant) {
        self.forwards.handle_guest_frame(now);
        match self.net.handle_frame(frame, now) {
            Some(Delivery::Stream { flow, data }) => {
                let data = &frame[data];
                let sent = match self.sockets.get(flow) {
                    Some(socket) => send_now(&socket.source, data),
                    None => Ok(0),
                };
                self.net.taken(flow, data, *sent.as_ref().unwrap_or(&0), now);
                if sent.is_err() {
                    self.net.handle_socket_error(flow);
                }
            }
            Some(Delivery::Datagram { flow, payload } | Delivery::Echo { flow, payload }) => {
                // The frame may have opened the flow.
                self.act(now);
                if !self.is_beyond_host(flow, now) {
                    self.net.handle_connect_error(flow, ConnectError::Prohibited);
                    return self.act(now);
                }
                let payload = self.net.payload(&payload, frame);
                let Some(socket) = self.sockets.get(flow) else {
                    self.forwards.reply(flow, payload);
                    return;
                };
                let sent = send_now(&socket.source, payload);
                // The kernel fragments a datagram; one that it cannot send at all is lost.
                if let Err(error) = sent
                    && error != Errno::MSGSIZE
                {
                    self.net.handle_datagram_error(flow, connect_error(&error.into()));
                }
            }
            None => {}
        }
    }

    /// Whether the datagrams of a flow still leave the host. Asks the kernel once in [`ROUTE_CHECK`].
    fn is_beyond_host(&mut self, flow: FlowId, now: Instant) -> bool {
        let Some(FlowSocket { route: Some(route), .. }) = self.sockets.get(flow) else {
            return true;
        };
        match route.at {
            Some(at) if now >= at + ROUTE_CHECK => {
                route.at = Some(now);
                open_remote(route.remote, route.protocol).is_ok()
            }
            _ => {
                route.at.get_or_insert(now);
                true
            }
        }
    }

    /// Carries out what the stack asks for.
    pub(super) fn act(&mut self, now: Instant) {
        while let Some(action) = self.net.poll_action() {
            match action {
                NetAction::Connect { flow, destination } => self.connect(flow, destination, now),
                NetAction::OpenUdp { flow, destination } => self.open_udp(flow, destination),
                NetAction::Close { flow } => {
                    self.sockets.remove(flow);
                    self.forwards.forget(flow);
                }
                NetAction::Socket { flow, action } => self.act_on_socket(flow, action, now),
                NetAction::Interest { flow, interest } => self.set_interest(flow, interest),
                NetAction::OpenEcho { flow, remote } => self.open_echo(flow, remote),
                NetAction::FindIpv6Route => self.net.set_ipv6_route(has_ipv6_route()),
                NetAction::Resolve { query, name, query_type } => {
                    self.resolver.resolve(query, name, query_type);
                }
            }
        }
    }

    fn open_udp(&mut self, flow: FlowId, destination: Destination) {
        let remote = match destination {
            Destination::Remote(remote) => open_remote(remote, RouteProtocol::Udp),
            Destination::Name(ref addresses) => first_remote(addresses, RouteProtocol::Udp),
            Destination::Host(port) => Ok((Ipv4Addr::LOCALHOST, port).into()),
            Destination::Service(_) => Err(io::ErrorKind::ConnectionRefused.into()),
        };
        let is_remote = matches!(destination, Destination::Remote(_) | Destination::Name(_));
        let route = remote.as_ref().ok().filter(|_| is_remote).copied();
        if let Some(remote) = route {
            self.net.set_remote_address(flow, remote.ip());
        }
        self.open_datagrams(flow, remote, None, SocketState::Datagram);
        self.keep_route(flow, route, RouteProtocol::Udp);
    }

    /// Opens a ping socket. The kernel may forbid it (`net.ipv4.ping_group_range`).
    fn open_echo(&mut self, flow: FlowId, remote: IpAddr) {
        let protocol = match remote {
            IpAddr::V4(_) => ipproto::ICMP,
            IpAddr::V6(_) => ipproto::ICMPV6,
        };
        let remote = open_remote((remote, 0).into(), RouteProtocol::Icmp);
        let route = remote.as_ref().ok().copied();
        self.open_datagrams(flow, remote, Some(protocol), SocketState::Echo);
        self.keep_route(flow, route, RouteProtocol::Icmp);
    }

    fn keep_route(&mut self, flow: FlowId, remote: Option<SocketAddr>, protocol: RouteProtocol) {
        if let Some(socket) = self.sockets.get(flow) {
            socket.route = remote.map(|remote| CheckedRoute { remote, protocol, at: None });
        }
    }

    fn open_datagrams(
        &mut self,
        flow: FlowId,
        remote: io::Result<SocketAddr>,
        protocol: Option<Protocol>,
        state: SocketState,
    ) {
        let mut is_forbidden = false;
        let open = || {
            let remote = remote?;
            let opened = sys::inet_socket(family(remote), SocketType::DGRAM, protocol);
            is_forbidden =
                opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
            let socket = if is_forbidden { Err(Errno::HOSTUNREACH.into()) } else { opened }?;
            connect(&socket, &remote)?;
            Ok(socket)
        };
        let opened = open();
        self.refused_by_host += u64::from(is_forbidden);
        if let Err(error) = opened.and_then(|socket| self.insert(flow, socket, state)) {
            let error = self.connect_error(&error);
            self.net.handle_connect_error(flow, error);
        }
    }

    /// What the guest learns of a flow that was not opened.
    pub(super) fn connect_error(&mut self, error: &io::Error) -> ConnectError {
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        if let Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) = errno {
            self.refused_by_host += 1;
        }
        connect_error(error)
    }

    fn insert(&mut self, flow: FlowId, socket: OwnedFd, state: SocketState) -> io::Result<()> {
        let mut source = self.poll.add_idle(socket, Key::Flow(flow.index()).encode());
        match state {
            SocketState::Stream { .. } => {}
            SocketState::Datagram | SocketState::Echo => source.set_interest(true, false)?,
        }
        self.sockets.insert(FlowSocket { flow, source, state, route: None });
        Ok(())
    }

    /// Gives a flow its connected stream.
    pub(super) fn insert_stream(&mut self, flow: FlowId, mut source: PollSource<OwnedFd>) {
        source.set_key(Key::Flow(flow.index()).encode());
        let state = SocketState::Stream { interest: Interest::default() };
        self.sockets.insert(FlowSocket { flow, source, state, route: None });
    }

    fn act_on_socket(&mut self, flow: FlowId, action: SocketAction, now: Instant) {
        match action {
            SocketAction::ShutDown => {
                if let Some(socket) = self.sockets.get(flow) {
                    // It fails if the socket has failed, which reading reports.
                    let _ = shutdown(socket.source.io_ref(), Shutdown::Write);
                }
            }
            SocketAction::Close => {
                self.connects.remove(flow);
                self.sockets.remove(flow);
                self.forwards.forget(flow);
            }
            SocketAction::Reset => {
                self.connects.remove(flow);
                if let Some(socket) = self.sockets.remove(flow)
                    && let Some(source) = self.forwards.handle_refused(flow, socket.source, now)
                {
                    reset(source.io_ref());
                }
            }
        }
    }

    fn set_interest(&mut self, flow: FlowId, interest: Interest) {
        let Some(socket) = self.sockets.get(flow) else { return };
        if let SocketState::Stream { interest: old } = &mut socket.state {
            *old = interest;
            self.forwards.handle_open(flow);
            let watched = socket.source.set_interest(interest.readable, interest.writable);
            if let Err(error) = watched {
                tracing::warn!("cannot watch a socket of the guest: {error}");
                self.net.handle_socket_error(flow);
            }
        }
    }

    // Sockets to the guest.

    /// A socket may be ready.
    pub(super) fn on_socket(&mut self, index: usize, buffer: &mut [u8], now: Instant) {
        if self.on_connecting(index, now) {
            return self.act(now);
        }
        let Some(socket) = self.sockets.at(index) else { return };
        let flow = socket.flow;
        match socket.state {
            SocketState::Stream { interest } => {
                if interest.writable {
                    self.write_waiting(flow, now);
                }
                if interest.readable {
                    self.read_stream(flow, now);
                }
            }
            SocketState::Datagram | SocketState::Echo => self.read_datagrams(flow, buffer, now),
        }
        self.act(now);
    }

    fn write_waiting(&mut self, flow: FlowId, now: Instant) {
        let Some(socket) = self.sockets.get(flow) else { return };
        let slices: Vec<_> = self.net.waiting(flow).take(PARTS).map(IoSlice::new).collect();
        let sent = link::send_slices(socket.source.io_ref().as_fd(), &slices);
        match sent {
            Ok(count) => self.net.drained(flow, count, now),
            Err(_) => self.net.handle_socket_error(flow),
        }
    }

    fn read_stream(&mut self, flow: FlowId, now: Instant) {
        // A stream that has little to say gets little memory.
        let (mut len, mut left) = (READ_FIRST, self.share);
        loop {
            let Some(socket) = self.sockets.get(flow) else { return };
            let spaces = self.net.spaces(flow, len.min(left).min(self.budget));
            let mut spaces: Vec<_> = spaces.map(IoSliceMut::new).collect();
            let size: usize = spaces.iter().map(|space| space.len()).sum();
            if size == 0 {
                self.more |= left == 0 || self.budget == 0;
                if self.budget == 0 && left == self.share {
                    self.starved.get_or_insert(flow.index());
                }
                return;
            }
            let count = readv(socket.source.io_ref(), &mut spaces);
            self.net.filled(flow, *count.as_ref().unwrap_or(&0), now);
            match count {
                Ok(0) => return self.net.handle_eof(flow),
                Ok(count) => {
                    self.budget -= count;
                    left -= count;
                    if count < size {
                        return;
                    }
                    len = BYTES;
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => return self.net.handle_socket_error(flow),
            }
        }
    }

    fn read_datagrams(&mut self, flow: FlowId, buffer: &mut [u8], now: Instant) {
        for _ in 0..DATAGRAMS {
            let Some(socket) = self.sockets.get(flow) else { return };
            match recv(socket.source.io_ref(), &mut *buffer, RecvFlags::empty()) {
                Ok((count, _)) if socket.state == SocketState::Echo => {
                    self.net.handle_echo_reply(flow, &buffer[..count], now);
                }
                Ok((count, _)) => self.net.handle_datagram(flow, &buffer[..count], now),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.net.handle_datagram_error(flow, connect_error(&error.into()));
                }
            }
        }
        self.more = true;
    }
}

/// Makes the close of a socket a reset for its peer.
pub(super) fn reset(socket: &OwnedFd) {
    // A socket that is not of TCP has no reset.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

fn send_now(source: &PollSource<OwnedFd>, data: &[u8]) -> Result<usize, Errno> {
    loop {
        return match send(source.io_ref(), data, sys::NO_SIGPIPE) {
            Err(Errno::AGAIN) => Ok(0),
            Err(Errno::INTR) => continue,
            sent => sent,
        };
    }
}

/// Checks that the host's kernel would not deliver what goes to `remote` to the host itself. Only the
/// kernel knows: addresses and routes change while the VM runs.
pub(super) fn open_remote(remote: SocketAddr, protocol: RouteProtocol) -> io::Result<SocketAddr> {
    // A mapped address reaches the same host as the address in it.
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    match sys::is_route_to_host(remote, protocol)? {
        true => Err(io::ErrorKind::PermissionDenied.into()),
        false => Ok(remote),
    }
}

/// The first of the addresses of a name that is not the host's.
fn first_remote(addresses: &[SocketAddr], protocol: RouteProtocol) -> io::Result<SocketAddr> {
    let mut error = io::ErrorKind::PermissionDenied.into();
    for remote in addresses {
        match open_remote(*remote, protocol) {
            Ok(remote) => return Ok(remote),
            Err(failed) => error = failed,
        }
    }
    Err(error)
}

/// Whether the host has a route to the internet over IPv6. To connect a datagram socket sends nothing.
fn has_ipv6_route() -> bool {
    // An address of the global unicast space that is not assigned.
    let internet = SocketAddr::from((Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1), 9));
    let socket = sys::inet_socket(AddressFamily::INET6, SocketType::DGRAM, None);
    socket.is_ok_and(|socket| connect(&socket, &internet).is_ok())
}

pub(super) fn family(remote: SocketAddr) -> AddressFamily {
    match remote {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    }
}

/// What the guest learns of a connection that failed.
fn connect_error(error: &io::Error) -> ConnectError {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return ConnectError::Prohibited;
    }
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NETUNREACH | Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT) => {
            ConnectError::NetworkUnreachable
        }
        Some(Errno::HOSTUNREACH | Errno::TIMEDOUT | Errno::HOSTDOWN) => {
            ConnectError::HostUnreachable
        }
        _ => ConnectError::Refused,
    }
}
