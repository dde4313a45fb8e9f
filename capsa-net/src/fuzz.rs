//! Bodies of fuzz targets: they assert laws, and run on any bytes.

mod dhcp;
mod dns;
mod packets;

use core::time::Duration;

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use capsa_proto::time::Instant;

use crate::flow_table::FlowId;
use crate::net::{ConnectError, Delivery, Net, NetAction, NetworkConfig};
use crate::tcp::SocketAction;
use crate::wire::ethernet::{self, EtherType, EthernetHeader, MacAddress};
use crate::wire::ip::{IpHeader, IpPacket, TCP, UDP};
use crate::wire::tcp::{Flags, TcpHeader};
use crate::wire::udp::UdpDatagram;

pub use self::dhcp::dhcp;
pub use self::dns::dns;
pub use self::packets::packets;
pub use crate::inspect::fuzz_inspect as inspect;

const CONFIG: NetworkConfig = {
    let mut config = NetworkConfig::new(MacAddress([2, 0, 0, 0, 0, 1]), 1500);
    // The corpora have frames to this address.
    config.gateway_mac = MacAddress([2, 0, 0, 0, 0, 2]);
    (config.flows, config.memory) = (8, 128 << 10);
    config.allow_private = true;
    config
};

/// What remains of the input, byte by byte; zeros after its end.
struct FuzzInput<'a>(&'a [u8]);

impl<'a> FuzzInput<'a> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let len = len.min(self.0.len());
        self.0.split_off(..len).unwrap_or_default()
    }
}

/// A guest that sends any frames, well-formed segments with any numbers among them, and sockets that do
/// anything: no panic; the memory, the flows and the work stay within their limits; a deadline is never
/// in the past; frames for the guest are well-formed; a flow that has ended has no action.
pub fn network(data: &[u8]) {
    let mut input = FuzzInput(data);
    let mut net = Net::new(CONFIG, [7; 16]);
    let mut now = Instant::ZERO;
    let mut flows: Vec<FlowId> = Vec::new();
    let mut closed = BTreeSet::new();
    let mut guest = SegmentSource::default();
    while !input.0.is_empty() {
        let operation = input.byte();
        // One of the latest flows.
        let flow = flows.iter().rev().nth(usize::from(operation >> 6)).copied();
        match (operation & 0xf, flow) {
            (0, _) => {
                let len = usize::from(input.byte());
                deliver(&mut net, input.bytes(len), &mut input, now);
            }
            (1..=7, _) => {
                let frame = guest.segment(&mut input);
                deliver(&mut net, &frame, &mut input, now);
            }
            (8, _) => {
                now = now + Duration::from_millis(u64::from(input.u16()));
                net.handle_timeout(now);
            }
            (9, Some(flow)) => net.handle_connected(flow, now),
            (10, Some(flow)) => {
                let error = match input.byte() & 3 {
                    0 => ConnectError::Refused,
                    1 => ConnectError::NetworkUnreachable,
                    2 => ConnectError::HostUnreachable,
                    _ => ConnectError::Prohibited,
                };
                net.handle_connect_error(flow, error);
            }
            (11, Some(flow)) => {
                let mut space = 0;
                for part in net.spaces(flow, usize::from(input.u16())) {
                    part.fill(b'x');
                    space += part.len();
                }
                net.filled(flow, space.min(usize::from(input.u16())), now);
            }
            (12, Some(flow)) => net.handle_eof(flow),
            (13, Some(flow)) => {
                let waiting: usize = net.waiting(flow).map(<[u8]>::len).sum();
                net.drained(flow, waiting.min(usize::from(input.u16())), now);
            }
            (14, Some(flow)) => net.handle_socket_error(flow),
            (15, Some(flow)) => net.handle_datagram(flow, &[1; 100], now),
            _ => {}
        }
        while let Some(action) = net.poll_action() {
            let (flow, ends) = match action {
                NetAction::Connect { flow, .. }
                | NetAction::OpenUdp { flow, .. }
                | NetAction::OpenEcho { flow, .. } => {
                    flows.push(flow);
                    (flow, false)
                }
                NetAction::Resolve { .. } => continue,
                NetAction::FindIpv6Route => {
                    net.set_ipv6_route(true);
                    continue;
                }
                NetAction::Socket { flow, action } => (flow, action != SocketAction::ShutDown),
                NetAction::Interest { flow, .. } => (flow, false),
                NetAction::Close { flow } => (flow, true),
            };
            assert!(!closed.contains(&flow), "{action:?} after the end of the flow");
            if ends {
                closed.insert(flow);
            }
        }
        let mut head = Vec::new();
        let mut frames = 0;
        while let Some(body) = net.poll_frame(&mut head, now) {
            frames += 1;
            assert!(frames < 4000, "the network sends without end");
            head.extend(net.parts(&body).flatten());
            guest.seen = check_frame(&head).unwrap_or(guest.seen);
        }
        assert!(net.flows() <= CONFIG.flows && net.reserved() <= CONFIG.memory);
        assert!(net.poll_timeout().is_none_or(|deadline| deadline.at > now), "a past deadline");
    }
}

