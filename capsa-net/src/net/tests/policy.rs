//! A guest under a policy: [`PolicyTest`], and what the policy opens. The attacks are in `policy_attacks`.

use super::packets::{echo, to};
use super::segments::{config, syn};
use super::*;
use crate::wire::dns::{self, DnsName, DnsQuestion, record_type};
use crate::wire::ip::IpHeader;
use crate::wire::udp;
use alloc::string::{String, ToString};
use capsa_proto::policy::{
    AllowRule, NetworkEvent, NetworkEventKind as Kind, NetworkPolicy, PolicyRules, ResolveMode,
    VerdictReason as Reason,
};

pub(super) const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// A guest under a policy, and a resolver that answers at once.
pub(super) struct PolicyTest {
    pub(super) net: Net,
    pub(super) now: Instant,
    /// The addresses of names.
    pub(super) upstream: BTreeMap<String, Vec<IpAddr>>,
    /// The names that the resolver was asked for.
    pub(super) asked: Vec<String>,
    pub(super) actions: Vec<NetAction>,
    /// Packets for the guest.
    pub(super) packets: Vec<Vec<u8>>,
    port: u16,
}

pub(super) fn rules(policy: &NetworkPolicy) -> PolicyRules {
    PolicyRules::new(policy).unwrap()
}

/// A policy that allows these targets.
pub(super) fn allow(targets: &[&str]) -> NetworkPolicy {
    targets.iter().fold(NetworkPolicy::new(), |policy, target| policy.allow(*target))
}

impl PolicyTest {
    pub(super) fn new(targets: &[&str]) -> Self {
        Self::of(&allow(targets))
    }

    pub(super) fn of(policy: &NetworkPolicy) -> Self {
        let config = NetworkConfig { policy: Some(rules(policy)), ..config(200, 1 << 20) };
        let now = Instant::ZERO + Duration::from_secs(1);
        let (upstream, asked, actions, packets) = Default::default();
        Self { net: Net::new(config, [7; 16]), now, upstream, asked, actions, packets, port: 1000 }
    }

    /// The resolver knows this name.
    pub(super) fn with(mut self, name: &str, addresses: &[&str]) -> Self {
        self.set(name, addresses);
        self
    }

    pub(super) fn set(&mut self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        self.upstream.insert(name.into(), addresses);
    }

    pub(super) fn send(&mut self, packet: &[u8]) -> Option<Delivery> {
        let mut frame = Vec::new();
        let (destination, source) = (GATEWAY_MAC, GUEST_MAC);
        let ether_type = if packet[0] >> 4 == 4 { EtherType::Ipv4 } else { EtherType::Ipv6 };
        ethernet::EthernetHeader { destination, source, ether_type }.write(&mut frame);
        frame.extend_from_slice(packet);
        let delivery = self.net.handle_frame(&frame, self.now);
        self.poll();
        delivery
    }

