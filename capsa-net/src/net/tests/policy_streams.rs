//! The first bytes of connections under a policy, and its limits.

use super::packets::to;
use super::policy::{PolicyTest, allow, rules};
use super::segments::{GUEST_START, syn};
use super::*;
use crate::inspect::tests::client_hello;
use crate::wire::ip::IpHeader;
use crate::wire::tcp::Flags;
use crate::wire::udp;
use alloc::format;
use capsa_proto::policy::{
    AllowRule, NetworkEventKind as Kind, NetworkPolicy, PolicyLimits, ResolveMode, StreamCheck,
    VerdictReason as Reason,
};

const NAME: &str = "allowed.example";

/// A connection that is established on both sides.
struct Stream {
    flow: FlowId,
    address: Ipv4Addr,
    source: u16,
    port: u16,
    /// The next number of the network.
    acknowledgement: u32,
    /// Bytes that the socket got.
    socket: Vec<u8>,
}

impl PolicyTest {
    fn open(&mut self, address: Ipv4Addr, port: u16) -> Stream {
        let (flow, _) = self.connect(address, port).expect("the flow is allowed");
        let source = self.last_port();
        self.packets.clear();
        self.net.handle_connected(flow, self.now);
        self.poll();
        let (answer, _) = segment(&self.packets[0]);
        assert!(answer.flags.syn && answer.flags.ack);
        let acknowledgement = answer.sequence.wrapping_add(1);
        let mut stream =
            Stream { flow, address, source, port, acknowledgement, socket: Vec::new() };
        self.give(&mut stream, 0, b"");
        stream
    }

    /// The guest sends bytes at this offset; the socket takes all that it may.
    fn give(&mut self, stream: &mut Stream, offset: usize, data: &[u8]) {
        self.packets.clear();
        let ip = IpHeader { protocol: ip::TCP, ..to(stream.address) };
        let header = TcpHeader {
            source: stream.source,
            destination: stream.port,
            sequence: GUEST_START.wrapping_add(1 + offset as u32),
            acknowledgement: stream.acknowledgement,
            flags: Flags { ack: true, ..Flags::default() },
            window: 65_535,
            ..TcpHeader::default()
        };
        let mut packet = Vec::new();
        header.write(&ip, core::iter::once(data), &mut packet);
        packet.extend_from_slice(data);
        let mut frame = Vec::new();
        let (destination, source) = (GATEWAY_MAC, GUEST_MAC);
        ethernet::EthernetHeader { destination, source, ether_type: EtherType::Ipv4 }
            .write(&mut frame);
        frame.extend_from_slice(&packet);
        if let Some(Delivery::Stream { flow, data }) = self.net.handle_frame(&frame, self.now) {
            let data = &frame[data];
            stream.socket.extend_from_slice(data);
            self.net.taken(flow, data, data.len(), self.now);
        }
        let waiting: Vec<u8> = self.net.waiting(stream.flow).flatten().copied().collect();
        stream.socket.extend_from_slice(&waiting);
        self.net.drained(stream.flow, waiting.len(), self.now);
        self.poll();
    }
}

fn segment(packet: &[u8]) -> (TcpHeader, Vec<u8>) {
    let parsed = IpPacket::parse_v4(packet).unwrap();
    let payload = &packet[parsed.payload];
    let (header, data) = TcpHeader::parse(&parsed.header, payload).unwrap();
    (header, payload[data].to_vec())
}

fn test(targets: &[&str]) -> PolicyTest {
    PolicyTest::new(targets).with(NAME, &["93.184.216.34"])
}

#[test]
fn held_handshake_passes_unchanged() {
    for chunk in [1, 7, 500, 2000] {
        let mut test = test(&["allowed.example:443"]);
        let address = test.address(NAME);
        let mut stream = test.open(address, 443);
        let mut bytes = client_hello(NAME);
        bytes.extend_from_slice(b"more of the handshake");
        let mut at = 0;
        for part in bytes.chunks(chunk) {
            test.give(&mut stream, at, part);
            at += part.len();
            if at < bytes.len() - 21 {
                assert!(stream.socket.is_empty(), "{} bytes after {at}", stream.socket.len());
            }
        }
        assert!(stream.socket == bytes, "chunks of {chunk}");
        assert!(!test.has_reset());
    }
}

