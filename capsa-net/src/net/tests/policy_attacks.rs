//! Attacks on a policy by name. The numbers are those of the project's list of attacks.

use super::policy::{DNS, PolicyTest, allow, named, rules};
use super::*;
use crate::wire::dns::record_type;
use alloc::format;
use alloc::string::String;
use capsa_proto::policy::{
    NetworkEventKind as Kind, NetworkPolicy, PolicyDestination, PolicyProtocol,
    VerdictReason as Reason,
};
use proptest::prelude::*;

const A: u16 = record_type::A;
const PUBLIC: &str = "93.184.216.34";
const NULL: u16 = 10;
const ANY: u16 = 255;

#[test]
fn attack_1_query_without_rule_stays_here() {
    let mut test = PolicyTest::new(&["pypi.org:443", "*.example.org:443", "10.0.0.0/8:443"])
        .with("evil.example", &[PUBLIC]);
    for name in ["evil.example", "secret.pypi.org", "example.org", "a.b.example.org", "org", ""] {
        for kind in [A, record_type::AAAA, record_type::TXT, record_type::HTTPS, ANY, 65_000] {
            test.net.handle_timeout(test.now);
            let answer = test.query(DNS, name, kind);
            assert_eq!(answer[3] & 0xf, 3, "{name} {kind}");
            // The reason is an extended error: "blocked".
            let text = b"\0\x0fno rule allows it";
            assert!(answer.windows(text.len()).any(|part| part == text), "{name} {kind}");
            test.now = test.now + Duration::from_secs(1);
        }
    }
    assert_eq!((&test.asked[..], &test.actions[..]), (&[][..], &[][..]));
    let events = test.events();
    assert!(events.iter().all(|e| (e.kind, e.reason) == (Kind::DnsRefused, Reason::NoRule)));
    assert_eq!(events[0].name.as_deref(), Some("evil.example"));
}

#[test]
fn attack_3_tunnel_types_are_refused() {
    let mut test = PolicyTest::new(&["pypi.org:443"]).with("pypi.org", &[PUBLIC]);
    let types = [record_type::TXT, NULL, record_type::MX, record_type::SRV, record_type::CNAME];
    for kind in types.into_iter().chain([record_type::NS, 99, 65_280]) {
        let answer = test.query(DNS, "pypi.org", kind);
        // The name exists, and has no such record.
        assert_eq!((answer[3] & 0xf, &answer[6..8]), (0, &[0, 0][..]), "{kind}");
        assert_eq!(test.ask("pypi.org", kind), (0, vec![]), "{kind}");
    }
    assert_eq!(test.ask("pypi.org", ANY), (4, vec![]));
    assert_eq!(test.last(), (Kind::DnsRefused, Reason::RecordType));
    for kind in [record_type::HTTPS, record_type::SVCB] {
        assert_eq!(test.ask("pypi.org", kind), (0, vec![]));
    }
    // Names of addresses are not asked for either, even if every name is allowed.
    let mut all = PolicyTest::new(&["internet:443"]);
    assert_eq!(all.ask("34.216.184.93.in-addr.arpa", record_type::PTR), (3, vec![]));
    assert_eq!(all.ask("use-application-dns.net", A), (3, vec![]));
    assert!(test.asked.is_empty() && all.asked.is_empty());
}

#[test]
fn attack_5_upstream_sees_lower_case() {
    let mut test = PolicyTest::new(&["*.pypi.org:443"]).with("data.pypi.org", &[PUBLIC]);
    for name in ["DaTa.pYpI.oRg", "dAtA.PyPi.OrG", "data.pypi.org"] {
        test.address(name);
        test.pass(Duration::from_secs(60));
    }
    assert_eq!(test.asked, ["data.pypi.org"; 3]);
}

