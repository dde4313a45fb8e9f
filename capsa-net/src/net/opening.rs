//! New flows of the guest: the verdict, the addresses of a name, the socket.
//!
//! 1. [`Net::admit`] judges the flow at its first packet, and reports a refusal.
//! 2. [`Net::start_flow`] opens the socket of an admitted flow, or first resolves its name.
//! 3. [`Net::flow_resolved`] judges each address of the name, and opens the socket with those that are
//!    allowed.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use capsa_proto::policy::{NetworkEventKind, PolicyVerdict, VerdictReason};
use capsa_proto::time::Instant;

use super::access::{FlowRoute, FlowVerdict, Refusal};
use super::dns::KnownName;
use super::flows::{Flow, Transport};
use super::{Destination, Net, NetAction};
use crate::flow_table::{FlowAddresses, FlowId, FlowProtocol};
use crate::wire::icmp::Unreachable;

impl Net {
    /// The verdict on a new flow of the guest. `None`: it was counted and reported as refused, and the
    /// guest gets an error. Limits of new flows are checked here.
    pub(super) fn admit(&mut self, addresses: &FlowAddresses, now: Instant) -> Option<FlowVerdict> {
        let mut judged = self.judge(addresses.protocol, addresses.remote, now);
        if judged.route.is_some() {
            let Some(reason) = self.limit_of_new_flow(now) else { return Some(judged) };
            (judged.verdict.is_allowed, judged.verdict.reason) = (false, reason);
        }
        Refusal::of(judged.verdict.reason).count(&mut self.counters);
        self.report_refused(addresses, judged, now);
        None
    }

    /// The table has no room for a flow that was admitted: it is counted and reported as refused.
    pub(super) fn refuse_full(
        &mut self,
        addresses: &FlowAddresses,
        mut admitted: FlowVerdict,
        now: Instant,
    ) {
        self.counters.refused_full += 1;
        (admitted.verdict.is_allowed, admitted.verdict.reason) = (false, VerdictReason::FlowLimit);
        self.report_refused(addresses, admitted, now);
    }

    fn report_refused(&mut self, addresses: &FlowAddresses, judged: FlowVerdict, now: Instant) {
        let FlowVerdict { verdict, name, .. } = judged;
        let is_synthetic = name.is_some() && super::names::is_synthetic(addresses.remote.ip());
        let mut event = self.flow_event(NetworkEventKind::FlowRefused, addresses, verdict, now);
        event.name = name.as_deref().map(Into::into);
        if is_synthetic {
            event.address = None;
        }
        self.report(event);
    }

    /// Opens the socket of a flow that was admitted, once its name is resolved.
    pub(super) fn start_flow(&mut self, id: FlowId, admitted: FlowVerdict, now: Instant) {
        let FlowVerdict { verdict, name, route } = admitted;
        match route {
            Some(FlowRoute::To(destination)) => {
                let address = match &destination {
                    Destination::Remote(remote) if name.is_some() => Some(remote.ip()),
                    _ => None,
                };
                if let (Some(name), Some(address)) = (&name, address) {
                    self.pinned.acquire(name, address);
                }
                self.record(id, verdict, name, None, now);
                if let Some(record) = self.record_mut(id) {
                    record.addresses.extend(address);
                }
                self.open_socket(id, destination, now);
            }
            Some(FlowRoute::Name(index)) => {
                self.record(id, verdict, name.clone(), Some(index), now);
                if let Some(name) = name {
                    self.resolve_flow(id, &name, now);
                }
            }
            None => {}
        }
    }