#[test]
fn attack_22_fronting_by_server_name_is_reset() {
    let mut test = test(&["allowed.example:443"]);
    let address = test.address(NAME);
    let mut stream = test.open(address, 443);
    test.events();
    test.give(&mut stream, 0, &client_hello("other.example"));
    assert!(test.has_reset() && stream.socket.is_empty());
    let event = test.events().into_iter().find(|event| event.kind == Kind::FlowRefused).unwrap();
    assert_eq!(event.reason, Reason::ServerName);
    assert_eq!(event.stated_name.as_deref(), Some("other.example"));
    assert_eq!(event.name.as_deref(), Some(NAME));
    assert_eq!(test.net.flows(), 0);
}

#[test]
fn attack_21_server_name_of_another_address() {
    let rule = AllowRule::new("allowed.example:443").resolve(ResolveMode::Real);
    let other = AllowRule::new("other.example:443").resolve(ResolveMode::Real);
    let mut test = PolicyTest::of(&NetworkPolicy::new().allow_rule(rule).allow_rule(other))
        .with(NAME, &["93.184.216.34"])
        .with("other.example", &["93.184.216.35"]);
    let (address, _) = (test.address(NAME), test.address("other.example"));
    for (name, passes) in [(NAME, true), ("other.example", false)] {
        let mut stream = test.open(address, 443);
        test.give(&mut stream, 0, &client_hello(name));
        assert_eq!((test.has_reset(), stream.socket.is_empty()), (!passes, !passes), "{name}");
    }
    // An address that no name has is not open at all.
    assert!(test.connect(Ipv4Addr::new(93, 184, 216, 36), 443).is_none());
}

#[test]
fn attack_24_handshake_without_end_is_reset() {
    let mut test = test(&["allowed.example:443"]);
    let address = test.address(NAME);
    let mut stream = test.open(address, 443);
    // Nothing is held, so a connection may be opened in advance.
    test.pass(Duration::from_secs(60));
    assert!(!test.has_reset());
    test.give(&mut stream, 0, &client_hello(NAME)[..100]);
    test.pass(Duration::from_millis(4900));
    assert!(!test.has_reset());
    test.pass(Duration::from_millis(200));
    assert!(test.has_reset() && stream.socket.is_empty());
    let events = test.events();
    let refused = events.iter().find(|event| event.kind == Kind::FlowRefused).unwrap();
    assert_eq!(refused.reason, Reason::Incomplete);
}

#[test]
fn attack_24_overlapping_rewrite_does_not_count() {
    let mut test = test(&["allowed.example:443"]);
    let address = test.address(NAME);
    let mut stream = test.open(address, 443);
    let (right, wrong) = (client_hello("allowed.example"), client_hello("another.example"));
    assert_eq!(right.len(), wrong.len());
    // The bytes with the name come first; then all bytes again, with another name.
    let middle = right.len() - 40;
    test.give(&mut stream, 0, &right[..middle + 30]);
    test.give(&mut stream, middle, &wrong[middle..]);
    assert!(!test.has_reset() || stream.socket.is_empty());
    if !stream.socket.is_empty() {
        assert!(stream.socket[..middle + 30] == right[..middle + 30]);
    }
}

#[test]
fn attack_25_tunnel_to_443_is_reset() {
    let mut test = test(&["allowed.example:443"]);
    let address = test.address(NAME);
    let mut stream = test.open(address, 443);
    test.give(&mut stream, 0, b"SSH-2.0-OpenSSH_9.2\r\n");
    assert!(test.has_reset() && stream.socket.is_empty());
}

#[test]
fn attack_27_request_to_another_host_is_reset() {
    for (host, passes) in [(NAME, true), ("other.example", false)] {
        let mut test = test(&["allowed.example:80"]);
        let address = test.address(NAME);
        let mut stream = test.open(address, 80);
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        test.give(&mut stream, 0, request.as_bytes());
        assert_eq!(test.has_reset(), !passes, "{host}");
        assert_eq!(stream.socket == request.as_bytes(), passes, "{host}");
    }
}

#[test]
fn attack_28_quic_is_refused_at_once() {
    let mut test = test(&["allowed.example:443"]);
    let address = test.address(NAME);
    assert!(test.datagram(address, 443).is_none());
}

