//! [`NetGuest`]: the programs and the kernel of the model guest.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use core::time::Duration;

use capsa_proto::time::Instant;

use super::guest_tcp::{BrokenLaw, GuestTcp, GuestTcpEnd, byte_at, upload_of};
use super::plan::{ConnectionPlan, NetPlan, Pace, SideEnd};
use super::random::ScheduleRandom;
use crate::wire::dns;
use crate::wire::ethernet::{self, EtherType, EthernetHeader, MacAddress};
use crate::wire::icmp::EchoMessage;
use crate::wire::ip::{self, IpHeader, IpPacket};
use crate::wire::tcp::{self, Flags, TcpHeader};
use crate::wire::udp::{self, UdpDatagram};

pub(super) const GUEST_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
pub(super) const GATEWAY_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(super) const REMOTE: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);

/// The first port of the guest's connections, of its UDP sockets, and of the other side.
pub(super) const TCP_PORT: u16 = 40_000;
pub(super) const UDP_PORT: u16 = 20_000;
pub(super) const REMOTE_PORT: u16 = 1000;

/// The time between an aborted connection and the next one with its ports.
const REUSE: Duration = Duration::from_millis(20);

/// The other end of the connections with a slot.
pub(super) fn remote_of(plan: &ConnectionPlan) -> SocketAddrV4 {
    let address = if plan.is_from_guest { REMOTE } else { GATEWAY };
    SocketAddrV4::new(address, REMOTE_PORT + plan.slot as u16)
}

/// The content of a datagram.
pub(super) fn datagram(number: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| byte_at(number, at)).collect()
}

/// A connection of the guest, with its program.
#[derive(Debug)]
pub(super) struct GuestConnection {
    pub(super) plan: ConnectionPlan,
    pub(super) tcp: Option<GuestTcp>,
    /// The other end; `None` while the guest does not know the address of its name.
    remote: Option<Ipv4Addr>,
    acts_at: Instant,
    /// When the connection was aborted: the numbers of a new one with its ports have to be beyond its own.
    aborted_at: Option<Instant>,
}

/// What is known of a connection of a guest.
#[derive(Debug)]
pub(super) struct GuestView {
    /// Bytes that have arrived in order, and those that the program has read.
    pub(super) received: u64,
    pub(super) read: u64,
    /// Whether the programs have nothing left to do.
    pub(super) is_whole: bool,
    pub(super) end: Option<GuestTcpEnd>,
    /// The guest has dropped it because of a defect of its own.
    pub(super) is_lost: bool,
}

/// A guest of the simulation: its programs and its kernel.
pub(super) trait GuestKernel: core::fmt::Debug {
    /// The latest connection that the guest has opened with the ports of a slot.
    fn owner_of(&self, slot: usize) -> Option<usize>;

    /// When the host may open a connection, if it is known.
    fn free_at(&self, index: usize) -> Option<Instant>;

    /// Notes which connections have ended.
    fn note_ends(&mut self, now: Instant);

    /// A frame from the network. Returns a frame that answers it at once.
    fn handle(
        &mut self,
        frame: &[u8],
        now: Instant,
        random: &mut ScheduleRandom,
    ) -> Result<Option<Vec<u8>>, BrokenLaw>;

    /// What the programs of one connection do. Returns a frame to send, if one is due at once.
    fn act(
        &mut self,
        index: usize,
        now: Instant,
        random: &mut ScheduleRandom,
    ) -> Result<Option<Vec<u8>>, BrokenLaw>;

    /// The next frame of a connection.
    fn poll(&mut self, index: usize, now: Instant) -> Option<Vec<u8>>;

    /// When something is due.
    fn next_at(&mut self, now: Instant) -> Option<Instant>;

    /// What is known of a connection that has begun.
    fn view(&self, index: usize) -> Option<GuestView>;

    /// The guest knows the other end of the connections of a slot, under a policy.
    fn set_remote(&mut self, _slot: usize, _remote: Ipv4Addr) {}

    /// The same for a UDP socket.
    fn set_udp_remote(&mut self, _socket: usize, _remote: Ipv4Addr) {}
}

impl GuestKernel for NetGuest {
    fn owner_of(&self, slot: usize) -> Option<usize> {
        self.owner_of(true, slot)
    }