    /// The name of a flow is resolved, or cannot be.
    pub(super) fn flow_resolved(&mut self, id: FlowId, known: &KnownName, now: Instant) {
        let Some((addresses, Flow { record: Some(record), .. })) = self.flows.get(id) else {
            return;
        };
        let Some(name) = record.name.clone() else { return };
        let (protocol, port) = (addresses.protocol, addresses.remote.port());
        let resolved: &[IpAddr] = match known {
            KnownName::Addresses(all) => all,
            _ => &[],
        };
        // An echo request of ICMP cannot become one of ICMPv6.
        let is_usable = |address: &&IpAddr| protocol != FlowProtocol::Echo || address.is_ipv4();
        let mut carried = None;
        let mut refused = None;
        let mut open = Vec::new();
        for address in resolved.iter().filter(is_usable) {
            let (verdict, is_carried) =
                self.judge_resolved(protocol, &name, (*address, port).into());
            if is_carried {
                carried.get_or_insert(verdict);
                open.push(*address);
            } else {
                refused.get_or_insert((verdict, *address));
            }
        }
        let Some(verdict) = carried else {
            let (verdict, address) = match refused {
                Some((verdict, address)) => (verdict, Some(address)),
                None => (PolicyVerdict::without_rule(false, VerdictReason::Unresolved), None),
            };
            if let Some(record) = self.record_mut(id) {
                record.addresses.extend(address);
            }
            return self.refuse_flow(id, verdict, now);
        };
        let all = open.iter().map(|address| SocketAddr::new(*address, port)).collect();
        if let Some(record) = self.record_mut(id) {
            (record.verdict, record.addresses) = (verdict, open);
        }
        self.open_socket(id, Destination::Name(all), now);
    }

    /// Opens the socket of a flow: the place for checks of its first bytes.
    fn open_socket(&mut self, id: FlowId, destination: Destination, now: Instant) {
        self.report_opened(id, NetworkEventKind::FlowOpened, now);
        self.hold(id);
        let Some((_, flow)) = self.flows.get_mut(id) else { return };
        let action = match (&flow.transport, destination) {
            (Transport::Tcp(_), destination) => return self.connect(id, destination),
            (Transport::Udp { .. }, destination) => NetAction::OpenUdp { flow: id, destination },
            (Transport::Echo { .. }, Destination::Remote(remote)) => {
                NetAction::OpenEcho { flow: id, remote: remote.ip() }
            }
            (Transport::Echo { .. }, Destination::Name(all)) => {
                let Some(remote) = all.first() else { return };
                NetAction::OpenEcho { flow: id, remote: remote.ip() }
            }
            (Transport::Echo { .. }, _) => return,
        };
        flow.has_socket = true;
        self.actions.push_back(action);
    }

    /// Ends several flows: see [`refuse_flow`](Self::refuse_flow).
    pub(super) fn refuse_flows(&mut self, refused: Vec<(FlowId, PolicyVerdict)>, now: Instant) {
        // The end of one must not be the turn of another one to connect.
        let waiting = core::mem::take(&mut self.waiting_connects);
        for (id, verdict) in refused {
            self.refuse_flow(id, verdict, now);
        }
        self.waiting_connects = waiting;
        self.start_connects();
    }

    /// Ends a flow of the table that must not go on: the guest gets an error.
    pub(super) fn refuse_flow(&mut self, id: FlowId, verdict: PolicyVerdict, now: Instant) {
        let reason = match verdict.reason {
            VerdictReason::Unresolved => Unreachable::Host,
            _ => Unreachable::Prohibited,
        };
        Refusal::of(verdict.reason).count(&mut self.counters);
        self.report_refused_flow(id, verdict, now);
        let Some((addresses, flow)) = self.flows.get(id) else { return };
        if matches!(flow.transport, Transport::Tcp(_)) {
            return self.handle_socket_error(id);
        }
        let addresses = *addresses;
        self.answer_unreachable(&addresses, 0, reason);
        self.remove(id);
    }

    /// Whether datagrams of a flow can be given to its socket.
    pub(super) fn has_socket(&self, id: FlowId) -> bool {
        self.flows.get(id).is_some_and(|(_, flow)| flow.has_socket)
    }
}
