//! Frames of the guest, by protocol.
//!
//! A frame that is not from the guest's addresses is ignored, and so is one that is not for the network.

use alloc::boxed::Box;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::ops::Range;

use capsa_proto::time::Instant;

use super::fragments::Reassembly;
use super::{Delivery, GATEWAY_LINK_LOCAL, HOP_LIMIT, Net, Payload, Transport};
use crate::dhcp::{self, DhcpServer};
use crate::flow_table::{FlowAddresses, FlowId, FlowProtocol};
use crate::tcp::Connection;
use crate::wire::ParseError;
use crate::wire::arp::{ArpMessage, ArpOperation};
use crate::wire::ethernet::{self, EtherType, EthernetHeader};
use crate::wire::icmp::{self, EchoMessage, Unreachable};
use crate::wire::ip::{self, IpHeader, IpPacket};
use crate::wire::ndp;
use crate::wire::tcp::{Flags, TcpHeader};
use crate::wire::udp::{self, UdpDatagram};

impl Net {
    pub(super) fn frame(
        &mut self,
        frame: &[u8],
        now: Instant,
    ) -> Result<Option<Delivery>, ParseError> {
        let header = EthernetHeader::parse(frame)?;
        let is_unicast = header.destination == self.config.gateway_mac;
        if header.source != self.config.guest_mac
            || !(is_unicast || header.destination.is_multicast())
        {
            return Err(ParseError::Unsupported);
        }
        self.refresh_router(now);
        let bytes = &frame[ethernet::HEADER_LEN..];
        let packet = match header.ether_type {
            EtherType::Arp => {
                self.arp(&ArpMessage::parse(bytes)?);
                return Ok(None);
            }
            EtherType::Ipv4 => IpPacket::parse_v4(bytes)?,
            EtherType::Ipv6 => IpPacket::parse_v6(bytes)?,
        };
        let payload = &bytes[packet.payload.clone()];
        let is_whole = packet.fragment.is_none();
        if is_whole && self.configuration(&packet.header, payload, now)? {
            return Ok(None);
        }
        // A packet to several stations never gets an answer.
        if !is_unicast || !self.is_routed(&packet.header) {
            return Err(ParseError::Unsupported);
        }
        let Some(fragment) = packet.fragment else {
            let delivery = self.transport(&packet.header, payload, now)?;
            return Ok(delivery.map(|delivery| {
                delivery.within_frame(ethernet::HEADER_LEN + packet.payload.start)
            }));
        };
        match self.fragments.add(&packet.header, &fragment, payload, now) {
            Reassembly::Incomplete => Ok(None),
            Reassembly::Dropped => Err(ParseError::Malformed),
            Reassembly::Complete(payload) => {
                let delivery = self.transport(&packet.header, &payload, now)?;
                let delivery = match delivery {
                    // The driver writes bytes of frames only; these bytes wait for the socket.
                    Some(Delivery::Stream { flow, data }) => {
                        self.taken(flow, &payload[data], 0, now);
                        None
                    }
                    delivery => delivery,
                };
                self.reassembled = payload;
                Ok(delivery)
            }
        }
    }

