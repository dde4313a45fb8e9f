//! Attacks on TCP. The numbers are those of the project's list of attacks.

use super::segments::{ACK, FIN, GUEST_START, OpenConnection, RST, SYN, SegmentTest, syn};
use super::*;
use crate::wire::checksum::Sum;
use crate::wire::ip::IPV4_HEADER_LEN;
use crate::wire::tcp::Flags;

#[test]
fn attack_29_syn_flood_is_bounded() {
    let mut test = SegmentTest::new(1000, 1 << 20);
    let open = test.open(1);
    test.segments.clear();
    let mut connecting = Vec::new();
    for n in 0..100_000_u32 {
        let [_, a, b, c] = n.to_be_bytes();
        let header = TcpHeader { destination: 80, ..syn(40_000) };
        let frame = SegmentTest::frame(&header, Ipv4Addr::new(93, a, b, c), &[]);
        test.send_frame(&frame);
        connecting.extend(test.connects());
        test.segments.truncate(1);
    }
    assert_eq!((connecting.len(), test.net.flows()), (64, 1000));
    assert_eq!(test.net.counters().refused_full, 100_000 - 999);
    assert!(test.has_reset());
    // The connection that was open is not disturbed.
    test.send(open.header(ACK, 0, 0), b"data");
    assert_eq!(test.taken, b"data");
    test.give(open.flow, b"answer");
    assert_eq!(test.segments.pop().unwrap().1, b"answer");
    // Each connection has its turn, and never more than 64 have at once.
    let mut turns = 64;
    while let Some(flow) = connecting.pop() {
        test.net.handle_connect_error(flow, ConnectError::HostUnreachable);
        test.poll();
        let next = test.connects();
        turns += next.len();
        connecting.extend(next);
        assert!(connecting.len() <= 64);
    }
    assert_eq!((turns, test.net.flows()), (999, 1));
}

#[test]
fn attack_29_aborted_syns_leave_nothing() {
    let mut test = SegmentTest::new(100, 1 << 20);
    test.is_link_open = false;
    for n in 0..100_000_u32 {
        test.syn(n as u16);
        test.send(TcpHeader { sequence: GUEST_START + 1, flags: RST, ..syn(n as u16) }, &[]);
        test.actions.clear();
        let waiting = test.net.waiting_connects.len() + test.net.queue.len();
        assert!(waiting <= 402 && test.net.answers.len() <= 64, "{n}: {waiting}");
    }
    test.assert_empty();
}

#[test]
fn attack_30_slow_reader_causes_no_retransmission() {
    let mut world = World::new(1, LinkFaults::default(), 1500, 1 << 20);
    world.connect(2_000_000);
    world.run(0);
    world.check(2_000_000, 0);
    assert_eq!(world.uploaded, 2_000_000);
    assert!(world.longest_pause < Duration::from_millis(50), "{:?}", world.longest_pause);
}

#[test]
fn attack_31_guest_that_never_acknowledges_is_reset() {
    let mut test = SegmentTest::new(10, 0);
    let open = test.open(1);
    test.give(open.flow, &[1; 10_000]);
    let begin = test.now;
    while test.net.flows() > 0 {
        test.wait();
        assert!(test.net.reserved() == 0 && test.segments.len() < 500);
    }
    assert_eq!(test.socket_actions(), [SocketAction::Reset]);
    assert!(test.now.since(begin) < Duration::from_secs(900), "{:?}", test.now);
    test.assert_empty();
}

#[test]
fn attack_31_closed_window_ends_after_two_hours() {
    let mut test = SegmentTest::new(10, 0);
    let open = test.open(1);
    let closed = TcpHeader { window: 0, ..open.header(ACK, 0, 0) };
    test.send(closed, &[]);
    test.give(open.flow, &[1; 1000]);
    let begin = test.now;
    while test.net.flows() > 0 {
        test.wait();
        if test.segments.drain(..).any(|(_, data)| data.len() == 1) {
            test.send(closed, &[]);
        }
    }
    let hours = test.now.since(begin).as_secs() / 3600;
    assert_eq!((hours, test.socket_actions()), (2, vec![SocketAction::Reset]));
    test.assert_empty();
}