#[test]
fn attack_6_port_53_of_any_address_is_ours() {
    let mut test = PolicyTest::new(&["pypi.org:443", "internet:*"]).with("pypi.org", &[PUBLIC]);
    for server in [[8, 8, 8, 8], [192, 168, 1, 1], [169, 254, 169, 254], [198, 18, 0, 1]] {
        let answer = test.query(server.into(), "pypi.org", A);
        assert_eq!(answer[3] & 0xf, 0);
        assert_eq!(answer[answer.len() - 11 - 4..][..2], [198, 18]);
        let source = test.next_port();
        let mut packet = Vec::new();
        let ip = ip::IpHeader { protocol: ip::TCP, ..super::packets::to(Ipv4Addr::from(server)) };
        let header = TcpHeader { destination: 53, ..super::segments::syn(source) };
        header.write(&ip, core::iter::empty(), &mut packet);
        test.packets.clear();
        test.send(&packet);
        // The connection ends here.
        assert!(!test.packets.is_empty() && !test.has_reset());
        let junk = super::packets::to(Ipv4Addr::from(server));
        let mut packet = Vec::new();
        crate::wire::udp::write(&junk, (source, 53), b"\x16\x03\x01 a tunnel", &mut packet);
        assert_eq!(test.send(&packet), None);
    }
    assert_eq!((&test.actions[..], test.asked.len()), (&[][..], 1));
}

#[test]
fn attack_8_closed_answers_are_refused() {
    for (text, reason) in [
        ("127.0.0.1", Reason::SpecialAddress),
        ("169.254.169.254", Reason::SpecialAddress),
        ("::ffff:10.0.0.1", Reason::SpecialAddress),
        ("64:ff9b::a9fe:a9fe", Reason::SpecialAddress),
        ("64:ff9b::10.0.0.1", Reason::PrivateAddress),
        ("0.0.0.0", Reason::SpecialAddress),
        ("::1", Reason::SpecialAddress),
        ("198.18.0.1", Reason::SpecialAddress),
        ("192.168.1.1", Reason::PrivateAddress),
        ("10.0.2.2", Reason::HostAddress),
    ] {
        let mut test = PolicyTest::new(&["evil.example:443", "udp://evil.example:443"])
            .with("evil.example", &[text]);
        let address = test.address("evil.example");
        test.events();
        assert_eq!(test.connect(address, 443), None, "{text}");
        let event = test.events().pop().unwrap();
        assert_eq!((event.kind, event.reason), (Kind::FlowRefused, reason), "{text}");
        assert_eq!(event.address, text.parse().ok());
        assert_eq!(event.name.as_deref(), Some("evil.example"));
        assert_eq!(test.datagram(address, 443), None, "{text}");
        test.pass(Duration::from_secs(60));
        // Of several, the others are used.
        test.set("evil.example", &[text, PUBLIC]);
        let (_, destination) = test.connect(address, 443).unwrap();
        assert_eq!(named(destination), [format!("{PUBLIC}:443")]);
    }
}

#[test]
fn attack_10_rebinding_is_refused() {
    let mut test = PolicyTest::new(&["evil.example:80"]).with("evil.example", &[PUBLIC]);
    let address = test.address("evil.example");
    assert!(test.connect(address, 80).is_some());
    test.set("evil.example", &["192.168.1.1"]);
    test.pass(Duration::from_secs(30));
    assert_eq!(test.address("evil.example"), address);
    assert_eq!(test.connect(address, 80), None);
    assert_eq!(test.last(), (Kind::FlowRefused, Reason::PrivateAddress));
    assert_eq!(test.connect(Ipv4Addr::new(192, 168, 1, 1), 80), None);
}

