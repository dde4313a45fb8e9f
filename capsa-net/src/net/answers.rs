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
        self.answer(EtherType::Ipv4, |frame| reason.write(&ip, &quoted, IPV4_HEADER_LEN, frame));
    }
}
