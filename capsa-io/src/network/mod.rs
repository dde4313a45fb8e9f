//! [`Network`]: the network of a VM.
//!
//! It drives Capsa's [network stack](capsa_net::Net): frames travel over a link to the hypervisor, and the
//! flows of the guest over ordinary sockets of this process. It makes no decision about a flow, except
//! one that needs the host: an address that the host's kernel would deliver to the host itself is
//! refused.
//!
//! | file | contents |
//! | --- | --- |
//! | `link` | how frames travel |
//! | `sockets` | the sockets of the flows |
//! | `connects` | the sockets that are connecting |
//! | `events` | the events for the owner of the VM, and their log |
//! | `pcap` | a file of the packets |
//! | `resolver` | the names that the guest asks for |
//! | `bind`, `forwards` | forwarded ports: their sockets, their clients |
//! | `services` | connections of the guest that arrive at a program, or at the owner of the VM |
//!
//! # Driving
//!
//! A network has a poller of its own, whose descriptor is readable when there is work.
//!
//! 1. When it is readable, when [`has_work`](Network::has_work), or when
//!    [`poll_timeout`](Network::poll_timeout) has passed, call [`on_ready`](Network::on_ready).
//! 2. A call is bounded: 64 frames in, 64 frames out, 256 KiB of the sockets.
//!
//! An idle network has no deadline, and no buffer: the buffers of a call belong to the calling thread.

mod bind;
mod connects;
mod events;
mod forwards;
mod link;
mod pcap;
mod resolver;
mod services;
mod sockets;

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use capsa_net::{Net, NetworkConfig, SegmentBody, ServiceName};
use capsa_proto::path::HostPath;
use capsa_proto::plan::{NetworkLink, NetworkPlan};
use capsa_proto::policy::{NetworkEvent, PolicyMistake, PolicyRules};
use capsa_proto::spec::PortForward;
use capsa_proto::time::{Deadline, Instant};

use crate::random;
use crate::sys::{self, Poll, PollSource, ReadyEvents};

use self::bind::bind_forwards;
use self::connects::ConnectTable;
use self::events::EventOutput;
use self::forwards::ForwardTable;
use self::link::{Batch, DatagramLink, FrameLink, LinkInput, StreamLink, VringLink};
use self::pcap::{PacketCapture, PacketDirection};
use self::resolver::{ResolvedName, Resolver};
use self::sockets::SocketTable;

pub use self::bind::ForwardError;
pub(crate) use self::bind::is_abandoned;
pub use capsa_net::Counters;

/// Frames that a call receives, and that it sends, at most.
const FRAMES: usize = 64;
/// Bytes that a call sends to the guest, and that it reads from sockets, at most.
const BYTES: usize = 256 << 10;

/// Why a network was not created.
#[derive(Debug)]
#[non_exhaustive]
pub enum NetworkError {
    /// Forwards cannot be bound. Never empty.
    Forwards(Vec<ForwardError>),
    /// The policy has mistakes. Never empty.
    Policy(Vec<PolicyMistake>),
    /// The capture file cannot be created.
    Capture(io::Error),
    /// The log cannot be opened.
    Log(io::Error),
    /// The network cannot wait for its sockets.
    Poll(io::Error),
}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forwards(_) => f.write_str("cannot bind the forwards of the network"),
            Self::Policy(mistakes) => {
                f.write_str("the policy of the network has mistakes")?;
                mistakes.iter().try_for_each(|mistake| write!(f, "; {}", mistake.reason))
            }
            Self::Capture(_) => f.write_str("cannot create the capture file of the network"),
            Self::Log(_) => f.write_str("cannot open the log of the network"),
            Self::Poll(_) => f.write_str("cannot wait for the sockets of the network"),
        }
    }
}

impl std::error::Error for NetworkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Forwards(errors) => errors.first().map(|error| error as _),
            Self::Policy(_) => None,
            Self::Capture(error) | Self::Log(error) | Self::Poll(error) => Some(error),
        }
    }
}

impl From<NetworkError> for io::Error {
    fn from(error: NetworkError) -> Self {
        let kind = match &error {
            NetworkError::Forwards(errors) => errors.first().map(|first| first.error.kind()),
            NetworkError::Policy(_) => Some(io::ErrorKind::InvalidInput),
            NetworkError::Capture(error) | NetworkError::Log(error) | NetworkError::Poll(error) => {
                Some(error.kind())
            }
        };
        Self::new(kind.unwrap_or(io::ErrorKind::Other), error)
    }
}

