//! Attacks on the layers below TCP and UDP. The numbers are those of the project's list of attacks.

use super::packets::{PacketTest, datagram, echo, ndp, to};
use super::*;
use crate::wire::arp::{ArpMessage, ArpOperation};
use crate::wire::ip::{ICMP, ICMPV6, IpHeader, UDP};
use crate::wire::tcp::Flags;
use crate::wire::{icmp, udp};
use core::ops::Range;

/// A packet with any payload.
fn packet(ip: IpHeader, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    ip.write(payload.len(), &mut packet);
    packet.extend_from_slice(payload);
    packet
}

fn syn(ip: &IpHeader) -> Vec<u8> {
    let mut packet = Vec::new();
    let flags = Flags { syn: true, ..Flags::default() };
    let header = TcpHeader { source: 1000, destination: 80, flags, ..TcpHeader::default() };
    header.write(&IpHeader { protocol: ip::TCP, ..*ip }, core::iter::empty(), &mut packet);
    packet
}

/// Fragments of a datagram of 48 bytes: the range in the payload, and whether more follow.
fn fragments(ip: &IpHeader, id: u32, parts: &[(Range<usize>, bool)]) -> Vec<Vec<u8>> {
    let whole = datagram(ip, &[7; 40]);
    let payload = &whole[ip.header_len()..];
    let cut = |(range, more): &(Range<usize>, bool)| {
        let bytes: Vec<u8> = range.clone().map(|n| payload.get(n).copied().unwrap_or(0)).collect();
        fragment(ip, id, range.start, *more, &bytes)
    };
    parts.iter().map(cut).collect()
}

/// A fragment with any place.
fn fragment(ip: &IpHeader, id: u32, offset: usize, more: bool, bytes: &[u8]) -> Vec<u8> {
    if ip.source.is_ipv4() {
        let mut packet = packet(IpHeader { protocol: UDP, ..*ip }, bytes);
        packet[4..6].copy_from_slice(&(id as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&((offset / 8) as u16 | u16::from(more) << 13).to_be_bytes());
        packet[10..12].fill(0);
        let sum = crate::wire::checksum::checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        return packet;
    }
    let mut payload = alloc::vec![UDP, 0];
    payload.extend_from_slice(&(offset as u16 | u16::from(more)).to_be_bytes());
    payload.extend_from_slice(&id.to_be_bytes());
    payload.extend_from_slice(bytes);
    packet(IpHeader { protocol: 44, ..*ip }, &payload)
}

#[test]
fn attack_19_foreign_sources_are_ignored() {
    let ipv6 = Ipv6Network::DEFAULT;
    let mut test = PacketTest::new(1500);
    let sources: [IpAddr; 14] = [
        // Another address of the network, the gateway, the name server.
        [10, 0, 2, 16].into(),
        GATEWAY.into(),
        [10, 0, 2, 3].into(),
        // Broadcast, multicast, unspecified, loopback, the destination itself (LAND).
        [255, 255, 255, 255].into(),
        [10, 0, 2, 255].into(),
        [224, 0, 0, 1].into(),
        [0, 0, 0, 0].into(),
        [127, 0, 0, 1].into(),
        REMOTE.into(),
        ipv6.gateway.into(),
        ipv6.dns.into(),
        ipv6.prefix().into(),
        REMOTE_V6.into(),
        Ipv6Addr::UNSPECIFIED.into(),
    ];
    let of_link = [GATEWAY_LINK_LOCAL, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x15)];
    for source in sources.into_iter().chain(of_link.map(IpAddr::from)) {
        let remote = if source.is_ipv4() { REMOTE.into() } else { IpAddr::from(REMOTE_V6) };
        let ip = IpHeader { source, ..to(remote) };
        for packet in [syn(&ip), datagram(&ip, b"data"), echo(&ip, 7, b"data")] {
            test.assert_dropped(GATEWAY_MAC, &packet, &alloc::format!("{source}"));
        }
    }
    // Source and destination are the guest.
    for ip in [to(GUEST), to(GUEST_V6)] {
        test.assert_dropped(GATEWAY_MAC, &syn(&ip), "LAND");
    }
    // Another hardware address, also the gateway's.
    for source in [GATEWAY_MAC, MacAddress([2, 0, 0, 0, 0, 9]), MacAddress::BROADCAST] {
        let mut frame = Vec::new();
        let (destination, ether_type) = (GATEWAY_MAC, EtherType::Ipv4);
        ethernet::EthernetHeader { destination, source, ether_type }.write(&mut frame);
        frame.extend(syn(&to(REMOTE)));
        assert_eq!(test.net.handle_frame(&frame, test.now), None);
        test.poll();
        assert!(test.packets.is_empty() && test.actions.is_empty());
    }
    // The real ones are not.
    test.send(&syn(&to(REMOTE)));
    assert!(matches!(test.actions[..], [NetAction::Connect { .. }]));
}

