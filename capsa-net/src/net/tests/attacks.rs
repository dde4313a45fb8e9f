//! Attacks on what a guest may reach, and on tables. The numbers are those of the project's list of
//! attacks.

use super::packets::{PacketTest, datagram, echo, to};
use super::segments::{ACK, FIN, SegmentTest, config, syn};
use super::*;
use crate::wire::ip::{IpHeader, UDP};
use crate::wire::udp;

/// Whether a SYN, a datagram and an echo request to an address lead to an action on the host.
fn is_reached(net: Net, address: IpAddr, port: u16) -> bool {
    let mut test = PacketTest::of(net);
    let ip = to(address);
    let mut segment = Vec::new();
    let header = TcpHeader { destination: port, ..syn(1000) };
    header.write(&IpHeader { protocol: ip::TCP, ..ip }, core::iter::empty(), &mut segment);
    let mut query = Vec::new();
    udp::write(&ip, (1000, port), b"data", &mut query);
    let mut is_delivered = false;
    for packet in [segment, query, echo(&ip, 7, b"data")] {
        is_delivered |= test.send(&packet).is_some();
    }
    is_delivered || !test.actions.is_empty()
}

#[test]
fn attack_15_special_addresses_are_closed() {
    let addresses = include_str!("../access/special.txt").lines();
    let private = ["10.1.2.3", "100.64.0.1", "172.16.0.1", "192.168.1.1", "fc00::1", "fec0::1"];
    for (text, allow_private) in
        addresses.flat_map(|text| [(text, false), (text, true)]).chain(private.map(|t| (t, false)))
    {
        let net = Net::new(NetworkConfig { allow_private, ..config(64, 0) }, [7; 16]);
        assert!(!is_reached(net, text.parse().unwrap(), 80), "{text} {allow_private}");
    }
    // The test can fail.
    for open in [IpAddr::from(REMOTE), REMOTE_V6.into()] {
        assert!(is_reached(Net::new(config(64, 0), [7; 16]), open, 80));
    }
}

#[test]
fn attack_17_host_is_closed_under_every_alias() {
    let gateway = Ipv6Network::DEFAULT.gateway;
    for allow_private in [false, true] {
        let config =
            NetworkConfig { allow_private, host_ports: BTreeSet::from([8080]), ..config(64, 0) };
        let mut refused = 0;
        for text in [
            "10.0.2.2",
            "10.0.2.1",
            "10.0.2.4",
            "10.0.2.32",
            "127.0.0.1",
            "127.0.0.2",
            "0.0.0.0",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:10.0.2.2",
            "64:ff9b::127.0.0.1",
            "64:ff9b::10.0.2.2",
            "::127.0.0.1",
            "2002:7f00:1::1",
            "fe80::1",
            "fd00:ca95:a:2::4",
        ] {
            let port = if text == "10.0.2.2" { 8099 } else { 8080 };
            let mut test = SegmentTest::with_config(config.clone());
            let address: IpAddr = text.parse().unwrap();
            if let IpAddr::V4(v4) = address {
                let header = TcpHeader { destination: port, ..syn(1) };
                test.send_frame(&SegmentTest::frame(&header, v4, &[]));
                assert!(test.actions.is_empty(), "{text}");
                // At once, not by a time-out; an unspecified destination is no packet at all.
                assert_eq!(test.has_reset(), !v4.is_unspecified(), "{text}");
                refused += test.net.counters().refused_host + test.net.counters().refused_special;
            } else {
                let net = Net::new(config.clone(), [7; 16]);
                assert!(!is_reached(net, address, port), "{text}");
            }
        }
        assert_eq!(refused, 6);
        // One port is open, at the gateway.
        for address in [GATEWAY.into(), IpAddr::from(gateway)] {
            let net = Net::new(config.clone(), [7; 16]);
            let open =
                net.destination(crate::flow_table::FlowProtocol::Tcp, (address, 8080).into());
            assert_eq!(open, Ok(Destination::Host(8080)));
        }
    }
}

#[test]
fn attack_17_address_of_the_host_is_refused_later() {
    let mut test = SegmentTest::new(10, 0);
    test.syn(1);
    let flow = test.connects()[0];
    test.net.handle_connect_error(flow, ConnectError::Prohibited);
    test.poll();
    assert!(test.has_reset());
    assert_eq!(test.net.counters().refused_host, 1);
    let mut test = PacketTest::of(test.net);
    test.send(&datagram(&to(REMOTE), b"data"));
    let Some(NetAction::OpenUdp { flow, .. }) = test.actions.pop() else { panic!("no socket") };
    test.net.handle_connect_error(flow, ConnectError::Prohibited);
    test.poll();
    assert_eq!(test.packets.len(), 1, "an ICMP error");
    assert_eq!(test.net.counters().refused_host, 2);
}