#[test]
fn attack_31_shrinking_window_sends_no_byte_beyond() {
    let mut test = SegmentTest::new(10, 0);
    let open = test.open(1);
    for window in (0..100).rev() {
        test.send(TcpHeader { window, ..open.header(ACK, 0, 0) }, &[]);
    }
    test.give(open.flow, &[1; 1000]);
    assert!(test.segments.iter().all(|(_, data)| data.is_empty()), "{:?}", test.segments);
    // Also after a probe, an acknowledgement is within the window: the guest would ignore another.
    test.wait();
    assert_eq!(test.segments.pop().unwrap().1.len(), 1);
    test.send(TcpHeader { window: 0, ..open.header(ACK, 0, 0) }, b"data");
    assert_eq!(test.segments.pop().unwrap().0.sequence, open.their_start);
}

#[test]
fn attack_31_window_of_one_byte_bounds_the_work() {
    let mut test = SegmentTest::new(10, 0);
    let open = test.open(1);
    test.send(TcpHeader { window: 1, ..open.header(ACK, 0, 0) }, &[]);
    test.give(open.flow, &[1; 1000]);
    for acknowledged in 1..1000 {
        assert_eq!(test.segments.drain(..).map(|(_, data)| data.len()).sum::<usize>(), 1);
        // Repeated acknowledgements do not multiply the work.
        for _ in 0..3 {
            test.send(TcpHeader { window: 1, ..open.header(ACK, 0, acknowledged) }, &[]);
        }
    }
}

#[test]
fn attack_32_segments_out_of_order_are_bounded() {
    let mut test = SegmentTest::new(10, 64 << 10);
    let open = test.open(1);
    // Each second byte, in an order that merges nothing.
    for n in 0..100_000_u32 {
        let at = 2 + (n.wrapping_mul(7919) % 30_000) * 2;
        test.send(open.header(ACK, at, 0), b"x");
        assert!(test.segments.len() <= 1 && test.net.reserved() <= 64 << 10);
        test.segments.clear();
    }
    assert!(test.taken.is_empty());
    // The holes are filled, and the stream goes on.
    test.send(open.header(ACK, 0, 0), &[b'x'; 1000]);
    assert!(test.taken.len() >= 1000, "{}", test.taken.len());
}

#[test]
fn attack_33_absurd_options_are_harmless() {
    let mut test = SegmentTest::new(100, 1 << 20);
    for (port, mss) in [(1, 0), (2, 1), (3, 48), (4, 65_535)] {
        test.send(TcpHeader { mss: Some(mss), window_scale: Some(14), ..syn(port) }, &[]);
        let flow = test.connects()[0];
        test.connected(flow);
        let (answer, _) = test.segments.pop().unwrap();
        let their_start = answer.sequence.wrapping_add(1);
        let open = OpenConnection { flow, port, start: GUEST_START + 1, their_start };
        test.send(open.header(ACK, 0, 0), &[]);
        test.give(flow, &[1; 2000]);
        // A small segment size does not multiply the work (CVE-2019-11479).
        let sizes: Vec<usize> = test.segments.drain(..).map(|(_, data)| data.len()).collect();
        assert!(sizes.len() <= 23 && sizes.iter().all(|len| *len <= 1460), "{mss}: {sizes:?}");
    }
    // Options that are cut, of length 0 and 1, and of unknown kinds; a scale of 15.
    for options in [[2, 40, 0, 0], [2, 0, 0, 0], [3, 1, 15, 0], [3, 3, 15, 0], [254, 2, 5, 10]] {
        let mut frame = SegmentTest::frame(&TcpHeader { mss: Some(1), ..syn(9) }, REMOTE, &[]);
        let len = frame.len();
        frame[len - 4..].copy_from_slice(&options);
        fix_checksum(&mut frame);
        test.send_frame(&frame);
        let reset = TcpHeader { flags: RST, sequence: GUEST_START + 1, ..syn(9) };
        let reset = SegmentTest::frame(&reset, REMOTE, &[]);
        test.send_frame(&reset);
        test.actions.clear();
    }
    assert_eq!(test.net.flows(), 4);
}

