//! Packets of a guest below TCP: any headers, extension headers, fragments, ICMP and neighbor discovery.

use core::net::{IpAddr, Ipv6Addr};
use core::time::Duration;

use alloc::vec::Vec;

use capsa_proto::time::Instant;

use super::{CONFIG, FuzzInput, check_frame};
use crate::flow_table::FlowId;
use crate::net::{ConnectError, Delivery, Ipv6Network, Net, NetAction};
use crate::wire::ethernet::{EtherType, EthernetHeader, MacAddress};
use crate::wire::icmp::{self, EchoMessage};
use crate::wire::ip::{self, IpHeader};
use crate::wire::udp;

const REMOTE: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(93, 184, 216, 34));
const REMOTE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0, 0, 0x1111));
/// The gateway on the link.
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x15);

/// Any packets, and any answers of sockets: no panic; frames for the guest are well-formed and fit the
/// link; a datagram in fragments is delivered as it was, or not at all; after a minute no fragment and
/// no flow is left.
pub fn packets(data: &[u8]) {
    let mut input = FuzzInput(data);
    let mut world =
        PacketWorld { net: Net::new(CONFIG, [7; 16]), now: Instant::ZERO, flows: Vec::new() };
    while !input.0.is_empty() {
        let operation = input.byte();
        let is_v6 = operation & 0x80 != 0;
        match operation & 7 {
            0 => {
                let len = usize::from(input.byte());
                world.send(is_v6, input.bytes(len), operation);
            }
            1 | 2 => {
                let packet = message(is_v6, &mut input);
                world.send(is_v6, &packet, operation);
            }
            3 => {
                let packet = extended(&mut input);
                world.send(true, &packet, operation);
            }
            4 | 5 => world.send_fragment(is_v6, &mut input),
            6 => world.answer(&mut input),
            _ => {
                world.now = world.now + Duration::from_millis(u64::from(input.u16()));
                world.net.handle_timeout(world.now);
                world.net.set_ipv6_route(is_v6);
            }
        }
        world.check();
    }
    // Some flows are two-way, and end after two minutes.
    for _ in 0..4 {
        world.now = world.now + Duration::from_secs(60);
        world.net.handle_timeout(world.now);
    }
    assert_eq!((world.net.poll_timeout(), world.net.flows()), (None, 0), "something is left");
}

/// The bytes of a datagram that the guest sends in fragments: its number chooses them.
fn payload(number: u8) -> Vec<u8> {
    let len = usize::from(number) * 37 + 20;
    (0..len).map(|n| number ^ (n ^ (n >> 8)) as u8).collect()
}

fn header(is_v6: bool, protocol: u8) -> IpHeader {
    let (source, destination) = match is_v6 {
        false => (CONFIG.guest.into(), REMOTE),
        true => {
            let prefix = Ipv6Network::DEFAULT.prefix().to_bits();
            (Ipv6Addr::from_bits(prefix | 0x15).into(), REMOTE_V6)
        }
    };
    IpHeader { source, destination, protocol, hop_limit: 64 }
}

