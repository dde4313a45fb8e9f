//! ICMP and ICMPv6 echo. The gateway and the name server answer requests themselves; requests to other
//! addresses go through sockets of the host, within limits of rate and size: an echo request carries any
//! data, and without limits it is a tunnel.

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use capsa_proto::time::Instant;

use super::access::FlowVerdict;
use super::{HOP_LIMIT, Net, Transport};
use crate::flow_table::{FlowAddresses, FlowId, FlowProtocol};
use crate::rate_limit::RateLimit;
use crate::wire::icmp::{self, EchoMessage, Unreachable};
use crate::wire::ip::IpHeader;

/// An echo flow ends after this time without a message.
pub(super) const ECHO_IDLE: Duration = Duration::from_secs(60);

/// The most data of a request to another address: that of an unfragmented one on Ethernet.
const DATA_MAX: usize = 1472;

/// Echo flows, at most.
const FLOWS_MAX: usize = 64;

/// The echo requests of a network to other addresses.
#[derive(Debug)]
pub(super) struct EchoLimits {
    rate: RateLimit,
    pub(super) flows: usize,
}

impl EchoLimits {
    pub(super) const fn new() -> Self {
        Self { rate: RateLimit::new(Duration::from_millis(100), 20), flows: 0 }
    }
}

impl Net {
    /// The socket of an echo flow received the ICMP message `message`: a header of 8 bytes, and data. The
    /// guest gets its own identifier back. Messages other than echo replies are ignored.
    pub fn handle_echo_reply(&mut self, flow: FlowId, message: &[u8], now: Instant) {
        let Some((addresses, _)) = self.flows.get(flow) else { return };
        let addresses = *addresses;
        let Ok((true, sequence)) = EchoMessage::parse_header(addresses.remote.ip(), message) else {
            return;
        };
        let data = &message[icmp::HEADER_LEN..];
        if !self.may_pass(data.len(), now) {
            return;
        }
        let Some((_, flow_state)) = self.flows.get_mut(flow) else { return };
        let Transport::Echo { active_at } = &mut flow_state.transport else { return };
        *active_at = now;
        if let Some(record) = &mut flow_state.record {
            record.bytes_down += data.len() as u64;
        }
        let reply =
            EchoMessage { is_reply: true, id: addresses.guest.port(), sequence, data: 0..0 };
        let header = self.ip_header(&addresses);
        self.answer_packet(&header, |frame| reply.write(&header, data, frame));
        self.update(flow);
        self.count_payload(data.len(), now);
    }

    /// An echo message of the guest. Returns the flow that it is for.
    pub(super) fn echo(
        &mut self,
        header: &IpHeader,
        echo: &EchoMessage,
        data: &[u8],
        now: Instant,
    ) -> Option<FlowId> {
        if echo.is_reply {
            self.counters.ignored += 1;
            return None;
        }
        if self.is_own_address(header.destination) {
            let reply = EchoMessage { is_reply: true, ..echo.clone() };
            let header = IpHeader {
                source: header.destination,
                destination: header.source,
                hop_limit: HOP_LIMIT,
                ..*header
            };
            self.answer_packet(&header, |frame| reply.write(&header, data, frame));
            return None;
        }
        let addresses = FlowAddresses {
            protocol: FlowProtocol::Echo,
            guest: SocketAddr::new(header.source, echo.id),
            remote: SocketAddr::new(header.destination, 0),
        };
        let open = self.flows.find(&addresses);
        let admitted = match open {
            Some(_) => None,
            None => {
                let admitted = self.admit(&addresses, now);
                if admitted.is_none() {
                    self.answer_unreachable(&addresses, 0, Unreachable::Prohibited);
                    return None;
                }
                admitted
            }
        };
        if data.len() > DATA_MAX || !self.echo.rate.allow(now) {
            self.counters.limited += 1;
            return None;
        }
        let flow = match admitted {
            Some(admitted) => self.open_echo(addresses, admitted, now)?,
            None => open?,
        };
        // While the name of the flow is resolved, requests are dropped.
        if !self.has_socket(flow) {
            return None;
        }
        if !self.may_pass(data.len(), now) {
            return None;
        }
        self.count_delivery(data.len(), now);
        if let Some((_, state)) = self.flows.get_mut(flow) {
            if let Transport::Echo { active_at } = &mut state.transport {
                *active_at = now;
            }
            if let Some(record) = &mut state.record {
                record.bytes_up += data.len() as u64;
            }
        }
        self.update(flow);
        Some(flow)
    }

    fn open_echo(
        &mut self,
        addresses: FlowAddresses,
        admitted: FlowVerdict,
        now: Instant,
    ) -> Option<FlowId> {
        let is_full = self.echo.flows == FLOWS_MAX;
        let transport = Transport::Echo { active_at: now };
        let Some(flow) = (!is_full).then(|| self.insert(addresses, transport)).flatten() else {
            self.refuse_full(&addresses, admitted, now);
            return None;
        };
        self.echo.flows += 1;
        self.start_flow(flow, admitted, now);
        Some(flow)
    }

    /// Whether `address` is the gateway's or the name server's.
    pub(super) fn is_own_address(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => [self.config.gateway, self.config.dns].contains(&v4),
            IpAddr::V6(v6) => self.config.ipv6.is_some_and(|ipv6| {
                [ipv6.gateway, ipv6.dns, super::GATEWAY_LINK_LOCAL].contains(&v6)
            }),
        }
    }
}
