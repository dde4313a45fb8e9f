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
