//! The DHCP server, with a guest that sends any messages and a client that loses answers.

use core::net::Ipv4Addr;
use core::time::Duration;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use capsa_proto::time::Instant;

use super::{CONFIG, FuzzInput, check_frame};
use crate::net::Net;
use crate::wire::ethernet::{self, EtherType, EthernetHeader, MacAddress};
use crate::wire::ip::{self, IpHeader, IpPacket};
use crate::wire::udp::{self, UdpDatagram};

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;
const INFORM: u8 = 8;

/// Bytes before the options.
const HEADER_LEN: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];

const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 7);

/// Any messages, and a client in any state among them: no panic; each message has the one answer that RFC
/// 2131 asks for, or none, and the same answer when it is repeated; an answer has the numbers of its
/// message, and a lease, a mask, a gateway and an MTU that fit one another; a client gets the address that
/// it was offered and keeps it; nothing waits.
pub fn dhcp(data: &[u8]) {
    let mut world = DhcpWorld {
        net: Net::new(CONFIG, [7; 16]),
        now: Instant::ZERO,
        transaction: 0,
        client: DhcpClient::Starting,
    };
    let mut input = FuzzInput(data);
    while !input.0.is_empty() {
        let operation = input.byte();
        let is_lost = operation & 0x80 != 0;
        match operation & 7 {
            0 => {
                let len = 2 * usize::from(input.byte());
                world.exchange(NONE, input.bytes(len));
            }
            1 | 2 => {
                let message = any_message(&mut input);
                let source = if is_lost { CONFIG.guest } else { NONE };
                world.exchange(source, &message);
            }
            3..=5 => world.step(is_lost),
            6 => world.client = DhcpClient::Rebooted([OTHER, CONFIG.guest][usize::from(is_lost)]),
            _ => {
                world.now = world.now + Duration::from_secs(u64::from(input.u16()));
                world.net.handle_timeout(world.now);
            }
        }
    }
    for _ in 0..4 {
        world.step(false);
    }
    assert_eq!(world.client, DhcpClient::Bound(CONFIG.guest), "the client has no address");
    assert_eq!((world.net.poll_timeout(), world.net.flows()), (None, 0), "something is left");
}

/// A message with a header that the server reads, and options in any order, some of them wrong.
fn any_message(input: &mut FuzzInput<'_>) -> Vec<u8> {
    let (kind, addresses, wrong) = (input.byte(), input.byte(), input.byte());
    let choose =
        |bits: u8| [None, Some(CONFIG.guest), Some(OTHER), Some(CONFIG.gateway)][bits as usize];
    let client = choose(addresses & 3).unwrap_or(NONE);
    let mut options = Vec::new();
    let extra = usize::from(input.byte() & 31);
    if wrong & 1 != 0 {
        options.extend_from_slice(input.bytes(extra));
    }
    options.extend_from_slice(&[53, 1, kind & 15]);
    for (option, bits) in [(50, addresses >> 2 & 3), (54, addresses >> 4 & 3)] {
        if let Some(address) = choose(bits) {
            options.extend_from_slice(&[0, option, 4]);
            options.extend_from_slice(&address.octets());
        }
    }
    options.extend_from_slice(input.bytes(usize::from(addresses >> 6)));
    options.push(255);
    let mut message = message(u32::from(kind) << 24 | u32::from(wrong), client, &options);
    message[10] = kind & 0x80;
    if wrong & 2 != 0 {
        message[33] ^= wrong >> 3 & 1;
    }
    if wrong & 4 != 0 {
        message.truncate(HEADER_LEN - 2 + usize::from(wrong >> 3));
    }
    message
}

fn message(transaction: u32, client: Ipv4Addr, options: &[u8]) -> Vec<u8> {
    let mut message = Vec::from([0; HEADER_LEN]);
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(&transaction.to_be_bytes());
    message[12..16].copy_from_slice(&client.octets());
    message[28..34].copy_from_slice(&CONFIG.guest_mac.0);
    message[236..].copy_from_slice(&COOKIE);
    message.extend_from_slice(options);
    message
}

/// The options of a message, the last one of each kind. `None` if they are malformed.
fn options(message: &[u8]) -> Option<BTreeMap<u8, &[u8]>> {
    let mut found = BTreeMap::new();
    let mut input = message.get(HEADER_LEN..)?;
    while let Some(kind) = input.split_off_first().filter(|kind| **kind != 255) {
        if *kind != 0 {
            let len = usize::from(*input.split_off_first()?);
            let value = input.split_off(..len)?;
            if *kind == 53 && value.is_empty() {
                // A message without a kind, even if another option has one.
                return None;
            }
            found.insert(*kind, value);
        }
    }
    Some(found)
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    bytes.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes))
}

