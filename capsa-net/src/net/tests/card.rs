//! The part of a virtio card: it completes checksums, and cuts large segments.

use super::*;
use crate::net::SegmentOffload;
use crate::wire::checksum::{ChecksumPolicy, Sum};
use crate::wire::ip::IpHeader;
use crate::wire::tcp::{CHECKSUM_AT, Flags, HEADER_LEN};
use crate::wire::udp;

/// The frames that the driver of the guest sees of a frame with something left to do.
pub(super) fn finish(frame: Vec<u8>, offload: Option<SegmentOffload>) -> Vec<Vec<u8>> {
    let Some(SegmentOffload { tcp_start, is_ipv6, mss }) = offload else { return vec![frame] };
    assert!(!is_ipv6);
    let (start, ip_start) = (usize::from(tcp_start), ethernet::HEADER_LEN);
    let packet = IpPacket::parse_v4(&frame[ip_start..]).unwrap();
    let segment = &frame[ip_start..][packet.payload.clone()];
    let IpHeader { source, destination, .. } = packet.header;
    let partial = Sum::of_pseudo_header(source, destination, ip::TCP, segment.len());
    assert_eq!(segment[CHECKSUM_AT..CHECKSUM_AT + 2], partial.folded().to_be_bytes());
    let Some(mss) = mss else {
        let mut frame = frame.clone();
        let mut sum = Sum::default();
        let checksum = sum.add(&frame[start..]).checksum();
        frame[start + CHECKSUM_AT..start + CHECKSUM_AT + 2]
            .copy_from_slice(&checksum.to_be_bytes());
        return vec![frame];
    };
    let (header, data) =
        TcpHeader::parse_with(&packet.header, segment, ChecksumPolicy::Ignore).unwrap();
    assert_eq!((data.start, segment.len() > usize::from(mss)), (HEADER_LEN, true));
    let chunks: Vec<&[u8]> = segment[data].chunks(usize::from(mss)).collect();
    let mut sequence = header.sequence;
    let frames = chunks.iter().enumerate().map(|(n, chunk)| {
        let is_last = n + 1 == chunks.len();
        let flags = Flags { fin: header.flags.fin && is_last, ..header.flags };
        let mut cut = frame[..ip_start].to_vec();
        TcpHeader { sequence, flags, ..header }.write(
            &packet.header,
            core::iter::once(*chunk),
            &mut cut,
        );
        sequence = sequence.wrapping_add(chunk.len() as u32);
        cut.extend_from_slice(chunk);
        cut
    });
    frames.collect()
}

/// A frame of a guest that leaves its checksums to its card.
pub(super) fn without_checksum(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Ok(packet) = IpPacket::parse_v4(&frame[ethernet::HEADER_LEN..])
        && packet.header.protocol == ip::TCP
    {
        let at = ethernet::HEADER_LEN + packet.payload.start + CHECKSUM_AT;
        frame[at] ^= 0x55;
    }
    frame
}

#[test]
fn streams_arrive_whole_with_offloads() {
    let all = LinkOffload {
        ignores_checksums: true,
        completes_checksums: true,
        large_ipv4: true,
        large_ipv6: true,
    };
    let small = LinkOffload { large_ipv4: false, large_ipv6: false, ..all };
    let bad = LinkFaults { lost: 5, repeated: 3, delayed: 20 };
    for (offload, link, up, down) in [
        (all, LinkFaults::default(), 200_000, 300_000),
        (small, LinkFaults::default(), 200_000, 300_000),
        (all, bad, 60_000, 60_000),
    ] {
        for seed in 0..5 {
            let mut world = World::new(seed, link, 1500, 4 << 20);
            world.net.set_link_offload(offload);
            world.offload = offload;
            for _ in 0..3 {
                world.connect(up);
            }
            world.run(down);
            world.check(up, down);
            assert_eq!(world.largest > 10_000, offload.large_ipv4, "{}", world.largest);
            if link.lost == 0 {
                assert_eq!(world.uploaded, 3 * up, "{}", world.context);
                assert!(
                    world.longest_pause < Duration::from_millis(50),
                    "{:?}",
                    world.longest_pause
                );
            }
        }
    }
}

#[test]
fn datagram_without_checksum_needs_offload() {
    let mut world = World::new(1, LinkFaults::default(), 1500, 0);
    let mut frame = Vec::new();
    ethernet::EthernetHeader {
        destination: GATEWAY_MAC,
        source: GUEST_MAC,
        ether_type: ethernet::EtherType::Ipv4,
    }
    .write(&mut frame);
    let header = IpHeader {
        source: GUEST.into(),
        destination: REMOTE.into(),
        protocol: ip::UDP,
        hop_limit: 64,
    };
    udp::write(&header, (1000, 2000), b"data", &mut frame);
    *frame.last_mut().unwrap() ^= 1;
    assert_eq!(world.net.handle_frame(&frame, world.now), None);
    assert_eq!(world.net.counters().malformed, 1);
    let offload = LinkOffload { ignores_checksums: true, ..LinkOffload::default() };
    world.net.set_link_offload(offload);
    let Some(Delivery::Datagram { payload, .. }) = world.net.handle_frame(&frame, world.now) else {
        panic!("a datagram with a wrong checksum arrives");
    };
    assert_eq!(world.net.payload(&payload, &frame), b"dat`");
}
