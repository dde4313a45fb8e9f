//! [`NetSimulation`]: the network between the model guest and the model host, in virtual time.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use capsa_proto::policy::PolicyProtocol;
use capsa_proto::time::Instant;

use super::NetScheduleOutcome;
use super::guest::{self, GATEWAY_MAC, GUEST_MAC, GuestKernel, NetGuest, REMOTE_PORT};
use super::guest_tcp::GuestTcpEnd;
use super::host::{HostEnd, ModelSocket};
use super::link::{LinkErrors, LossyLink};
use super::plan::{ConnectPlan, ConnectionPlan, NetPlan};
use super::policy::PolicyWorld;
use super::policy_plan::PolicyPlan;
use super::random::ScheduleRandom;
use super::smoltcp_guest::smoltcp_guest;
use super::trace::NetTrace;
use crate::net::{Delivery, Destination, Net, NetAction, NetworkConfig};
use crate::{FlowId, SocketAction};

/// More turns than any schedule takes.
const TURNS: u64 = 200_000;
/// More frames than are due at one time.
const FRAMES: u64 = 10_000;

/// One schedule of this many has a guest with smoltcp.
const SMOLTCP: u64 = 4;
/// One of this many, and another one, has a policy.
const POLICY: u64 = 4;

/// One schedule.
pub(super) struct NetSimulation<'a> {
    plan: NetPlan,
    net: Net,
    guest: Box<dyn GuestKernel>,
    sockets: BTreeMap<FlowId, ModelSocket>,
    /// The UDP sockets that are open, with the guest's socket.
    udp: BTreeMap<FlowId, usize>,
    closed: BTreeSet<FlowId>,
    upward: LossyLink,
    downward: LossyLink,
    now: Instant,
    random: ScheduleRandom,
    /// Connections that the host opened, by their place in the plan.
    forwarded: BTreeSet<usize>,
    next_datagram: usize,
    policy: Option<PolicyWorld>,
    /// Payload that has passed in datagrams of the guest.
    datagram_bytes: u64,
    outcome: NetScheduleOutcome,
    trace: &'a mut NetTrace,
}

impl<'a> NetSimulation<'a> {
    pub(super) fn new(seed: u64, trace: &'a mut NetTrace) -> Self {
        let mut random = ScheduleRandom::new(seed);
        let mut plan = NetPlan::choose(&mut random);
        plan.datagrams.sort_unstable();
        if seed % POLICY == 1 {
            let policy = PolicyPlan::choose(&plan.connections, plan.flows, &mut random);
            plan.policy = Some(policy);
        }
        let guest: Box<dyn GuestKernel> = match seed % SMOLTCP {
            n if n == SMOLTCP - 1 => smoltcp_guest(&mut plan, &mut random),
            _ => Box::new(NetGuest::new(&plan)),
        };
        let config = NetworkConfig {
            gateway_mac: GATEWAY_MAC,
            ipv6: None,
            flows: plan.flows,
            memory: plan.memory,
            policy: plan.policy.as_ref().map(|policy| policy.policies[0].1.clone()),
            ..NetworkConfig::new(GUEST_MAC, plan.mtu)
        };
        Self {
            net: Net::new(config, [7; 16]),
            guest,
            policy: plan.policy.clone().map(PolicyWorld::new),
            plan,
            sockets: BTreeMap::new(),
            udp: BTreeMap::new(),
            closed: BTreeSet::new(),
            upward: LossyLink::default(),
            downward: LossyLink::default(),
            now: Instant::ZERO,
            random,
            forwarded: BTreeSet::new(),
            next_datagram: 0,
            datagram_bytes: 0,
            outcome: NetScheduleOutcome::default(),
            trace,
        }
    }

    pub(super) fn run(mut self) -> NetScheduleOutcome {
        for _ in 0..TURNS {
            let moved = self.turn();
            self.guest.note_ends(self.now);
            self.check_limits();
            let next = self.next_at();
            if moved {
                self.now = self.now + Duration::from_micros(self.random.between(0, 100));
            } else if let Some(next) = next {
                self.now = self.now.max(next);
            } else {
                self.check_end();
                return self.outcome;
            }
            self.pass_deadline();
        }
        self.trace
            .fail(format_args!("the schedule does not end: {:?} {:?}", self.plan, self.sockets));
    }

    fn errors(&self) -> LinkErrors {
        if self.now < self.plan.calm { self.plan.errors } else { LinkErrors::default() }
    }

