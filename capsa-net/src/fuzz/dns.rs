//! The name server, with a guest that sends any messages and resolvers that answer anything.

use core::net::{IpAddr, Ipv6Addr};
use core::time::Duration;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use capsa_proto::time::Instant;

use super::{CONFIG, FuzzInput};
use crate::net::{Net, NetAction, QueryId, QueryType, ResolveError};
use crate::wire::dns::{
    self, DnsName, DnsQuery, DnsQuestion, DnsRecord, DnsResponse, ResponseCode,
};
use crate::wire::ethernet::{self, EtherType, EthernetHeader};
use crate::wire::ip::{self, IpHeader, IpPacket};
use crate::wire::tcp::{Flags, TcpHeader};
use crate::wire::udp::{self, UdpDatagram};

/// Any messages over UDP and TCP, and any answers of resolvers: no panic; what the server asks for is a
/// name; each answer has the number of a query, and fits; there are not more answers than queries; after
/// a minute nothing waits.
pub fn dns(data: &[u8]) {
    codec(data);
    let mut world = NameWorld::new();
    let mut input = FuzzInput(data);
    while !input.0.is_empty() {
        let operation = input.byte();
        match operation & 7 {
            0 => {
                let len = usize::from(input.byte());
                let message = input.bytes(len).to_vec();
                world.send(&message);
            }
            1 => {
                let message = query(&mut input);
                world.send(&message);
            }
            2 => {
                let message = query(&mut input);
                let prefixed = [&(message.len() as u16).to_be_bytes(), &message[..]].concat();
                world.write(&prefixed, false);
            }
            3 => {
                let len = usize::from(input.byte());
                world.write(input.bytes(len), operation >= 0x80);
            }
            4 => world.answer_addresses(&mut input),
            5 => world.answer_records(&mut input),
            6 => world.pass(Duration::from_millis(u64::from(input.u16()))),
            _ => world.connect(),
        }
        world.step();
    }
    world.pass(Duration::from_secs(60));
    world.step();
    assert_eq!((world.net.poll_timeout(), world.net.flows()), (None, 0), "something waits");
    assert!(world.net.is_name_server_idle());
}

/// Each message that is a query has an answer that fits and that a resolver would take.
fn codec(data: &[u8]) {
    match DnsQuery::parse(data) {
        Ok(query) => {
            let record = |n: u8| DnsRecord {
                owner: query.question.name.clone(),
                record_type: query.question.record_type,
                ttl: 1,
                data: [n; 40].to_vec(),
            };
            let records: Vec<DnsRecord> = (0..data[0] & 31).map(record).collect();
            let response = DnsResponse {
                query: &query,
                code: ResponseCode::NoError,
                is_authoritative: false,
                records: &records,
                negative_ttl: Some(1),
                error: None,
            };
            let limit = usize::from(query.udp_limit());
            let message = response.write(limit);
            assert!(message.len() <= limit);
            let is_truncated = dns::answers_query(&message, query.id, &query.question);
            assert!(is_truncated.is_some(), "no answer to its query");
            if let Some(text) = query.question.name.to_text() {
                let name = DnsName::from_text(&text).expect("the text is a name");
                assert!(name.is_same(&query.question.name));
            }
        }
        Err(dns::InvalidQuery::Answer(answer)) => {
            assert!(answer[..2] == data[..2] && answer[2] & 0x80 != 0);
        }
        Err(dns::InvalidQuery::NoQuery) => {}
    }
}

/// A question about one of a few names, in any case.
fn question(input: &mut FuzzInput<'_>) -> DnsQuestion {
    const NAMES: [&str; 8] = [
        "a.example",
        "A.example",
        "b.example",
        "host.capsa.internal",
        "no.capsa.internal",
        "2.2.0.10.in-addr.arpa",
        "localhost",
        "",
    ];
    const TYPES: [u16; 8] = [1, 28, 16, 5, 12, 33, 65, 255];
    let byte = input.byte();
    let name = DnsName::from_text(NAMES[usize::from(byte & 7)]).expect("it is a name");
    DnsQuestion { name, record_type: TYPES[usize::from(byte >> 3 & 7)] }
}