    pub(super) fn poll(&mut self) {
        while let Some(action) = self.net.poll_action() {
            match action {
                NetAction::Resolve { query, name, .. } => {
                    let answer = self.upstream.get(&name).cloned();
                    self.asked.push(name);
                    let answer = answer.as_deref().ok_or(ResolveError::NoName);
                    self.net.handle_addresses(query, answer, self.now);
                }
                NetAction::FindIpv6Route => self.net.set_ipv6_route(true),
                action => self.actions.push(action),
            }
        }
        let mut head = Vec::new();
        while let Some(body) = self.net.poll_frame(&mut head, self.now) {
            head.extend(self.net.parts(&body).flatten());
            self.packets.push(head.split_off(ethernet::HEADER_LEN));
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.net.handle_timeout(self.now);
        self.poll();
    }

    /// The port of the last packet.
    pub(super) fn last_port(&self) -> u16 {
        self.port
    }

    /// How many of `count` queries get an answer.
    pub(super) fn count_answers(&mut self, name: &str, count: usize) -> usize {
        let name = DnsName::from_text(name).unwrap();
        let question = DnsQuestion { name, record_type: record_type::A };
        self.packets.clear();
        for _ in 0..count {
            let (port, mut packet) = (self.next_port(), Vec::new());
            udp::write(&to(DNS), (port, 53), &dns::write_query(7, &question), &mut packet);
            self.send(&packet);
        }
        self.packets.len()
    }

    pub(super) fn next_port(&mut self) -> u16 {
        self.port = self.port.checked_add(1).unwrap_or(1000);
        self.port
    }

    /// Asks a name server; returns the message of its answer.
    pub(super) fn query(&mut self, server: Ipv4Addr, name: &str, record_type: u16) -> Vec<u8> {
        let question = DnsQuestion { name: DnsName::from_text(name).unwrap(), record_type };
        let port = self.next_port();
        let mut packet = Vec::new();
        let ip = to(server);
        udp::write(&ip, (port, 53), &dns::write_query(7, &question), &mut packet);
        self.packets.clear();
        assert_eq!(self.send(&packet), None);
        let [answer] = &self.packets[..] else { panic!("{name}: {} answers", self.packets.len()) };
        assert_eq!(answer[12..16], server.octets());
        answer[28..].to_vec()
    }

    /// The code of an answer, and the data of its records.
    pub(super) fn ask(&mut self, name: &str, record_type: u16) -> (u8, Vec<Vec<u8>>) {
        let answer = self.query(DNS, name, record_type);
        let question = DnsQuestion { name: DnsName::from_text(name).unwrap(), record_type };
        let parsed = dns::parse_answer(&answer, &question).unwrap();
        (parsed.code, parsed.records.into_iter().map(|record| record.data).collect())
    }

    /// The address that the guest gets for a name.
    pub(super) fn address(&mut self, name: &str) -> Ipv4Addr {
        let (code, data) = self.ask(name, record_type::A);
        assert_eq!((code, data.len()), (0, 1), "{name}");
        Ipv4Addr::from(<[u8; 4]>::try_from(&data[0][..]).unwrap())
    }

    /// Opens a connection. `None`: it was reset at once, and the host does nothing.
    pub(super) fn connect(
        &mut self,
        address: impl Into<IpAddr>,
        port: u16,
    ) -> Option<(FlowId, Destination)> {
        let source = self.next_port();
        let mut packet = Vec::new();
        let ip = IpHeader { protocol: ip::TCP, ..to(address) };
        let header = TcpHeader { destination: port, ..syn(source) };
        header.write(&ip, core::iter::empty(), &mut packet);
        (self.packets, self.actions) = Default::default();
        assert_eq!(self.send(&packet), None);
        match &self.actions[..] {
            [NetAction::Connect { flow, destination }] => Some((*flow, destination.clone())),
            [] => {
                assert!(self.has_reset(), "{:?}:{port}", ip.destination);
                None
            }
            other => panic!("{other:?}"),
        }
    }

    /// Sends a datagram. `None`: it was refused with an ICMP error, and the host does nothing.
    pub(super) fn datagram(
        &mut self,
        address: impl Into<IpAddr>,
        port: u16,
    ) -> Option<Destination> {
        let source = self.next_port();
        let ip = to(address);
        let mut packet = Vec::new();
        udp::write(&ip, (source, port), b"data", &mut packet);
        self.refused_or_open(&packet)
    }

    /// Sends an echo request.
    pub(super) fn echo(&mut self, address: impl Into<IpAddr>) -> Option<Destination> {
        let id = self.next_port();
        self.refused_or_open(&echo(&to(address), id, b"data"))
    }

    fn refused_or_open(&mut self, packet: &[u8]) -> Option<Destination> {
        (self.packets, self.actions) = Default::default();
        let delivery = self.send(packet);
        match &self.actions[..] {
            [NetAction::OpenUdp { destination, .. }] => Some(destination.clone()),
            [NetAction::OpenEcho { remote, .. }] => Some(Destination::Remote((*remote, 0).into())),
            _ => {
                assert_eq!(delivery, None);
                let [error] = &self.packets[..] else { panic!("{} packets", self.packets.len()) };
                let kind =
                    if error[0] >> 4 == 4 { (error[9], error[20]) } else { (error[6], error[40]) };
                assert!([(ip::ICMP, 3), (ip::ICMPV6, 1)].contains(&kind), "{kind:?}");
                None
            }
        }
    }

    pub(super) fn has_reset(&self) -> bool {
        self.packets.iter().any(|packet| {
            let parse = if packet[0] >> 4 == 4 { IpPacket::parse_v4 } else { IpPacket::parse_v6 };
            let parsed = parse(packet).unwrap();
            parsed.header.protocol == ip::TCP
                && TcpHeader::parse(&parsed.header, &packet[parsed.payload]).unwrap().0.flags.rst
        })
    }

    pub(super) fn events(&mut self) -> Vec<NetworkEvent> {
        core::iter::from_fn(|| self.net.poll_event()).collect()
    }

    /// What the last event reports.
    pub(super) fn last(&mut self) -> (Kind, Reason) {
        let event = self.events().pop().expect("an event");
        (event.kind, event.reason)
    }
}

/// The only address of a destination, which is a name's.
pub(super) fn named(destination: Destination) -> Vec<String> {
    match destination {
        Destination::Name(all) => all.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn name_is_answered_with_one_address() {
    let mut test = PolicyTest::new(&["pypi.org:443", "*.example.org:443"])
        .with("pypi.org", &["151.101.0.223", "2a04:4e42::223"])
        .with("a.example.org", &["93.184.216.34"]);
    let address = test.address("pypi.org");
    assert_eq!(address.octets()[..2], [198, 18]);
    assert_eq!(test.address("PyPI.org"), address);
    assert_eq!(test.ask("pypi.org", record_type::AAAA), (0, vec![]));
    assert_ne!(test.address("a.example.org"), address);
    // One that does not exist has no address.
    assert_eq!(test.ask("b.example.org", record_type::A), (3, vec![]));
    let [d, c, b, a] = address.octets();
    let pointer = alloc::format!("{a}.{b}.{c}.{d}.in-addr.arpa");
    let target = DnsName::from_text("pypi.org").unwrap();
    assert_eq!(test.ask(&pointer, record_type::PTR), (0, vec![target.as_bytes().to_vec()]));
    let (_, destination) = test.connect(address, 443).unwrap();
    assert_eq!(named(destination), ["151.101.0.223:443", "[2a04:4e42::223]:443"]);
    assert_eq!(test.connect(address, 80), None);
    assert_eq!(test.last(), (Kind::FlowRefused, Reason::Port));
}

#[test]
fn name_is_resolved_again_at_the_connect() {
    let mut test = PolicyTest::new(&["pypi.org:443", "udp://pypi.org:123", "icmp://pypi.org"])
        .with("pypi.org", &["93.184.216.34"]);
    let address = test.address("pypi.org");
    test.set("pypi.org", &["2a04:4e42::223", "93.184.216.35"]);
    test.pass(Duration::from_secs(60));
    let (_, destination) = test.connect(address, 443).unwrap();
    assert_eq!(named(destination), ["[2a04:4e42::223]:443", "93.184.216.35:443"]);
    assert_eq!(test.asked.len(), 2);
    let destination = test.datagram(address, 123).unwrap();
    assert_eq!(named(destination), ["[2a04:4e42::223]:123", "93.184.216.35:123"]);
    // The socket of an echo request has the guest's version of IP.
    let remote = "93.184.216.35:0".parse().unwrap();
    assert_eq!(test.echo(address), Some(Destination::Remote(remote)));
    // UDP and echo requests have rules of their own.
    assert_eq!(test.datagram(address, 443), None);
    // The name is gone.
    test.upstream.clear();
    test.pass(Duration::from_secs(60));
    assert_eq!(test.connect(address, 443), None);
    assert_eq!(test.last(), (Kind::FlowRefused, Reason::Unresolved));
}

#[test]
fn real_addresses_are_pinned_to_the_name() {
    let rule = AllowRule::new("ftp.example.org:21").resolve(ResolveMode::Real);
    let mut test = PolicyTest::of(&NetworkPolicy::new().allow_rule(rule)).with(
        "ftp.example.org",
        &["93.184.216.34", "10.0.0.1", "127.0.0.1", "10.0.2.2", "2606:4700::1"],
    );
    let real = Ipv4Addr::new(93, 184, 216, 34);
    assert_eq!(test.connect(real, 21), None);
    assert_eq!(test.last(), (Kind::FlowRefused, Reason::NoRule));
    assert_eq!(test.address("ftp.example.org"), real);
    assert_eq!(test.ask("ftp.example.org", record_type::AAAA).1.len(), 1);
    let refused = test.events().into_iter().find(|event| event.kind == Kind::DnsRefused).unwrap();
    assert_eq!(
        (refused.reason, refused.address),
        (Reason::PrivateAddress, "10.0.0.1".parse().ok())
    );
    let (_, destination) = test.connect(real, 21).unwrap();
    assert_eq!(destination, Destination::Remote((real, 21).into()));
    let opened = test.events().pop().unwrap();
    assert_eq!((opened.kind, opened.name.as_deref()), (Kind::FlowOpened, Some("ftp.example.org")));
    assert_eq!(test.connect(real, 22), None);
    assert_eq!(test.last(), (Kind::FlowRefused, Reason::Port));
    for closed in ["10.0.0.1", "127.0.0.1", "93.184.216.35"] {
        let address: Ipv4Addr = closed.parse().unwrap();
        assert_eq!(test.connect(address, 21), None, "{closed}");
    }
    // While a connection uses the address, the guest may open further ones.
    test.pass(Duration::from_secs(100));
    let (flow, _) = test.connect(real, 21).expect("a second connection");
    test.net.handle_connect_error(flow, ConnectError::Refused);
    test.pass(Duration::from_secs(100));
    let flows: Vec<FlowId> = test.net.flows.ids().collect();
    for flow in flows {
        test.net.handle_connect_error(flow, ConnectError::Refused);
    }
    test.poll();
    assert_eq!((test.net.flows(), test.connect(real, 21)), (0, None));
}

#[test]
fn record_carries_what_would_be_refused() {
    let policy = allow(&["pypi.org:443"]).deny("bad.example:*").record();
    let mut test = PolicyTest::of(&policy)
        .with("bad.example", &["93.184.216.34"])
        .with("meta.example", &["169.254.169.254"]);
    let address = test.address("bad.example");
    assert_eq!(address.octets()[..2], [198, 18]);
    assert!(test.connect(address, 443).is_some());
    let events = test.events();
    let verdicts: Vec<_> = events.iter().map(|e| (e.kind, e.is_allowed, e.reason)).collect();
    let denied = Reason::Denied;
    assert_eq!(verdicts, [(Kind::DnsAnswered, false, denied), (Kind::FlowOpened, false, denied)]);
    assert!(test.connect(REMOTE, 80).is_some());
    assert!(test.connect(Ipv4Addr::new(192, 168, 1, 1), 80).is_some());
    assert!(test.datagram(REMOTE, 443).is_some() && test.echo(REMOTE).is_some());
    let meta = test.address("meta.example");
    for closed in [meta, GATEWAY, Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(198, 19, 0, 1)] {
        assert_eq!(test.connect(closed, 80), None, "{closed}");
        assert_eq!(test.last().0, Kind::FlowRefused);
    }
}

#[test]
fn events_of_a_flow_have_its_number_and_totals() {
    let mut test = PolicyTest::new(&["udp://9.9.9.9:123", "host:8080"]);
    let open = test.datagram(Ipv4Addr::new(9, 9, 9, 9), 123);
    assert!(open.is_some());
    let [NetAction::OpenUdp { flow, .. }] = test.actions[..] else { panic!() };
    test.net.handle_datagram(flow, b"answer", test.now);
    test.pass(Duration::from_secs(120));
    let events = test.events();
    let kinds: Vec<Kind> = events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [Kind::FlowOpened, Kind::FlowClosed]);
    assert!(events.iter().all(|event| event.flow == Some(0) && event.port == Some(123)));
    let totals = events[1].totals.unwrap();
    assert_eq!((totals.bytes_up, totals.bytes_down, totals.duration.as_secs()), (4, 6, 120));
    assert_eq!(events[1].rule.as_deref(), Some("udp://9.9.9.9:123"));
    let (flow, destination) = test.connect(GATEWAY, 8080).unwrap();
    assert_eq!(destination, Destination::Host(8080));
    test.net.handle_connect_error(flow, ConnectError::Refused);
    test.poll();
    let events = test.events();
    let kinds: Vec<Kind> = events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [Kind::FlowOpened, Kind::FlowClosed]);
    assert_eq!((events[1].flow, events[1].address), (Some(1), None));
}

#[test]
fn audit_without_policy_reports_flows() {
    let base = NetworkConfig { audit: true, ..config(64, 0) };
    for audit in [true, false] {
        let mut test = PolicyTest::new(&[]);
        test.net = Net::new(NetworkConfig { audit, ..base.clone() }, [7; 16]);
        assert!(test.connect(REMOTE, 80).is_some());
        assert_eq!(test.connect(GATEWAY, 80), None);
        let events = test.events();
        let reasons: Vec<_> = events.iter().map(|event| (event.kind, event.reason)).collect();
        let expected =
            [(Kind::FlowOpened, Reason::Allowed), (Kind::FlowRefused, Reason::HostAddress)];
        assert_eq!(reasons, if audit { &expected[..] } else { &[] });
    }
}
