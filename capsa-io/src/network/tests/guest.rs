//! A guest with another TCP, smoltcp, behind a link of the network.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use capsa_proto::path::HostPath;
use capsa_proto::plan::{MacAddress, NetworkLink, NetworkPlan};
use capsa_proto::spec::NetworkOptions;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::time::Instant as GuestInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpEndpoint};

use crate::clock::MonotonicClock;
use crate::network::Network;
use crate::sys;

pub(super) const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// The longest time that a test waits.
const PATIENCE: Duration = Duration::from_secs(30);

/// The hypervisor's end of a link.
enum LinkEnd {
    Stream(UnixStream, Vec<u8>),
    Datagram(UnixDatagram),
}

/// A network card on a link.
pub(super) struct Card {
    end: LinkEnd,
    pub(super) received: VecDeque<Vec<u8>>,
    pub(super) frames_sent: usize,
}

impl Card {
    fn send(&mut self, frame: &[u8]) {
        self.frames_sent += 1;
        let bytes = match &self.end {
            LinkEnd::Stream(..) => [&(frame.len() as u32).to_be_bytes(), frame].concat(),
            LinkEnd::Datagram(_) => frame.to_vec(),
        };
        self.write(&bytes);
    }

    /// Writes bytes to the link, and waits while it is full.
    pub(super) fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let sent = match &mut self.end {
                LinkEnd::Stream(socket, _) => socket.write(bytes),
                LinkEnd::Datagram(socket) => socket.send(bytes),
            };
            match sent {
                Ok(count) => bytes = &bytes[count..],
                // The network is on this thread: a full link loses the rest of the frame's bytes.
                Err(error) => panic!("the link is full: {error}"),
            }
        }
    }

    pub(super) fn receive(&mut self) {
        let mut buffer = vec![0; 1 << 17];
        match &mut self.end {
            LinkEnd::Stream(socket, rest) => {
                while let Ok(count @ 1..) = socket.read(&mut buffer) {
                    rest.extend_from_slice(&buffer[..count]);
                }
                while let Some((length, bytes)) = rest.split_first_chunk()
                    && let Some(frame) = bytes.get(..u32::from_be_bytes(*length) as usize)
                {
                    self.received.push_back(frame.to_vec());
                    *rest = bytes[frame.len()..].to_vec();
                }
            }
            LinkEnd::Datagram(socket) => {
                while let Ok(count) = socket.recv(&mut buffer) {
                    self.received.push_back(buffer[..count].to_vec());
                }
            }
        }
    }

    pub(super) fn send_datagram(&self, frame: &[u8]) {
        if let LinkEnd::Datagram(socket) = &self.end {
            socket.send(frame).unwrap();
        }
    }

    /// Plugs the card into another link.
    pub(super) fn replace(&mut self, end: UnixDatagram) {
        self.end = LinkEnd::Datagram(end);
    }

    /// Whether the network closed the link.
    pub(super) fn is_closed(&mut self) -> bool {
        match &mut self.end {
            LinkEnd::Stream(socket, _) => match socket.read(&mut [0; 1 << 16]) {
                Ok(count) => count == 0,
                Err(error) => error.kind() != ErrorKind::WouldBlock,
            },
            LinkEnd::Datagram(_) => false,
        }
    }
}

pub(super) struct ReceivedFrame(Vec<u8>);
pub(super) struct FrameSender<'a>(&'a mut Card);