    fn next_at(&mut self) -> Option<Instant> {
        let sockets = self.sockets.values().filter_map(|socket| socket.next_at(self.now)).min();
        let forwards = self.next_forward().map(|(at, _)| at);
        let datagram = self.plan.datagrams.get(self.next_datagram).map(|(at, _)| *at);
        let net = self.net.poll_timeout().map(|deadline| deadline.at);
        let guest = self.guest.next_at(self.now);
        let links = [self.upward.next_at(), self.downward.next_at()];
        let policy = self.policy.as_ref().and_then(PolicyWorld::next_at);
        let all = [sockets, forwards, datagram, net, guest, policy].into_iter().chain(links);
        all.flatten().min()
    }

    /// One turn of everything. Returns whether something happened.
    fn turn(&mut self) -> bool {
        let mut moved = false;
        while let Some(frame) = self.upward.take(self.now) {
            moved = true;
            self.deliver(&frame);
            if self.random.chance(20) {
                break;
            }
        }
        moved |= self.actions();
        moved |= self.host();
        moved |= self.actions();
        moved |= self.frames();
        while let Some(frame) = self.downward.take(self.now) {
            moved = true;
            if let Some(policy) = &mut self.policy
                && policy.handle_frame(&frame, self.trace)
            {
                continue;
            }
            match self.guest.handle(&frame, self.now, &mut self.random) {
                Ok(None) => {}
                Ok(Some(reply)) => self.send(reply),
                Err(law) => self.trace.fail(format_args!("{law}: {:?}", self.guest)),
            }
        }
        moved | self.policy() | self.programs()
    }

    fn send(&mut self, frame: Vec<u8>) {
        let errors = self.errors();
        self.trace.add(self.now, "guest sends", [frame.len() as u64, 0, 0]);
        self.upward.send(frame, self.now, errors, &mut self.random);
    }

    /// A frame of the guest arrives at the network.
    fn deliver(&mut self, frame: &[u8]) {
        match self.net.handle_frame(frame, self.now) {
            None => {}
            Some(Delivery::Stream { flow, data }) => {
                let data = &frame[data];
                let count = match self.sockets.get_mut(&flow).filter(|s| s.end.is_none()) {
                    Some(socket) => socket.take(core::iter::once(data), self.trace),
                    None => self.trace.fail(format_args!("data for {flow:?}, which has no socket")),
                };
                self.trace.add(self.now, "data for socket", [data.len() as u64, count as u64, 0]);
                self.net.taken(flow, data, count, self.now);
            }
            Some(Delivery::Datagram { flow, payload }) => {
                let data = self.net.payload(&payload, frame).to_vec();
                // The action that opens its socket comes first.
                self.actions();
                self.datagram(flow, &data);
            }
            Some(Delivery::Echo { flow, payload }) => {
                let mut message = self.net.payload(&payload, frame).to_vec();
                self.actions();
                if self.policy.is_none() || !self.udp.contains_key(&flow) {
                    self.trace.fail(format_args!("an echo that was not sent, or has no socket"));
                }
                self.datagram_bytes += message.len() as u64 - 8;
                message[0] = 0;
                self.net.handle_echo_reply(flow, &message, self.now);
            }
        }
    }

    fn datagram(&mut self, flow: FlowId, data: &[u8]) {
        let Some(&socket) = self.udp.get(&flow) else {
            self.trace.fail(format_args!("a datagram for {flow:?}, which has no socket"));
        };
        if data != guest::datagram(socket as u64, data.len()) {
            self.trace.fail(format_args!("a datagram for the host is wrong"));
        }
        self.outcome.datagrams += 1;
        self.datagram_bytes += data.len() as u64;
        for _ in 0..self.random.between(0, 2) {
            let len = self.random.skewed(u64::from(self.plan.mtu) - 28) as usize;
            let answer = guest::datagram(socket as u64 + 1000, len);
            self.net.handle_datagram(flow, &answer, self.now);
        }
    }

    /// What the network asks for.
    fn actions(&mut self) -> bool {
        let mut moved = false;
        while let Some(action) = self.net.poll_action() {
            moved = true;
            self.action(action);
        }
        moved
    }