    fn free_at(&self, index: usize) -> Option<Instant> {
        self.free_at(index)
    }

    fn note_ends(&mut self, now: Instant) {
        self.note_ends(now);
    }

    fn handle(
        &mut self,
        frame: &[u8],
        now: Instant,
        random: &mut ScheduleRandom,
    ) -> Result<Option<Vec<u8>>, BrokenLaw> {
        self.handle(frame, now, random)
    }

    fn act(
        &mut self,
        index: usize,
        now: Instant,
        random: &mut ScheduleRandom,
    ) -> Result<Option<Vec<u8>>, BrokenLaw> {
        Ok(self.act(index, now, random))
    }

    fn poll(&mut self, index: usize, now: Instant) -> Option<Vec<u8>> {
        self.poll(index, now)
    }

    fn next_at(&mut self, now: Instant) -> Option<Instant> {
        NetGuest::next_at(self, now)
    }

    fn view(&self, index: usize) -> Option<GuestView> {
        let tcp = self.connections[index].tcp.as_ref()?;
        Some(GuestView {
            received: tcp.received,
            read: tcp.read,
            is_whole: tcp.is_whole(),
            end: tcp.end,
            is_lost: false,
        })
    }

    fn set_remote(&mut self, slot: usize, remote: Ipv4Addr) {
        for connection in &mut self.connections {
            if connection.plan.is_from_guest && connection.plan.slot == slot {
                connection.remote = Some(remote);
            }
        }
    }

    fn set_udp_remote(&mut self, socket: usize, remote: Ipv4Addr) {
        self.udp_remotes.insert(socket as u64, remote);
    }
}

/// The model guest.
#[derive(Debug)]
pub(super) struct NetGuest {
    pub(super) connections: Vec<GuestConnection>,
    mtu: u16,
    pub(super) datagrams_received: u64,
    /// The other ends of UDP sockets, where it is not [`REMOTE`].
    udp_remotes: BTreeMap<u64, Ipv4Addr>,
}

impl NetGuest {
    pub(super) fn new(plan: &NetPlan) -> Self {
        let has_policy = plan.policy.is_some();
        let connection = |plan: &ConnectionPlan| GuestConnection {
            plan: plan.clone(),
            tcp: None,
            remote: (!has_policy || !plan.is_from_guest).then_some(*remote_of(plan).ip()),
            acts_at: plan.begins,
            aborted_at: None,
        };
        Self {
            connections: plan.connections.iter().map(connection).collect(),
            mtu: plan.mtu,
            datagrams_received: 0,
            udp_remotes: BTreeMap::new(),
        }
    }

    /// The connection that has the ports of a slot now: the latest one that exists.
    pub(super) fn owner_of(&self, is_from_guest: bool, slot: usize) -> Option<usize> {
        let is_owner = |c: &GuestConnection| {
            c.tcp.is_some() && (c.plan.is_from_guest, c.plan.slot) == (is_from_guest, slot)
        };
        self.connections.iter().rposition(is_owner)
    }

    /// The connection to open for a new forward: the first one of the slot without a TCP.
    fn listener_of(&self, slot: usize) -> Option<usize> {
        let is_listener =
            |c: &GuestConnection| c.tcp.is_none() && !c.plan.is_from_guest && c.plan.slot == slot;
        self.connections.iter().position(is_listener)
    }

    /// Whether the connection may begin: the one before it with its ports has ended.
    pub(super) fn is_free(&self, index: usize, now: Instant) -> bool {
        self.free_at(index).is_some_and(|at| at <= now)
    }

    /// When that is, if it is known.
    pub(super) fn free_at(&self, index: usize) -> Option<Instant> {
        self.connections[index].remote?;
        let plan = &self.connections[index].plan;
        let mut free_at = plan.begins;
        for old in &self.connections[..index] {
            if (old.plan.is_from_guest, old.plan.slot) == (plan.is_from_guest, plan.slot) {
                let tcp = old.tcp.as_ref()?;
                if !tcp.is_complete() {
                    free_at = free_at.max(old.aborted_at? + REUSE);
                }
            }
        }
        Some(free_at)
    }