/// What the poller reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    /// A source of the link.
    Link(usize),
    /// The socket of the flow with this index.
    Flow(usize),
    /// The listener of a forward.
    Forward(usize),
}

impl Key {
    fn encode(self) -> usize {
        match self {
            Self::Link(index) => 4 * index,
            Self::Flow(index) => 4 * index + 1,
            Self::Forward(index) => 4 * index + 2,
        }
    }

    fn decode(key: usize) -> Self {
        match key % 4 {
            1 => Self::Flow(key / 4),
            2 => Self::Forward(key / 4),
            _ => Self::Link(key / 4),
        }
    }
}

/// The network of a VM: the stack, its link and its sockets.
#[derive(Debug)]
pub struct Network {
    net: Net,
    poll: Poll,
    link: Option<PollSource<FrameLink>>,
    is_up: bool,
    sockets: SocketTable,
    connects: ConnectTable,
    resolver: Resolver,
    forwards: ForwardTable,
    /// The sockets of the services.
    services: Vec<HostPath>,
    /// Flows that were refused because the host has no descriptor left, or too many flows.
    refused_by_host: u64,
    capture: Option<PacketCapture>,
    events: EventOutput,
    /// Bytes that the current call may still read from sockets.
    budget: usize,
    /// Bytes that each ready flow of the current call may read, so that one fast stream does not take all.
    share: usize,
    /// The first flow that read nothing as the budget was exhausted. The next call begins with it.
    starved: Option<usize>,
    /// A budget was exhausted: there is more work, although the poller may not report it again.
    more: bool,
}

/// The buffers of a call.
#[derive(Debug)]
struct Buffers {
    ready: ReadyEvents,
    heads: Vec<Vec<u8>>,
    bodies: Vec<SegmentBody>,
    /// Bytes of the link, or a datagram of a socket.
    input: Vec<u8>,
}

thread_local! {
    /// Taken during a call.
    static BUFFERS: Cell<Option<Box<Buffers>>> = const { Cell::new(None) };
}

impl Buffers {
    fn take() -> Box<Self> {
        let mut buffers = BUFFERS.take().unwrap_or_else(|| {
            Box::new(Self {
                ready: ReadyEvents::new(),
                heads: vec![Vec::new(); FRAMES],
                bodies: Vec::new(),
                input: Vec::new(),
            })
        });
        // A link may have kept the previous one.
        buffers.input.resize(link::INPUT, 0);
        buffers
    }
}

impl Network {
    /// The network of a plan. Its forwards are bound: clients can connect, and wait.
    ///
    /// # Errors
    ///
    /// When a forward cannot be bound, the capture file cannot be created, or the system has no descriptor
    /// left.
    pub fn new(plan: &NetworkPlan, run_dir: &HostPath) -> Result<Self, NetworkError> {
        let options = &plan.options;
        let service = |service: &capsa_proto::spec::NetworkService| ServiceName {
            name: service.name.clone(),
            port: service.port,
        };
        let policy = plan.policy.as_ref().map(PolicyRules::new);
        let config = NetworkConfig {
            allow_private: options.allow_private,
            host_ports: options.host_ports.clone(),
            services: options.services.iter().map(service).collect(),
            policy: policy.transpose().map_err(NetworkError::Policy)?,
            audit: options.log.is_some(),
            ..NetworkConfig::new(plan.mac, plan.mtu)
        };
        let socket = |index| plan.service_socket(index, run_dir);
        let services = (0..options.services.len()).filter_map(socket).collect();
        let poll = Poll::new().map_err(NetworkError::Poll)?;
        let bound = bind_forwards(&options.forwards).map_err(NetworkError::Forwards)?;
        let capture =
            options.pcap.as_ref().map(|path| PacketCapture::create(Path::new(path.as_str())));
        Ok(Self {
            capture: capture.transpose().map_err(NetworkError::Capture)?,
            events: EventOutput::new(options, run_dir).map_err(NetworkError::Log)?,
            net: Net::new(config, random::key()),
            resolver: Resolver::new(poll.waker()),
            forwards: ForwardTable::new(bound, &poll).map_err(NetworkError::Poll)?,
            poll,
            link: None,
            is_up: true,
            sockets: SocketTable::default(),
            connects: ConnectTable::default(),
            services,
            refused_by_host: 0,
            budget: 0,
            share: 0,
            starved: None,
            more: false,
        })
    }