    fn action(&mut self, action: NetAction) {
        match action {
            NetAction::Connect { flow, destination } => {
                let slot =
                    usize::from(self.open(flow, PolicyProtocol::Tcp, &destination) - REMOTE_PORT);
                let Some(index) = self.guest.owner_of(slot) else {
                    self.trace.fail(format_args!("a connection of no guest: {destination:?}"));
                };
                self.trace.add(self.now, "connect", [index as u64, 0, 0]);
                let socket =
                    ModelSocket::new(index, &self.plan.connections[index], false, self.now);
                self.sockets.insert(flow, socket);
            }
            NetAction::OpenUdp { flow, destination } => {
                let port = self.open(flow, PolicyProtocol::Udp, &destination);
                self.udp.insert(flow, usize::from(port - REMOTE_PORT));
            }
            NetAction::OpenEcho { flow, remote } => {
                self.open(flow, PolicyProtocol::Icmp, &Destination::Remote((remote, 0).into()));
                self.udp.insert(flow, usize::MAX);
            }
            NetAction::Resolve { query, name, query_type } => {
                let Some(policy) = &mut self.policy else {
                    self.trace.fail(format_args!("a query for {name}"));
                };
                self.outcome.allowed += 1;
                policy.resolve(query, &name, query_type, self.now, self.trace);
            }
            NetAction::Close { flow } => {
                if let Some(policy) = &mut self.policy {
                    policy.close(flow);
                }
                if self.udp.remove(&flow).is_none() || !self.closed.insert(flow) {
                    self.trace.fail(format_args!("{flow:?} has no UDP socket to close"));
                }
            }
            NetAction::Interest { flow, interest } => match self.sockets.get_mut(&flow) {
                Some(socket) if !matches!(socket.end, Some(HostEnd::Action(_))) => {
                    socket.interest = interest;
                }
                _ => self.trace.fail(format_args!("an interest in {flow:?} after its end")),
            },
            NetAction::Socket { flow, action } => self.socket_action(flow, action),
            _ => {
                self.trace.fail(format_args!("unexpected {action:?}"));
            }
        }
    }

    /// The network opens a socket. Returns the port of its other end.
    fn open(&mut self, flow: FlowId, protocol: PolicyProtocol, destination: &Destination) -> u16 {
        let port = match (destination, &self.policy) {
            (Destination::Remote(remote), _) => remote.port(),
            (Destination::Host(port), Some(_)) => *port,
            (Destination::Name(all), Some(_)) if !all.is_empty() => all[0].port(),
            _ => self.trace.fail(format_args!("a socket to {destination:?}")),
        };
        if let Some(policy) = &mut self.policy {
            self.outcome.allowed += 1;
            let chosen = policy.open(flow, protocol, destination, &mut self.random, self.trace);
            if let Some(address) = chosen {
                self.net.set_remote_address(flow, address);
            }
        }
        port
    }

    /// The resolvers and the policy.
    fn policy(&mut self) -> bool {
        let Some(policy) = &mut self.policy else { return false };
        let mut moved = policy.act(&mut self.net, self.now);
        let mut frames = Vec::new();
        while let Some(frame) = policy.poll(self.now) {
            frames.push(frame);
        }
        for (slot, target) in policy.plan.tcp.iter().enumerate() {
            if let Some(address) = policy.address(*target) {
                self.guest.set_remote(slot, address);
            }
        }
        moved |= !frames.is_empty();
        frames.into_iter().for_each(|frame| self.send(frame));
        self.actions();
        self.events();
        if let Some(rules) = self.policy.as_mut().and_then(|policy| policy.replace(self.now)) {
            moved = true;
            self.trace.add(self.now, "policy replaced", [0; 3]);
            self.net.set_policy(rules, self.now);
            self.actions();
        }
        if let Some(policy) = &mut self.policy {
            for (flow, _) in self.sockets.iter().filter(|(_, socket)| socket.end.is_some()) {
                policy.close(*flow);
            }
            policy.check_flows(self.trace);
        }
        moved
    }

    fn events(&mut self) {
        while let Some(event) = self.net.poll_event() {
            if let Some(policy) = &mut self.policy {
                policy.check_event(&event, self.trace);
            }
        }
    }

    fn socket_action(&mut self, flow: FlowId, action: SocketAction) {
        let is_open = self.sockets.get(&flow).map(|socket| socket.connection);
        let is_open = is_open.is_none_or(|index| self.is_open(&self.plan.connections[index]));
        let Some(socket) = self.sockets.get_mut(&flow) else {
            self.trace.fail(format_args!("{action:?} of {flow:?}, which has no socket"));
        };
        let index = socket.connection;
        self.trace.add(self.now, "socket action", [index as u64, action as u64, socket.taken]);
        if matches!(socket.end, Some(HostEnd::Action(_))) {
            self.trace.fail(format_args!("{action:?} of {flow:?} after its end"));
        }
        let has_all = socket.taken == self.plan.connections[index].upload;
        match action {
            SocketAction::ShutDown => {
                if socket.is_shut_down || !has_all {
                    self.trace.fail(format_args!("the stream to the host ends early: {socket:?}"));
                }
                socket.is_shut_down = true;
            }
            SocketAction::Close => {
                // A flow that no error and no policy ends closes only when both directions are complete.
                if is_open && socket.end.is_none() && socket.is_shut_down && !socket.has_given_all()
                {
                    self.trace.fail(format_args!("a socket is closed early: {socket:?}"));
                }
                socket.end.get_or_insert(HostEnd::Action(action));
                socket.is_shut_down |= has_all;
                self.end(flow, action);
            }
            SocketAction::Reset => self.end(flow, action),
        }
    }

