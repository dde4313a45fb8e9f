//! Frames for the guest that belong to no connection: answers and errors.

use alloc::vec::Vec;

use super::{ANSWERS, HOP_LIMIT, Net};
use crate::flow_table::{FlowAddresses, TransportProtocol};
use crate::wire::ethernet::{EtherType, EthernetHeader};
use crate::wire::icmp::Unreachable;
use crate::wire::ip::{self, IPV4_HEADER_LEN, IpHeader};
use crate::wire::udp;

impl Net {
    /// The header of packets from the remote end of a flow to the guest.
    pub(super) fn ip_header(&self, addresses: &FlowAddresses) -> IpHeader {
        let (source, destination) = (addresses.remote.ip(), addresses.guest.ip());
        IpHeader { source, destination, protocol: 0, hop_limit: HOP_LIMIT }
    }

    pub(super) fn begin_frame(&self, frame: &mut Vec<u8>, ip: &IpHeader) {
        let is_v4 = ip.source.is_ipv4();
        let header = EthernetHeader {
            destination: self.config.guest_mac,
            source: self.config.gateway_mac,
            ether_type: if is_v4 { EtherType::Ipv4 } else { EtherType::Ipv6 },
        };
        frame.clear();
        header.write(frame);
    }

    pub(super) fn answer(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut frame = Vec::new();
        let header = EthernetHeader {
            destination: self.config.guest_mac,
            source: self.config.gateway_mac,
            ether_type: EtherType::Ipv4,
        };
        header.write(&mut frame);
        write(&mut frame);
        self.push_answer(frame);
    }

    pub(super) fn push_answer(&mut self, frame: Vec<u8>) {
        if self.answers.len() < ANSWERS {
            self.answers.push_back(frame);
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
        let protocol = match addresses.protocol {
            TransportProtocol::Tcp => ip::TCP,
            TransportProtocol::Udp => ip::UDP,
        };
        let quoted_header = IpHeader {
            source: addresses.guest.ip(),
            destination: addresses.remote.ip(),
            protocol,
            hop_limit: HOP_LIMIT,
        };
        let mut quoted = Vec::new();
        quoted_header.write(udp::HEADER_LEN, &mut quoted);
        quoted.extend_from_slice(&addresses.guest.port().to_be_bytes());
        quoted.extend_from_slice(&addresses.remote.port().to_be_bytes());
        quoted.extend_from_slice(&word.to_be_bytes());
        let ip = IpHeader { source: self.config.gateway.into(), ..self.ip_header(addresses) };
        self.answer(|frame| reason.write(&ip, &quoted, IPV4_HEADER_LEN, frame));
    }
}