/// A whole packet with right checksums: a datagram, an echo request, a solicitation or anything else.
fn message(is_v6: bool, input: &mut FuzzInput<'_>) -> Vec<u8> {
    let ipv6 = Ipv6Network::DEFAULT;
    let (kind, addresses, len) = (input.byte(), input.byte(), input.byte());
    let data = input.bytes(usize::from(len));
    let mut ip = header(is_v6, kind);
    let own: [IpAddr; 4] = match is_v6 {
        false => {
            [CONFIG.gateway.into(), CONFIG.dns.into(), [255; 4].into(), [10, 0, 2, 255].into()]
        }
        true => [
            ipv6.gateway.into(),
            ipv6.dns.into(),
            GATEWAY.into(),
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
        ],
    };
    match addresses & 7 {
        n @ 0..4 => ip.destination = own[usize::from(n)],
        4 if is_v6 => (ip.source, ip.destination) = (LINK_LOCAL.into(), GATEWAY.into()),
        5 => ip.source = if is_v6 { Ipv6Addr::UNSPECIFIED.into() } else { [0; 4].into() },
        _ => {}
    }
    let mut packet = Vec::new();
    match kind & 3 {
        0 => udp::write(&ip, (1000 + u16::from(kind >> 2), 2000), data, &mut packet),
        1 => {
            let echo = EchoMessage { is_reply: kind & 4 != 0, id: 7, sequence: 1, data: 0..0 };
            echo.write(&ip, data, &mut packet);
        }
        2 => {
            let hop_limit = if addresses & 8 == 0 { 255 } else { 64 };
            let target = [ipv6.gateway, LINK_LOCAL][usize::from(addresses >> 4 & 1)].octets();
            let target: &[u8] = if addresses & 32 == 0 { &target } else { &[] };
            let kind = 130 + (kind >> 2 & 15);
            let ip = IpHeader { hop_limit, ..ip };
            icmp::write(&ip, [kind, 0, 0, 0, 0, 0, 0, 0], &[target, data], &mut packet);
        }
        _ => {
            ip.write(data.len(), &mut packet);
            packet.extend_from_slice(data);
        }
    }
    packet
}

/// An IPv6 packet with extension headers.
fn extended(input: &mut FuzzInput<'_>) -> Vec<u8> {
    const HEADERS: [u8; 8] = [0, 43, 44, 60, 60, 51, ip::UDP, ip::ICMPV6];
    let mut next = || HEADERS[usize::from(input.byte() & 7)];
    let first = next();
    let mut payload = Vec::new();
    for _ in 0..10 {
        let kind = next();
        payload.extend_from_slice(&[kind, 0, 1, 4, 0, 0, 0, 0]);
        if kind == ip::UDP {
            break;
        }
    }
    let len = usize::from(input.byte());
    payload.extend_from_slice(input.bytes(len));
    let mut packet = Vec::new();
    header(true, first).write(payload.len(), &mut packet);
    packet.extend_from_slice(&payload);
    packet
}

struct PacketWorld {
    net: Net,
    now: Instant,
    flows: Vec<FlowId>,
}

impl PacketWorld {
    /// Sends a frame, and returns what it delivers to a UDP socket.
    fn send(&mut self, is_v6: bool, packet: &[u8], operation: u8) -> Option<Vec<u8>> {
        let is_broadcast = operation & 0x78 == 0x78;
        let mut frame = Vec::new();
        EthernetHeader {
            destination: if is_broadcast { MacAddress::BROADCAST } else { CONFIG.gateway_mac },
            source: CONFIG.guest_mac,
            ether_type: if is_v6 { EtherType::Ipv6 } else { EtherType::Ipv4 },
        }
        .write(&mut frame);
        frame.extend_from_slice(packet);
        match self.net.handle_frame(&frame, self.now)? {
            Delivery::Stream { flow, data } => {
                self.net.taken(flow, &frame[data], 0, self.now);
                None
            }
            Delivery::Datagram { payload, .. } => Some(self.net.payload(&payload, &frame).to_vec()),
            Delivery::Echo { payload, .. } => {
                let message = self.net.payload(&payload, &frame);
                assert!((icmp::HEADER_LEN..=1480).contains(&message.len()));
                None
            }
        }
    }

    /// Sends a part of a datagram. Parts of one datagram may overlap and repeat.
    fn send_fragment(&mut self, is_v6: bool, input: &mut FuzzInput<'_>) {
        let (number, place, len) = (input.byte(), input.byte(), input.byte());
        let payload = payload(number);
        let ip = header(is_v6, ip::UDP);
        let mut whole = Vec::new();
        udp::write(&ip, (3000, 3000), &payload, &mut whole);
        // Cut into parts of a chosen length, of which one is sent.
        let mtu = ip.header_len() + 16 + usize::from(len) * 8;
        let count = ip::fragments(&whole, mtu, u32::from(number)).count();
        let part = ip::fragments(&whole, mtu, u32::from(number)).nth(usize::from(place) % count);
        let delivered = self.send(is_v6, &part.unwrap_or(whole), 0);
        assert!(delivered.is_none_or(|delivered| delivered == payload), "datagram {number}");
    }

