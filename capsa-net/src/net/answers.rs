//! Frames for the guest that belong to no connection: answers and errors.

use alloc::vec::Vec;
use core::net::IpAddr;

use super::{ANSWERS, GATEWAY_LINK_LOCAL, HOP_LIMIT, Net};
use crate::flow_table::{FlowAddresses, FlowProtocol};
use crate::wire::ethernet::{self, EtherType, EthernetHeader};
use crate::wire::icmp::{self, Unreachable};
use crate::wire::ip::{self, IpHeader};
use crate::wire::udp;

impl Net {
    /// The header of packets from the remote end of a flow to the guest.
    pub(super) fn ip_header(&self, addresses: &FlowAddresses) -> IpHeader {
        let (source, destination) = (addresses.remote.ip(), addresses.guest.ip());
        IpHeader { source, destination, protocol: 0, hop_limit: HOP_LIMIT }
    }

    /// Writes the header of a frame to the guest, in place of what `frame` holds.
    pub(super) fn begin_frame(&self, ether_type: EtherType, frame: &mut Vec<u8>) {
        let (destination, source) = (self.config.guest_mac, self.config.gateway_mac);
        frame.clear();
        EthernetHeader { destination, source, ether_type }.write(frame);
    }

    /// Queues the frame whose payload `write` appends.
    pub(super) fn answer(&mut self, ether_type: EtherType, write: impl FnOnce(&mut Vec<u8>)) {
        if self.answers.len() < ANSWERS {
            let mut frame = Vec::new();
            self.begin_frame(ether_type, &mut frame);
            write(&mut frame);
            self.answers.push_back(frame);
        }
    }

    /// Queues the IP packet with this header that `write` appends, in fragments if it is longer than the
    /// MTU.
    pub(super) fn answer_packet(&mut self, header: &IpHeader, write: impl FnOnce(&mut Vec<u8>)) {
        let ether_type = EtherType::of(header.source);
        let answers = self.answers.len();
        self.answer(ether_type, write);
        let mtu = usize::from(self.config.mtu);
        let is_too_long = |frame: &Vec<u8>| frame.len() > ethernet::HEADER_LEN + mtu;
        if self.answers.len() > answers
            && let Some(frame) = self.answers.pop_back_if(|frame| is_too_long(frame))
        {
            self.fragment_id = self.fragment_id.wrapping_add(1);
            let packet = &frame[ethernet::HEADER_LEN..];
            for fragment in ip::fragments(packet, mtu, self.fragment_id) {
                let mut frame = Vec::new();
                self.begin_frame(ether_type, &mut frame);
                frame.extend(fragment);
                self.answers.push_back(frame);
            }
        }
    }

    /// An ICMP error about a packet of the guest. The quoted packet has the flow's addresses and ports,
    /// by which the guest finds its socket, and the `word` after them; the rest of it is not kept.
    pub(super) fn answer_unreachable(
        &mut self,
        addresses: &FlowAddresses,
        word: u32,
        reason: Unreachable,
    ) {
        if !self.error_rate.allow(self.last_call) {
            self.counters.limited += 1;
            return;
        }
        let remote = addresses.remote;
        let (guest_port, remote_port) =
            (addresses.guest.port().to_be_bytes(), remote.port().to_be_bytes());
        let (protocol, words) = match addresses.protocol {
            FlowProtocol::Tcp => (ip::TCP, [guest_port, remote_port]),
            FlowProtocol::Udp => (ip::UDP, [guest_port, remote_port]),
            FlowProtocol::Echo => {
                (icmp::protocol(remote.ip()), [icmp::request(remote.ip()), [0; 2]])
            }
        };
        let word = match addresses.protocol {
            FlowProtocol::Echo => u32::from(addresses.guest.port()) << 16,
            // Its length: of the header only. It has no checksum.
            FlowProtocol::Udp => (udp::HEADER_LEN as u32) << 16,
            FlowProtocol::Tcp => word,
        };
        let quoted_header = IpHeader {
            source: addresses.guest.ip(),
            destination: remote.ip(),
            protocol,
            hop_limit: HOP_LIMIT,
        };
        let mut quoted = Vec::new();
        quoted_header.write(udp::HEADER_LEN, &mut quoted);
        quoted.extend_from_slice(words.as_flattened());
        quoted.extend_from_slice(&word.to_be_bytes());
        let Some(source) = self.gateway_for(addresses.guest.ip()) else { return };
        let ip = IpHeader { source, ..self.ip_header(addresses) };
        let header_len = ip.header_len();
        self.answer_packet(&ip, |frame| reason.write(&ip, &quoted, header_len, frame));
    }

    /// The gateway's address in packets to `guest`.
    fn gateway_for(&self, guest: IpAddr) -> Option<IpAddr> {
        match guest {
            IpAddr::V4(_) => Some(self.config.gateway.into()),
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(GATEWAY_LINK_LOCAL.into()),
            IpAddr::V6(_) => self.config.ipv6.map(|ipv6| ipv6.gateway.into()),
        }
    }
}
