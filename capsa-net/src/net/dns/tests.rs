//! A guest that asks the name server, over UDP and TCP.

mod attacks;
mod streams;

use super::*;
use crate::net::{NetworkConfig, ServiceName};
use crate::wire::ethernet::{self, EthernetHeader, MacAddress};
use crate::wire::ip::IpPacket;
use crate::wire::tcp::{Flags, TcpHeader};
use crate::wire::udp::UdpDatagram;
use alloc::collections::BTreeSet;
use alloc::vec;
use core::net::Ipv4Addr;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const GUEST_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const GATEWAY_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);

const A: u16 = record_type::A;
const AAAA: u16 = record_type::AAAA;
const TXT: u16 = record_type::TXT;

/// A TCP connection of the guest to port 53.
#[derive(Default)]
struct TcpClient {
    sent: u32,
    acknowledged: u32,
    received: Vec<u8>,
    is_open: bool,
    has_seen_end: bool,
    was_reset: bool,
}

impl TcpClient {
    /// The whole messages that have arrived.
    fn messages(&self) -> Vec<Vec<u8>> {
        let mut rest = &self.received[..];
        let mut messages = Vec::new();
        while let [high, low, after @ ..] = rest {
            let (message, after) = after.split_at(usize::from(u16::from_be_bytes([*high, *low])));
            messages.push(message.to_vec());
            rest = after;
        }
        messages
    }
}

struct NameClient {
    net: Net,
    now: Instant,
    /// Datagrams to the guest, with its port.
    datagrams: Vec<(u16, Vec<u8>)>,
    /// The last connection, and its port.
    client: TcpClient,
    port: u16,
}

/// What the server asked the driver.
type Asked = (QueryId, String, QueryType);

impl NameClient {
    fn new() -> Self {
        let service = |name: &str, port| ServiceName { name: name.into(), port };
        let config = NetworkConfig {
            gateway_mac: GATEWAY_MAC,
            ipv6: None,
            flows: 100,
            memory: 1 << 20,
            services: vec![
                service("llm.capsa.internal", 80),
                service("a.b.capsa.internal", 81),
                service("llm.capsa.internal", 443),
                service("other.example", 80),
            ],
            ..NetworkConfig::new(GUEST_MAC, 1500)
        };
        Self {
            net: Net::new(config, [7; 16]),
            now: Instant::ZERO,
            datagrams: Vec::new(),
            client: TcpClient::default(),
            port: 0,
        }
    }

    fn frame(&self, write: impl FnOnce(&IpHeader, &mut Vec<u8>), protocol: u8) -> Vec<u8> {
        let (source, destination) = (GUEST.into(), DNS.into());
        let ip = IpHeader { source, destination, protocol, hop_limit: 64 };
        let mut frame = Vec::new();
        EthernetHeader { destination: GATEWAY_MAC, source: GUEST_MAC, ether_type: EtherType::Ipv4 }
            .write(&mut frame);
        write(&ip, &mut frame);
        frame
    }

    /// Sends a datagram from this port; the answers are in `datagrams`.
    fn send(&mut self, port: u16, message: &[u8]) {
        let frame = self.frame(|ip, frame| udp::write(ip, (port, 53), message, frame), ip::UDP);
        assert_eq!(self.net.handle_frame(&frame, self.now), None);
        self.receive();
    }

    /// Takes the frames to the guest; acknowledges its stream.
    fn receive(&mut self) {
        let mut head = Vec::new();
        while let Some(body) = self.net.poll_frame(&mut head, self.now) {
            head.extend(self.net.parts(&body).flatten());
            let packet = &head[ethernet::HEADER_LEN..];
            let ip = IpPacket::parse_v4(packet).unwrap();
            assert_eq!(ip.header.source, IpAddr::from(DNS));
            let payload = &packet[ip.payload];
            if ip.header.protocol == ip::UDP {
                let datagram = UdpDatagram::parse(&ip.header, payload).unwrap();
                assert_eq!(datagram.source, 53);
                self.datagrams.push((datagram.destination, payload[datagram.payload].to_vec()));
                continue;
            }
            let (header, data) = TcpHeader::parse(&ip.header, payload).unwrap();
            let data = payload[data].to_vec();
            self.receive_segment(&header, &data);
        }
    }