fn query(input: &mut FuzzInput<'_>) -> Vec<u8> {
    let question = question(input);
    dns::write_query(u16::from(input.byte()), &question)
}

/// A guest with datagrams and one connection.
struct NameWorld {
    net: Net,
    now: Instant,
    /// What the driver was asked.
    asked: BTreeMap<QueryId, (String, QueryType)>,
    /// Queries over UDP, and their answers.
    queries: usize,
    answers: usize,
    port: u16,
    sent: u32,
    acknowledged: u32,
    is_open: bool,
}

impl NameWorld {
    fn new() -> Self {
        Self {
            net: Net::new(CONFIG, [7; 16]),
            now: Instant::ZERO,
            asked: BTreeMap::new(),
            queries: 0,
            answers: 0,
            port: 1000,
            sent: 0,
            acknowledged: 0,
            is_open: false,
        }
    }

    fn frame(&mut self, protocol: u8, write: impl FnOnce(&IpHeader, &mut Vec<u8>)) {
        let (source, destination) = (CONFIG.guest.into(), CONFIG.dns.into());
        let ip = IpHeader { source, destination, protocol, hop_limit: 64 };
        let mut frame = Vec::new();
        EthernetHeader {
            destination: CONFIG.gateway_mac,
            source: CONFIG.guest_mac,
            ether_type: EtherType::Ipv4,
        }
        .write(&mut frame);
        write(&ip, &mut frame);
        assert_eq!(self.net.handle_frame(&frame, self.now), None, "the server has no socket");
    }

    fn send(&mut self, message: &[u8]) {
        self.queries += 1;
        self.frame(ip::UDP, |ip, frame| udp::write(ip, (999, dns::PORT), message, frame));
    }

    fn segment(&mut self, flags: Flags, data: &[u8]) {
        let header = TcpHeader {
            source: self.port,
            destination: dns::PORT,
            sequence: self.sent,
            acknowledgement: self.acknowledged,
            flags: Flags { ack: !flags.syn, ..flags },
            window: 60_000,
            ..TcpHeader::default()
        };
        let len = data.len() as u32 + u32::from(flags.syn) + u32::from(flags.fin);
        self.sent = self.sent.wrapping_add(len);
        self.frame(ip::TCP, |ip, frame| {
            header.write(ip, core::iter::once(data), frame);
            frame.extend_from_slice(data);
        });
    }

    fn connect(&mut self) {
        self.port += 1;
        self.is_open = false;
        self.segment(Flags { syn: true, ..Flags::default() }, &[]);
    }

    fn write(&mut self, data: &[u8], fin: bool) {
        if self.is_open {
            self.segment(Flags { fin, ..Flags::default() }, data);
            self.is_open = !fin;
        }
    }

    fn answer_addresses(&mut self, input: &mut FuzzInput<'_>) {
        let Some(id) = self.waiting(input) else { return };
        let byte = input.byte();
        let addresses: Vec<IpAddr> = (0..byte & 63)
            .map(|n| match n & 1 {
                0 => IpAddr::from([192, 0, 2, n]),
                _ => IpAddr::from(Ipv6Addr::from([n; 16])),
            })
            .collect();
        let answer = match byte {
            255 => Err(ResolveError::NoName),
            254 => Err(ResolveError::Failed),
            _ => Ok(&addresses[..]),
        };
        self.net.handle_addresses(id, answer, self.now);
    }