#[test]
fn attack_11_names_of_a_wildcard_are_bounded() {
    let mut test = PolicyTest::new(&["**.evil.example:443"]);
    let name = |n| format!("n{n}.evil.example");
    for n in 0..10_000 {
        test.set(&name(n), &[PUBLIC]);
    }
    let first = test.address(&name(0));
    let (flow, _) = test.connect(first, 443).unwrap();
    let mut handed_out = 1;
    let mut refused = 0;
    let mut reasons = BTreeMap::new();
    for n in 1..10_000 {
        test.now = test.now + Duration::from_millis(50);
        test.net.handle_timeout(test.now);
        for event in test.events() {
            *reasons.entry(event.reason).or_insert(0) += event.repeated + 1;
        }
        match test.ask(&name(n), A) {
            (0, data) => {
                handed_out += 1;
                assert_ne!(data, [first.octets()], "a flow uses it");
            }
            (code, _) => {
                assert_eq!(code, 2);
                refused += 1;
            }
        }
    }
    // 500 seconds: no address has been given to another name.
    assert_eq!((handed_out, refused), (1024, 10_000 - 1024));
    assert!(reasons[&Reason::NameBudget] > 8900, "{reasons:?}");
    test.net.handle_connected(flow, test.now);
    test.pass(Duration::from_secs(700));
    assert_ne!(test.address(&name(9999)), first);
}

#[test]
fn attack_12_other_name_services_are_refused() {
    let mut test = PolicyTest::new(&["internet:*", "udp://internet:*", "dns.google:443"])
        .with("dns.google", &["8.8.8.8"])
        .with("cloudflare-dns.com", &["1.1.1.1"]);
    let address = Ipv4Addr::new(9, 9, 9, 9);
    let name = test.address("dns.google");
    for address in [address, name] {
        assert_eq!(test.connect(address, 853), None);
        assert_eq!(test.last(), (Kind::FlowRefused, Reason::Protocol));
        for port in [853, 5353, 5355, 137] {
            assert_eq!(test.datagram(address, port), None, "{port}");
            assert_eq!(test.last(), (Kind::FlowRefused, Reason::Protocol), "{port}");
        }
    }
    assert!(test.datagram(address, 854).is_some());
    // DNS over HTTPS is a connection to a name.
    let mut test = PolicyTest::new(&["dns.google:443"]).with("dns.google", &["8.8.8.8"]);
    let name = test.address("dns.google");
    assert!(test.connect(name, 443).is_some());
    assert_eq!(test.connect(Ipv4Addr::new(8, 8, 8, 8), 443), None);
    assert_eq!(test.ask("cloudflare-dns.com", A), (3, vec![]));
}

#[test]
fn attack_14_hard_coded_address_is_refused() {
    let mut test = PolicyTest::new(&["pypi.org:443", "udp://pypi.org:443", "icmp://pypi.org"])
        .with("pypi.org", &[PUBLIC]);
    test.address("pypi.org");
    for address in [REMOTE, Ipv4Addr::new(1, 1, 1, 1)] {
        assert_eq!(test.connect(address, 443), None);
        assert_eq!(test.last(), (Kind::FlowRefused, Reason::NoRule));
        assert_eq!(test.datagram(address, 443), None);
        assert_eq!(test.echo(address), None);
    }
    // Addresses of the pool that stand for no name.
    for address in ["198.18.0.0", "198.18.0.2", "198.18.4.0", "198.19.255.255"] {
        assert_eq!(test.connect(address.parse::<Ipv4Addr>().unwrap(), 443), None);
        assert_eq!(test.last(), (Kind::FlowRefused, Reason::UnknownAddress));
    }
    assert_eq!(test.net.flows(), 0);
}

#[test]
fn attack_16_metadata_is_refused_with_internet() {
    let all = ["internet:*", "private:*", "udp://internet:*", "udp://private:*", "icmp://internet"];
    let mut test = PolicyTest::new(&all);
    assert!(test.connect(REMOTE, 80).is_some() && test.echo(REMOTE).is_some());
    for text in ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"] {
        let address: IpAddr = text.parse().unwrap();
        if address.is_ipv6() {
            let judged = test.net.judge(
                crate::flow_table::FlowProtocol::Tcp,
                (address, 80).into(),
                test.now,
            );
            assert!(judged.route.is_none(), "{text}");
            continue;
        }
        assert_eq!(test.connect(address, 80), None, "{text}");
        assert_eq!(test.last(), (Kind::FlowRefused, Reason::SpecialAddress), "{text}");
        assert_eq!(test.datagram(address, 80), None, "{text}");
        assert_eq!(test.echo(address), None, "{text}");
        test.pass(Duration::from_secs(10));
    }
}

