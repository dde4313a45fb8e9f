//! Frames of the guest, by protocol.
//!
//! A frame that is not from the guest's addresses is ignored, and so is one that is not for the network.

use alloc::boxed::Box;
use core::net::{IpAddr, SocketAddr};
use core::ops::Range;

use capsa_proto::time::Instant;

use super::{Delivery, HOP_LIMIT, Net, NetAction, Payload, Transport};
use crate::dhcp::{self, DhcpServer};
use crate::flow_table::{FlowAddresses, FlowId, FlowProtocol};
use crate::tcp::Connection;
use crate::wire::ParseError;
use crate::wire::arp::{ArpMessage, ArpOperation};
use crate::wire::ethernet::{self, EtherType, EthernetHeader, MacAddress};
use crate::wire::icmp::{EchoMessage, Unreachable};
use crate::wire::ip::{self, IpHeader, IpPacket};
use crate::wire::tcp::{Flags, TcpHeader};
use crate::wire::udp::{self, UdpDatagram};

impl Net {
    pub(super) fn frame(
        &mut self,
        frame: &[u8],
        now: Instant,
    ) -> Result<Option<Delivery>, ParseError> {
        let header = EthernetHeader::parse(frame)?;
        let is_for_us = header.destination == self.config.gateway_mac
            || header.destination == MacAddress::BROADCAST;
        if header.source != self.config.guest_mac || !is_for_us {
            return Err(ParseError::Unsupported);
        }
        let packet = &frame[ethernet::HEADER_LEN..];
        let delivery = match header.ether_type {
            EtherType::Arp => {
                self.arp(&ArpMessage::parse(packet)?);
                None
            }
            EtherType::Ipv4 => self.packet(&IpPacket::parse_v4(packet)?, packet, now)?,
            EtherType::Ipv6 => return Err(ParseError::Unsupported),
        };
        let shift =
            |data: Range<usize>| data.start + ethernet::HEADER_LEN..data.end + ethernet::HEADER_LEN;
        let in_frame = |payload: Payload| Payload { range: shift(payload.range), ..payload };
        Ok(delivery.map(|delivery| match delivery {
            Delivery::Stream { flow, data } => Delivery::Stream { flow, data: shift(data) },
            Delivery::Datagram { flow, payload } => {
                Delivery::Datagram { flow, payload: in_frame(payload) }
            }
            Delivery::Echo { flow, payload } => Delivery::Echo { flow, payload: in_frame(payload) },
        }))
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

    fn packet(
        &mut self,
        packet: &IpPacket,
        bytes: &[u8],
        now: Instant,
    ) -> Result<Option<Delivery>, ParseError> {
        let header = &packet.header;
        let is_destination = |address: IpAddr| match address {
            IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast() && !v4.is_unspecified(),
            IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unspecified(),
        };
        let payload = &bytes[packet.payload.clone()];
        if packet.fragment.is_some() {
            return Err(ParseError::Unsupported);
        }
        // A client without an address asks from the unspecified one.
        if header.protocol == ip::UDP
            && let Ok(datagram) =
                UdpDatagram::parse_with(header, payload, self.offload.checksum_policy())
            && (datagram.source, datagram.destination) == (dhcp::CLIENT_PORT, dhcp::SERVER_PORT)
        {
            self.dhcp(&payload[datagram.payload])?;
            return Ok(None);
        }
        let is_from_guest = header.source == IpAddr::from(self.config.guest)
            && header.destination != header.source
            && is_destination(header.destination);
        if !is_from_guest {
            return Err(ParseError::Unsupported);
        }
        let at = packet.payload.start;
        let shift = |data: Range<usize>| data.start + at..data.end + at;
        match header.protocol {
            ip::TCP => {
                let (segment, data) =
                    TcpHeader::parse_with(header, payload, self.offload.checksum_policy())?;
                let delivery = self.segment(header, &segment, &payload[data.clone()], now);
                Ok(delivery.map(|(flow, part)| Delivery::Stream {
                    flow,
                    data: shift(data.start + part.start..data.start + part.end),
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
                let payload = Payload { range: shift(datagram.payload), is_reassembled: false };
                Ok(flow.map(|flow| Delivery::Datagram { flow, payload }))
            }
            ip::ICMP => {
                let echo = EchoMessage::parse(header, payload)?;
                let flow = self.echo(header, &echo, &payload[echo.data.clone()], now);
                let payload = Payload { range: packet.payload.clone(), is_reassembled: false };
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
        if is_new
            && let Some(old) = found
            && self.flows.get(old).is_some_and(|(_, flow)| flow.is_replaceable())
        {
            // The guest uses the port again; the old connection is complete.
            self.remove(old);
            found = None;
        }
        let Some(id) = found else {
            match is_new {
                true => self.open(addresses, header, now),
                false => self.refuse(&addresses, header, data.len()),
            }
            return None;
        };
        let mut offer = None;
        self.with_connection(id, |connection, budget| {
            offer = connection.handle_segment(header, data, now, budget);
        });
        if self.name_server.has_stream(id) {
            if let Some(part) = offer.take() {
                self.taken(id, &data[part], 0, now);
            }
            self.move_stream(id, now);
        }
        offer.map(|part| (id, part))
    }

    /// The guest opens a connection.
    fn open(&mut self, addresses: FlowAddresses, syn: &TcpHeader, now: Instant) {
        if self.is_name_server(addresses.remote) {
            return self.name_server_connection(addresses, syn, now);
        }
        let destination = match self.destination(FlowProtocol::Tcp, addresses.remote) {
            Ok(destination) => destination,
            Err(refusal) => {
                refusal.count(&mut self.counters);
                return self.refuse(&addresses, syn, 0);
            }
        };
        let sequence = self.initial_sequence(&addresses, now);
        let connection = Connection::from_guest(syn, sequence, self.link_mss(&addresses), now);
        match self.insert(addresses, Transport::Tcp(Box::new(connection))) {
            Some(flow) => self.connect(flow, destination),
            None => {
                self.counters.refused_full += 1;
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
        if let Some(id) = self.flows.find(&addresses) {
            if let Some((_, flow)) = self.flows.get_mut(id)
                && let Transport::Udp { active_at, .. } = &mut flow.transport
            {
                *active_at = now;
            }
            self.update(id);
            return Some(id);
        }
        let destination = match self.destination(FlowProtocol::Udp, addresses.remote) {
            Ok(destination) => destination,
            Err(refusal) => {
                refusal.count(&mut self.counters);
                self.answer_unreachable(&addresses, 0, Unreachable::Prohibited);
                return None;
            }
        };
        self.make_room_for_datagrams();
        let transport = Transport::Udp { is_two_way: false, active_at: now };
        match self.insert(addresses, transport) {
            Some(flow) => {
                self.actions.push_back(NetAction::OpenUdp { flow, destination });
                Some(flow)
            }
            None => {
                self.counters.refused_full += 1;
                self.answer_unreachable(&addresses, 0, Unreachable::Prohibited);
                None
            }
        }
    }
}