    /// Attaches the network to its end of a link, which must not block. The end of a
    /// [datagram](NetworkLink::Datagram) link is a socket, or any other descriptor that takes and gives one
    /// frame with each call, as a tap device does.
    ///
    /// # Errors
    ///
    /// When the socket cannot be watched.
    pub fn attach(&mut self, kind: &NetworkLink, end: OwnedFd) -> io::Result<()> {
        let link = match kind {
            NetworkLink::Stream => FrameLink::Stream(StreamLink::new(end)),
            NetworkLink::Datagram => FrameLink::Datagram(DatagramLink::new(end)),
            NetworkLink::VhostUser { .. } => return Err(io::ErrorKind::Unsupported.into()),
        };
        self.link = Some(self.poll.add(link, Key::Link(0).encode())?);
        Ok(())
    }

    /// Listens for a hypervisor that speaks vhost-user. A connection that ends is replaced by the next.
    ///
    /// # Errors
    ///
    /// When the path cannot be listened on.
    pub fn listen(&mut self, path: &Path) -> io::Result<()> {
        let listener = sys::listen_privately(path)?;
        let key_of = |index| Key::Link(index).encode();
        let link = FrameLink::Vring(Box::new(VringLink::new(listener, &self.poll, key_of)));
        self.link = Some(self.poll.add(link, Key::Link(0).encode())?);
        Ok(())
    }

    /// Takes the link up or down. While it is down, frames in both directions are dropped or wait.
    pub fn set_link(&mut self, is_up: bool) {
        self.is_up = is_up;
        if is_up {
            self.net.announce_router();
        }
        self.more = true;
    }

    /// Replaces the policy. Flows that it does not allow end.
    pub fn set_policy(&mut self, policy: PolicyRules, now: Instant) {
        self.net.set_policy(policy, now);
        self.record_events(now);
        self.more = true;
    }

    /// Takes the events since the last call. Of too many the oldest are dropped, so that the first
    /// [number](NetworkEvent::seq) shows how many.
    pub fn take_events(&mut self) -> Vec<NetworkEvent> {
        self.events.take()
    }

    /// The forwards of the plan, with the ports that they have: a port of 0 is replaced.
    pub fn forwards(&self) -> &[PortForward] {
        self.forwards.forwards()
    }

    /// What was dropped or refused.
    pub fn counters(&self) -> Counters {
        let mut counters = self.net.counters();
        counters.refused_resources = self.refused_by_host;
        counters.dropped_log_lines = self.events.dropped_lines();
        counters
    }

    /// Does the pending work, bounded.
    ///
    /// # Errors
    ///
    /// In a forked child of the program, and when the poller fails.
    pub fn on_ready(&mut self, now: Instant) -> io::Result<()> {
        let mut buffers = Buffers::take();
        let waited = self.poll.wait(Some(std::time::Duration::ZERO), &mut buffers.ready);
        if waited.is_ok() {
            self.work(&mut buffers, now);
        }
        BUFFERS.set(Some(buffers));
        waited
    }

    /// Whether there is work that the descriptor may not report, because a budget was exhausted.
    pub fn has_work(&self) -> bool {
        self.more || self.poll.has_interest_changed()
    }

