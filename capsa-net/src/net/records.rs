//! [`FlowRecord`]: what the events of a flow report. A network without a policy and without events keeps
//! none.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;

use capsa_proto::policy::{
    FlowTotals, NetworkEvent, NetworkEventKind, PolicyVerdict, VerdictReason,
};
use capsa_proto::time::Instant;

use super::Net;
use super::access::{FlowVerdict, policy_protocol};
use super::flows::{Flow, Transport};
use super::held::HeldStream;
use super::names::NameIndex;
use crate::flow_table::{FlowAddresses, FlowId, FlowProtocol};

/// What is known about a flow beyond its addresses.
#[derive(Debug)]
pub(super) struct FlowRecord {
    /// Its number in events.
    pub(super) number: u64,
    pub(super) verdict: PolicyVerdict,
    pub(super) name: Option<Arc<str>>,
    /// Whose address in the pool it uses.
    pub(super) name_index: Option<NameIndex>,
    /// The addresses of the name that the driver may connect to, or the one that it is connected to.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) opened_at: Instant,
    /// It was reported as open, and not as closed.
    pub(super) is_reported: bool,
    /// Its first bytes are inspected before they reach the socket.
    pub(super) held: Option<HeldStream>,
    /// The name in its first bytes, if that is another.
    pub(super) stated_name: Option<String>,
    /// Payload of datagrams.
    pub(super) bytes_up: u64,
    pub(super) bytes_down: u64,
}

impl Net {
    /// An event about a flow with these addresses.
    pub(super) fn flow_event(
        &self,
        kind: NetworkEventKind,
        addresses: &FlowAddresses,
        verdict: PolicyVerdict,
        now: Instant,
    ) -> NetworkEvent {
        let remote = addresses.remote;
        let mut event = NetworkEvent::new(now, kind, verdict);
        event.protocol = Some(policy_protocol(addresses.protocol));
        event.port = (addresses.protocol != FlowProtocol::Echo).then_some(remote.port());
        // The host has no address of its own, and a name has those of the resolver.
        event.address = (!self.is_gateway(remote.ip())).then_some(remote.ip());
        event
    }

    /// An event about a flow of the table.
    pub(super) fn recorded_event(
        &self,
        id: FlowId,
        kind: NetworkEventKind,
        verdict: Option<PolicyVerdict>,
        now: Instant,
    ) -> Option<NetworkEvent> {
        let (addresses, Flow { record, transport, is_from_host, .. }) = self.flows.get(id)?;
        let record = record.as_deref()?;
        let verdict = verdict.unwrap_or_else(|| record.verdict.clone());
        let mut event = self.flow_event(kind, addresses, verdict, now);
        event.flow = Some(record.number);
        if record.name.is_some() {
            event.name = record.name.as_deref().map(Into::into);
            event.address = record.addresses.first().copied();
        }
        event.stated_name = record.stated_name.clone();
        if *is_from_host {
            event.port = Some(addresses.guest.port());
        }
        let is_end =
            !matches!(kind, NetworkEventKind::FlowOpened | NetworkEventKind::FlowCheckFailed);
        if record.is_reported && is_end {
            let (bytes_up, bytes_down) = match transport {
                Transport::Tcp(connection) => connection.totals(),
                _ => (record.bytes_up, record.bytes_down),
            };
            let duration = now.since(record.opened_at);
            event.totals = Some(FlowTotals::new(bytes_up, bytes_down, duration));
        }
        Some(event)
    }

    /// Starts the record of a new flow.
    pub(super) fn record(
        &mut self,
        id: FlowId,
        verdict: PolicyVerdict,
        name: Option<Arc<str>>,
        name_index: Option<NameIndex>,
        now: Instant,
    ) {
        if !self.is_audited() {
            return;
        }
        let Some((_, flow)) = self.flows.get_mut(id) else { return };
        flow.record = Some(Box::new(FlowRecord {
            number: self.next_flow,
            verdict,
            name,
            name_index,
            addresses: Vec::new(),
            opened_at: now,
            is_reported: false,
            held: None,
            stated_name: None,
            bytes_up: 0,
            bytes_down: 0,
        }));
        self.next_flow += 1;
        if let Some(index) = name_index {
            self.names.acquire(index);
        }
    }