#[test]
fn attack_33_syn_with_data_or_fin_opens_nothing_else() {
    let mut test = SegmentTest::new(100, 1 << 20);
    test.send(syn(1), b"early data");
    assert_eq!((test.connects().len(), test.taken.len()), (1, 0));
    for (port, flags) in [
        (2, Flags { fin: true, ..SYN }),
        (3, Flags { rst: true, ..SYN }),
        (4, Flags { fin: true, ..RST }),
        (5, Flags::default()),
    ] {
        test.send(TcpHeader { flags, ..syn(port) }, &[]);
    }
    let opened = test.connects().len();
    assert!(opened <= 1 && test.net.flows() == 1 + opened);
}

#[test]
fn attack_33_reset_flood_off_the_window_is_ignored() {
    let mut test = SegmentTest::new(10, 1 << 20);
    let open = test.open(1);
    for n in 0..100_000_u32 {
        let at = n.wrapping_mul(0x9e37_79b1) | 1;
        test.send(open.header(RST, at, 0), &[]);
        test.segments.clear();
    }
    assert_eq!(test.net.flows(), 1);
    test.send(open.header(ACK, 0, 0), b"alive");
    assert_eq!(test.taken, b"alive");
}

/// Each order in which two sides close, with what is lost in between, ends with a free slot.
#[test]
fn attack_34_every_close_frees_the_slot() {
    for order in 0..6 {
        let mut test = SegmentTest::new(10, 1 << 20);
        let open = test.open(1);
        test.give(open.flow, b"abc");
        match order {
            // The guest first, with data.
            0 => {
                test.send(open.header(FIN, 0, 3), b"end");
                test.net.handle_eof(open.flow);
                test.poll();
                test.send(open.header(ACK, 4, 4), &[]);
            }
            // The host first.
            1 => {
                test.net.handle_eof(open.flow);
                test.poll();
                test.send(open.header(ACK, 0, 4), &[]);
                test.send(open.header(FIN, 0, 4), b"end");
            }
            // Both at once.
            2 => {
                test.net.handle_eof(open.flow);
                test.poll();
                test.send(open.header(FIN, 0, 3), b"end");
                test.send(open.header(ACK, 4, 4), &[]);
            }
            // The FIN of the guest arrives before its data.
            3 => {
                test.send(open.header(FIN, 3, 3), &[]);
                test.send(open.header(ACK, 0, 3), b"end");
                test.net.handle_eof(open.flow);
                test.poll();
                test.send(open.header(ACK, 4, 4), &[]);
            }
            // The FIN of the network is lost.
            4 => {
                test.send(open.header(FIN, 0, 3), b"end");
                test.net.handle_eof(open.flow);
                test.poll();
                test.segments.clear();
                test.wait();
                assert!(test.segments.iter().any(|(header, _)| header.flags.fin));
                test.send(open.header(ACK, 4, 4), &[]);
            }
            // The guest's last acknowledgement is lost, and it repeats its FIN.
            _ => {
                test.net.handle_eof(open.flow);
                test.poll();
                test.send(open.header(FIN, 0, 4), b"end");
                test.segments.clear();
                test.send(open.header(FIN, 0, 4), b"end");
                assert_eq!(test.segments.len(), 1);
            }
        }
        assert_eq!(test.taken, b"end", "order {order}");
        assert_eq!(test.socket_actions().last(), Some(&SocketAction::Close), "order {order}");
        assert!(test.wait() <= Duration::from_secs(10));
        test.assert_empty();
    }
}

#[test]
fn attack_34_close_before_the_connect_ends() {
    let mut test = SegmentTest::new(10, 1 << 20);
    test.syn(1);
    let flow = test.connects()[0];
    // A FIN is not acceptable yet; a reset is.
    test.send(TcpHeader { flags: FIN, sequence: GUEST_START + 1, ..syn(1) }, &[]);
    assert_eq!(test.net.flows(), 1);
    test.send(TcpHeader { flags: RST, sequence: GUEST_START + 1, ..syn(1) }, &[]);
    assert_eq!(test.socket_actions(), [SocketAction::Close]);
    // The socket answers too late.
    test.connected(flow);
    test.net.handle_connect_error(flow, ConnectError::Refused);
    test.net.handle_eof(flow);
    test.poll();
    assert!(test.actions.is_empty());
    test.assert_empty();
}

