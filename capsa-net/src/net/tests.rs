//! A guest with another TCP, smoltcp, against the network, in virtual time.

mod attacks;
mod card;
mod event_attacks;
mod hostile;
mod memory;
mod packets;
mod policy;
mod policy_attacks;
mod policy_streams;
mod segments;
mod tcp_attacks;

use super::*;
use crate::tcp::{Interest, SocketAction};
use crate::wire::ethernet::{self, MacAddress};
use crate::wire::ip::{self, IpPacket};
use alloc::collections::BTreeMap;
use alloc::vec;
use core::net::{IpAddr, Ipv4Addr};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp as guest_tcp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

const GUEST_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const GATEWAY_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xca95, 0xa, 2, 0, 0, 0, 0x15);
const REMOTE_V6: Ipv6Addr = Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0, 0, 0x1111);
const REMOTE: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);

/// What goes wrong on the link, in percent of the frames.
#[derive(Debug, Clone, Copy, Default)]
struct LinkFaults {
    lost: u32,
    repeated: u32,
    delayed: u32,
}

/// Frames on their way to the guest, and from it.
#[derive(Default)]
struct Wire {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: Vec<Vec<u8>>,
    mtu: usize,
}

struct Receive(Vec<u8>);
struct Transmit<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Receive {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Receive;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Receive, Transmit<'_>)> {
        let frame = self.to_guest.pop_front()?;
        Some((Receive(frame), Transmit(&mut self.from_guest)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Transmit<'_>> {
        Some(Transmit(&mut self.from_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + ethernet::HEADER_LEN;
        capabilities
    }
}

/// A stream of bytes, of which the byte at `i` is known.
fn byte_at(i: usize) -> u8 {
    (i.wrapping_mul(31) >> 3) as u8 ^ i as u8
}

/// One end of a connection: sends `total` bytes, and checks those that it receives.
#[derive(Debug, Default)]
struct End {
    sent: usize,
    total: usize,
    received: usize,
    has_finished: bool,
    has_seen_end: bool,
}

impl End {
    fn receive(&mut self, bytes: &[u8], context: &str) {
        for byte in bytes {
            assert_eq!(*byte, byte_at(self.received), "byte {} {context}", self.received);
            self.received += 1;
        }
    }

    fn next(&self, max: usize) -> Vec<u8> {
        (self.sent..self.total.min(self.sent + max)).map(byte_at).collect()
    }
}

/// A socket of the host, with a peer that reads and writes at random.
#[derive(Debug, Default)]
struct HostSocket {
    end: End,
    /// What the socket takes before it blocks.
    room: usize,
    is_connected: bool,
    was_reset: bool,
    was_closed: bool,
    interest: Interest,
}

struct World {
    remote: IpAddr,
    net: Net,
    now: Instant,
    random: fastrand::Rng,
    link: LinkFaults,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    guests: Vec<(SocketHandle, End)>,
    hosts: BTreeMap<FlowId, HostSocket>,
    to_net: VecDeque<Vec<u8>>,
    memory: usize,
    /// The longest time in which nothing happened.
    longest_pause: Duration,
    /// Bytes of payload in the frames of the guest.
    uploaded: usize,
    offload: LinkOffload,
    /// The largest frame for the guest.
    largest: usize,
    context: alloc::string::String,
}

impl World {
    fn new(seed: u64, link: LinkFaults, mtu: u16, memory: usize) -> Self {
        Self::with_remote(REMOTE.into(), seed, link, mtu, memory)
    }

    /// A guest that connects to `remote`, with addresses of its version.
    fn with_remote(remote: IpAddr, seed: u64, link: LinkFaults, mtu: u16, memory: usize) -> Self {
        let config = NetworkConfig {
            gateway_mac: GATEWAY_MAC,
            flows: 64,
            memory,
            ..NetworkConfig::new(GUEST_MAC, mtu)
        };
        let mut wire = Wire { mtu: usize::from(mtu), ..Wire::default() };
        let address = HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC.0));
        let time = smoltcp::time::Instant::from_micros(0);
        let mut guest = Config::new(address);
        guest.random_seed = seed;
        let mut interface = Interface::new(guest, &mut wire, time);
        interface.update_ip_addrs(|addresses| {
            let (address, prefix) = match remote {
                IpAddr::V4(_) => (GUEST.into(), 24),
                IpAddr::V6(_) => (GUEST_V6.into(), 64),
            };
            addresses.push(IpCidr::new(address, prefix)).unwrap();
        });
        let routes = interface.routes_mut();
        routes.add_default_ipv4_route(GATEWAY).unwrap();
        routes.add_default_ipv6_route(Ipv6Network::DEFAULT.gateway).unwrap();
        Self {
            remote,
            net: Net::new(config, [7; 16]),
            now: Instant::ZERO,
            random: fastrand::Rng::with_seed(seed),
            link,
            wire,
            interface,
            sockets: SocketSet::new(vec![]),
            guests: Vec::new(),
            hosts: BTreeMap::new(),
            to_net: VecDeque::new(),
            memory,
            longest_pause: Duration::ZERO,
            uploaded: 0,
            offload: LinkOffload::default(),
            largest: 0,
            context: alloc::format!("with seed {seed}, {link:?}, mtu {mtu}"),
        }
    }

    /// The guest opens a connection, on which it sends `up` bytes.
    fn connect(&mut self, up: usize) {
        let buffer = |len| guest_tcp::SocketBuffer::new(vec![0; len]);
        let (rx, tx) = (self.random.usize(2000..200_000), self.random.usize(2000..200_000));
        let mut socket = guest_tcp::Socket::new(buffer(rx), buffer(tx));
        let port = 40_000 + self.guests.len() as u16;
        socket.connect(self.interface.context(), (self.remote, 80), port).unwrap();
        let handle = self.sockets.add(socket);
        self.guests.push((handle, End { total: up, ..End::default() }));
    }

    fn micros(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(self.now.as_micros() as i64)
    }

    /// Runs until all is quiet: `down` are the bytes that each host socket sends.
    fn run(&mut self, down: usize) {
        for _ in 0..400_000 {
            let moved = self.step(down);
            assert!(self.net.reserved() <= self.memory, "{} {}", self.net.reserved(), self.context);
            if moved {
                self.now = self.now + Duration::from_micros(self.random.u64(1..200));
                continue;
            }
            let guest = self.interface.poll_at(self.micros(), &self.sockets);
            let guest = guest.map(|at| Instant::from_micros(at.total_micros() as u64));
            let net = self.net.poll_timeout().map(|deadline| deadline.at);
            let Some(next) = [guest, net].into_iter().flatten().min() else { return };
            let is_busy = self.guests.iter().any(|(_, end)| !end.has_seen_end);
            if is_busy {
                self.longest_pause = self.longest_pause.max(next.since(self.now));
            }
            self.now = next.max(self.now + Duration::from_micros(1));
            self.net.handle_timeout(self.now);
        }
        panic!("no end {}", self.context);
    }

    /// One turn of everything. Returns whether something happened.
    fn step(&mut self, down: usize) -> bool {
        let mut moved = false;
        self.interface.poll(self.micros(), &mut self.wire, &mut self.sockets);
        for frame in core::mem::take(&mut self.wire.from_guest) {
            if self.random.u32(0..100) < self.link.repeated {
                self.to_net.push_back(frame.clone());
            }
            if self.random.u32(0..100) >= self.link.lost {
                self.to_net.push_back(frame);
            }
        }
        if self.to_net.len() > 1 && self.random.u32(0..100) < self.link.delayed {
            let first = self.to_net.pop_front().unwrap();
            self.to_net.push_back(first);
        }
        while let Some(frame) = self.to_net.pop_front() {
            moved = true;
            self.deliver(&frame);
            if self.random.u32(0..4) == 0 {
                break;
            }
        }
        moved |= self.actions();
        moved |= self.host_sockets(down);
        let mut head = Vec::new();
        while let Some(body) = self.net.poll_frame(&mut head, self.now) {
            moved = true;
            let frame = [&head[..], &self.net.parts(&body).collect::<Vec<_>>().concat()].concat();
            self.largest = self.largest.max(frame.len());
            for frame in card::finish(frame, body.offload()) {
                assert!(frame.len() <= self.wire.mtu + ethernet::HEADER_LEN);
                if self.random.u32(0..100) < self.link.repeated {
                    self.wire.to_guest.push_back(frame.clone());
                }
                if self.random.u32(0..100) >= self.link.lost {
                    self.wire.to_guest.push_back(frame);
                }
            }
            if self.random.u32(0..8) == 0 {
                break;
            }
        }
        moved | self.guest_sockets()
    }

    fn deliver(&mut self, frame: &[u8]) {
        let bytes = &frame[ethernet::HEADER_LEN..];
        let parse = if self.remote.is_ipv4() { IpPacket::parse_v4 } else { IpPacket::parse_v6 };
        if let Ok(packet) = parse(bytes)
            && packet.header.protocol == ip::TCP
        {
            let segment = &frame[ethernet::HEADER_LEN..][packet.payload];
            self.uploaded += TcpHeader::parse(&packet.header, segment).unwrap().1.len();
        }
        let frame = match self.offload.ignores_checksums {
            true => &card::without_checksum(frame),
            false => frame,
        };
        let delivery = self.net.handle_frame(frame, self.now);
        if let Some(Delivery::Stream { flow, data }) = delivery {
            let host = self.hosts.get_mut(&flow).unwrap();
            let data = &frame[data];
            let count = data.len().min(host.room);
            host.room -= count;
            host.end.receive(&data[..count], &self.context);
            self.net.taken(flow, data, count, self.now);
        }
    }

    fn actions(&mut self) -> bool {
        let mut moved = false;
        while let Some(action) = self.net.poll_action() {
            moved = true;
            match action {
                NetAction::Connect { flow, destination } => {
                    assert_eq!(destination, Destination::Remote((self.remote, 80).into()));
                    self.hosts.insert(flow, HostSocket::default());
                }
                NetAction::Socket { flow, action } => {
                    let host = self.hosts.get_mut(&flow).unwrap();
                    if action != SocketAction::ShutDown {
                        host.interest = Interest::default();
                    }
                    match action {
                        SocketAction::ShutDown => host.end.has_seen_end = true,
                        SocketAction::Close => host.was_closed = true,
                        SocketAction::Reset => host.was_reset = true,
                    }
                }
                NetAction::Interest { flow, interest } => {
                    self.hosts.get_mut(&flow).unwrap().interest = interest;
                }
                NetAction::OpenUdp { .. }
                | NetAction::OpenEcho { .. }
                | NetAction::FindIpv6Route
                | NetAction::Resolve { .. }
                | NetAction::Close { .. } => {}
            }
        }
        moved
    }

    fn host_sockets(&mut self, down: usize) -> bool {
        let mut moved = false;
        let flows: Vec<FlowId> = self.hosts.keys().copied().collect();
        for flow in flows {
            let host = self.hosts.get_mut(&flow).unwrap();
            if !host.is_connected {
                host.is_connected = true;
                host.end.total = down;
                self.net.handle_connected(flow, self.now);
                moved = true;
                continue;
            }
            host.room = self.random.usize(0..10_000);
            if host.interest.writable {
                let parts = self.net.waiting(flow).collect::<Vec<_>>().concat();
                let count = parts.len().min(host.room);
                host.room -= count;
                host.end.receive(&parts[..count], &self.context);
                self.net.drained(flow, count, self.now);
                moved = true;
            }
            if host.interest.readable && !host.end.has_finished {
                let bytes = host.end.next(self.random.usize(1..20_000));
                if bytes.is_empty() {
                    host.end.has_finished = true;
                    self.net.handle_eof(flow);
                } else {
                    let mut count = 0;
                    for space in self.net.spaces(flow, bytes.len()) {
                        space.copy_from_slice(&bytes[count..count + space.len()]);
                        count += space.len();
                    }
                    host.end.sent += count;
                    self.net.filled(flow, count, self.now);
                }
                moved = true;
            }
        }
        moved
    }

    fn guest_sockets(&mut self) -> bool {
        let mut moved = false;
        for (handle, end) in &mut self.guests {
            let socket = self.sockets.get_mut::<guest_tcp::Socket<'_>>(*handle);
            moved |= socket.can_recv();
            if socket.can_recv() && self.random.u32(0..3) > 0 {
                let max = self.random.usize(1..30_000);
                let bytes = socket.recv(|bytes| {
                    let count = bytes.len().min(max);
                    (count, bytes[..count].to_vec())
                });
                end.receive(&bytes.unwrap(), &self.context);
            }
            end.has_seen_end |= !socket.may_recv() && socket.state() != guest_tcp::State::SynSent;
            if socket.can_send() && end.sent < end.total {
                let bytes = end.next(self.random.usize(1..30_000));
                end.sent += socket.send_slice(&bytes).unwrap();
                moved = true;
            }
            if socket.may_send() && end.sent == end.total && !end.has_finished {
                end.has_finished = true;
                socket.close();
                moved = true;
            }
        }
        moved
    }

    /// Every byte arrived once and in order, every flow has ended, and no memory is in use.
    fn check(&self, up: usize, down: usize) {
        for (n, (_, end)) in self.guests.iter().enumerate() {
            let what = alloc::format!("guest end {n} {}: {end:?}", self.context);
            assert!(end.received == down && end.has_seen_end, "{what}");
        }
        assert_eq!(self.hosts.len(), self.guests.len());
        for host in self.hosts.values() {
            let what = alloc::format!("{} {host:?}", self.context);
            assert!(host.end.received == up && host.was_closed && !host.was_reset, "{what}");
        }
        assert_eq!((self.net.flows(), self.net.reserved()), (0, 0), "{}", self.context);
    }
}

#[test]
fn streams_arrive_whole_on_a_perfect_link() {
    for mtu in [576, 1500, 65_520] {
        for seed in 0..5 {
            let mut world = World::new(seed, LinkFaults::default(), mtu, 4 << 20);
            for _ in 0..3 {
                world.connect(300_000);
            }
            world.run(200_000);
            world.check(300_000, 200_000);
            // No byte of the guest is sent twice, and nothing waits for a retransmission timer. A small
            // pause is the delayed acknowledgement of the guest.
            assert_eq!(world.uploaded, 3 * 300_000, "{}", world.context);
            assert!(world.longest_pause < Duration::from_millis(50), "{:?}", world.longest_pause);
        }
    }
}

#[test]
fn streams_arrive_whole_over_ipv6() {
    let bad = LinkFaults { lost: 5, repeated: 3, delayed: 20 };
    for (link, mtu) in [(LinkFaults::default(), 1280), (LinkFaults::default(), 65_520), (bad, 1500)]
    {
        for seed in 0..5 {
            let mut world = World::with_remote(REMOTE_V6.into(), seed, link, mtu, 4 << 20);
            for _ in 0..3 {
                world.connect(100_000);
            }
            world.run(60_000);
            world.check(100_000, 60_000);
        }
    }
}

#[test]
fn streams_arrive_whole_on_a_bad_link() {
    for seed in 0..20 {
        let link = LinkFaults { lost: 5, repeated: 3, delayed: 20 };
        let mut world = World::new(seed, link, 1500, 1 << 20);
        for _ in 0..3 {
            world.connect(60_000);
        }
        world.run(60_000);
        world.check(60_000, 60_000);
    }
}

#[test]
fn streams_share_little_memory() {
    let mut world = World::new(1, LinkFaults::default(), 1500, 0);
    for _ in 0..20 {
        world.connect(100_000);
    }
    world.run(100_000);
    world.check(100_000, 100_000);
    assert_eq!(world.uploaded, 20 * 100_000);
    assert!(world.longest_pause < Duration::from_millis(50), "{:?}", world.longest_pause);
}