#[test]
fn attack_19_several_stations_get_no_answer() {
    let mut test = PacketTest::new(1500);
    let addresses: [IpAddr; 7] = [
        [255, 255, 255, 255].into(),
        [10, 0, 2, 255].into(),
        [224, 0, 0, 1].into(),
        [0, 0, 0, 0].into(),
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
        Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 1).into(),
        Ipv6Addr::UNSPECIFIED.into(),
    ];
    for address in addresses {
        let ip = to(address);
        for packet in [syn(&ip), datagram(&ip, b"data"), echo(&ip, 7, b"data")] {
            test.assert_dropped(GATEWAY_MAC, &packet, &alloc::format!("{address}"));
        }
    }
    for packet in [datagram(&to(REMOTE), b"data"), echo(&to(GATEWAY), 7, b"data")] {
        test.assert_dropped(MacAddress::BROADCAST, &packet, "a broadcast frame");
    }
}

#[test]
fn attack_38_fragments_are_whole_or_dropped() {
    for ip in [to(REMOTE), to(REMOTE_V6)] {
        let mut test = PacketTest::new(1500);
        let dropped: [&[(Range<usize>, bool)]; 7] = [
            // Overlaps, as of teardrop: inside, across, again, of the header with the ports.
            &[(0..32, true), (8..16, true), (32..48, false)],
            &[(0..24, true), (16..48, false)],
            &[(0..24, true), (0..24, true), (24..48, false)],
            &[(8..48, false), (0..16, true)],
            // Two ends, and a part after the end.
            &[(0..16, true), (16..40, false), (40..48, false)],
            &[(0..16, true), (40..48, true), (16..40, false)],
            // A hole.
            &[(0..16, true), (24..48, false)],
        ];
        for (id, parts) in dropped.into_iter().enumerate() {
            for packet in fragments(&ip, id as u32, parts) {
                assert_eq!(test.send(&packet), None);
            }
            assert!(test.actions.is_empty() && test.packets.is_empty(), "{id}");
        }
        // Fragments of 8 bytes, the first of which has not even the whole UDP header of a datagram.
        let small: Vec<_> = (0..6).rev().map(|n| (n * 8..n * 8 + 8, n < 5)).collect();
        let mut delivered = None;
        for packet in fragments(&ip, 100, &small) {
            assert_eq!(delivered, None);
            delivered = test.deliver(&packet);
        }
        assert_eq!(delivered, Some(alloc::vec![7; 40]));
        // The holes end.
        test.now = test.now + Duration::from_secs(29);
        test.net.handle_timeout(test.now);
        assert!(test.net.fragments.poll_timeout().is_some());
        test.now = test.now + Duration::from_secs(1);
        test.net.handle_timeout(test.now);
        assert_eq!(test.net.fragments.poll_timeout(), None);
    }
}

#[test]
fn attack_38_ping_of_death_is_malformed() {
    let mut test = PacketTest::new(1500);
    for ip in [to(GATEWAY), to(Ipv6Network::DEFAULT.gateway)] {
        for (offset, len, more) in [(65_528, 16, false), (65_528, 8, true), (65_504, 1400, false)] {
            let packet = fragment(&ip, 1, offset, more, &alloc::vec![0; len]);
            test.assert_dropped(GATEWAY_MAC, &packet, "beyond 64 KiB");
        }
        // An empty fragment, and one of a length that is not a multiple of 8.
        for (offset, len, more) in [(8, 0, true), (8, 0, false), (0, 9, true)] {
            let packet = fragment(&ip, 1, offset, more, &alloc::vec![0; len]);
            test.assert_dropped(GATEWAY_MAC, &packet, "a length");
        }
    }
    // With its header the datagram would be longer than 64 KiB.
    let packet = fragment(&to(GATEWAY), 1, 65_512, false, &[0; 8]);
    test.assert_dropped(GATEWAY_MAC, &packet, "beyond 64 KiB with the header");
    assert_eq!(test.net.fragments.poll_timeout(), None);
}