#[test]
fn attack_34_closed_flows_make_room_for_new_ones() {
    let mut test = SegmentTest::new(4, 1 << 20);
    for port in 1..100 {
        let open = test.open(port);
        test.net.handle_eof(open.flow);
        test.poll();
        test.send(open.header(FIN, 0, 1), &[]);
        test.segments.clear();
        assert_eq!(test.socket_actions().last(), Some(&SocketAction::Close));
    }
    assert_eq!(test.net.counters().refused_full, 0);
}

/// Recomputes the checksum of the segment in a frame.
fn fix_checksum(frame: &mut [u8]) {
    let segment = &mut frame[ethernet::HEADER_LEN + IPV4_HEADER_LEN..];
    segment[16..18].fill(0);
    let mut sum = Sum::of_pseudo_header(GUEST.into(), REMOTE.into(), ip::TCP, segment.len());
    let sum = sum.add(segment).checksum();
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn attack_35_urgent_pointer_changes_nothing() {
    let mut test = SegmentTest::new(10, 1 << 20);
    let open = test.open(1);
    let mut sent = Vec::new();
    for (n, urgent) in [0, 1, 2, 3, 4, 5, 6, 255, 256, 1459, 1460, 1461, 0x7fff, 0x8000, 0xffff]
        .into_iter()
        .enumerate()
    {
        for len in [0, 1, 5] {
            let data = vec![n as u8; len];
            let header = TcpHeader { destination: 80, ..open.header(ACK, sent.len() as u32, 0) };
            let mut frame = SegmentTest::frame(&header, REMOTE, &data);
            let tcp = ethernet::HEADER_LEN + IPV4_HEADER_LEN;
            frame[tcp + 13] |= 0x20;
            frame[tcp + 18..tcp + 20].copy_from_slice(&u16::to_be_bytes(urgent));
            fix_checksum(&mut frame);
            test.send_frame(&frame);
            sent.extend(data);
        }
    }
    assert_eq!(test.taken, sent);
}

#[test]
fn attack_36_addresses_are_reused_after_reset() {
    let mut test = SegmentTest::new(10, 1 << 20);
    let mut flows = BTreeSet::new();
    for n in 0..1000 {
        let open = test.open(1);
        assert!(flows.insert(open.flow), "a number of a flow is used twice");
        test.send(open.header(ACK, 0, 0), &[n as u8]);
        test.send(open.header(RST, 1, 0), &[]);
        assert_eq!(test.socket_actions(), [SocketAction::Reset]);
        test.segments.clear();
    }
    assert_eq!(test.taken, (0..1000).map(|n| n as u8).collect::<Vec<_>>());
    test.assert_empty();
}

#[test]
fn attack_36_repeated_syn_connects_once() {
    let mut test = SegmentTest::new(10, 1 << 20);
    let open = test.open(1);
    test.net.handle_eof(open.flow);
    test.poll();
    test.send(open.header(FIN, 0, 1), &[]);
    test.actions.clear();
    // The old SYN arrives again; a new one replaces the closed connection, with higher numbers.
    test.syn(1);
    assert!(test.connects().is_empty());
    test.send(TcpHeader { sequence: GUEST_START + 100, ..syn(1) }, &[]);
    let flow = test.connects()[0];
    test.segments.clear();
    test.connected(flow);
    let (answer, _) = test.segments.pop().unwrap();
    assert!((answer.sequence.wrapping_sub(open.their_start) as i32) > 1, "{answer:?}");
}

#[test]
fn attack_37_forward_to_dead_guest_ends() {
    let mut test = SegmentTest::new(100, 1 << 20);
    let client = |port: u16| SocketAddr::from((GATEWAY, port));
    let mut flows = Vec::new();
    for port in 1..=1000 {
        flows.extend(test.net.connect_guest(22, client(port), test.now));
        test.poll();
    }
    // A flood of clients fills the table; further ones are refused by the driver.
    assert_eq!(flows.len(), 100);
    let begin = test.now;
    // The guest does not answer. Data of a client is not read before the guest has accepted.
    while test.net.flows() > 0 {
        for flow in &flows {
            assert_eq!(test.net.spaces(*flow, 100).count(), 0);
        }
        test.wait();
    }
    assert!(test.now.since(begin) <= Duration::from_secs(90), "{:?}", test.now.since(begin));
    assert_eq!(test.socket_actions(), vec![SocketAction::Reset; 100]);
    test.assert_empty();
}