    fn end(&mut self, flow: FlowId, action: SocketAction) {
        if let Some(socket) = self.sockets.get_mut(&flow) {
            socket.end = Some(HostEnd::Action(action));
            socket.interest = Default::default();
        }
        if let Some(policy) = &mut self.policy {
            policy.close(flow);
        }
    }

    /// The next connection that the host opens, and when.
    fn next_forward(&self) -> Option<(Instant, usize)> {
        (0..self.plan.connections.len())
            .filter(|index| !self.plan.connections[*index].is_from_guest)
            .filter(|index| !self.forwarded.contains(index))
            .filter_map(|index| Some((self.guest.free_at(index)?, index)))
            .min()
    }

    fn host(&mut self) -> bool {
        let mut moved = false;
        if let Some((at, index)) = self.next_forward()
            && at <= self.now
        {
            moved = true;
            self.forwarded.insert(index);
            let plan = &self.plan.connections[index];
            let port = guest::TCP_PORT + plan.slot as u16;
            let remote = guest::remote_of(plan).into();
            if let Some(flow) = self.net.connect_guest(port, remote, self.now) {
                self.sockets.insert(flow, ModelSocket::new(index, plan, true, self.now));
            } else {
                self.outcome.refused += 1;
            }
        }
        for (flow, socket) in &mut self.sockets {
            moved |= socket.act(*flow, &mut self.net, self.now, &mut self.random, self.trace);
        }
        moved
    }

    /// Frames for the guest, as many as its link takes.
    fn frames(&mut self) -> bool {
        let mut head = Vec::new();
        for count in 0..FRAMES {
            if self.random.chance(10) {
                // The link takes no more now.
                return true;
            }
            let Some(body) = self.net.poll_frame(&mut head, self.now) else { return count > 0 };
            let mut frame = head.clone();
            frame.extend(self.net.parts(&body).flatten());
            if frame.len() > usize::from(self.plan.mtu) + crate::wire::ethernet::HEADER_LEN {
                self.trace.fail(format_args!("a frame of {} bytes", frame.len()));
            }
            self.trace.add(self.now, "network sends", [frame.len() as u64, 0, 0]);
            let errors = self.errors();
            self.downward.send(frame, self.now, errors, &mut self.random);
        }
        self.trace.fail(format_args!("the network sends without end"));
    }

    /// The programs of the guest, and its TCP.
    fn programs(&mut self) -> bool {
        let mut moved = false;
        while let Some((at, socket)) = self.plan.datagrams.get(self.next_datagram)
            && *at <= self.now
        {
            moved = true;
            self.next_datagram += 1;
            let socket = *socket;
            let len = self.random.skewed(u64::from(self.plan.mtu) - 28) as usize;
            let remote = match &self.policy {
                Some(policy) => policy.address(policy.plan.udp[socket]),
                None => Some(guest::REMOTE),
            };
            // The guest knows no address yet.
            let Some(remote) = remote else { continue };
            self.guest.set_udp_remote(socket, remote);
            let data = guest::datagram(socket as u64, len);
            let frame = guest::udp_frame(guest::udp_ports(socket), remote, &data);
            self.send(frame);
        }
        for index in 0..self.plan.connections.len() {
            let had_begun = self.guest.view(index).is_some();
            match self.guest.act(index, self.now, &mut self.random) {
                Ok(None) => {}
                Ok(Some(frame)) => {
                    moved = true;
                    self.send(frame);
                }
                Err(law) => self.trace.fail(format_args!("{law}: {:?}", self.guest)),
            }
            moved |= !had_begun && self.guest.view(index).is_some();
            let burst = self.random.between(1, 40);
            for _ in 0..burst {
                let Some(frame) = self.guest.poll(index, self.now) else { break };
                moved = true;
                self.send(frame);
            }
        }
        moved
    }

    fn pass_deadline(&mut self) {
        let is_due = |net: &Net, now| net.poll_timeout().is_some_and(|deadline| deadline.at <= now);
        if is_due(&self.net, self.now) {
            self.trace.add(self.now, "deadline", [0; 3]);
            self.net.handle_timeout(self.now);
            if is_due(&self.net, self.now) {
                self.trace
                    .fail(format_args!("a deadline in the past: {:?}", self.net.poll_timeout()));
            }
        }
    }