#[test]
fn attack_20_rule_opens_one_port() {
    let mut test = PolicyTest::new(&["93.184.216.34:5432"]);
    for port in (1..=u16::MAX).filter(|port| *port != 53) {
        let is_open = test.connect(REMOTE, port).is_some();
        assert_eq!(is_open, port == 5432, "{port}");
    }
    assert_eq!(test.datagram(REMOTE, 5432), None);
    assert_eq!(test.echo(REMOTE), None);
}

#[test]
fn attack_49_replaced_policy_ends_flows() {
    let targets = ["a.example:443", "b.example:443", "93.184.216.34:80", "udp://9.9.9.9:123"];
    let mut test =
        PolicyTest::new(&targets).with("a.example", &[PUBLIC]).with("b.example", &["1.1.1.1"]);
    let (a, b) = (test.address("a.example"), test.address("b.example"));
    let (flow_a, _) = test.connect(a, 443).unwrap();
    let (flow_b, _) = test.connect(b, 443).unwrap();
    let (flow_address, _) = test.connect(REMOTE, 80).unwrap();
    test.net.handle_connected(flow_a, test.now);
    assert!(test.datagram(Ipv4Addr::new(9, 9, 9, 9), 123).is_some());
    (test.packets, test.actions) = Default::default();
    test.events();
    let next = allow(&["b.example:443"]).deny("1.1.1.0/24:22");
    test.net.set_policy(rules(&next), test.now);
    test.poll();
    let events = test.events();
    assert_eq!(events[0].kind, Kind::PolicyChanged);
    let ended: Vec<_> = events[1..].iter().map(|e| (e.kind, e.reason)).collect();
    assert_eq!(ended, [(Kind::FlowRefused, Reason::PolicyChanged); 3]);
    assert_eq!((test.has_reset(), test.net.flows()), (true, 1));
    for flow in [flow_a, flow_address] {
        let close = NetAction::Socket { flow, action: SocketAction::Close };
        assert!(test.actions.contains(&close), "{:?}", test.actions);
    }
    // A name that was known is not answered, and its address is closed.
    assert_eq!(test.ask("a.example", A), (3, vec![]));
    assert_eq!(test.connect(a, 443), None);
    assert!(test.connect(b, 443).is_some());
    test.net.set_policy(rules(&allow(&[])), test.now);
    test.poll();
    assert!(test.net.flows.get(flow_b).is_none());
    assert_eq!(test.net.flows(), 0);
}

#[test]
fn attack_49_first_policy_ends_flows_to_name_servers() {
    let mut test = PolicyTest::new(&[]);
    test.net = Net::new(super::segments::config(64, 0), [7; 16]);
    let server = Ipv4Addr::new(8, 8, 8, 8);
    assert!(test.datagram(server, 53).is_some() && test.connect(server, 53).is_some());
    assert!(test.connect(server, 443).is_some());
    test.net.set_policy(rules(&allow(&["internet:*", "udp://internet:*"])), test.now);
    test.poll();
    assert_eq!(test.net.flows(), 1);
}

const NAMES: [&str; 5] = ["a.example", "b.example", "x.a.example", "y.x.a.example", "c.test"];
const ADDRESSES: [&str; 8] = [
    "93.184.216.34",
    "93.184.216.35",
    "1.1.1.1",
    "192.168.1.1",
    "10.9.9.9",
    "127.0.0.1",
    "169.254.169.254",
    "100.100.100.200",
];
const PORTS: [u16; 4] = [80, 443, 853, 5432];