    /// Notes which connections have been aborted.
    pub(super) fn note_ends(&mut self, now: Instant) {
        for connection in &mut self.connections {
            if connection.tcp.as_ref().is_some_and(|tcp| tcp.end.is_some()) {
                connection.aborted_at.get_or_insert(now);
            }
        }
    }

    fn link_mss(&self) -> u16 {
        self.mtu - (ip::IPV4_HEADER_LEN + tcp::HEADER_LEN) as u16
    }

    /// A frame from the network. Returns the frames that answer it at once.
    pub(super) fn handle(
        &mut self,
        frame: &[u8],
        now: Instant,
        random: &mut ScheduleRandom,
    ) -> Result<Option<Vec<u8>>, BrokenLaw> {
        let Ok(header) = EthernetHeader::parse(frame) else { return Ok(None) };
        if header.destination != GUEST_MAC || header.ether_type != EtherType::Ipv4 {
            return Ok(None);
        }
        let packet = &frame[ethernet::HEADER_LEN..];
        let Ok(ip) = IpPacket::parse_v4(packet) else { return Ok(None) };
        let payload = &packet[ip.payload];
        match ip.header.protocol {
            ip::TCP => {
                let Ok((header, data)) = TcpHeader::parse(&ip.header, payload) else {
                    return Ok(None);
                };
                self.segment(&ip.header, &header, &payload[data], now, random)
            }
            ip::UDP => {
                let Ok(parsed) = UdpDatagram::parse(&ip.header, payload) else { return Ok(None) };
                let data = &payload[parsed.payload];
                let number = u64::from(parsed.destination - UDP_PORT);
                if data != datagram(number + 1000, data.len()) {
                    return Err("a datagram for the guest is wrong");
                }
                let remote = self.udp_remotes.get(&number).copied().unwrap_or(REMOTE);
                if ip.header.source != remote || parsed.source != REMOTE_PORT + number as u16 {
                    return Err("a datagram for the guest is not from the remote end of its flow");
                }
                self.datagrams_received += 1;
                Ok(None)
            }
            ip::ICMP => {
                self.icmp(payload);
                Ok(None)
            }
            _ => Err("a packet for the guest has an unknown protocol"),
        }
    }

    /// An ICMP error ends a connection that is opening.
    fn icmp(&mut self, payload: &[u8]) {
        let Some(quoted) = payload.get(8..36).filter(|_| payload[0] == 3) else { return };
        if quoted[9] != ip::TCP {
            return;
        }
        let port = u16::from_be_bytes([quoted[20], quoted[21]]);
        if let Some(index) = self.owner_of(true, usize::from(port.wrapping_sub(TCP_PORT)))
            && let Some(tcp) = &mut self.connections[index].tcp
            && !tcp.is_open()
        {
            tcp.end.get_or_insert(GuestTcpEnd::Reset);
        }
    }

    fn segment(
        &mut self,
        ip: &IpHeader,
        header: &TcpHeader,
        data: &[u8],
        now: Instant,
        random: &mut ScheduleRandom,
    ) -> Result<Option<Vec<u8>>, BrokenLaw> {
        let slot = usize::from(header.destination.wrapping_sub(TCP_PORT));
        let is_from_guest = self.connections.iter().any(|connection| {
            let GuestConnection { plan, remote, .. } = connection;
            plan.is_from_guest && plan.slot == slot && remote.map(IpAddr::V4) == Some(ip.source)
        });
        let mut owner = self.owner_of(is_from_guest, slot);
        // The SYN of a connection that the guest has aborted is not that of the next one.
        let is_repeated = owner
            .and_then(|old| self.connections[old].tcp.as_ref())
            .is_some_and(|old| old.is_opened_by(header));
        if header.flags.syn && !header.flags.ack && !is_from_guest && !is_repeated {
            let listener = self.listener_of(slot).filter(|index| self.is_free(*index, now));
            if let Some(index) = listener {
                let mss = self.link_mss();
                let mut tcp = GuestTcp::accept(index, header, mss, now, random);
                tcp.grow_for(self.connections[index].plan.download);
                if let Some(old) = owner.and_then(|old| self.connections[old].tcp.as_ref()) {
                    tcp.restart_after(old);
                }
                self.connections[index].tcp = Some(tcp);
                owner = Some(index);
            }
        }
        let Some(index) = owner else { return Ok(self.refuse(ip, header, data.len())) };
        let connection = &mut self.connections[index];
        if connection.has_vanished(now) {
            return Ok(None);
        }
        let Some(tcp) = connection.tcp.as_mut().filter(|tcp| tcp.end.is_none()) else {
            return Ok(self.refuse(ip, header, data.len()));
        };
        tcp.handle(header, data, now)?;
        if tcp.is_fin_received() && tcp.received != connection.plan.download {
            return Err("the stream to the guest ends early");
        }
        Ok(None)
    }