    fn check_limits(&mut self) {
        let (reserved, flows) = (self.net.reserved(), self.net.flows());
        if reserved > self.plan.memory || flows > self.plan.flows {
            self.trace.fail(format_args!("{reserved} bytes, {flows} flows: {:?}", self.plan));
        }
        self.outcome.memory = self.outcome.memory.max(reserved as u64);
    }

    /// Nothing is left to do.
    fn check_end(&mut self) {
        let (reserved, flows) = (self.net.reserved(), self.net.flows());
        if (reserved, flows) != (0, 0) || !self.udp.is_empty() {
            self.trace
                .fail(format_args!("{flows} flows, {reserved} bytes are left: {:?}", self.net));
        }
        if let Some(socket) = self.sockets.values().find(|socket| socket.end.is_none()) {
            self.trace.fail(format_args!("a socket is left open: {socket:?}"));
        }
        self.check_policy_end();
        let was_refused = self.net.counters().refused_full > 0 || self.outcome.refused > 0;
        for (index, plan) in self.plan.connections.iter().enumerate() {
            self.outcome.connections += 1;
            let Some(tcp) = self.guest.view(index) else {
                let may_wait = was_refused || self.is_disturbed_by_reuse(index);
                if !may_wait && self.is_open(plan) && plan.is_from_guest && plan.is_clean() {
                    self.trace.fail(format_args!("connection {index} never began"));
                }
                continue;
            };
            self.outcome.bytes += tcp.received;
            self.outcome.lost_by_guest += u64::from(tcp.is_lost && plan.is_clean());
            let mut sockets = self.sockets.values().filter(|socket| socket.connection == index);
            self.outcome.bytes += sockets.clone().map(|socket| socket.taken).sum::<u64>();
            let is_refused = tcp.end == Some(GuestTcpEnd::Reset) && was_refused;
            let is_disturbed = is_refused
                || tcp.is_lost
                || !self.is_open(plan)
                || self.is_disturbed_by_reuse(index);
            if !plan.is_clean() {
                let is_failed =
                    matches!(plan.connect, ConnectPlan::Fails(..)) && plan.is_from_guest;
                if is_failed && tcp.end.is_none() {
                    self.trace.fail(format_args!("connection {index} did not fail: {tcp:?}"));
                }
                continue;
            }
            let is_whole = tcp.is_whole
                && tcp.received == plan.download
                && (tcp.read == plan.download || tcp.end.is_some())
                && sockets.any(|socket| {
                    socket.taken == plan.upload
                        && socket.has_given_all()
                        && socket.end == Some(HostEnd::Action(SocketAction::Close))
                });
            if is_whole {
                self.outcome.complete += 1;
            } else if !is_disturbed {
                self.trace.fail(format_args!("connection {index} is not whole: {plan:?} {tcp:?}"));
            }
        }
    }

    fn check_policy_end(&mut self) {
        self.events();
        let Some(policy) = &self.policy else { return };
        self.outcome.denied += policy.refusals;
        let from_guest = self.sockets.values().filter_map(|socket| {
            let plan = &self.plan.connections[socket.connection];
            plan.is_from_guest.then_some((plan.slot, socket.taken))
        });
        if let Some((slot, _)) =
            from_guest.clone().find(|(slot, taken)| *taken > 0 && policy.is_surely_held(*slot))
        {
            self.trace.fail(format_args!("bytes of slot {slot} were not checked: {:?}", self.plan));
        }
        let streams: u64 = self.sockets.values().map(|socket| socket.taken + socket.sent).sum();
        let passed = streams + self.datagram_bytes;
        if policy.total_bytes().is_some_and(|total| passed > total) {
            self.trace.fail(format_args!("{passed} bytes have passed: {:?}", self.plan));
        }
    }

    /// Whether no policy is in the way of a connection.
    fn is_open(&self, plan: &ConnectionPlan) -> bool {
        let Some(policy) = &self.policy else { return true };
        match plan.is_from_guest {
            true => policy.is_surely_open(plan.slot),
            // A limit or another policy may end it.
            false => policy.plan.has_default_limits,
        }
    }

    /// Whether another connection had the same ports: an old one that is left may refuse the new one.
    fn is_disturbed_by_reuse(&self, index: usize) -> bool {
        let plan = &self.plan.connections[index];
        self.plan.connections.iter().enumerate().any(|(other, o)| {
            other != index && (o.is_from_guest, o.slot) == (plan.is_from_guest, plan.slot)
        })
    }
}