    fn receive_segment(&mut self, header: &TcpHeader, data: &[u8]) {
        let client = &mut self.client;
        if header.destination != self.port {
            return;
        }
        if header.flags.rst {
            client.was_reset = true;
            return;
        }
        if header.flags.syn {
            client.is_open = true;
            client.acknowledged = header.sequence.wrapping_add(1);
        } else if header.sequence == client.acknowledged {
            client.received.extend(data);
            client.has_seen_end |= header.flags.fin;
            let len = data.len() as u32 + u32::from(header.flags.fin);
            client.acknowledged = client.acknowledged.wrapping_add(len);
        }
        if header.flags.syn || header.flags.fin || !data.is_empty() {
            self.send_segment(Flags::default(), &[]);
        }
    }

    fn send_segment(&mut self, flags: Flags, data: &[u8]) {
        let header = TcpHeader {
            source: self.port,
            destination: 53,
            sequence: self.client.sent,
            acknowledgement: self.client.acknowledged,
            flags: Flags { ack: !flags.syn, ..flags },
            window: 60_000,
            mss: flags.syn.then_some(1460),
            ..TcpHeader::default()
        };
        let len = data.len() as u32 + u32::from(flags.syn) + u32::from(flags.fin);
        self.client.sent = self.client.sent.wrapping_add(len);
        let frame = self.frame(
            |ip, frame| {
                header.write(ip, core::iter::once(data), frame);
                frame.extend_from_slice(data);
            },
            ip::TCP,
        );
        assert_eq!(self.net.handle_frame(&frame, self.now), None);
    }

    /// Opens a connection from this port.
    fn connect(&mut self, port: u16) {
        (self.port, self.client) = (port, TcpClient { sent: 1000, ..TcpClient::default() });
        self.send_segment(Flags { syn: true, ..Flags::default() }, &[]);
        self.receive();
    }

    /// Sends bytes on the connection, in segments of `max` bytes.
    fn write(&mut self, bytes: &[u8], max: usize) {
        for part in bytes.chunks(max) {
            self.send_segment(Flags::default(), part);
            self.receive();
        }
    }

    /// What the server asks the driver. It asks for nothing else.
    fn asked(&mut self) -> Vec<Asked> {
        let resolve = |action| match action {
            NetAction::Resolve { query, name, query_type } => (query, name, query_type),
            other => panic!("{other:?}"),
        };
        core::iter::from_fn(|| self.net.poll_action()).map(resolve).collect()
    }