    /// A reset, for a segment without a connection.
    fn refuse(&self, ip: &IpHeader, header: &TcpHeader, data: usize) -> Option<Vec<u8>> {
        if header.flags.rst {
            return None;
        }
        let len = data as u32 + u32::from(header.flags.syn) + u32::from(header.flags.fin);
        let reset = match header.flags.ack {
            true => TcpHeader {
                sequence: header.acknowledgement,
                flags: Flags { rst: true, ..Flags::default() },
                ..TcpHeader::default()
            },
            false => TcpHeader {
                acknowledgement: header.sequence.wrapping_add(len),
                flags: Flags { rst: true, ack: true, ..Flags::default() },
                ..TcpHeader::default()
            },
        };
        let ports = (header.destination, header.source);
        let core::net::IpAddr::V4(remote) = ip.source else { return None };
        Some(tcp_frame(ports, remote, &reset, &[]))
    }

    /// What the programs of one connection do. Returns a frame to send, if one is due at once.
    pub(super) fn act(
        &mut self,
        index: usize,
        now: Instant,
        random: &mut ScheduleRandom,
    ) -> Option<Vec<u8>> {
        let mss = self.link_mss();
        let is_free = self.is_free(index, now);
        let plan = self.connections[index].plan.clone();
        if self.connections[index].has_vanished(now) {
            return None;
        }
        if self.connections[index].tcp.is_none() {
            if plan.is_from_guest && is_free {
                let mut tcp = GuestTcp::connect(index, mss, now, random);
                tcp.grow_for(plan.download);
                if let Some(old) = self.owner_of(true, plan.slot) {
                    let old = self.connections[old].tcp.as_ref()?;
                    tcp.restart_after(old);
                }
                self.connections[index].tcp = Some(tcp);
            }
            return None;
        }
        let connection = &mut self.connections[index];
        let aborts = matches!(plan.guest_end, SideEnd::Aborts(at) if at <= now);
        let can_act = connection.can_act() && connection.acts_at <= now;
        let tcp = connection.tcp.as_mut().filter(|tcp| tcp.end.is_none())?;
        if aborts {
            let header = tcp.abort();
            return Some(connection.frame(&header, 0..0, index));
        }
        if !can_act {
            return None;
        }
        if tcp.written < plan.upload {
            let count = random.skewed(40_000).max(1);
            tcp.written += count.min(plan.upload - tcp.written);
        } else {
            tcp.is_closed = true;
        }
        if tcp.received > tcp.read {
            let count = random.skewed(40_000).max(1).min(tcp.received - tcp.read);
            tcp.read(count, now);
        }
        let pause = match plan.guest_pace {
            Pace::Slow => random.skewed(200_000),
            _ => random.skewed(1000),
        };
        connection.acts_at = now + Duration::from_micros(pause + 1);
        None
    }

    /// The next segment of a connection.
    pub(super) fn poll(&mut self, index: usize, now: Instant) -> Option<Vec<u8>> {
        let connection = &mut self.connections[index];
        if connection.has_vanished(now) {
            return None;
        }
        let (header, range) = connection.tcp.as_mut()?.poll(now)?;
        Some(connection.frame(&header, range, index))
    }

    pub(super) fn next_at(&self, now: Instant) -> Option<Instant> {
        let next = |index: usize| {
            let connection = &self.connections[index];
            if connection.has_vanished(now) {
                return None;
            }
            let Some(tcp) = &connection.tcp else {
                return self.free_at(index).filter(|_| connection.plan.is_from_guest);
            };
            if tcp.end.is_some() {
                return None;
            }
            let acts = connection.can_act().then_some(connection.acts_at);
            let aborts = match connection.plan.guest_end {
                SideEnd::Aborts(at) => Some(at),
                _ => None,
            };
            [tcp.next_at(), acts, aborts].into_iter().flatten().min()
        };
        (0..self.connections.len()).filter_map(next).min()
    }
}