#[test]
fn stream_without_check_is_not_held() {
    let rule = AllowRule::new("allowed.example:443").check(StreamCheck::None);
    let mut test = PolicyTest::of(&NetworkPolicy::new().allow_rule(rule).allow("1.1.1.1:443"))
        .with(NAME, &["93.184.216.34"]);
    let address = test.address(NAME);
    for address in [address, Ipv4Addr::new(1, 1, 1, 1)] {
        let mut stream = test.open(address, 443);
        test.give(&mut stream, 0, b"anything");
        assert_eq!(stream.socket, b"anything");
    }
}

fn limited(change: impl FnOnce(&mut PolicyLimits)) -> PolicyTest {
    let mut limits = PolicyLimits::default();
    change(&mut limits);
    let policy =
        allow(&["allowed.example:*", "**.wild.example:443", "1.1.1.1:*", "udp://1.1.1.1:*"])
            .limits(limits);
    PolicyTest::of(&policy).with(NAME, &["93.184.216.34"])
}

#[test]
fn attack_51_total_of_bytes_is_counted_exactly() {
    for already in [0, 400] {
        let mut test = limited(|limits| limits.total_bytes = Some(1000));
        let address = Ipv4Addr::new(1, 1, 1, 1);
        let mut stream = test.open(address, 7);
        if already > 0 {
            // Bytes to the guest count too.
            let mut spaces = test.net.spaces(stream.flow, already);
            let size: usize = spaces.by_ref().map(|space| space.len()).sum();
            drop(spaces);
            assert_eq!(size, already);
            test.net.filled(stream.flow, already, test.now);
        }
        test.give(&mut stream, 0, &[1; 1400]);
        assert_eq!(stream.socket.len(), 1000 - already);
        assert!(test.has_reset());
        assert_eq!(test.net.flows(), 0);
        let events = test.events();
        assert!(
            events
                .iter()
                .any(|event| (event.kind, event.reason) == (Kind::Limit, Reason::TotalBytes))
        );
        assert!(test.connect(address, 7).is_none());
        assert_eq!(test.last(), (Kind::FlowRefused, Reason::TotalBytes));
    }
}

#[test]
fn limit_within_an_event_of_a_socket_ends_the_flow() {
    let mut test = limited(|limits| limits.total_bytes = Some(1000));
    let mut stream = test.open(Ipv4Addr::new(1, 1, 1, 1), 7);
    let given: usize = test.net.spaces(stream.flow, 400).map(|space| space.len()).sum();
    test.net.filled(stream.flow, given, test.now);
    // The socket is writable and readable: the driver writes, and then reads.
    test.give(&mut stream, 0, &[1; 600]);
    assert_eq!(test.net.spaces(stream.flow, 1000).count(), 0);
    test.net.filled(stream.flow, 0, test.now);
    test.poll();
    assert_eq!((stream.socket.len(), test.net.flows()), (600, 0));
}

#[test]
fn limit_that_is_reached_permits_no_flow() {
    let mut test = limited(|limits| limits.total_bytes = Some(1000));
    let mut stream = test.open(Ipv4Addr::new(1, 1, 1, 1), 7);
    test.give(&mut stream, 0, &[1; 600]);
    // A new policy permits less than what has passed.
    let mut limits = PolicyLimits::default();
    limits.total_bytes = Some(600);
    test.net.set_policy(rules(&allow(&["1.1.1.1:*"]).limits(limits)), test.now);
    test.poll();
    assert_eq!(test.net.flows(), 0);
    let client = SocketAddr::from((GATEWAY, 5000));
    assert_eq!(test.net.connect_guest(22, client, test.now), None);
    assert_eq!(test.net.open_guest_udp(22, client, test.now), None);
}

#[test]
fn replaced_policy_starts_no_waiting_connect() {
    let mut test = limited(|limits| limits.connecting = 1);
    let address = Ipv4Addr::new(1, 1, 1, 1);
    assert!(test.connect(address, 7).is_some());
    let ip = IpHeader { protocol: ip::TCP, ..to(address) };
    for port in 8..11 {
        let (source, mut packet) = (test.next_port(), Vec::new());
        let header = TcpHeader { destination: port, ..syn(source) };
        header.write(&ip, core::iter::empty(), &mut packet);
        test.actions.clear();
        test.send(&packet);
        assert_eq!(test.actions, []);
    }
    test.net.set_policy(rules(&allow(&["1.1.1.1:10"])), test.now);
    test.poll();
    let is_connect = |action: &&NetAction| matches!(action, NetAction::Connect { .. });
    let connects: Vec<_> = test.actions.iter().filter(is_connect).collect();
    let [NetAction::Connect { destination, .. }] = connects[..] else { panic!("{connects:?}") };
    assert_eq!(*destination, Destination::Remote((address, 10).into()));
    assert_eq!(test.net.flows(), 1);
}