impl RxToken for ReceivedFrame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for FrameSender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.send(&frame);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = ReceivedFrame;
    type TxToken<'a> = FrameSender<'a>;

    fn receive(&mut self, _: GuestInstant) -> Option<(ReceivedFrame, FrameSender<'_>)> {
        let frame = self.received.pop_front()?;
        Some((ReceivedFrame(frame), FrameSender(self)))
    }

    fn transmit(&mut self, _: GuestInstant) -> Option<FrameSender<'_>> {
        Some(FrameSender(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// A network with its guest, both driven by this thread.
pub(in crate::network) struct NetworkTest {
    pub(super) network: Network,
    pub(super) clock: MonotonicClock,
    pub(super) card: Card,
    interface: Interface,
    pub(super) sockets: SocketSet<'static>,
}

impl NetworkTest {
    pub(in crate::network) fn new(options: NetworkOptions) -> Self {
        Self::with_link(options, NetworkLink::Stream)
    }

    pub(super) fn with_link(options: NetworkOptions, link: NetworkLink) -> Self {
        let plan = NetworkPlan { mac: MAC, mtu: 1500, link, policy: None, options, carrier: None };
        Self::with_plan(&plan, &HostPath::new("/nonexistent").unwrap())
    }

    pub(super) fn with_plan(plan: &NetworkPlan, run_dir: &HostPath) -> Self {
        let mut network = Network::new(plan, run_dir).unwrap();
        let (ours, end) = if let NetworkLink::Datagram = plan.link {
            let (ours, theirs) = sys::datagram_pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            (ours.into(), LinkEnd::Datagram(theirs))
        } else {
            let (ours, theirs) = sys::socket_pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            (ours.into(), LinkEnd::Stream(theirs, Vec::new()))
        };
        let ours: std::os::fd::OwnedFd = ours;
        sys::set_nonblocking(ours.as_fd()).unwrap();
        network.attach(&plan.link, ours).unwrap();
        let mut card = Card { end, received: VecDeque::new(), frames_sent: 0 };
        let address = HardwareAddress::Ethernet(EthernetAddress(MAC.0));
        let mut interface = Interface::new(Config::new(address), &mut card, GuestInstant::ZERO);
        interface.update_ip_addrs(|list| {
            list.push(IpCidr::new(GUEST.into(), 24)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        let (clock, sockets) = (MonotonicClock::new(), SocketSet::new(Vec::new()));
        Self { network, clock, card, interface, sockets }
    }

    /// Drives both sides once.
    pub(super) fn step(&mut self) {
        self.drive();
        self.card.receive();
        let now = GuestInstant::from_micros(self.clock.now().as_micros() as i64);
        self.interface.poll(now, &mut self.card, &mut self.sockets);
    }

    /// Drives the network once: only when its descriptor, its deadline or `has_work` ask for it.
    pub(super) fn drive(&mut self) {
        let mut fds = [PollFd::new(self.network.as_fd(), PollFlags::POLLIN)];
        let is_ready = poll(&mut fds, PollTimeout::ZERO).unwrap() > 0;
        let now = self.clock.now();
        let is_due = self.network.poll_timeout().is_some_and(|deadline| deadline.at <= now);
        if is_ready || is_due || self.network.has_work() {
            self.network.on_ready(now).unwrap();
        } else {
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Drives both sides until `is_done`.
    #[track_caller]
    pub(in crate::network) fn until(
        &mut self,
        what: &str,
        mut is_done: impl FnMut(&mut Self) -> bool,
    ) {
        let end = std::time::Instant::now() + PATIENCE;
        while !is_done(self) {
            assert!(std::time::Instant::now() < end, "not in time: {what}");
            self.step();
        }
    }

    /// Drives both sides for a time.
    pub(super) fn run(&mut self, time: Duration) {
        let end = std::time::Instant::now() + time;
        while std::time::Instant::now() < end {
            self.step();
        }
    }

    pub(super) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(in crate::network) fn udp(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn add_tcp(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 1 << 16]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    pub(super) fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.add_tcp();
        self.tcp(handle).listen(port).unwrap();
        handle
    }

    pub(super) fn connect(&mut self, to: impl Into<IpEndpoint>, from: u16) -> SocketHandle {
        let handle = self.add_tcp();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), to, from).unwrap();
        handle
    }

    pub(in crate::network) fn bind_udp(&mut self, port: u16) -> SocketHandle {
        let metadata = || vec![udp::PacketMetadata::EMPTY; 16];
        let buffer = || udp::PacketBuffer::new(metadata(), vec![0; 1 << 16]);
        let handle = self.sockets.add(udp::Socket::new(buffer(), buffer()));
        self.udp(handle).bind(port).unwrap();
        handle
    }

    /// A socket for ICMP errors of a UDP port.
    pub(super) fn bind_errors(&mut self, port: u16) -> SocketHandle {
        let metadata = || vec![icmp::PacketMetadata::EMPTY; 4];
        let buffer = || icmp::PacketBuffer::new(metadata(), vec![0; 4096]);
        let handle = self.sockets.add(icmp::Socket::new(buffer(), buffer()));
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(handle);
        socket.bind(icmp::Endpoint::Udp((port).into())).unwrap();
        handle
    }

    /// Connects, and waits until the connection is open or refused.
    #[track_caller]
    pub(super) fn connects(&mut self, to: impl Into<IpEndpoint>, from: u16) -> bool {
        let handle = self.connect(to, from);
        self.until("an answer to the connection", |test| {
            test.tcp(handle).state() != tcp::State::SynSent
        });
        let is_open = self.tcp(handle).may_send();
        self.tcp(handle).abort();
        self.step();
        is_open
    }
}