/// The kind of the answer to a message, if it has one.
fn expected(message: &[u8]) -> Option<u8> {
    let options = options(message)?;
    let is_ours = message[..3] == [1, 1, 6]
        && message[28..34] == CONFIG.guest_mac.0
        && message[236..HEADER_LEN] == COOKIE;
    if !is_ours {
        return None;
    }
    let option = |kind: u8| options.get(&kind).and_then(|value| address(value));
    let wanted = option(50).or(address(&message[12..]));
    match *options.get(&53)?.first()? {
        DISCOVER => Some(OFFER),
        REQUEST if option(54).is_some_and(|server| server != CONFIG.gateway) => None,
        REQUEST if wanted == Some(CONFIG.guest) => Some(ACK),
        REQUEST => Some(NAK),
        INFORM => Some(ACK),
        _ => None,
    }
}

/// What the client of the guest knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DhcpClient {
    Starting,
    /// An offer has arrived.
    Selecting(Ipv4Addr),
    /// It has the address of a lease before the reboot.
    Rebooted(Ipv4Addr),
    Bound(Ipv4Addr),
}

struct DhcpWorld {
    net: Net,
    now: Instant,
    transaction: u32,
    client: DhcpClient,
}

impl DhcpWorld {
    /// The next message of the client. It gets the answer unless `is_lost`.
    fn step(&mut self, is_lost: bool) {
        let option = |kind: u8, address: Ipv4Addr| [&[kind, 4][..], &address.octets()].concat();
        let (source, kind, rest) = match self.client {
            DhcpClient::Starting => (NONE, DISCOVER, Vec::new()),
            DhcpClient::Selecting(offer) => {
                (NONE, REQUEST, [option(50, offer), option(54, CONFIG.gateway)].concat())
            }
            DhcpClient::Rebooted(old) => (NONE, REQUEST, option(50, old)),
            DhcpClient::Bound(own) => (own, REQUEST, Vec::new()),
        };
        self.transaction += 1;
        let options = [&[53, 1, kind], &rest[..], &[255]].concat();
        let answer = self.exchange(source, &message(self.transaction, source, &options));
        let (kind, given) = answer.expect("a client has an answer");
        if is_lost {
            return;
        }
        self.client = match (self.client, kind) {
            (DhcpClient::Starting, OFFER) => DhcpClient::Selecting(given),
            (DhcpClient::Selecting(own) | DhcpClient::Bound(own), ACK) if given == own => {
                DhcpClient::Bound(given)
            }
            (DhcpClient::Rebooted(own), ACK) if own == CONFIG.guest && given == own => {
                DhcpClient::Bound(own)
            }
            (DhcpClient::Rebooted(OTHER), NAK) => DhcpClient::Starting,
            (client, kind) => panic!("{kind} with {given} for {client:?}"),
        };
    }

    /// Sends a message twice. Returns the kind of its answer, and the address that it gives.
    fn exchange(&mut self, source: Ipv4Addr, message: &[u8]) -> Option<(u8, Ipv4Addr)> {
        let first = self.send(source, message);
        assert_eq!(first, self.send(source, message), "the answer to the same message differs");
        assert_eq!(first.as_ref().map(|(_, reply)| kind(reply)), expected(message), "{message:?}");
        let (to, reply) = first?;
        check_reply(message, to, &reply);
        Some((kind(&reply), address(&reply[16..])?))
    }