    /// A client of a forward opened the flow, whose socket is the client's.
    pub(super) fn accept(&mut self, id: FlowId, now: Instant) {
        if let Some((_, flow)) = self.flows.get_mut(id) {
            (flow.has_socket, flow.is_from_host) = (true, true);
        }
        let verdict = PolicyVerdict::without_rule(true, VerdictReason::OwnNetwork);
        self.record(id, verdict, None, None, now);
        self.report_opened(id, NetworkEventKind::ForwardAccepted, now);
    }

    /// Reports that a flow is open.
    pub(super) fn report_opened(&mut self, id: FlowId, kind: NetworkEventKind, now: Instant) {
        let Some(event) = self.recorded_event(id, kind, None, now) else { return };
        if let Some(record) = self.record_mut(id) {
            record.is_reported = true;
        }
        self.report(event);
    }

    /// Reports the end of a flow that was reported as open.
    pub(super) fn report_closed(&mut self, id: FlowId) {
        let is_open = self.record_mut(id).is_some_and(|record| record.is_reported);
        let kind = NetworkEventKind::FlowClosed;
        if is_open && let Some(event) = self.recorded_event(id, kind, None, self.last_call) {
            if let Some(record) = self.record_mut(id) {
                record.is_reported = false;
            }
            self.report(event);
        }
    }

    /// Reports that a flow of the table is refused. It is not reported as closed after that.
    pub(super) fn report_refused_flow(&mut self, id: FlowId, verdict: PolicyVerdict, now: Instant) {
        let kind = NetworkEventKind::FlowRefused;
        let Some(event) = self.recorded_event(id, kind, Some(verdict), now) else { return };
        if let Some(record) = self.record_mut(id) {
            record.is_reported = false;
        }
        self.report(event);
    }

    pub(super) fn record_mut(&mut self, id: FlowId) -> Option<&mut FlowRecord> {
        self.flows.get_mut(id)?.1.record.as_deref_mut()
    }

    /// Which of its addresses the socket of a flow to a name uses: for events, and for a policy that
    /// replaces this one.
    pub fn set_remote_address(&mut self, flow: FlowId, address: IpAddr) {
        if let Some(record) = self.record_mut(flow)
            && record.addresses.contains(&address)
        {
            record.addresses.clear();
            record.addresses.push(address);
        }
    }

    /// Whether the policy allows what a flow of the guest does.
    pub(super) fn is_still_allowed(&self, id: FlowId, now: Instant) -> Result<(), PolicyVerdict> {
        let Some((addresses, flow)) = self.flows.get(id) else { return Ok(()) };
        let is_closed =
            matches!(&flow.transport, Transport::Tcp(connection) if connection.is_closed());
        if flow.is_from_host || is_closed || self.name_server.has_stream(id) {
            return Ok(());
        }
        let (protocol, remote) = (addresses.protocol, addresses.remote);
        if protocol != FlowProtocol::Echo && self.is_name_server(remote) {
            // It goes to another name server, from the time before there was a policy.
            return Err(PolicyVerdict::without_rule(false, VerdictReason::Protocol));
        }
        let record = flow.record.as_deref().filter(|record| !record.addresses.is_empty());
        let Some((record, name)) = record.and_then(|own| Some((own, own.name.as_deref()?))) else {
            // By its address, or by a name that is not resolved yet.
            let FlowVerdict { verdict, route, .. } = self.judge(protocol, remote, now);
            return if route.is_some() { Ok(()) } else { Err(verdict) };
        };
        for address in &record.addresses {
            let address = (*address, remote.port()).into();
            let (verdict, is_carried) = self.judge_resolved(protocol, name, address);
            if !is_carried {
                return Err(verdict);
            }
        }
        Ok(())
    }
}