    /// A socket of one of the latest flows does something.
    fn answer(&mut self, input: &mut FuzzInput<'_>) {
        let (kind, len) = (input.byte(), input.u16());
        let Some(&flow) = self.flows.iter().rev().nth(usize::from(kind >> 6)) else { return };
        match kind & 7 {
            0 => self.net.handle_datagram(flow, &alloc::vec![1; usize::from(len)], self.now),
            1 => {
                let message = input.bytes(usize::from(len & 0xff));
                self.net.handle_echo_reply(flow, message, self.now);
            }
            2 => {
                let kind = if len & 1 == 0 { 0 } else { 129 };
                let mut message = alloc::vec![0; icmp::HEADER_LEN + usize::from(len >> 4)];
                message[0] = kind;
                self.net.handle_echo_reply(flow, &message, self.now);
            }
            3 | 4 => self.net.handle_connect_error(flow, ConnectError::HostUnreachable),
            _ => self.net.handle_datagram_error(flow, ConnectError::Refused),
        }
    }

    fn check(&mut self) {
        while let Some(action) = self.net.poll_action() {
            match action {
                NetAction::Connect { flow, .. } => {
                    self.net.handle_connect_error(flow, ConnectError::Refused);
                }
                NetAction::OpenUdp { flow, .. } | NetAction::OpenEcho { flow, .. } => {
                    self.flows.push(flow)
                }
                NetAction::FindIpv6Route => self.net.set_ipv6_route(true),
                NetAction::Resolve { .. }
                | NetAction::Socket { .. }
                | NetAction::Interest { .. }
                | NetAction::Close { .. } => {}
            }
        }
        let (mut head, mut frames) = (Vec::new(), 0);
        while let Some(body) = self.net.poll_frame(&mut head, self.now) {
            frames += 1;
            assert!(frames < 200, "the network sends without end");
            head.extend(self.net.parts(&body).flatten());
            check_frame(&head);
        }
        assert!(self.net.flows() <= CONFIG.flows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn operations() -> impl Strategy<Value = Vec<u8>> {
        let version = prop_oneof![Just(0u8), Just(0x80)];
        let data = proptest::collection::vec(any::<u8>(), 0..40);
        let message = (version.clone(), any::<[u8; 2]>(), data.clone()).prop_map(
            |(version, [kind, addresses], data)| {
                [&[version | 1, kind, addresses, data.len() as u8][..], &data].concat()
            },
        );
        // Few datagrams in few parts, so that some become whole.
        let fragment = (version, 0..4u8, 0..4u8, prop_oneof![4 => Just(4u8), 1 => 0..8u8])
            .prop_map(|(version, number, place, len)| vec![version | 4, number, place, len]);
        let operation = prop_oneof![
            4 => message,
            8 => fragment,
            2 => any::<[u8; 16]>().prop_map(|bytes| [&[3][..], &bytes].concat()),
            2 => any::<[u8; 3]>().prop_map(|bytes| [&[6][..], &bytes].concat()),
            1 => any::<[u8; 2]>().prop_map(|bytes| [&[7][..], &bytes].concat()),
            1 => data,
        ];
        proptest::collection::vec(operation, 0..80).prop_map(|all| all.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn packets_any_operations_keep_laws(data in operations()) {
            packets(&data);
        }

        #[test]
        fn packets_any_bytes_keep_laws(data in proptest::collection::vec(any::<u8>(), 0..1500)) {
            packets(&data);
        }
    }
}