    /// Sends a message. Returns the destination and the content of its answer.
    fn send(&mut self, source: Ipv4Addr, message: &[u8]) -> Option<(Ipv4Addr, Vec<u8>)> {
        let is_unicast = source != NONE;
        let destination = if is_unicast { CONFIG.gateway } else { Ipv4Addr::BROADCAST };
        let mac = if is_unicast { CONFIG.gateway_mac } else { MacAddress([255; 6]) };
        let ip = IpHeader {
            source: source.into(),
            destination: destination.into(),
            protocol: ip::UDP,
            hop_limit: 64,
        };
        let mut frame = Vec::new();
        EthernetHeader { destination: mac, source: CONFIG.guest_mac, ether_type: EtherType::Ipv4 }
            .write(&mut frame);
        udp::write(&ip, (68, 67), message, &mut frame);
        assert_eq!(self.net.handle_frame(&frame, self.now), None, "the server has no socket");
        assert!(self.net.poll_action().is_none() && self.net.flows() == 0);
        let mut replies = Vec::new();
        let mut head = Vec::new();
        while let Some(body) = self.net.poll_frame(&mut head, self.now) {
            head.extend(self.net.parts(&body).flatten());
            check_frame(&head);
            let packet = &head[ethernet::HEADER_LEN..];
            let Ok(ip) = IpPacket::parse_v4(packet) else { continue };
            let payload = &packet[ip.payload];
            assert_eq!((ip.header.protocol, ip.header.source), (ip::UDP, CONFIG.gateway.into()));
            let datagram = UdpDatagram::parse(&ip.header, payload).expect("it is well-formed");
            assert_eq!((datagram.source, datagram.destination), (67, 68));
            let core::net::IpAddr::V4(to) = ip.header.destination else { panic!("not IPv4") };
            replies.push((to, payload[datagram.payload].to_vec()));
        }
        assert!(replies.len() <= 1, "a message has two answers");
        replies.pop()
    }
}

fn kind(reply: &[u8]) -> u8 {
    options(reply).and_then(|options| options.get(&53)?.first().copied()).expect("it has a kind")
}

/// An answer belongs to its message, and its parts fit one another.
fn check_reply(message: &[u8], to: Ipv4Addr, reply: &[u8]) {
    assert!(reply.len() >= 300 && reply[..4] == [2, 1, 6, 0] && reply[236..HEADER_LEN] == COOKIE);
    assert_eq!(reply[4..8], message[4..8], "the transaction");
    assert_eq!(reply[10..12], message[10..12], "the flags");
    assert_eq!(reply[28..44], message[28..44], "the hardware address");
    let asked = kind(message);
    let options = options(reply).expect("the options are whole");
    let kind = kind(reply);
    let given = address(&reply[16..]);
    let has_address = kind != NAK && address(&message[12..]) == Some(CONFIG.guest);
    assert_eq!(to, if has_address { CONFIG.guest } else { Ipv4Addr::BROADCAST });
    assert_eq!(address(options[&54]), Some(CONFIG.gateway));
    if kind == NAK {
        assert!(given == Some(NONE) && options.len() == 2, "a refusal gives something");
        return;
    }
    assert_eq!(given, Some(if asked == INFORM { NONE } else { CONFIG.guest }));
    let mask = address(options[&1]).expect("a mask has four bytes").to_bits();
    assert!(mask.leading_ones() + mask.trailing_zeros() == 32, "{mask:x} is no mask");
    for option in [3, 6] {
        let own = address(options[&option]).expect("an address has four bytes");
        assert_eq!(own.to_bits() & mask, CONFIG.guest.to_bits() & mask, "{own} is not on the link");
    }
    assert_eq!(options[&26], CONFIG.mtu.to_be_bytes());
    let time = |kind: u8| options.get(&kind).map(|value| value.to_vec());
    let (lease, renew, rebind) = (time(51), time(58), time(59));
    match asked {
        INFORM => assert_eq!((lease, renew, rebind), (None, None, None)),
        _ => assert!(renew.is_some() && renew < rebind && rebind < lease, "the times of a lease"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    /// Operations of [`dhcp`], and any bytes among them.
    fn operations() -> impl Strategy<Value = Vec<u8>> {
        let header = (prop_oneof![Just(1), Just(3), Just(8), any::<u8>()], any::<u8>());
        let wrong = prop_oneof![2 => Just(0), 1 => any::<u8>()];
        let operation = prop_oneof![
            4 => (header, wrong, any::<[u8; 2]>())
                .prop_map(|((kind, addresses), wrong, [a, b])| vec![b & 0x80 | 1, kind, addresses, wrong, a]),
            4 => (3..8u8, any::<bool>()).prop_map(|(code, lost)| vec![code | u8::from(lost) << 7]),
            1 => proptest::collection::vec(any::<u8>(), 0..300),
        ];
        proptest::collection::vec(operation, 0..60).prop_map(|operations| operations.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn dhcp_any_operations_keep_laws(data in operations()) {
            dhcp(&data);
        }

        #[test]
        fn dhcp_any_bytes_keep_laws(data in proptest::collection::vec(any::<u8>(), 0..1500)) {
            dhcp(&data);
        }
    }
}
