//! Single packets of a guest: echo, neighbor discovery, fragments, ICMP errors.

use super::*;
use crate::net::fragments::Reassembly;
use crate::wire::icmp::EchoMessage;
use crate::wire::ip::{ICMP, ICMPV6, IpHeader, UDP};
use crate::wire::ndp::ALL_NODES;
use crate::wire::tcp::Flags;
use crate::wire::{icmp, udp};

const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x15);

/// A network, and the frames and actions that it gave.
pub(super) struct PacketTest {
    pub(super) net: Net,
    pub(super) now: Instant,
    pub(super) actions: Vec<NetAction>,
    /// Packets for the guest.
    pub(super) packets: Vec<Vec<u8>>,
}

impl PacketTest {
    pub(super) fn new(mtu: u16) -> Self {
        Self::of(World::new(1, LinkFaults::default(), mtu, 1 << 20).net)
    }

    pub(super) fn of(net: Net) -> Self {
        let now = Instant::ZERO + Duration::from_secs(1);
        Self { net, now, actions: Vec::new(), packets: Vec::new() }
    }

    /// The guest sends a frame to the gateway.
    pub(super) fn send(&mut self, packet: &[u8]) -> Option<Delivery> {
        self.send_to(GATEWAY_MAC, packet)
    }

    /// The guest sends a frame. Returns the delivery; its payload is in `Net::payload`.
    pub(super) fn send_to(&mut self, destination: MacAddress, packet: &[u8]) -> Option<Delivery> {
        let delivery = self.net.handle_frame(&frame(destination, packet), self.now);
        self.poll();
        delivery
    }

    /// The guest sends a packet. Returns the payload that is delivered.
    pub(super) fn deliver(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        match self.send(packet)? {
            Delivery::Datagram { payload, .. } | Delivery::Echo { payload, .. } => {
                Some(self.net.payload(&payload, &frame(GATEWAY_MAC, packet)).to_vec())
            }
            Delivery::Stream { data, .. } => Some(frame(GATEWAY_MAC, packet)[data].to_vec()),
        }
    }

    pub(super) fn poll(&mut self) {
        self.actions.extend(core::iter::from_fn(|| self.net.poll_action()));
        if self.actions.contains(&NetAction::FindIpv6Route) {
            self.net.set_ipv6_route(true);
        }
        let mut head = Vec::new();
        while let Some(body) = self.net.poll_frame(&mut head, self.now) {
            head.extend(self.net.parts(&body).flatten());
            self.packets.push(head.split_off(ethernet::HEADER_LEN));
        }
    }

    /// The only packet for the guest, parsed, with its payload.
    pub(super) fn packet(&mut self) -> (IpHeader, Vec<u8>) {
        let [packet] = &self.packets[..] else { panic!("{} packets", self.packets.len()) };
        let parsed = if packet[0] >> 4 == 4 { IpPacket::parse_v4 } else { IpPacket::parse_v6 };
        let parsed = parsed(packet).unwrap();
        let payload = packet[parsed.payload].to_vec();
        self.packets.clear();
        (parsed.header, payload)
    }

    /// The flow of the only action, which opens a socket.
    fn opened(&mut self) -> FlowId {
        match core::mem::take(&mut self.actions)[..] {
            [NetAction::OpenEcho { flow, .. } | NetAction::OpenUdp { flow, .. }] => flow,
            ref actions => panic!("{actions:?}"),
        }
    }

    /// No answer, no action, nothing delivered; the counter of ignored or malformed frames advances.
    pub(super) fn assert_dropped(&mut self, destination: MacAddress, packet: &[u8], what: &str) {
        let before = self.net.counters();
        let delivery = self.send_to(destination, packet);
        let counters = self.net.counters();
        assert_eq!((delivery, &self.actions[..]), (None, &[][..]), "{what}");
        assert!(self.packets.is_empty(), "{what}: {:x?}", self.packets);
        let dropped = counters.ignored + counters.malformed;
        assert_eq!(dropped, before.ignored + before.malformed + 1, "{what}");
    }
}

fn frame(destination: MacAddress, packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 4 { EtherType::Ipv4 } else { EtherType::Ipv6 };
    let header = ethernet::EthernetHeader { destination, source: GUEST_MAC, ether_type };
    let mut frame = Vec::new();
    header.write(&mut frame);
    frame.extend_from_slice(packet);
    frame
}

/// A header from the guest to an address.
pub(super) fn to(destination: impl Into<IpAddr>) -> IpHeader {
    let destination = destination.into();
    let source = if destination.is_ipv4() { GUEST.into() } else { GUEST_V6.into() };
    IpHeader { source, destination, protocol: UDP, hop_limit: 64 }
}