#[test]
fn attack_39_extension_headers_hide_nothing() {
    let segment = syn(&to(REMOTE_V6)).split_off(40);
    let pad = |next| [next, 0, 1, 4, 0, 0, 0, 0];
    let chain = |len: usize| {
        let mut headers = alloc::vec![pad(60); len];
        headers[len - 1][0] = ip::TCP;
        headers
    };
    let fragment = |next| [next, 0, 0, 1, 0, 0, 0, 7];
    let hidden: [(u8, Vec<[u8; 8]>); 9] = [
        (60, chain(40)),
        (60, chain(8)),
        (0, alloc::vec![[ip::TCP, 0, 0xc2, 4, 0, 1, 0, 0]]),
        (0, alloc::vec![pad(0), pad(ip::TCP)]),
        (44, alloc::vec![fragment(60), pad(ip::TCP)]),
        (44, alloc::vec![fragment(44), fragment(ip::TCP)]),
        (43, alloc::vec![[ip::TCP, 0, 0, 1, 0, 0, 0, 0]]),
        (43, alloc::vec![[ip::TCP, 0, 0, 0, 0, 0, 0, 0]]),
        (60, alloc::vec![pad(59)]),
    ];
    let mut test = PacketTest::new(1500);
    for (n, (first, headers)) in hidden.into_iter().enumerate() {
        let payload = [headers.as_flattened(), &segment].concat();
        let packet = packet(IpHeader { protocol: first, ..to(REMOTE_V6) }, &payload);
        test.assert_dropped(GATEWAY_MAC, &packet, &alloc::format!("{n}"));
    }
    // A few headers that a node may skip are no attack.
    let payload = [chain(7).as_flattened(), &segment].concat();
    test.send(&packet(IpHeader { protocol: 60, ..to(REMOTE_V6) }, &payload));
    assert!(matches!(test.actions[..], [NetAction::Connect { .. }]));
}

#[test]
fn attack_41_messages_of_routers_are_ignored() {
    let mut test = PacketTest::new(1500);
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x15);
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let quoted = datagram(&to(REMOTE), b"data");
    let ip = IpHeader { protocol: ICMP, ..to(GATEWAY) };
    // Source quench, redirect, router advertisement, time exceeded, timestamp, address mask; errors.
    for kind in [3, 4, 5, 9, 10, 11, 12, 13, 15, 17] {
        let mut packet = Vec::new();
        icmp::write(&ip, [kind, 1, 0, 0, 10, 0, 2, 15], &[&quoted], &mut packet);
        test.assert_dropped(GATEWAY_MAC, &packet, &alloc::format!("ICMP {kind}"));
    }
    for kind in [1, 2, 3, 4, 130, 131, 132, 134, 136, 137, 143, 148] {
        for destination in [all_nodes, Ipv6Network::DEFAULT.gateway, GATEWAY_LINK_LOCAL] {
            let packet = ndp(link_local, destination, kind, &GATEWAY_LINK_LOCAL.octets());
            test.assert_dropped(GATEWAY_MAC, &packet, &alloc::format!("ICMPv6 {kind}"));
        }
    }
    // Unsolicited replies.
    for ip in [to(GATEWAY), to(REMOTE), to(REMOTE_V6)] {
        let mut packet = Vec::new();
        let reply = icmp::EchoMessage { is_reply: true, id: 7, sequence: 1, data: 0..0 };
        reply.write(&ip, b"data", &mut packet);
        test.assert_dropped(GATEWAY_MAC, &packet, "an echo reply");
    }
    // Neighbor discovery from beyond the link, in a fragment, and for an address of several stations.
    let question = ndp(link_local, GATEWAY_LINK_LOCAL, 135, &GATEWAY_LINK_LOCAL.octets());
    let mut far = question.clone();
    far[7] = 254;
    test.assert_dropped(GATEWAY_MAC, &far, "from beyond the link");
    for fragment in ip::fragments(&question, 56, 1) {
        assert_eq!(test.send(&fragment), None);
    }
    assert!(test.packets.is_empty());
    // The first fragment looks like a whole question.
    let fragment = [&[ICMPV6, 0, 0, 1, 0, 0, 0, 2][..], &question[40..]].concat();
    let (source, destination) = (link_local.into(), GATEWAY_LINK_LOCAL.into());
    let ip = IpHeader { source, destination, protocol: 44, hop_limit: 255 };
    assert_eq!(test.send(&packet(ip, &fragment)), None);
    assert!(test.packets.is_empty());
    // Offers and acknowledgements of DHCP, to all, to the gateway and to the server's port.
    for (destination, ports) in [
        ([255, 255, 255, 255], (67, 68)),
        ([255, 255, 255, 255], (68, 67)),
        ([10, 0, 2, 2], (68, 67)),
    ] {
        for kind in [2, 5, 6] {
            let mut offer = alloc::vec![0; 300];
            offer[..4].copy_from_slice(&[2, 1, 6, 0]);
            offer[28..34].copy_from_slice(&GUEST_MAC.0);
            offer[236..244].copy_from_slice(&[99, 130, 83, 99, 53, 1, kind, 255]);
            let mut packet = Vec::new();
            udp::write(&to(destination), ports, &offer, &mut packet);
            test.send_to(MacAddress::BROADCAST, &packet);
            assert!(test.packets.is_empty() && test.actions.is_empty(), "{ports:?} {kind}");
        }
    }
    // A reply of ARP, and a request for an address that is not the network's.
    for (operation, target) in [
        (ArpOperation::Reply, GATEWAY),
        (ArpOperation::Request, GUEST),
        (ArpOperation::Request, Ipv4Addr::new(10, 0, 2, 99)),
    ] {
        let message = ArpMessage {
            operation,
            sender_mac: GUEST_MAC,
            sender: GATEWAY,
            target_mac: GATEWAY_MAC,
            target,
        };
        let mut frame = Vec::new();
        let (destination, source) = (MacAddress::BROADCAST, GUEST_MAC);
        ethernet::EthernetHeader { destination, source, ether_type: EtherType::Arp }
            .write(&mut frame);
        message.write(&mut frame);
        test.net.handle_frame(&frame, test.now);
        test.poll();
        assert!(test.packets.is_empty(), "{message:?}");
    }
}

