//! Queries over TCP.

use super::*;
use crate::net::dns::streams::{STREAM_END, STREAM_OUTPUT, STREAM_QUERIES, STREAMS};

#[test]
fn truncated_answer_is_complete_over_tcp() {
    let mut guest = NameClient::new();
    let texts: Vec<Vec<u8>> = (0..10).map(|n| vec![n; 200]).collect();
    guest.send(5000, &query(1, "example.com", TXT));
    let (id, ..) = guest.asked_once();
    guest.net.handle_records(id, Ok(&upstream("example.com", &texts)), guest.now);
    guest.receive();
    let answer = guest.answer();
    assert_eq!((answer[2] & 2, answer[7]), (2, 0));
    guest.connect(6000);
    guest.write(&prefixed(&query(1, "example.com", TXT)), 1000);
    let [answer] = &guest.client.messages()[..] else { panic!() };
    assert_eq!(data(answer, "example.com", TXT), texts);
    // The connection has no socket, so the driver is asked for nothing.
    assert_eq!(guest.asked(), []);
}

#[test]
fn tcp_queries_are_pipelined_in_any_segments() {
    for max in [1, 7, 100, 1000] {
        let mut guest = NameClient::new();
        guest.connect(6000);
        let queries = [
            prefixed(&query(1, "slow.example", A)),
            prefixed(&query(2, "host.capsa.internal", A)),
            prefixed(&query(3, "quick.example", A)),
        ];
        guest.write(&queries.concat(), max);
        let asked = guest.asked();
        assert_eq!(asked.len(), 2);
        for (id, name, _) in asked.iter().rev() {
            guest.addresses(
                *id,
                if name == "slow.example" { &["192.0.2.1"] } else { &["192.0.2.3"] },
            );
        }
        // An answer does not wait for those to earlier queries.
        let messages = guest.client.messages();
        let ids: Vec<_> = messages.iter().map(|message| message[1]).collect();
        assert_eq!(ids, [2, 3, 1], "{max}");
        assert_eq!(data(&messages[1], "quick.example", A), [[192, 0, 2, 3]]);
    }
}

#[test]
fn tcp_half_close_is_answered_before_the_end() {
    let mut guest = NameClient::new();
    guest.connect(6000);
    // A query, and half a query that has no end.
    let bytes = [prefixed(&query(1, "example.com", A)), vec![0, 40, 1, 2]].concat();
    guest.send_segment(Flags { fin: true, ..Flags::default() }, &bytes);
    guest.receive();
    assert!(!guest.client.has_seen_end);
    let (id, ..) = guest.asked_once();
    guest.addresses(id, &["192.0.2.1"]);
    assert_eq!(guest.client.messages().len(), 1);
    assert!(guest.client.has_seen_end && !guest.client.was_reset);
    guest.pass(Duration::from_secs(60));
    assert_eq!((guest.net.flows(), guest.net.name_server.streams.len()), (0, 0));
    assert_eq!(guest.asked(), []);
}

#[test]
fn tcp_connection_without_queries_ends() {
    let mut guest = NameClient::new();
    guest.connect(6000);
    assert!(guest.client.is_open);
    guest.pass(Duration::from_secs(20));
    guest.write(&prefixed(&query(1, "host.capsa.internal", A)), 1000);
    guest.pass(Duration::from_secs(29));
    assert!(!guest.client.has_seen_end);
    guest.pass(Duration::from_secs(1));
    assert!(guest.client.has_seen_end && !guest.client.was_reset);
    // A guest that does not close its side.
    guest.pass(STREAM_END);
    assert!(guest.client.was_reset);
    assert_eq!((guest.net.flows(), guest.net.name_server.streams.len()), (0, 0));
}

#[test]
fn tcp_connections_are_bounded() {
    let mut guest = NameClient::new();
    for port in 0..40 {
        guest.connect(6000 + port);
        assert_eq!(guest.client.is_open, usize::from(port) < STREAMS);
        assert_eq!(guest.client.was_reset, usize::from(port) >= STREAMS);
    }
    assert_eq!(guest.net.counters().refused_full, 8);
}

#[test]
fn tcp_query_beyond_the_limit_waits() {
    let mut guest = NameClient::new();
    guest.connect(6000);
    let queries = (0..40).map(|n| prefixed(&query(n, &alloc::format!("n{n}.example"), A)));
    guest.write(&queries.collect::<Vec<_>>().concat(), 1000);
    let mut asked = guest.asked();
    assert_eq!(asked.len(), STREAM_QUERIES);
    let mut answered = 0;
    while let Some((id, ..)) = asked.pop() {
        guest.addresses(id, &["192.0.2.1"]);
        answered += 1;
        asked.extend(guest.asked());
        assert!(asked.len() <= STREAM_QUERIES);
    }
    assert_eq!((answered, guest.client.messages().len()), (40, 40));
}

#[test]
fn tcp_client_that_does_not_read_is_not_read() {
    let mut guest = NameClient::new();
    let texts: Vec<Vec<u8>> = (0..60).map(|n| vec![n; 255]).collect();
    guest.send(5000, &query(1, "example.com", TXT));
    let (id, ..) = guest.asked_once();
    guest.net.handle_records(id, Ok(&upstream("example.com", &texts)), guest.now);
    guest.connect(6000);
    // From here no segment is acknowledged. 300 answers of 15 KiB.
    for n in 0..300 {
        guest.now = guest.now + QUERY_INTERVAL;
        guest.send_segment(Flags::default(), &prefixed(&query(n, "example.com", TXT)));
        // The answer is too long for the cache, so it is asked for again.
        for (id, ..) in guest.asked() {
            guest.net.handle_records(id, Ok(&upstream("example.com", &texts)), guest.now);
        }
        let mut head = Vec::new();
        while guest.net.poll_frame(&mut head, guest.now).is_some() {}
        let output: usize = guest.net.name_server.streams.values().map(|s| s.output.len()).sum();
        assert!(output < STREAM_OUTPUT + (STREAM_QUERIES + 1) * 16_000, "{output}");
        assert!(guest.net.reserved() <= 1 << 20);
    }
}