pub(super) fn echo(ip: &IpHeader, id: u16, data: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    EchoMessage { is_reply: false, id, sequence: 3, data: 0..0 }.write(ip, data, &mut packet);
    packet
}

pub(super) fn datagram(ip: &IpHeader, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    udp::write(ip, (1000, 2000), payload, &mut packet);
    packet
}

/// An ICMPv6 message with the hop limit 255.
pub(super) fn ndp(source: Ipv6Addr, destination: Ipv6Addr, kind: u8, rest: &[u8]) -> Vec<u8> {
    let (source, destination) = (source.into(), destination.into());
    let ip = IpHeader { source, destination, protocol: ICMPV6, hop_limit: 255 };
    let mut packet = Vec::new();
    icmp::write(&ip, [kind, 0, 0, 0, 0, 0, 0, 0], &[rest], &mut packet);
    packet
}

fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    let (high, low) = (0xff00 | u16::from(a), u16::from(b) << 8 | u16::from(c));
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, high, low)
}

#[test]
fn echo_to_gateway_is_answered_by_the_network() {
    let ipv6 = Ipv6Network::DEFAULT;
    let from_link = IpHeader { source: LINK_LOCAL.into(), ..to(GATEWAY_LINK_LOCAL) };
    for ip in [to(GATEWAY), to([10, 0, 2, 3]), to(ipv6.gateway), to(ipv6.dns), from_link] {
        let mut test = PacketTest::new(1500);
        assert_eq!(test.send(&echo(&ip, 7, b"data")), None);
        let (header, payload) = test.packet();
        assert_eq!((header.source, header.destination), (ip.destination, ip.source));
        let reply = EchoMessage { is_reply: true, id: 7, sequence: 3, data: 8..12 };
        assert_eq!(EchoMessage::parse(&header, &payload), Ok(reply));
        assert!(test.actions.is_empty());
    }
}

#[test]
fn echo_flow_restores_the_guests_identifier() {
    for ip in [to(REMOTE), to(REMOTE_V6)] {
        let mut test = PacketTest::new(1500);
        let message = test.deliver(&echo(&ip, 7, b"data")).unwrap();
        let protocol = icmp::protocol(ip.source);
        assert_eq!((message[0], &message[8..]), (icmp::request(ip.source)[0], &b"data"[..]));
        let flow = test.opened();
        // A second request has the same flow, another identifier another one.
        assert!(
            matches!(test.send(&echo(&ip, 7, b"")), Some(Delivery::Echo { flow: f, .. }) if f == flow)
        );
        assert!(
            matches!(test.send(&echo(&ip, 8, b"")), Some(Delivery::Echo { flow: f, .. }) if f != flow)
        );
        // The host's kernel has chosen another identifier.
        let mut reply = message.clone();
        (reply[0], reply[4], reply[5]) = (if ip.source.is_ipv4() { 0 } else { 129 }, 0x55, 0x66);
        test.net.handle_echo_reply(flow, &reply, test.now);
        test.poll();
        let (header, payload) = test.packet();
        assert_eq!((header.source, header.protocol), (ip.destination, protocol));
        let reply = EchoMessage { is_reply: true, id: 7, sequence: 3, data: 8..12 };
        assert_eq!(EchoMessage::parse(&header, &payload), Ok(reply));
        // Other messages are not for the guest.
        for message in [&message[..], &[], &[0], &[3, 3, 0, 0, 0, 0, 0, 0]] {
            test.net.handle_echo_reply(flow, message, test.now);
        }
        test.poll();
        assert!(test.packets.is_empty());
        test.now = test.now + Duration::from_secs(60);
        test.actions.clear();
        test.net.handle_timeout(test.now);
        test.poll();
        assert!(test.actions.contains(&NetAction::Close { flow }));
        assert_eq!((test.net.flows(), test.net.poll_timeout()), (0, None));
    }
}

#[test]
fn echo_flows_have_limits_of_rate_and_size() {
    let mut test = PacketTest::new(65_520);
    assert_eq!(test.send(&echo(&to(REMOTE), 1, &[0; 1473])), None);
    assert!(test.send(&echo(&to(REMOTE), 1, &[0; 1472])).is_some());
    let sent = (0..100).filter(|n| test.send(&echo(&to(REMOTE), 1 + n, b"")).is_some()).count();
    assert_eq!((sent, test.net.counters().limited), (19, 82));
    // The number of flows is limited, too.
    for id in 200..400 {
        test.now = test.now + Duration::from_millis(100);
        test.send(&echo(&to(REMOTE), id, b""));
    }
    assert_eq!(test.net.flows(), 64);
    assert!(test.net.counters().refused_full > 0);
}