    /// The only thing that the server asks.
    fn asked_once(&mut self) -> Asked {
        let mut all = self.asked();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    fn addresses(&mut self, query: QueryId, addresses: &[&str]) {
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        self.net.handle_addresses(query, Ok(&addresses), self.now);
        self.receive();
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.net.poll_timeout()
            && deadline.at <= end
        {
            self.now = deadline.at;
            self.net.handle_timeout(self.now);
            self.receive();
        }
        self.now = end;
    }

    /// The only datagram to the guest.
    fn answer(&mut self) -> Vec<u8> {
        assert_eq!(self.datagrams.len(), 1, "{:?}", self.datagrams);
        self.datagrams.remove(0).1
    }

    /// Asks over UDP, and expects an answer that needs no resolver: its code and data.
    fn ask(&mut self, name: &str, record_type: u16) -> (u8, Vec<Vec<u8>>) {
        self.send(5000, &query(1, name, record_type));
        assert_eq!(self.asked(), [], "{name}");
        let answer = self.answer();
        (answer[3] & 0xf, data(&answer, name, record_type))
    }
}

fn question(name: &str, record_type: u16) -> DnsQuestion {
    DnsQuestion { name: DnsName::from_text(name).unwrap(), record_type }
}

/// A query with EDNS.
fn query(id: u16, name: &str, record_type: u16) -> Vec<u8> {
    dns::write_query(id, &question(name, record_type))
}

/// The data of the records of an answer.
fn data(answer: &[u8], name: &str, record_type: u16) -> Vec<Vec<u8>> {
    let answer = dns::parse_answer(answer, &question(name, record_type)).unwrap();
    answer.records.into_iter().map(|record| record.data).collect()
}

/// A query as a message over TCP.
fn prefixed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

/// The answer of an upstream server with these texts.
fn upstream(name: &str, texts: &[Vec<u8>]) -> Vec<u8> {
    let query = DnsQuery::parse(&query(1, name, TXT)).unwrap();
    let record = |text: &Vec<u8>| DnsRecord {
        owner: query.question.name.clone(),
        record_type: TXT,
        ttl: 300,
        data: text.clone(),
    };
    let records: Vec<_> = texts.iter().map(record).collect();
    DnsResponse {
        query: &query,
        code: ResponseCode::NoError,
        is_authoritative: false,
        records: &records,
        negative_ttl: None,
        error: None,
    }
    .write(65_535)
}

#[test]
fn addresses_are_resolved_once_for_both_families() {
    let mut guest = NameClient::new();
    guest.send(5000, &query(1, "Example.com", A));
    let (id, name, query_type) = guest.asked_once();
    // No case of the guest reaches another server.
    assert_eq!((&name[..], query_type), ("example.com", QueryType::Addresses));
    assert_eq!(guest.datagrams, []);
    guest.addresses(id, &["192.0.2.1", "2001:db8::1", "192.0.2.2", "fe80::1"]);
    let answer = guest.answer();
    assert_eq!(data(&answer, "example.com", A), [[192, 0, 2, 1], [192, 0, 2, 2]]);
    assert!(answer.windows(7).any(|part| part == b"Example"), "as it was asked");
    // From the cache; link-local addresses are of no use.
    let v6 = "2001:db8::1".parse::<core::net::Ipv6Addr>().unwrap().octets();
    assert_eq!(guest.ask("example.com", AAAA), (0, vec![v6.to_vec()]));
    guest.pass(Duration::from_secs(29));
    assert_eq!(guest.ask("example.com", A).1.len(), 2);
    guest.pass(Duration::from_secs(1));
    guest.send(5000, &query(1, "example.com", A));
    let (id, ..) = guest.asked_once();
    guest.addresses(id, &["2001:db8::1"]);
    // The name exists, and has no address of this family: it may be kept for a short time.
    let answer = guest.answer();
    assert_eq!((answer[3] & 0xf, &answer[6..10]), (0, &[0, 0, 0, 1][..]));
}

#[test]
fn queries_of_one_name_are_coalesced() {
    let mut guest = NameClient::new();
    guest.send(5000, &query(1, "example.com", A));
    guest.send(5000, &query(2, "example.com", AAAA));
    guest.send(5001, &query(1, "EXAMPLE.com", A));
    // A repetition.
    guest.send(5000, &query(1, "example.com", A));
    let (id, ..) = guest.asked_once();
    guest.addresses(id, &["192.0.2.1"]);
    let ports: Vec<_> = guest.datagrams.iter().map(|(port, answer)| (*port, answer[1])).collect();
    assert_eq!(ports, [(5000, 1), (5000, 2), (5001, 1)]);
    // A second answer of the driver is late.
    guest.addresses(id, &["192.0.2.1"]);
    assert_eq!(guest.datagrams.len(), 3);
}

#[test]
fn name_that_does_not_exist_is_kept_for_5_seconds() {
    let mut guest = NameClient::new();
    guest.send(5000, &query(1, "no.example", A));
    let (id, ..) = guest.asked_once();
    guest.net.handle_addresses(id, Err(ResolveError::NoName), guest.now);
    guest.receive();
    assert_eq!(guest.answer()[3] & 0xf, 3);
    guest.pass(Duration::from_secs(4));
    assert_eq!(guest.ask("no.example", AAAA).0, 3);
    guest.pass(Duration::from_secs(1));
    guest.send(5000, &query(1, "no.example", A));
    let (id, ..) = guest.asked_once();
    // A failure is not kept: the host's network may come back.
    for _ in 0..2 {
        guest.net.handle_addresses(id, Err(ResolveError::Failed), guest.now);
        guest.receive();
    }
    assert_eq!(guest.answer()[3] & 0xf, 2);
    guest.send(5000, &query(1, "no.example", A));
    guest.asked_once();
}

#[test]
fn own_names_need_no_resolver() {
    let mut guest = NameClient::new();
    for (name, expected) in [
        ("host.capsa.internal", [10, 0, 2, 2]),
        ("HOST.Capsa.Internal", [10, 0, 2, 2]),
        ("gateway.capsa.internal", [10, 0, 2, 2]),
        ("dns.capsa.internal", [10, 0, 2, 3]),
        ("guest.capsa.internal", [10, 0, 2, 15]),
        ("llm.capsa.internal", [10, 0, 2, 32]),
        ("a.b.capsa.internal", [10, 0, 2, 33]),
        ("other.example", [10, 0, 2, 34]),
        ("localhost", [127, 0, 0, 1]),
        ("www.localhost", [127, 0, 0, 1]),
    ] {
        assert_eq!(guest.ask(name, A), (0, vec![expected.to_vec()]), "{name}");
    }
    for (name, record_type, code) in [
        ("host.capsa.internal", AAAA, 0),
        ("llm.capsa.internal", AAAA, 0),
        ("llm.capsa.internal", TXT, 0),
        // A domain, and not a host.
        ("capsa.internal", A, 0),
        ("b.capsa.internal", A, 0),
        ("no.capsa.internal", A, 3),
        ("no.llm.capsa.internal", TXT, 3),
    ] {
        assert_eq!(guest.ask(name, record_type), (code, vec![]), "{name} {record_type}");
    }
    guest.send(5000, &query(1, "nocapsa.internal", A));
    guest.asked_once();
}

#[test]
fn own_addresses_have_names_and_closed_ones_none() {
    let mut guest = NameClient::new();
    let ptr = record_type::PTR;
    for (name, expected) in [
        ("2.2.0.10.in-addr.arpa", "gateway.capsa.internal"),
        ("15.2.0.10.in-addr.arpa", "guest.capsa.internal"),
        ("32.2.0.10.in-addr.arpa", "llm.capsa.internal"),
    ] {
        let target = DnsName::from_text(expected).unwrap();
        assert_eq!(guest.ask(name, ptr), (0, vec![target.as_bytes().to_vec()]));
    }
    let link_local = alloc::format!("{}0.8.e.f.ip6.arpa", "0.".repeat(28));
    for name in ["99.2.0.10.in-addr.arpa", "1.1.168.192.in-addr.arpa", &link_local] {
        assert_eq!(guest.ask(name, ptr), (3, vec![]), "{name}");
    }
    for name in ["8.8.8.8.in-addr.arpa", "8.8.in-addr.arpa", "256.1.1.1.in-addr.arpa"] {
        guest.send(5000, &query(1, name, ptr));
        assert_eq!(guest.asked_once().2, QueryType::Records(ptr), "{name}");
    }
}

#[test]
fn records_come_from_the_upstream_answer() {
    let mut guest = NameClient::new();
    guest.send(5000, &query(1, "Example.com", TXT));
    let (id, name, query_type) = guest.asked_once();
    assert_eq!((&name[..], query_type), ("example.com", QueryType::Records(TXT)));
    let message = upstream("example.com", &[b"\x02ab".to_vec()]);
    guest.net.handle_records(id, Ok(&message), guest.now);
    guest.receive();
    assert_eq!(data(&guest.answer(), "example.com", TXT), [b"\x02ab"]);
    assert_eq!(guest.ask("example.com", TXT).1, [b"\x02ab"]);
    // An answer to another question, and none that can be parsed.
    for message in [upstream("other.example", &[]), vec![0; 20], vec![]] {
        guest.send(5000, &query(1, "bad.example", TXT));
        let (id, ..) = guest.asked_once();
        guest.net.handle_records(id, Ok(&message), guest.now);
        guest.receive();
        assert_eq!(guest.answer()[3] & 0xf, 2);
    }
}

#[test]
fn names_that_text_cannot_express_do_not_exist() {
    let mut guest = NameClient::new();
    for label in [&b"a b"[..], b"a.b", b"a\0b", b"a%eth0", b"::1", b"*", b"\xc3\xa9"] {
        let mut message = query(1, "xxx", A);
        message.splice(12..17, [&[label.len() as u8], label, &[0]].concat());
        guest.send(5000, &message);
        assert_eq!(guest.asked(), [], "{}", label.escape_ascii());
        assert_eq!(guest.answer()[3] & 0xf, 3);
    }
    // Types of the protocol itself, and `ANY`.
    for record_type in [0, 41, 128, 251, 252, 255] {
        assert_eq!(guest.ask("example.com", record_type).0, 4, "{record_type}");
    }
    assert_eq!(guest.ask("", A).0, 3);
}

#[test]
fn queries_beyond_the_limits_fail_and_are_counted() {
    let mut guest = NameClient::new();
    for n in 0..70 {
        guest.send(5000, &query(n, &alloc::format!("n{n}.example"), A));
    }
    assert_eq!(guest.asked().len(), RESOLUTIONS);
    let codes: BTreeSet<u8> =
        guest.datagrams.drain(..).map(|(_, answer)| answer[3] & 0xf).collect();
    assert_eq!((codes, guest.net.counters().queries_limited), (BTreeSet::from([2]), 6));
    // Names of the network itself do not wait.
    assert_eq!(guest.ask("host.capsa.internal", A).0, 0);
    guest.pass(RESOLVE_TIME);
    assert_eq!(guest.datagrams.len(), RESOLUTIONS);
    assert!(guest.datagrams.drain(..).all(|(_, answer)| answer[3] & 0xf == 2));
    // Many clients that wait for one name.
    for port in 0..20 {
        guest.send(port, &query(1, "n.example", A));
    }
    assert_eq!((guest.asked().len(), guest.datagrams.drain(..).count()), (1, 20 - CLIENTS));
    assert_eq!(
        guest.net.poll_timeout().map(|deadline| deadline.at),
        Some(guest.now + RESOLVE_TIME)
    );
}

#[test]
fn queries_beyond_the_rate_are_dropped() {
    let mut guest = NameClient::new();
    for _ in 0..1000 {
        guest.send(5000, &query(1, "host.capsa.internal", A));
    }
    assert_eq!(guest.datagrams.drain(..).count(), QUERY_BURST as usize);
    assert_eq!(guest.net.counters().queries_limited, 600);
    guest.pass(Duration::from_secs(1));
    for _ in 0..1000 {
        guest.send(5000, &query(1, "host.capsa.internal", A));
    }
    assert_eq!(guest.datagrams.len(), 200);
}

#[test]
fn cache_is_bounded() {
    let mut guest = NameClient::new();
    for n in 0..2000 {
        guest.now = guest.now + QUERY_INTERVAL;
        guest.send(5000, &query(1, &alloc::format!("n{n}.example"), A));
        let (id, ..) = guest.asked_once();
        guest.addresses(id, &["192.0.2.1"]);
    }
    assert_eq!(guest.net.name_server.cache.len(), 256);
    guest.datagrams.clear();
    guest.pass(Duration::from_secs(1));
    // The latest names are known.
    for n in 1800..2000 {
        guest.ask(&alloc::format!("n{n}.example"), A);
    }
}
