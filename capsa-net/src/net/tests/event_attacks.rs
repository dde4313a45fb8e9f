//! Attacks on the events, on other VMs, and on programs that choose their own name server. The numbers are
//! those of the project's list of attacks.

use super::policy::{DNS, PolicyTest, named};
use super::*;
use crate::wire::dns::{self, DnsName, DnsQuestion, record_type};
use crate::wire::udp;
use alloc::string::String;
use capsa_proto::policy::{NetworkEventKind as Kind, VerdictReason as Reason};

const PUBLIC: &str = "93.184.216.34";

#[test]
fn attack_13_canary_and_https_records_are_stripped() {
    for targets in [&["pypi.org:443"][..], &["internet:*", "pypi.org:*"]] {
        let mut test = PolicyTest::new(targets)
            .with("pypi.org", &[PUBLIC])
            .with("use-application-dns.net", &[PUBLIC]);
        for name in ["use-application-dns.net", "Use-Application-DNS.net"] {
            for record_type in [record_type::A, record_type::AAAA] {
                assert_eq!(test.ask(name, record_type), (3, vec![]));
                test.pass(Duration::from_secs(1));
            }
        }
        // A record with `ech=` would let a client hide the name of its connection.
        for record_type in [record_type::HTTPS, record_type::SVCB] {
            assert_eq!(test.ask("pypi.org", record_type), (0, vec![]));
        }
        assert!(test.asked.is_empty(), "{:?}", test.asked);
        test.address("pypi.org");
    }
}

#[test]
fn attack_48_flood_of_events_blocks_nothing() {
    let mut test = PolicyTest::new(&["pypi.org:443"]).with("pypi.org", &[PUBLIC]);
    let address = test.address("pypi.org");
    // The driver takes no event. Each SYN gets its reset at once: `connect` checks it.
    for n in 0..20_000_u32 {
        let [_, a, b, c] = n.to_be_bytes();
        test.now = test.now + Duration::from_millis(1);
        test.net.handle_timeout(test.now);
        assert_eq!(test.connect(Ipv4Addr::new(93, a, b, c), 443), None);
    }
    assert!(test.connect(address, 443).is_some());
    assert_eq!(test.address("pypi.org"), address);
    let dropped = test.net.dropped_events();
    let events = test.events();
    assert_eq!(events.len(), 1024);
    // 257 destinations in a second, and the flow that is allowed.
    assert!((1000..20 * 2 * 257).contains(&dropped), "{dropped}");
    // Numbers show the gap.
    test.pass(Duration::from_secs(2));
    assert_eq!(test.connect(REMOTE, 443), None);
    let next = test.events().pop().unwrap();
    assert!(next.seq >= 1024 + dropped, "{} {dropped}", next.seq);
}

#[test]
fn attack_48_names_in_lines_are_escaped() {
    let mut test = PolicyTest::new(&["pypi.org:443"]);
    let lines = |test: &mut PolicyTest| -> Vec<String> {
        test.events().iter().map(|event| event.to_json("time", "vm")).collect()
    };
    for (label, has_name) in [
        (b"\x1b[2J", false),
        (b"\r\n{}", false),
        (b"\0\x7f\x80\x9b", false),
        (b"a\\nb", false),
        (b"a.b.", false),
        (b"a\"},", true),
    ] {
        let question = DnsQuestion {
            name: DnsName::from_text("xxxx.a").unwrap(),
            record_type: record_type::A,
        };
        let mut query = dns::write_query(7, &question);
        let at = query.windows(4).position(|part| part == b"xxxx").unwrap();
        query[at..at + 4].copy_from_slice(label);
        let mut packet = Vec::new();
        udp::write(&super::packets::to(DNS), (1000, 53), &query, &mut packet);
        assert_eq!(test.send(&packet), None);
        let lines = lines(&mut test);
        test.pass(Duration::from_secs(2));
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert!(line.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{line:?}");
        assert_eq!(line.contains("\"name\":"), has_name, "{line}");
        assert!(!has_name || line.contains(r#""name":"a\"},.a""#), "{line}");
    }
    assert_eq!((test.asked.len(), test.actions.len()), (0, 0));
}

#[test]
fn attack_50_address_of_another_network_is_unknown() {
    let targets = ["pypi.org:443", "b.example:443"];
    let network =
        || PolicyTest::new(&targets).with("pypi.org", &[PUBLIC]).with("b.example", &["1.1.1.1"]);
    let (mut one, mut other) = (network(), network());
    let address = one.address("pypi.org");
    assert!(one.connect(address, 443).is_some());
    assert_eq!(other.connect(address, 443), None);
    assert_eq!(other.last(), (Kind::FlowRefused, Reason::UnknownAddress));
    // It stands for the name that the other network gives it to.
    assert_eq!(other.address("b.example"), address);
    let (_, destination) = other.connect(address, 443).unwrap();
    assert_eq!(named(destination), ["1.1.1.1:443"]);
}