#[test]
fn neighbor_solicitation_answers_own_addresses_only() {
    let ipv6 = Ipv6Network::DEFAULT;
    let sources = [LINK_LOCAL, GUEST_V6];
    for target in [GATEWAY_LINK_LOCAL, ipv6.gateway, ipv6.dns] {
        for (source, to) in sources
            .map(|source| (source, source))
            .into_iter()
            .chain([(Ipv6Addr::UNSPECIFIED, ALL_NODES)])
        {
            let mut test = PacketTest::new(1500);
            let mac = MacAddress([0x33, 0x33, 0xff, 0, 0, 2]);
            test.send_to(mac, &ndp(source, solicited_node(target), 135, &target.octets()));
            let (header, payload) = test.packet();
            assert_eq!((header.source, header.destination), (target.into(), to.into()));
            assert_eq!((payload[0], &payload[8..24]), (136, &target.octets()[..]));
            assert_eq!(payload[24..32], [2, 1, 2, 0, 0, 0, 0, 2]);
        }
    }
    // Probes of the guest for its own addresses, and questions for neighbors that do not exist.
    for target in [LINK_LOCAL, GUEST_V6, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9), REMOTE_V6] {
        for source in [Ipv6Addr::UNSPECIFIED, LINK_LOCAL] {
            let mut test = PacketTest::new(1500);
            test.send(&ndp(source, solicited_node(target), 135, &target.octets()));
            assert!(test.packets.is_empty(), "{target}");
        }
    }
}

#[test]
fn router_solicitation_gets_prefix_and_route() {
    let mut test = PacketTest::new(1500);
    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    let mac = MacAddress([0x33, 0x33, 0, 0, 0, 2]);
    test.send_to(mac, &ndp(Ipv6Addr::UNSPECIFIED, routers, 133, &[]));
    assert_eq!(test.actions, [NetAction::FindIpv6Route]);
    let (header, payload) = test.packet();
    assert_eq!(header.source, IpAddr::from(GATEWAY_LINK_LOCAL));
    assert_eq!((payload[0], &payload[6..8]), (134, &[0xff, 0xff][..]));
    let has_prefix = payload.windows(16).any(|w| w == Ipv6Network::DEFAULT.prefix().octets());
    assert!(has_prefix && payload.ends_with(&Ipv6Network::DEFAULT.dns.octets()));
    // The route of the host goes away.
    test.actions.clear();
    test.net.set_ipv6_route(false);
    test.net.set_ipv6_route(false);
    test.poll();
    let (_, payload) = test.packet();
    assert_eq!(payload[6..8], [0, 0]);
    // Ten minutes later any frame causes another advertisement, and no timer does.
    assert_eq!(test.net.poll_timeout(), None);
    for (minutes, expected) in [(9, 0), (10, 1), (11, 0)] {
        test.now = Instant::ZERO + Duration::from_secs(1 + minutes * 60);
        test.send(&echo(&to(GATEWAY), 7, b""));
        let advertisements =
            test.packets.iter().filter(|packet| packet.get(40) == Some(&134)).count();
        assert_eq!(advertisements, expected, "{minutes}");
        test.packets.clear();
    }
}

#[test]
fn network_without_ipv6_ignores_it() {
    // The MTU is too small.
    let mut test = PacketTest::new(1279);
    let ask = ndp(LINK_LOCAL, GATEWAY_LINK_LOCAL, 135, &GATEWAY_LINK_LOCAL.octets());
    for packet in [ask, ndp(LINK_LOCAL, ALL_NODES, 133, &[]), datagram(&to(REMOTE_V6), b"data")] {
        test.assert_dropped(GATEWAY_MAC, &packet, "IPv6");
    }
    test.net.announce_router();
    assert_eq!(test.net.poll_action(), None);
}

#[test]
fn datagram_in_fragments_is_delivered_whole() {
    let data: Vec<u8> = (0..5000).map(byte_at).collect();
    for ip in [to(REMOTE), to(REMOTE_V6)] {
        let mut test = PacketTest::new(1500);
        let mut fragments: Vec<_> = ip::fragments(&datagram(&ip, &data), 1500, 7).collect();
        fragments.reverse();
        let last = fragments.pop().unwrap();
        for fragment in fragments {
            assert_eq!(test.deliver(&fragment), None);
        }
        assert!(test.net.poll_timeout().is_some() && test.actions.is_empty());
        assert_eq!(test.deliver(&last), Some(data.clone()));
        // The answer comes in fragments, too.
        let flow = test.opened();
        test.net.handle_datagram(flow, &data, test.now);
        test.poll();
        assert_eq!(test.packets.len(), 4);
        let mut table = FragmentTable::default();
        for packet in &test.packets {
            assert!(packet.len() <= 1500);
            let parse = if ip.source.is_ipv4() { IpPacket::parse_v4 } else { IpPacket::parse_v6 };
            let parsed = parse(packet).unwrap();
            let fragment = parsed.fragment.unwrap();
            let part = &packet[parsed.payload];
            match table.add(&parsed.header, &fragment, part, test.now) {
                Reassembly::Complete(whole) => {
                    let datagram = udp::UdpDatagram::parse(&parsed.header, &whole).unwrap();
                    assert_eq!(whole[datagram.payload], data);
                }
                other => assert_eq!(other, Reassembly::Incomplete),
            }
        }
        assert_eq!(table.poll_timeout(), None);
    }
}

