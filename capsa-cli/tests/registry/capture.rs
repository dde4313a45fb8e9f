//! Reads the refusals in a capture of the guest's packets, and how long the guest waited for each.
//!
//! Captures are those of `--network-pcap`, pcapng, and those of QEMU, pcap; both with microseconds and in the
//! order of bytes of the host.

use std::collections::HashMap;
use std::path::Path;

const PACKET_BLOCK: u32 = 6;
/// The first word of a pcap file, and the length of its header.
const PCAP: (u32, usize) = (0xa1b2_c3d4, 24);
/// The length of an Ethernet header.
const ETHERNET: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DNS: u16 = 53;
const NXDOMAIN: u8 = 3;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A refusal that the guest got.
#[derive(Debug, PartialEq)]
pub(crate) struct SeenRefusal {
    /// The name of a query, or the port of a connection.
    pub(crate) what: String,
    /// From the first packet of the guest to the answer.
    pub(crate) micros: u64,
}

/// The refusals in a capture file: NXDOMAIN for a query over UDP, a reset for a SYN. Only IPv4.
pub(crate) fn refusals(file: &Path) -> Vec<SeenRefusal> {
    refusals_in(&std::fs::read(file).expect("a capture"))
}

fn refusals_in(content: &[u8]) -> Vec<SeenRefusal> {
    // By protocol, port of the guest, and id of the query or port of the remote host.
    let mut waiting: HashMap<(u8, u16, u16), u64> = HashMap::new();
    let mut refused = Vec::new();
    for (micros, frame) in packets(content) {
        let Some((protocol, packet)) = ipv4_payload(frame) else { continue };
        let half = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let (from, to) = (half(0), half(2));
        match protocol {
            UDP if to == DNS => _ = waiting.entry((UDP, from, half(8))).or_insert(micros),
            UDP if from == DNS => {
                let begin = waiting.remove(&(UDP, to, half(8)));
                if let Some(begin) = begin.filter(|_| packet[11] & 0xf == NXDOMAIN) {
                    refused.push(SeenRefusal { what: name(&packet[20..]), micros: micros - begin });
                }
            }
            TCP if packet[13] & (SYN | ACK) == SYN => {
                waiting.entry((TCP, from, to)).or_insert(micros);
            }
            TCP if packet[13] & (SYN | RST) != 0 => {
                let begin = waiting.remove(&(TCP, to, from));
                if let Some(begin) = begin.filter(|_| packet[13] & RST != 0) {
                    refused.push(SeenRefusal { what: from.to_string(), micros: micros - begin });
                }
            }
            _ => {}
        }
    }
    refused
}

/// The time in microseconds and the bytes of each packet.
fn packets(content: &[u8]) -> Vec<(u64, &[u8])> {
    let word = |at: usize| u32::from_ne_bytes(content[at..at + 4].try_into().expect("four bytes"));
    let (is_pcap, mut at) = if word(0) == PCAP.0 { (true, PCAP.1) } else { (false, 0) };
    let mut found = Vec::new();
    while at < content.len() {
        if is_pcap {
            let len = word(at + 8) as usize;
            let micros = u64::from(word(at)) * 1_000_000 + u64::from(word(at + 4));
            found.push((micros, &content[at + 16..][..len]));
            at += 16 + len;
            continue;
        }
        if word(at) == PACKET_BLOCK {
            let micros = u64::from(word(at + 12)) << 32 | u64::from(word(at + 16));
            found.push((micros, &content[at + 28..][..word(at + 20) as usize]));
        }
        at += word(at + 4) as usize;
    }
    found
}

/// The protocol and the payload of an IPv4 packet that has at least the 20 bytes of a TCP header or those
/// of a UDP and a DNS header.
fn ipv4_payload(frame: &[u8]) -> Option<(u8, &[u8])> {
    let packet = frame.get(ETHERNET..).filter(|_| frame[12..ETHERNET] == [8, 0])?;
    let header = usize::from(*packet.first()? & 0xf) * 4;
    let payload = packet.get(header..).filter(|payload| payload.len() >= 20)?;
    Some((packet[9], payload))
}

/// The name at the start of a question.
fn name(mut question: &[u8]) -> String {
    let mut labels = Vec::new();
    while let [len @ 1..64, rest @ ..] = question {
        let (label, rest) = rest.split_at(usize::from(*len));
        labels.push(String::from_utf8_lossy(label).to_lowercase());
        question = rest;
    }
    labels.join(".")
}

/// A pcap file with these packets.
fn pcap(all: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut out = PCAP.0.to_ne_bytes().to_vec();
    out.resize(PCAP.1, 0);
    for (micros, frame) in all {
        let len = frame.len() as u32;
        for word in [(micros / 1_000_000) as u32, (micros % 1_000_000) as u32, len, len] {
            out.extend(word.to_ne_bytes());
        }
        out.extend(frame);
    }
    out
}

/// A pcapng file with these packets.
fn pcapng(all: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (micros, frame) in all {
        let padded = frame.len().next_multiple_of(4);
        let len = (32 + padded) as u32;
        let (high, low) = ((micros >> 32) as u32, *micros as u32);
        for word in [PACKET_BLOCK, len, 0, high, low, frame.len() as u32, frame.len() as u32] {
            out.extend(word.to_ne_bytes());
        }
        out.extend(frame);
        out.resize(out.len() + padded - frame.len(), 0);
        out.extend(len.to_ne_bytes());
    }
    out
}

/// An Ethernet frame with an IPv4 packet.
fn frame(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + 20];
    (frame[12], frame[ETHERNET], frame[ETHERNET + 9]) = (8, 0x45, protocol);
    frame.extend(payload);
    frame
}

fn tcp(from: u16, to: u16, flags: u8) -> Vec<u8> {
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    packet.resize(20, 0);
    packet[13] = flags;
    frame(TCP, &packet)
}

fn dns(from: u16, to: u16, id: u16, code: u8) -> Vec<u8> {
    let mut packet =
        [from.to_be_bytes(), to.to_be_bytes(), [0; 2], [0; 2], id.to_be_bytes()].concat();
    packet.extend([0x80, code, 0, 1, 0, 0, 0, 0, 0, 0]);
    packet.extend(b"\x01A\x03org\0\0\x01\0\x01");
    frame(UDP, &packet)
}

#[test]
fn capture_refusals_are_timed_from_first_packet() {
    const GUEST: u16 = 40_000;
    let all = [
        (1_000, tcp(GUEST, 8443, SYN)),
        (1_500, tcp(GUEST, 8443, SYN)),
        (1_900, tcp(8443, GUEST, RST | ACK)),
        // A connection that is open when it is reset.
        (2_000, tcp(GUEST, 443, SYN)),
        (2_100, tcp(443, GUEST, SYN | ACK)),
        (2_200, tcp(443, GUEST, RST)),
        // The answer of one query is a refusal, that of the other one is not.
        (1 << 33, dns(GUEST, DNS, 7, 0)),
        (1 << 33, dns(GUEST, DNS, 8, 0)),
        ((1 << 33) + 40, dns(DNS, GUEST, 8, 0)),
        ((1 << 33) + 60, dns(DNS, GUEST, 7, NXDOMAIN)),
    ];
    let refusal = |what: &str, micros| SeenRefusal { what: what.to_owned(), micros };
    for file in [pcap(&all), pcapng(&all)] {
        assert_eq!(refusals_in(&file), [refusal("8443", 900), refusal("a.org", 60)]);
    }
}