fn deliver(net: &mut Net, frame: &[u8], input: &mut FuzzInput<'_>, now: Instant) {
    if let Some(Delivery::Stream { flow, data }) = net.handle_frame(frame, now) {
        let data = &frame[data];
        let count = data.len().min(usize::from(input.byte()) * 8);
        net.taken(flow, data, count, now);
    }
}

/// The numbers that a correct guest would use: the input chooses others near them.
#[derive(Default)]
struct SegmentSource {
    /// The number after the last segment of the guest.
    sent: u32,
    /// The number after the last segment to the guest.
    seen: u32,
}

impl SegmentSource {
    /// A TCP segment with a right checksum.
    fn segment(&mut self, input: &mut FuzzInput<'_>) -> Vec<u8> {
        let flags = input.byte();
        let ip = IpHeader {
            source: CONFIG.guest.into(),
            destination: [93, 184, 216, 34].into(),
            protocol: TCP,
            hop_limit: 64,
        };
        let mut near = |number: u32| match input.byte() {
            // Far away, or off by a few.
            n @ 0..8 => number.wrapping_add(u32::from(n) << 16),
            n @ 8..64 => number.wrapping_add_signed(i32::from(n) - 32),
            _ => number,
        };
        let header = TcpHeader {
            source: 1000 + u16::from(flags >> 7),
            destination: 80,
            sequence: near(self.sent),
            acknowledgement: near(self.seen),
            flags: Flags {
                fin: flags & 7 == 1,
                syn: flags & 7 == 2,
                rst: flags & 7 == 3,
                psh: false,
                ack: flags & 7 != 2,
            },
            window: input.u16(),
            mss: (flags & 32 != 0).then(|| input.u16()),
            window_scale: (flags & 64 != 0).then_some(14),
        };
        let len = input.byte();
        let data = input.bytes(usize::from(len & 0x3f) * 4);
        let counted = u32::from(header.flags.syn) + u32::from(header.flags.fin);
        self.sent = header.sequence.wrapping_add(data.len() as u32 + counted);
        let mut frame = Vec::new();
        EthernetHeader {
            destination: CONFIG.gateway_mac,
            source: CONFIG.guest_mac,
            ether_type: EtherType::Ipv4,
        }
        .write(&mut frame);
        header.write(&ip, core::iter::once(data), &mut frame);
        frame.extend_from_slice(data);
        frame
    }
}

/// A frame for the guest has a correct header, and fits the link. Returns the number after a segment.
fn check_frame(frame: &[u8]) -> Option<u32> {
    let header = EthernetHeader::parse(frame).expect("a frame has a header");
    assert_eq!(header.destination, CONFIG.guest_mac);
    let packet = &frame[ethernet::HEADER_LEN..];
    assert!(packet.len() <= usize::from(CONFIG.mtu));
    let parse = match header.ether_type {
        EtherType::Arp => return None,
        EtherType::Ipv4 => IpPacket::parse_v4,
        EtherType::Ipv6 => IpPacket::parse_v6,
    };
    let ip = parse(packet).expect("a packet is well-formed");
    let payload = &packet[ip.payload];
    if ip.fragment.is_some() {
        return None;
    }
    match ip.header.protocol {
        UDP => {
            UdpDatagram::parse(&ip.header, payload).expect("a datagram is well-formed");
            None
        }
        TCP => {
            let (header, data) =
                TcpHeader::parse(&ip.header, payload).expect("a segment is well-formed");
            let len = data.len() as u32 + u32::from(header.flags.syn) + u32::from(header.flags.fin);
            Some(header.sequence.wrapping_add(len))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    /// Operations that keep connections alive, and any bytes among them.
    fn operations() -> impl Strategy<Value = Vec<u8>> {
        let number = prop_oneof![8 => Just(255), 1 => any::<u8>()];
        let segment = (0..8u8, number.clone(), number, any::<[u8; 2]>(), 0..64u8, any::<u8>());
        let operation = prop_oneof![
            2 => Just(vec![1, 2, 255, 255, 9, 0, 0]),
            2 => Just(vec![9]),
            8 => segment.prop_map(|(flags, sequence, ack, window, len, taken)| {
                // Resets and SYNs are rare.
                let flags = if flags < 4 && taken > 30 { 0 } else { flags };
                let mut bytes = vec![1, flags, sequence, ack, window[0], window[1], len];
                bytes.resize(bytes.len() + usize::from(len) * 4, b'u');
                bytes.push(taken);
                bytes
            }),
            4 => (8..16u8, any::<[u8; 2]>()).prop_map(|(code, [a, b])| vec![code, a, b]),
            1 => proptest::collection::vec(any::<u8>(), 0..40),
        ];
        let opened = prop_oneof![3 => Just(vec![1, 2, 255, 255, 9, 0, 0, 9]), 1 => Just(vec![])];
        (opened, proptest::collection::vec(operation, 0..120))
            .prop_map(|(opened, all)| [opened, all.concat()].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn network_any_operations_keep_laws(data in operations()) {
            network(&data);
        }

        #[test]
        fn network_any_bytes_keep_laws(data in proptest::collection::vec(any::<u8>(), 0..1500)) {
            network(&data);
        }
    }
}