#[test]
fn stream_in_fragments_reaches_the_socket() {
    let mut test = PacketTest::new(1500);
    let ip = IpHeader { protocol: ip::TCP, ..to(REMOTE) };
    let segment = |sequence, acknowledgement, flags, data: &[u8]| {
        let mut packet = Vec::new();
        let header = TcpHeader {
            source: 1000,
            destination: 80,
            sequence,
            acknowledgement,
            flags,
            window: 65_535,
            ..TcpHeader::default()
        };
        header.write(&ip, core::iter::once(data), &mut packet);
        packet.extend_from_slice(data);
        packet
    };
    let syn = Flags { syn: true, ..Flags::default() };
    // The header of the SYN itself is in three fragments.
    for fragment in ip::fragments(&segment(10, 0, syn, b""), 28, 1) {
        assert_eq!(test.send(&fragment), None);
    }
    let [NetAction::Connect { flow, .. }] = test.actions[..] else { panic!("{:?}", test.actions) };
    test.net.handle_connected(flow, test.now);
    test.poll();
    let (header, payload) = test.packet();
    let (answer, _) = TcpHeader::parse(&header, &payload).unwrap();
    let ack = Flags { ack: true, ..Flags::default() };
    let data: Vec<u8> = (0..3000).map(byte_at).collect();
    let packet = segment(11, answer.sequence.wrapping_add(1), ack, &data);
    for fragment in ip::fragments(&packet, 576, 2) {
        assert_eq!(test.send(&fragment), None);
    }
    let waiting: Vec<u8> = test.net.waiting(flow).flatten().copied().collect();
    assert_eq!(waiting, data);
    let interest = Interest { readable: true, writable: true };
    assert!(test.actions.contains(&NetAction::Interest { flow, interest }));
}

#[test]
fn datagram_errors_become_icmp_errors() {
    use ConnectError::{HostUnreachable, NetworkUnreachable, Prohibited, Refused};
    let cases = [
        (Refused, [3, 3], [1, 4]),
        (HostUnreachable, [3, 1], [1, 3]),
        (NetworkUnreachable, [3, 0], [1, 0]),
        (Prohibited, [3, 13], [1, 1]),
    ];
    for (error, v4, v6) in cases {
        for (ip, expected) in [(to(REMOTE), v4), (to(REMOTE_V6), v6)] {
            for packet in [datagram(&ip, b"data"), echo(&ip, 7, b"data")] {
                let mut test = PacketTest::new(1500);
                test.send(&packet);
                let flow = test.opened();
                test.net.handle_datagram_error(flow, error);
                test.poll();
                let (header, payload) = test.packet();
                assert_eq!(header.protocol, icmp::protocol(ip.source));
                assert_eq!(payload[..2], expected, "{error:?}");
                // The guest finds its socket by the quoted packet.
                let quoted = &payload[8..];
                let len = ip.header_len();
                assert_eq!(quoted.len(), len + 8);
                assert_eq!(quoted[len - 8..len], packet[len - 8..len]);
                match quoted[len] {
                    3 => assert_eq!(quoted[len..len + 4], packet[len..len + 4]),
                    _ => assert_eq!(quoted[len + 4..len + 6], packet[len + 4..len + 6]),
                }
            }
        }
    }
}

#[test]
fn icmp_errors_are_limited_in_rate() {
    let mut test = PacketTest::new(1500);
    test.send(&datagram(&to(REMOTE), b"data"));
    let flow = test.opened();
    for _ in 0..1000 {
        test.net.handle_datagram_error(flow, ConnectError::Refused);
        test.poll();
    }
    assert_eq!((test.packets.len(), test.net.counters().limited), (100, 900));
}

#[test]
fn icmp_protocol_of_the_other_version_is_ignored() {
    for (ip, protocol) in [(to(GATEWAY), ICMPV6), (to(Ipv6Network::DEFAULT.gateway), ICMP)] {
        let mut packet = Vec::new();
        IpHeader { protocol, ..ip }.write(8, &mut packet);
        packet.extend_from_slice(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
        PacketTest::new(1500).assert_dropped(GATEWAY_MAC, &packet, "ICMP");
    }
}