    /// When to call [`on_ready`](Self::on_ready) although nothing is readable.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let link = self.link.as_ref().and_then(|link| link.io_ref().poll_timeout());
        let deadline = Deadline::earliest(self.net.poll_timeout(), link);
        let deadline = Deadline::earliest(deadline, self.connects.poll_timeout());
        Deadline::earliest(deadline, self.forwards.poll_timeout())
    }

    fn work(&mut self, buffers: &mut Buffers, now: Instant) {
        (self.more, self.budget) = (false, BYTES);
        self.net.handle_timeout(now);
        self.take_answers(now);
        self.retry_forwards(now);
        self.try_further_addresses(now);
        let is_flow = |key: &usize| matches!(Key::decode(*key), Key::Flow(_));
        let flows = buffers.ready.keys().filter(is_flow).count();
        self.share = sockets::READ_FIRST.max(BYTES / flows.max(1));
        let starved = self.starved.take().map(|index| Key::Flow(index).encode());
        let start = buffers.ready.keys().position(|key| Some(key) == starved).unwrap_or(0);
        for key in buffers.ready.keys().skip(start).chain(buffers.ready.keys().take(start)) {
            match Key::decode(key) {
                Key::Link(index) => {
                    if let Some(link) = &mut self.link {
                        link.io().on_event(index);
                    }
                }
                Key::Flow(index) => self.on_socket(index, &mut buffers.input, now),
                Key::Forward(index) => self.on_listener(index, &mut buffers.input, now),
            }
        }
        let received = self.receive_frames(&mut buffers.input, now);
        self.act(now);
        if let Err(error) = received.and_then(|()| self.send_frames(buffers, now)) {
            self.end_link(&error);
        }
        if let Some(capture) = &mut self.capture {
            capture.flush();
        }
        self.record_events(now);
    }

    /// Adds the stack's new events to those for the owner and the log.
    fn record_events(&mut self, now: Instant) {
        while let Some(event) = self.net.poll_event() {
            self.events.add(event, now);
        }
        self.events.flush();
    }

    /// Hands the names that were resolved to the stack.
    fn take_answers(&mut self, now: Instant) {
        while let Some((query, answer)) = self.resolver.poll_answer() {
            match answer {
                ResolvedName::Addresses(addresses) => {
                    let addresses = addresses.as_deref().map_err(|error| *error);
                    self.net.handle_addresses(query, addresses, now);
                }
                ResolvedName::Records(message) => {
                    let message = message.as_deref().map_err(|error| *error);
                    self.net.handle_records(query, message, now);
                }
            }
        }
    }

    fn receive_frames(&mut self, input: &mut Vec<u8>, now: Instant) -> io::Result<()> {
        if self.net.paused_from_guest(now).is_some() {
            return Ok(());
        }
        // The link is out of `self` for the callback.
        let Some(mut link) = self.link.take() else { return Ok(()) };
        let mut handle = |frame: &[u8]| {
            if self.is_up {
                if let Some(capture) = &mut self.capture {
                    capture.add(PacketDirection::Sent, std::iter::once(frame), now);
                }
                self.handle_frame(frame, now);
            }
        };
        let received = link.io().receive(FRAMES, input, &mut handle, now);
        if let Some(offload) = link.io().poll_offload() {
            self.net.set_link_offload(offload);
        }
        self.link = Some(link);
        self.more |= received? == LinkInput::More;
        Ok(())
    }

    fn send_frames(&mut self, buffers: &mut Buffers, now: Instant) -> io::Result<()> {
        let Some(link) = self.link.as_mut() else { return Ok(()) };
        link.io().flush(now)?;
        if self.is_up && !link.io().is_full() {
            buffers.bodies.clear();
            let mut bytes = 0;
            while bytes < BYTES && buffers.bodies.len() < FRAMES {
                let head = &mut buffers.heads[buffers.bodies.len()];
                let Some(body) = self.net.poll_frame(head, now) else { break };
                if let Some(capture) = &mut self.capture {
                    let parts = std::iter::once(&head[..]).chain(self.net.parts(&body));
                    capture.add(PacketDirection::Received, parts, now);
                }
                bytes += head.len() + self.net.parts(&body).map(<[u8]>::len).sum::<usize>();
                buffers.bodies.push(body);
            }
            let count = buffers.bodies.len();
            if count > 0 {
                let heads = &buffers.heads[..count];
                link.io().send(&Batch { net: &self.net, heads, bodies: &buffers.bodies }, now)?;
                // Sending may change what the flows wait for.
                self.act(now);
            }
            self.more |= bytes >= BYTES || count == FRAMES;
        }
        let Some(link) = self.link.as_mut() else { return Ok(()) };
        let (readable, writable) = (link.io().waits_for_readable(), link.io().waits_for_writable());
        // A paused link stays readable.
        let is_paused = self.net.paused_from_guest(now).is_some();
        link.set_interest(readable && !is_paused, writable)
    }

    fn end_link(&mut self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                tracing::debug!("the hypervisor closed the network's link");
            }
            _ => tracing::warn!("the network's link ends: {error}"),
        }
        self.link = None;
    }
}

impl AsFd for Network {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }
}

#[cfg(test)]
mod tests;