#[test]
fn attack_49_replaced_policy_ends_a_held_stream() {
    let targets = ["allowed.example:443", "allowed.example:80", "udp://allowed.example:123"];
    let mut test = test(&targets);
    let address = test.address(NAME);
    let hello = client_hello(NAME);
    let mut held = test.open(address, 443);
    test.give(&mut held, 0, &hello[..100]);
    // One is connecting, and one sends datagrams.
    assert!(test.connect(address, 80).is_some() && test.datagram(address, 123).is_some());
    assert_eq!(test.net.flows(), 3);
    test.net.set_policy(rules(&allow(&["other.example:443"])), test.now);
    test.poll();
    assert_eq!(test.net.flows(), 0);
    // The rest of the handshake comes too late, and no later timeout speaks of it.
    test.give(&mut held, 100, &hello[100..]);
    assert!(held.socket.is_empty());
    test.events();
    test.pass(Duration::from_secs(6));
    assert!(test.events().iter().all(|event| event.reason != Reason::Incomplete));
    // The address stays that of the name, which is denied now.
    assert_eq!(test.connect(address, 443), None);
    assert_eq!(test.events().pop().unwrap().name.as_deref(), Some(NAME));
    test.net.set_policy(rules(&allow(&targets)), test.now);
    let mut stream = test.open(address, 443);
    test.give(&mut stream, 0, &hello);
    assert!(stream.socket == hello);
}

#[test]
fn record_reports_first_bytes_and_carries_them() {
    let policy = allow(&["allowed.example:443"]).record();
    let mut test = PolicyTest::of(&policy).with(NAME, &["93.184.216.34"]);
    let address = test.address(NAME);
    let mut stream = test.open(address, 443);
    let bytes = client_hello("other.example");
    test.give(&mut stream, 0, &bytes);
    assert!(stream.socket == bytes && !test.has_reset());
    let mut events = test.events().split_off(1);
    let event = events.pop().unwrap();
    assert_eq!((event.kind, event.reason), (Kind::FlowCheckFailed, Reason::ServerName));
    assert_eq!((event.is_allowed, event.flow, event.totals), (false, Some(0), None));
    assert_eq!(event.stated_name.as_deref(), Some("other.example"));
    // The flow ends later, with its totals.
    test.net.handle_socket_error(stream.flow);
    test.poll();
    let event = test.events().pop().unwrap();
    assert_eq!((event.kind, event.is_allowed), (Kind::FlowClosed, true));
    assert_eq!(event.totals.unwrap().bytes_up, bytes.len() as u64);
}

#[test]
fn last_datagram_within_the_total_is_delivered() {
    for total in [8, 12] {
        let mut test = limited(|limits| limits.total_bytes = Some(total));
        // The guest sends four bytes; the driver carries out all actions before it has them.
        let open = test.datagram(Ipv4Addr::new(1, 1, 1, 1), 7);
        let [NetAction::OpenUdp { flow, .. }] = test.actions[..] else { panic!("{open:?}") };
        test.actions.clear();
        let (port, mut packet) = (test.last_port(), Vec::new());
        udp::write(&to(Ipv4Addr::new(1, 1, 1, 1)), (port, 7), b"more", &mut packet);
        let delivery = test.send(&packet);
        assert!(matches!(delivery, Some(Delivery::Datagram { flow: own, .. }) if own == flow));
        assert_eq!((&test.actions[..], test.net.flows()), (&[][..], 1));
        if total > 8 {
            // The last bytes are for the guest.
            test.packets.clear();
            test.net.handle_datagram(flow, b"last", test.now);
            test.poll();
            assert!(test.packets[0].ends_with(b"last"));
        } else {
            assert_eq!(test.net.poll_timeout().map(|deadline| deadline.at), Some(test.now));
            test.net.handle_timeout(test.now);
            test.poll();
        }
        assert_eq!(test.actions, [NetAction::Close { flow }]);
        assert_eq!(test.net.flows(), 0);
        let events = test.events();
        let last = events.last().unwrap();
        assert_eq!((last.kind, last.reason), (Kind::FlowRefused, Reason::TotalBytes));
        let totals = last.totals.unwrap();
        assert_eq!((totals.bytes_up, totals.bytes_down), (8, total - 8));
    }
}