#[test]
fn attack_18_gateway_has_no_other_port() {
    let mut test = SegmentTest::new(10, 0);
    for port in 1..=u16::MAX {
        let header = TcpHeader { destination: port, ..syn(1) };
        test.send_frame(&SegmentTest::frame(&header, GATEWAY, &[]));
        let (answer, _) = test.segments.pop().expect("an answer at once");
        assert!(answer.flags.rst && answer.source == port);
    }
    assert!(test.actions.is_empty() && test.net.counters().refused_host == 65_535);
}

#[test]
fn attack_40_datagrams_to_many_hosts_are_bounded() {
    let mut test = PacketTest::of(Net::new(config(1000, 0), [7; 16]));
    let mut open = BTreeSet::new();
    for n in 0..100_000_u32 {
        let [_, a, b, c] = n.to_be_bytes();
        let mut ip = to(Ipv4Addr::new(93, a, b, c));
        ip.protocol = UDP;
        test.now = test.now + Duration::from_micros(1);
        assert!(test.send(&datagram(&ip, b"data")).is_some());
        for action in test.actions.drain(..) {
            match action {
                NetAction::OpenUdp { flow, .. } => assert!(open.insert(flow)),
                NetAction::Close { flow } => assert!(open.remove(&flow)),
                _ => panic!("{action:?}"),
            }
        }
        assert!(open.len() <= 256 && test.net.flows() <= 256);
    }
    // A datagram for a flow that has ended goes nowhere.
    let ended = FlowId::NONE;
    test.net.handle_datagram(ended, b"late", test.now);
    test.poll();
    assert!(test.packets.is_empty());
    test.now = test.now + Duration::from_secs(31);
    test.net.handle_timeout(test.now);
    test.poll();
    assert_eq!((test.net.flows(), test.actions.len()), (0, 256));
}

#[test]
fn attack_42_echo_is_no_tunnel() {
    let mut test = PacketTest::of(Net::new(config(1000, 0), [7; 16]));
    let mut delivered = 0;
    for n in 0..10_000 {
        test.now = test.now + Duration::from_millis(1);
        delivered += usize::from(test.send(&echo(&to(REMOTE), n, &[7; 1400])).is_some());
    }
    // Ten seconds: 10 in a second, and a burst.
    assert!(delivered <= 120, "{delivered}");
    assert!(test.net.flows() <= 64);
    test.now = test.now + Duration::from_secs(60);
    test.net.handle_timeout(test.now);
    // Larger than one packet: dropped and counted.
    let limited = test.net.counters().limited;
    assert!(test.send(&echo(&to(REMOTE), 1, &[7; 1473])).is_none());
    assert_eq!(test.net.counters().limited, limited + 1);
}

#[test]
fn attack_46_flows_of_an_hour_leave_nothing() {
    let mut test = SegmentTest::new(512, 1 << 20);
    for n in 0..10_000_u32 {
        test.now = test.now + Duration::from_millis(360);
        test.net.handle_timeout(test.now);
        let open = test.open(n as u16);
        test.room = n as usize % 3;
        test.send(open.header(ACK, 0, 0), b"data");
        test.give(open.flow, &[1; 100]);
        match n % 4 {
            0 => test.send(open.header(super::segments::RST, 4, 0), &[]),
            1 => {
                test.net.handle_socket_error(open.flow);
                test.poll();
            }
            _ => {
                let waiting = test.net.waiting(open.flow).map(<[u8]>::len).sum();
                test.net.drained(open.flow, waiting, test.now);
                test.net.handle_eof(open.flow);
                test.poll();
                test.send(open.header(FIN, 4, 101), &[]);
                assert_eq!(test.socket_actions().last(), Some(&SocketAction::Close));
            }
        }
        test.segments.clear();
        test.actions.clear();
        // Only connections that closed within ten seconds are left.
        assert!(test.net.flows() <= 30, "{n}: {}", test.net.flows());
    }
    while test.net.flows() > 0 {
        test.wait();
    }
    test.assert_empty();
}

#[test]
fn attack_50_networks_share_nothing() {
    let service = ServiceName { name: "llm.capsa.internal".into(), port: 80 };
    let rich = NetworkConfig {
        host_ports: BTreeSet::from([8080]),
        services: vec![service],
        allow_private: true,
        ..config(64, 0)
    };
    let address = Ipv4Addr::new(10, 0, 2, 32);
    for (address, port) in [(address, 80), (GATEWAY, 8080), (Ipv4Addr::new(192, 168, 1, 1), 80)] {
        let (rich, poor) = (Net::new(rich.clone(), [7; 16]), Net::new(config(64, 0), [7; 16]));
        assert!(is_reached(rich, address.into(), port));
        assert!(!is_reached(poor, address.into(), port));
    }
    // The guest of another network is not reachable: it has the addresses of this one.
    assert!(!is_reached(Net::new(rich, [7; 16]), [10, 0, 2, 16].into(), 80));
}