    /// An answer to the right question, with any bytes as its records.
    fn answer_records(&mut self, input: &mut FuzzInput<'_>) {
        let Some(id) = self.waiting(input) else { return };
        let Some((name, QueryType::Records(record_type))) = &self.asked.get(&id) else { return };
        let name = DnsName::from_text(name).expect("the server asks for a name");
        let asked = DnsQuestion { name, record_type: *record_type };
        let mut message = dns::write_query(1, &asked);
        // The record of EDNS is the last one.
        message.truncate(message.len() - 11);
        (message[2], message[3]) = (0x80 | input.byte(), input.byte());
        (message[7], message[11]) = (input.byte(), 0);
        let len = usize::from(input.byte()) * 4;
        message.extend(input.bytes(len));
        self.net.handle_records(id, Ok(&message), self.now);
    }

    /// One of the queries that the driver was asked, and that may have ended.
    fn waiting(&self, input: &mut FuzzInput<'_>) -> Option<QueryId> {
        let byte = usize::from(input.byte());
        self.asked.keys().nth(byte % self.asked.len().max(1)).copied()
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.net.poll_timeout()
            && deadline.at <= end
        {
            assert!(deadline.at > self.now, "a past deadline");
            self.now = deadline.at;
            self.net.handle_timeout(self.now);
            self.step();
        }
        self.now = end;
    }

    fn step(&mut self) {
        let mut head = Vec::new();
        while let Some(body) = self.net.poll_frame(&mut head, self.now) {
            head.extend(self.net.parts(&body).flatten());
            self.receive(&head);
        }
        while let Some(action) = self.net.poll_action() {
            let NetAction::Resolve { query, name, query_type } = action else {
                panic!("{action:?} for a flow without a socket")
            };
            let parsed = DnsName::from_text(&name).expect("the server asks for a name");
            assert_eq!(parsed.to_text().as_ref(), Some(&name), "the name is not canonical");
            self.asked.insert(query, (name, query_type));
        }
        assert!(self.answers <= self.queries, "more answers than queries");
    }

    fn receive(&mut self, frame: &[u8]) {
        let packet = &frame[ethernet::HEADER_LEN..];
        let ip = IpPacket::parse_v4(packet).expect("a packet is well-formed");
        let payload = &packet[ip.payload];
        if ip.header.protocol == ip::UDP {
            let datagram = UdpDatagram::parse(&ip.header, payload).expect("it is well-formed");
            let answer = &payload[datagram.payload];
            assert!(answer.len() <= usize::from(dns::UDP_MAX) && answer[2] & 0x80 != 0);
            self.answers += 1;
            return;
        }
        let (header, data) = TcpHeader::parse(&ip.header, payload).expect("it is well-formed");
        if header.destination != self.port {
            return;
        }
        if header.flags.rst {
            self.is_open = false;
            return;
        }
        if header.flags.syn {
            (self.is_open, self.acknowledged) = (true, header.sequence.wrapping_add(1));
        } else if header.sequence == self.acknowledged {
            let len = data.len() as u32 + u32::from(header.flags.fin);
            self.acknowledged = self.acknowledged.wrapping_add(len);
        }
        if header.flags.syn || header.flags.fin || !data.is_empty() {
            self.segment(Flags::default(), &[]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    /// Operations of [`dns`], and any bytes among them.
    fn operations() -> impl Strategy<Value = Vec<u8>> {
        let operation = prop_oneof![
            4 => (1..3u8, any::<u8>(), any::<u8>()).prop_map(|(code, a, b)| vec![code, a, b]),
            3 => any::<[u8; 2]>().prop_map(|[a, b]| vec![4, a, b]),
            2 => proptest::collection::vec(any::<u8>(), 5..60).prop_map(|bytes| [vec![5], bytes].concat()),
            1 => any::<[u8; 2]>().prop_map(|[a, b]| vec![6, a, b]),
            1 => Just(vec![7]),
            1 => proptest::collection::vec(any::<u8>(), 0..40),
        ];
        proptest::collection::vec(operation, 0..80)
            .prop_map(|operations| [vec![7], operations.concat()].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn dns_any_operations_keep_laws(data in operations()) {
            dns(&data);
        }

        #[test]
        fn dns_any_bytes_keep_laws(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            dns(&data);
        }
    }
}
