//! Messages of a hostile guest.

use super::*;

#[test]
fn attack_4_two_questions_in_one_query_fail() {
    let mut guest = NameClient::new();
    let mut two = query(1, "host.capsa.internal", A);
    let at = two.len() - 11;
    two.splice(at..at, *b"\x01b\x07example\0\0\x01\0\x01");
    two[5] = 2;
    guest.send(5000, &two);
    assert_eq!(guest.asked(), []);
    assert_eq!(guest.answer()[3] & 0xf, 1);
    guest.connect(6000);
    guest.write(&prefixed(&two), 100);
    assert_eq!(guest.client.messages()[0][3] & 0xf, 1);
}

#[test]
fn attack_6_junk_on_port_53_is_dropped() {
    let mut guest = NameClient::new();
    for junk in
        [&b""[..], b"x", b"SSH-2.0-x\r\n", &[0xff; 400], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]
    {
        guest.send(5000, junk);
        guest.connect(6000);
        guest.write(junk, 100);
        guest.send_segment(Flags { fin: true, ..Flags::default() }, &[]);
        guest.receive();
        assert_eq!(guest.asked(), []);
        assert!(guest.client.messages().iter().all(|answer| answer[3] & 0xf != 0));
        assert!(guest.datagrams.drain(..).all(|(_, answer)| answer[3] & 0xf != 0));
    }
    // Lengths that no query has, and longer ones than the server reads.
    for bytes in [[0, 0], [0, 11], [0x10, 1], [0xff, 0xff]] {
        guest.connect(7000 + u16::from(bytes[1]));
        guest.write(&bytes, 2);
        assert!(guest.client.was_reset, "{bytes:?}");
    }
    assert_eq!(guest.ask("host.capsa.internal", A).0, 0);
}

#[test]
fn attack_7_answers_updates_and_notifies_do_nothing() {
    let mut guest = NameClient::new();
    let message = query(1, "host.capsa.internal", A);
    // An answer that the guest sends gets none: two servers could answer each other without end.
    let mut answer = message.clone();
    answer[2] |= 0x80;
    guest.send(53, &answer);
    guest.send(5000, &upstream("example.com", &[b"\x01a".to_vec()]));
    assert_eq!((guest.datagrams.len(), guest.asked()), (0, vec![]));
    for opcode in [1, 2, 4, 5, 6, 15] {
        let mut other = message.clone();
        other[2] = opcode << 3;
        guest.send(5000, &other);
        assert_eq!(guest.asked(), []);
        assert_eq!(guest.answer()[3] & 0xf, 4, "{opcode}");
    }
    assert_eq!(guest.net.counters().malformed, 2);
}

#[test]
fn attack_7_query_in_fragments_is_answered_once() {
    let mut guest = NameClient::new();
    let message = query(1, "host.capsa.internal", A);
    let frame = guest.frame(|ip, frame| udp::write(ip, (5000, 53), &message, frame), ip::UDP);
    let fragments: Vec<Vec<u8>> = ip::fragments(&frame[ethernet::HEADER_LEN..], 44, 1).collect();
    assert!(fragments.len() > 2);
    for fragment in &fragments {
        assert_eq!(guest.datagrams, []);
        let frame = [&frame[..ethernet::HEADER_LEN], fragment].concat();
        assert_eq!(guest.net.handle_frame(&frame, guest.now), None);
        guest.receive();
    }
    assert_eq!(data(&guest.answer(), "host.capsa.internal", A), [[10, 0, 2, 2]]);
    assert_eq!(guest.asked(), []);
}

#[test]
fn attack_9_foreign_records_and_loops_are_unused() {
    let mut guest = NameClient::new();
    let asked = DnsQuery::parse(&query(1, "a.example", TXT)).unwrap();
    let record = |owner: &str, record_type, data: Vec<u8>| DnsRecord {
        owner: DnsName::from_text(owner).unwrap(),
        record_type,
        ttl: 300,
        data,
    };
    let alias = |owner: &str, target: &str| {
        let target = DnsName::from_text(target).unwrap();
        record(owner, record_type::CNAME, target.as_bytes().to_vec())
    };
    let text = |owner: &str| record(owner, TXT, b"\x01x".to_vec());
    let hops = |count: usize| {
        let name = |n: usize| match n {
            0 => String::from("a.example"),
            n => alloc::format!("n{n}.example"),
        };
        let mut records: Vec<_> = (0..count).map(|n| alias(&name(n), &name(n + 1))).collect();
        records.push(text(&name(count)));
        records
    };
    let loops = vec![alias("a.example", "b.example"), alias("b.example", "a.example")];
    for (records, expected) in [
        (vec![text("a.example")], (0, 1)),
        // Of another owner.
        (vec![text("b.example")], (0, 0)),
        (vec![alias("b.example", "a.example"), text("b.example")], (0, 0)),
        (hops(8), (0, 9)),
        (hops(9), (2, 0)),
        (loops, (2, 0)),
    ] {
        let response = DnsResponse {
            query: &asked,
            code: ResponseCode::NoError,
            is_authoritative: false,
            records: &records,
            negative_ttl: None,
            error: None,
        };
        guest.send(5000, &query(1, "a.example", TXT));
        let (id, ..) = guest.asked_once();
        guest.net.handle_records(id, Ok(&response.write(65_535)), guest.now);
        guest.receive();
        let answer = guest.answer();
        assert_eq!((answer[3] & 0xf, u16::from_be_bytes([answer[6], answer[7]])), expected);
        guest.pass(Duration::from_secs(60));
    }
    // A name that is compressed to itself.
    let mut message = upstream("a.example", &[b"\x01x".to_vec()]);
    let at = 12 + 11 + 4;
    message[at..at + 2].copy_from_slice(&[0xc0, at as u8]);
    guest.send(5000, &query(1, "a.example", TXT));
    let (id, ..) = guest.asked_once();
    guest.net.handle_records(id, Ok(&message), guest.now);
    guest.receive();
    assert_eq!(guest.answer()[3] & 0xf, 2);
}