    /// Whether a packet is from the guest to an address that is not its own.
    fn is_routed(&self, header: &IpHeader) -> bool {
        match (header.source, header.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let host = u32::MAX.checked_shr(self.config.prefix.into()).unwrap_or(0);
                let broadcast = Ipv4Addr::from(self.config.guest.to_bits() | host);
                source == self.config.guest
                    && destination != source
                    && !destination.is_multicast()
                    && !destination.is_broadcast()
                    && destination != broadcast
                    && !destination.is_unspecified()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let is_to_gateway = self.is_own_address(destination.into());
                self.is_guest_address(source)
                    && destination != source
                    && !destination.is_multicast()
                    && !destination.is_unspecified()
                    // An address of the link reaches the link only.
                    && (is_to_gateway || !source.is_unicast_link_local())
            }
            _ => false,
        }
    }

    /// Whether the guest may have the address: an address of the link or of the prefix that is not the
    /// network's own.
    pub(super) fn is_guest_address(&self, address: Ipv6Addr) -> bool {
        let Some(ipv6) = self.config.ipv6 else { return false };
        let is_in = |prefix: Ipv6Addr| (address.to_bits() ^ prefix.to_bits()) >> 64 == 0;
        // The prefix itself is an address of its routers.
        (is_in(GATEWAY_LINK_LOCAL) || is_in(ipv6.prefix()) && address != ipv6.prefix())
            && !self.is_own_address(address.into())
    }

    /// Answers for the gateway, the name server and services only: an answer for the guest's own address would
    /// look like a duplicate of it, and one for any address would hide that nothing is there.
    fn arp(&mut self, message: &ArpMessage) {
        let is_ours = [self.config.gateway, self.config.dns].contains(&message.target)
            || self.services.has_address(message.target.into());
        if message.operation != ArpOperation::Request || !is_ours {
            return;
        }
        let reply = ArpMessage {
            operation: ArpOperation::Reply,
            sender_mac: self.config.gateway_mac,
            sender: message.target,
            target_mac: message.sender_mac,
            target: message.sender,
        };
        self.answer(EtherType::Arp, |frame| reply.write(frame));
    }

    /// Handles a packet by which the guest asks for its configuration. Returns whether it is one. Its
    /// addresses may be unspecified.
    fn configuration(
        &mut self,
        header: &IpHeader,
        payload: &[u8],
        now: Instant,
    ) -> Result<bool, ParseError> {
        if header.protocol == ip::UDP
            && header.source.is_ipv4()
            && let Ok(datagram) =
                UdpDatagram::parse_with(header, payload, self.offload.checksum_policy())
            && (datagram.source, datagram.destination) == (dhcp::CLIENT_PORT, dhcp::SERVER_PORT)
        {
            self.dhcp(&payload[datagram.payload])?;
            return Ok(true);
        }
        if header.protocol == ip::ICMPV6
            && header.source.is_ipv6()
            && let Some(ipv6) = self.config.ipv6
            && ndp::is_ndp(payload)
        {
            self.solicitation(&ipv6, header, payload, now)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// The payload of a whole packet. The ranges of the delivery are within it.
    fn transport(
        &mut self,
        header: &IpHeader,
        payload: &[u8],
        now: Instant,
    ) -> Result<Option<Delivery>, ParseError> {
        let in_payload = |range: Range<usize>| Payload { range, is_reassembled: true };
        let icmp = icmp::protocol(header.source);
        match header.protocol {
            ip::TCP => {
                let (segment, data) =
                    TcpHeader::parse_with(header, payload, self.offload.checksum_policy())?;
                let delivery = self.segment(header, &segment, &payload[data.clone()], now);
                Ok(delivery.map(|(flow, part)| Delivery::Stream {
                    flow,
                    data: data.start + part.start..data.start + part.end,
                }))
            }
            ip::UDP => {
                let policy = self.offload.checksum_policy();
                let datagram = UdpDatagram::parse_with(header, payload, policy)?;
                let server = SocketAddr::new(header.destination, datagram.destination);
                if self.is_name_server(server) {
                    let guest = SocketAddr::new(header.source, datagram.source);
                    self.name_server_datagram(guest, server, &payload[datagram.payload], now);
                    return Ok(None);
                }
                let flow = self.datagram(header, &datagram, now);
                let payload = in_payload(datagram.payload);
                Ok(flow.map(|flow| Delivery::Datagram { flow, payload }))
            }
            protocol if protocol == icmp => {
                let echo = EchoMessage::parse(header, payload)?;
                let flow = self.echo(header, &echo, &payload[echo.data.clone()], now);
                let payload = in_payload(0..payload.len());
                Ok(flow.map(|flow| Delivery::Echo { flow, payload }))
            }
            _ => Err(ParseError::Unsupported),
        }
    }

    fn dhcp(&mut self, message: &[u8]) -> Result<(), ParseError> {
        let server = DhcpServer {
            guest_mac: self.config.guest_mac,
            guest: self.config.guest,
            prefix: self.config.prefix,
            gateway: self.config.gateway,
            dns: self.config.dns,
            mtu: self.config.mtu,
        };
        if let Some(answer) = server.answer(message)? {
            let header = IpHeader {
                source: self.config.gateway.into(),
                destination: answer.to.into(),
                protocol: ip::UDP,
                hop_limit: HOP_LIMIT,
            };
            let ports = (dhcp::SERVER_PORT, dhcp::CLIENT_PORT);
            self.answer_packet(&header, |frame| udp::write(&header, ports, &answer.message, frame));
        }
        Ok(())
    }

    fn segment(
        &mut self,
        ip: &IpHeader,
        header: &TcpHeader,
        data: &[u8],
        now: Instant,
    ) -> Option<(FlowId, Range<usize>)> {
        let addresses = FlowAddresses {
            protocol: FlowProtocol::Tcp,
            guest: SocketAddr::new(ip.source, header.source),
            remote: SocketAddr::new(ip.destination, header.destination),
        };
        let is_new = header.flags.syn && !header.flags.ack && !header.flags.rst;
        let mut found = self.flows.find(&addresses);
        let mut after = None;
        if is_new
            && let Some(old) = found
            && let Some(first) = self.flows.get(old).and_then(|(_, flow)| flow.replaced_by(header))
        {
            // The guest uses the port again; the old connection is complete.
            self.remove(old);
            (found, after) = (None, Some(first));
        }
        let Some(id) = found else {
            match is_new {
                true => self.open(addresses, header, after, now),
                false => self.refuse(&addresses, header, data.len()),
            }
            return None;
        };
        let mut offer = None;
        self.with_connection(id, |connection, budget| {
            offer = connection.handle_segment(header, data, now, budget);
        });
        if self.is_held(id) {
            if let Some(part) = offer.take() {
                self.taken(id, &data[part], 0, now);
            }
            self.inspect_held(id, now);
        }
        if let Some(part) = &mut offer {
            part.end = part.start + self.limited_payload(part.len());
        }
        if self.name_server.has_stream(id) {
            if let Some(part) = offer.take() {
                self.taken(id, &data[part], 0, now);
            }
            self.move_stream(id, now);
        }
        offer.map(|part| (id, part))
    }

    /// The guest opens a connection. Its numbers start after those of an old connection.
    fn open(
        &mut self,
        addresses: FlowAddresses,
        syn: &TcpHeader,
        after: Option<u32>,
        now: Instant,
    ) {
        let initial = self.initial_sequence(&addresses, now);
        let sequence = match after {
            Some(after) if (initial.wrapping_sub(after) as i32) < 0 => after,
            _ => initial,
        };
        if self.is_name_server(addresses.remote) {
            return self.name_server_connection(addresses, syn, sequence, now);
        }
        let Some(admitted) = self.admit(&addresses, now) else {
            return self.refuse(&addresses, syn, 0);
        };
        let connection = Connection::from_guest(syn, sequence, self.link_mss(&addresses), now);
        match self.insert(addresses, Transport::Tcp(Box::new(connection))) {
            Some(flow) => self.start_flow(flow, admitted, now),
            None => {
                self.refuse_full(&addresses, admitted, now);
                self.refuse(&addresses, syn, 0);
            }
        }
    }

    /// Answers a segment without a connection with a reset (RFC 9293, 3.10.7.1).
    pub(super) fn refuse(&mut self, addresses: &FlowAddresses, header: &TcpHeader, data: usize) {
        if header.flags.rst {
            return;
        }
        let len = data as u32 + u32::from(header.flags.syn) + u32::from(header.flags.fin);
        let (sequence, acknowledgement) = match header.flags.ack {
            true => (header.acknowledgement, 0),
            false => (0, header.sequence.wrapping_add(len)),
        };
        let reset = TcpHeader {
            source: addresses.remote.port(),
            destination: addresses.guest.port(),
            sequence,
            acknowledgement,
            flags: Flags { rst: true, ack: !header.flags.ack, ..Flags::default() },
            ..TcpHeader::default()
        };
        let ip = self.ip_header(addresses);
        self.answer_packet(&ip, |frame| reset.write(&ip, core::iter::empty(), frame));
    }

    fn datagram(&mut self, ip: &IpHeader, datagram: &UdpDatagram, now: Instant) -> Option<FlowId> {
        let addresses = FlowAddresses {
            protocol: FlowProtocol::Udp,
            guest: SocketAddr::new(ip.source, datagram.source),
            remote: SocketAddr::new(ip.destination, datagram.destination),
        };
        let id = match self.flows.find(&addresses) {
            Some(id) => id,
            None => self.open_datagrams(addresses, now)?,
        };
        // While the name of the flow is resolved, datagrams are dropped.
        if !self.has_socket(id) {
            return None;
        }
        if !self.may_pass(datagram.payload.len(), now) {
            return None;
        }
        self.count_delivery(datagram.payload.len(), now);
        if let Some((_, flow)) = self.flows.get_mut(id) {
            if let Transport::Udp { active_at, .. } = &mut flow.transport {
                *active_at = now;
            }
            if let Some(record) = &mut flow.record {
                record.bytes_up += datagram.payload.len() as u64;
            }
        }
        self.update(id);
        Some(id)
    }

    fn open_datagrams(&mut self, addresses: FlowAddresses, now: Instant) -> Option<FlowId> {
        let Some(admitted) = self.admit(&addresses, now) else {
            self.answer_unreachable(&addresses, 0, Unreachable::Prohibited);
            return None;
        };
        self.make_room_for_datagrams();
        let transport = Transport::Udp { is_two_way: false, active_at: now };
        let Some(flow) = self.insert(addresses, transport) else {
            self.refuse_full(&addresses, admitted, now);
            self.answer_unreachable(&addresses, 0, Unreachable::Prohibited);
            return None;
        };
        self.start_flow(flow, admitted, now);
        Some(flow)
    }
}