#[test]
fn attack_43_other_protocols_are_dropped() {
    let mut test = PacketTest::new(1500);
    for ip in [to(REMOTE), to(REMOTE_V6), to(GATEWAY)] {
        for protocol in (0..=255).filter(|n| ![ICMP, ip::TCP, UDP, ICMPV6, 44].contains(n)) {
            let packet = packet(IpHeader { protocol, ..ip }, &[0; 64]);
            test.assert_dropped(GATEWAY_MAC, &packet, &alloc::format!("protocol {protocol}"));
        }
    }
}

/// A frame with any bytes after its header.
fn raw_frame(ether_type: u16, bytes: &[u8]) -> Vec<u8> {
    [&GATEWAY_MAC.0[..], &GUEST_MAC.0, &ether_type.to_be_bytes(), bytes].concat()
}

/// A datagram whose header states the length `len`.
fn short_datagram(ip: &IpHeader, ports: (u16, u16), payload: &[u8], len: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    udp::write(ip, ports, payload, &mut packet);
    let at = ip.header_len() + 4;
    packet[at..at + 2].copy_from_slice(&len.to_be_bytes());
    // IPv4 permits a datagram without a checksum, so that the length is judged.
    packet[at + 2..at + 4].fill(0);
    packet
}

/// Frames of the classes of libslirp's reported holes: nothing is delivered, no socket is opened, and no
/// answer has more bytes than the frames.
#[test]
fn attack_41_frames_of_libslirp_holes_are_harmless() {
    let (v4, v6) = (to(GATEWAY), to(Ipv6Network::DEFAULT.gateway));
    let ip_frame =
        |packet: &[u8]| raw_frame(if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd }, packet);
    let with_length = |mut packet: Vec<u8>, len: u16| {
        if packet[0] >> 4 == 4 {
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet[10..12].fill(0);
            let sum = crate::wire::checksum::checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            packet[4..6].copy_from_slice(&len.to_be_bytes());
        }
        packet
    };
    let mut corpus: Vec<(&str, Vec<Vec<u8>>)> = Vec::new();
    // A large first fragment, then a later one at a place inside it; a fragment that covers all others.
    let large = alloc::vec![1; 8000];
    corpus.push((
        "CVE-2019-14378, reassembly beyond the first buffer",
        alloc::vec![
            fragment(&v4, 1, 0, true, &large),
            fragment(&v4, 1, 16, true, &large),
            fragment(&v4, 1, 60_000, false, &[1; 8]),
        ],
    ));
    corpus.push((
        "CVE-2020-1983, reassembly after free",
        alloc::vec![
            fragment(&v4, 2, 8, true, &[2; 8]),
            fragment(&v4, 2, 24, true, &[2; 8]),
            fragment(&v4, 2, 0, true, &[2; 64]),
            fragment(&v4, 2, 8, true, &[2; 8]),
            fragment(&v4, 2, 0, false, &[2; 8]),
            fragment(&v4, 2, 16, false, &[2; 8]),
        ],
    ));
    for len in [0, 4, 13, 27] {
        corpus.push((
            "CVE-2020-29129, short NC-SI",
            alloc::vec![raw_frame(0x88f8, &alloc::vec![0; len])],
        ));
        let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &[0; 20]].concat();
        corpus.push(("CVE-2020-29130, short ARP", alloc::vec![raw_frame(0x0806, &arp[..len])]));
    }
    for (name, port) in [
        ("CVE-2021-3592, short BOOTP", 67),
        ("CVE-2021-3594, short UDP", 53),
        ("CVE-2021-3595, short TFTP", 69),
        ("CVE-2019-15890, UDP to a port of the gateway", 113),
    ] {
        for len in [0, 1, 7, 8, 9, 12, 200, u16::MAX] {
            let source = if port == 67 { 68 } else { 1000 };
            let packet = short_datagram(&v4, (source, port), &[1, 2, 3, 4], len);
            corpus.push((name, alloc::vec![ip_frame(&packet)]));
            let packet = short_datagram(&v6, (source, port), &[1, 2, 3, 4], len);
            corpus.push(("CVE-2021-3593, short UDP over IPv6", alloc::vec![ip_frame(&packet)]));
        }
    }
    for len in [0, 3, 7, 8, 60_000] {
        let packet = with_length(echo(&v6, 7, b""), len);
        if len != 8 {
            corpus.push(("CVE-2020-10756, short ICMPv6 echo", alloc::vec![ip_frame(&packet)]));
        }
        let packet = with_length(datagram(&v4, b"data"), len);
        corpus.push(("length before header", alloc::vec![ip_frame(&packet)]));
    }
    // A read request, twice, and an error: the server is gone, so each is refused.
    let read = b"\0\x01/etc/passwd\0octet\0";
    let mut tftp = Vec::new();
    udp::write(&v4, (1000, 69), read, &mut tftp);
    corpus.push(("TFTP session after free", alloc::vec![ip_frame(&tftp), ip_frame(&tftp)]));
    // Connections whose streams libslirp rewrote (FTP, IRC, RealAudio): the gateway has no such ports.
    for port in [21, 113, 514, 544, 6667, 6668, 7070] {
        let mut packet = Vec::new();
        let flags = Flags { ack: true, psh: true, ..Flags::default() };
        let header = TcpHeader { source: 1000, destination: port, flags, ..TcpHeader::default() };
        let data: &[u8] = b"DCC CHAT chat 167772674 9999\nPORT 10,0,2,15,255,255,255,255\n";
        let ip = IpHeader { protocol: ip::TCP, ..v4 };
        header.write(&ip, core::iter::once(data), &mut packet);
        packet.extend_from_slice(data);
        corpus.push((
            "CVE-2020-7039 and CVE-2020-8608, rewritten streams",
            alloc::vec![ip_frame(&packet)],
        ));
    }
    let mut test = PacketTest::new(65_520);
    for (name, frames) in corpus {
        let sent: usize = frames.iter().map(Vec::len).sum();
        for frame in &frames {
            assert_eq!(test.net.handle_frame(frame, test.now), None, "{name}");
        }
        test.poll();
        assert!(test.actions.is_empty(), "{name}: {:?}", test.actions);
        // An ICMP error has its own headers beside the quoted ones.
        let answered: usize = test.packets.drain(..).map(|packet| packet.len()).sum();
        assert!(answered <= sent + 56, "{name}: {answered} bytes for {sent}");
    }
    assert_eq!(test.net.flows(), 0);
}