impl GuestConnection {
    pub(super) fn has_vanished(&self, now: Instant) -> bool {
        matches!(self.plan.guest_end, SideEnd::Vanishes(at) if at <= now)
    }

    fn can_act(&self) -> bool {
        let Some(tcp) = self.tcp.as_ref().filter(|tcp| tcp.is_open()) else { return false };
        let has_stopped = matches!(self.plan.guest_pace, Pace::Stops(at) if tcp.read >= at);
        !tcp.is_closed || (tcp.received > tcp.read && !has_stopped)
    }

    fn frame(&self, header: &TcpHeader, range: core::ops::Range<u64>, index: usize) -> Vec<u8> {
        let remote = self.remote.unwrap_or(REMOTE);
        let ports = (TCP_PORT + self.plan.slot as u16, remote_of(&self.plan).port());
        let data: Vec<u8> = range.map(|at| byte_at(upload_of(index), at)).collect();
        tcp_frame(ports, remote, header, &data)
    }
}

fn begin(frame: &mut Vec<u8>) {
    let header =
        EthernetHeader { destination: GATEWAY_MAC, source: GUEST_MAC, ether_type: EtherType::Ipv4 };
    header.write(frame);
}

fn tcp_frame(ports: (u16, u16), remote: Ipv4Addr, header: &TcpHeader, data: &[u8]) -> Vec<u8> {
    let ip = IpHeader {
        source: GUEST.into(),
        destination: remote.into(),
        protocol: ip::TCP,
        hop_limit: 64,
    };
    let mut frame = Vec::new();
    begin(&mut frame);
    let header = TcpHeader { source: ports.0, destination: ports.1, ..*header };
    header.write(&ip, core::iter::once(data), &mut frame);
    frame.extend_from_slice(data);
    frame
}

/// The ports of the guest's UDP socket `socket` and of its other end.
pub(super) fn udp_ports(socket: usize) -> (u16, u16) {
    (UDP_PORT + socket as u16, REMOTE_PORT + socket as u16)
}

/// A datagram of the guest.
pub(super) fn udp_frame(ports: (u16, u16), remote: Ipv4Addr, data: &[u8]) -> Vec<u8> {
    let ip = IpHeader {
        source: GUEST.into(),
        destination: remote.into(),
        protocol: ip::UDP,
        hop_limit: 64,
    };
    let mut frame = Vec::new();
    begin(&mut frame);
    udp::write(&ip, ports, data, &mut frame);
    frame
}

/// An echo request of the guest.
pub(super) fn echo_frame(remote: Ipv4Addr, id: u16) -> Vec<u8> {
    let ip = IpHeader {
        source: GUEST.into(),
        destination: remote.into(),
        protocol: ip::ICMP,
        hop_limit: 64,
    };
    let mut frame = Vec::new();
    begin(&mut frame);
    let echo = EchoMessage { is_reply: false, id, sequence: 1, data: 0..0 };
    echo.write(&ip, b"an echo request", &mut frame);
    frame
}

/// The server, the port and the message of a frame for the guest from a name server.
pub(super) fn dns_answer(frame: &[u8]) -> Option<(Ipv4Addr, u16, &[u8])> {
    let header = EthernetHeader::parse(frame).ok()?;
    if header.destination != GUEST_MAC || header.ether_type != EtherType::Ipv4 {
        return None;
    }
    let packet = &frame[ethernet::HEADER_LEN..];
    let parsed = IpPacket::parse_v4(packet).ok()?;
    let IpAddr::V4(server) = parsed.header.source else { return None };
    let payload = &packet[parsed.payload];
    let datagram = UdpDatagram::parse(&parsed.header, payload).ok()?;
    let is_answer = parsed.header.protocol == ip::UDP && datagram.source == dns::PORT;
    is_answer.then_some((server, datagram.destination, &payload[datagram.payload]))
}