/// A rule of a policy, as text.
fn target() -> impl Strategy<Value = String> {
    let hosts = [
        "a.example",
        "b.example",
        "*.a.example",
        "**.a.example",
        "93.184.216.34",
        "93.184.216.0/24",
        "192.168.0.0/16",
        "169.254.169.254",
        "internet",
        "private",
        "host",
    ];
    let protocol = prop::sample::select(vec!["", "udp://", "icmp://"]);
    let port = prop::sample::select(vec![":80", ":443", ":5432", ":*"]);
    (protocol, prop::sample::select(hosts.to_vec()), port).prop_map(|(protocol, host, port)| {
        format!("{protocol}{host}{}", if protocol == "icmp://" { "" } else { port })
    })
}

/// What a guest tries: a name or an address, a protocol, a port.
fn attempt() -> impl Strategy<Value = (Result<usize, usize>, u8, u16)> {
    let to = prop_oneof![(0..NAMES.len()).prop_map(Ok), (0..=ADDRESSES.len()).prop_map(Err)];
    (to, 0..3_u8, prop::sample::select(PORTS.to_vec()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Each refusal has the rule and the reason of the pure verdict, and what that denies opens nothing.
    #[test]
    fn refusal_explains_itself(
        allowed in prop::collection::vec(target(), 0..6),
        denied in prop::collection::vec(target(), 0..3),
        resolved in prop::collection::vec(0..ADDRESSES.len(), NAMES.len()),
        attempts in prop::collection::vec(attempt(), 1..12),
    ) {
        let policy = allowed.iter().fold(NetworkPolicy::new(), |policy, to| policy.allow(to));
        let policy = denied.iter().fold(policy, |policy, to| policy.deny(to));
        let Ok(checked) = capsa_proto::policy::PolicyRules::new(&policy) else { return Ok(()) };
        let mut test = PolicyTest::of(&policy);
        for (name, index) in NAMES.iter().zip(&resolved) {
            test.set(name, &[ADDRESSES[*index]]);
        }
        for (to, protocol, port) in attempts {
            test.pass(Duration::from_secs(2));
            let address = match to {
                Ok(name) => match &test.ask(NAMES[name], A).1[..] {
                    [data] => Ipv4Addr::from(<[u8; 4]>::try_from(&data[..]).unwrap()),
                    _ => {
                        let query = PolicyDestination::Query { name: NAMES[name].into() };
                        prop_assert!(!checked.explain(&query).is_allowed);
                        prop_assert!(test.asked.iter().all(|asked| asked != NAMES[name]));
                        continue;
                    }
                },
                Err(address) => ADDRESSES.get(address).map_or(GATEWAY, |text| text.parse().unwrap()),
            };
            let is_open = match protocol {
                0 => test.connect(address, port).is_some(),
                1 => test.datagram(address, port).is_some(),
                // The gateway answers for itself.
                _ if address == GATEWAY => continue,
                _ => test.echo(address).is_some(),
            };
            let kind = [PolicyProtocol::Tcp, PolicyProtocol::Udp, PolicyProtocol::Icmp];
            let protocol = kind[usize::from(protocol)];
            let port = if protocol == PolicyProtocol::Icmp { 0 } else { port };
            let destination = match to {
                Ok(name) => PolicyDestination::Resolved {
                    protocol,
                    name: NAMES[name].into(),
                    address: ADDRESSES[resolved[name]].parse().unwrap(),
                    port,
                },
                Err(_) if address == GATEWAY => PolicyDestination::Host { protocol, port },
                Err(_) => PolicyDestination::Address { protocol, address: address.into(), port },
            };
            let verdict = checked.explain(&destination);
            prop_assert_eq!(is_open, verdict.is_allowed, "{}", destination);
        }
        test.pass(Duration::from_secs(5));
        for event in test.events() {
            if matches!(event.kind, Kind::FlowRefused | Kind::DnsRefused) {
                let destination = event.destination().expect("a destination");
                let verdict = checked.explain(&destination);
                prop_assert!(!verdict.is_allowed, "{}", destination);
                prop_assert_eq!((event.rule, event.reason), (verdict.rule, verdict.reason), "{}", destination);
            }
        }
    }
}