#[test]
fn rate_of_new_flows_is_limited() {
    let mut test = limited(|limits| limits.flows_per_second = 10);
    let open = |test: &mut PolicyTest| {
        (0..50).filter(|_| test.connect(Ipv4Addr::new(1, 1, 1, 1), 7).is_some()).count()
    };
    assert_eq!(open(&mut test), 20);
    assert!(test.events().iter().any(|event| event.reason == Reason::FlowRate));
    test.pass(Duration::from_secs(1));
    assert_eq!(open(&mut test), 10);
}

#[test]
fn limit_of_flows_is_that_of_the_policy() {
    let address = Ipv4Addr::new(1, 1, 1, 1);
    let open =
        |test: &mut PolicyTest| (0..50).filter(|_| test.connect(address, 7).is_some()).count();
    let policy = |flows| {
        let mut policy = allow(&["1.1.1.1:7"]);
        (policy.limits.flows, policy.limits.flows_per_second) = (flows, 100_000);
        policy.limits.connecting = 10_000;
        policy
    };
    let mut test = PolicyTest::of(&policy(20));
    assert_eq!(open(&mut test), 20);
    let event = test.events().pop().unwrap();
    assert_eq!((event.kind, event.reason), (Kind::FlowRefused, Reason::FlowLimit));
    assert_eq!(event.rule.as_deref(), Some("1.1.1.1:7"));
    assert_eq!(test.net.counters().refused_full, 30);
    // A new policy has its own limit; a smaller one ends no flow.
    for (flows, opened) in [(25, 5), (10, 0), (2000, 50)] {
        test.net.set_policy(rules(&policy(flows)), test.now);
        assert_eq!(open(&mut test), opened, "{flows}");
    }
    assert_eq!(test.net.flows(), 75);
    // More than without a policy.
    let mut test = PolicyTest::of(&policy(2000));
    assert_eq!((0..30).map(|_| open(&mut test)).sum::<usize>(), 1500);
}

#[test]
fn rate_of_queries_is_limited() {
    let mut test = limited(|limits| limits.queries_per_second = 2);
    for _ in 0..6 {
        test.address(NAME);
    }
    assert_eq!(test.count_answers(NAME, 10), 0);
    assert!(test.events().iter().any(|event| event.reason == Reason::QueryRate));
    test.pass(Duration::from_secs(1));
    assert_eq!(test.count_answers(NAME, 10), 2);
}

#[test]
fn attack_2_labels_under_a_wildcard_are_limited() {
    let mut test = limited(|limits| limits.queries_per_second = 10_000);
    let name = |n: usize| format!("{n:060}.wild.example");
    for n in 0..200 {
        test.set(&name(n), &["93.184.216.34"]);
    }
    let codes: Vec<u8> = (0..200).map(|n| test.ask(&name(n), 1).0).collect();
    let answered = codes.iter().filter(|code| **code == 0).count();
    assert_eq!(answered, 4096 / name(0).len());
    assert_eq!(test.asked.len(), answered);
    assert!(codes[answered..].iter().all(|code| *code == 2), "SERVFAIL");
    assert!(test.events().iter().any(|event| event.reason == Reason::NameBudget));
    // Names that are known, and names of exact rules, are answered still.
    assert_eq!(test.ask(&name(0), 1).0, 0);
    assert_eq!(test.ask(NAME, 1).0, 0);
}

#[test]
fn bytes_per_second_slow_the_link_both_ways() {
    let mut test = limited(|limits| limits.bytes_per_second = Some(100_000));
    let address = Ipv4Addr::new(1, 1, 1, 1);
    let mut stream = test.open(address, 7);
    let mut at = 0;
    while test.net.paused_from_guest(test.now).is_none() {
        test.give(&mut stream, at, &[1; 1000]);
        at += 1000;
        assert!(at < 100_000, "no pause after {at} bytes");
    }
    let resumes = test.net.poll_timeout().expect("a time to resume").at;
    let until = test.net.paused_from_guest(test.now).unwrap();
    assert!(resumes <= until && until.since(test.now) < Duration::from_secs(1));
    test.now = until;
    assert_eq!(test.net.paused_from_guest(test.now), None);
}
