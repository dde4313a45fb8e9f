//! [`SegmentTest`]: segments of a hostile guest, and sockets of the host, for the tests of attacks.

use super::*;
use crate::wire::ip::IpHeader;
use crate::wire::tcp::Flags;

pub(super) const SYN: Flags = flags(true, false, false, false);
pub(super) const ACK: Flags = flags(false, true, false, false);
pub(super) const FIN: Flags = flags(false, true, true, false);
pub(super) const RST: Flags = flags(false, false, false, true);

const fn flags(syn: bool, ack: bool, fin: bool, rst: bool) -> Flags {
    Flags { syn, ack, fin, rst, psh: false }
}

/// The first number of the guest's connections.
pub(super) const GUEST_START: u32 = 5000;

/// A network whose guest is the test.
pub(super) struct SegmentTest {
    pub(super) net: Net,
    pub(super) now: Instant,
    pub(super) actions: Vec<NetAction>,
    /// Segments for the guest, with their data.
    pub(super) segments: Vec<(TcpHeader, Vec<u8>)>,
    /// What the sockets have taken.
    pub(super) taken: Vec<u8>,
    /// How much a socket takes of a segment at once.
    pub(super) room: usize,
    /// Whether the link takes frames.
    pub(super) is_link_open: bool,
}

/// A connection of the test, that is open.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpenConnection {
    pub(super) flow: FlowId,
    pub(super) port: u16,
    /// The numbers of the first bytes of the guest and of the network.
    pub(super) start: u32,
    pub(super) their_start: u32,
}

pub(super) fn config(flows: usize, memory: usize) -> NetworkConfig {
    let base = NetworkConfig::new(GUEST_MAC, 1500);
    NetworkConfig { gateway_mac: GATEWAY_MAC, flows, memory, ..base }
}

impl SegmentTest {
    pub(super) fn new(flows: usize, memory: usize) -> Self {
        Self::with_config(config(flows, memory))
    }

    pub(super) fn with_config(config: NetworkConfig) -> Self {
        Self {
            net: Net::new(config, [7; 16]),
            now: Instant::ZERO + Duration::from_secs(1),
            actions: Vec::new(),
            segments: Vec::new(),
            taken: Vec::new(),
            room: usize::MAX,
            is_link_open: true,
        }
    }

    /// A frame of the guest to port 80 of the remote host.
    pub(super) fn frame(header: &TcpHeader, remote: Ipv4Addr, data: &[u8]) -> Vec<u8> {
        let ip = IpHeader {
            source: GUEST.into(),
            destination: remote.into(),
            protocol: ip::TCP,
            hop_limit: 64,
        };
        let mut frame = Vec::new();
        let (destination, source) = (GATEWAY_MAC, GUEST_MAC);
        let ether_type = EtherType::Ipv4;
        ethernet::EthernetHeader { destination, source, ether_type }.write(&mut frame);
        header.write(&ip, core::iter::once(data), &mut frame);
        frame.extend_from_slice(data);
        frame
    }

    pub(super) fn send_frame(&mut self, frame: &[u8]) {
        if let Some(Delivery::Stream { flow, data }) = self.net.handle_frame(frame, self.now) {
            let data = &frame[data];
            let count = data.len().min(self.room);
            self.taken.extend(&data[..count]);
            self.net.taken(flow, data, count, self.now);
        }
        self.poll();
    }

    pub(super) fn send(&mut self, header: TcpHeader, data: &[u8]) {
        let header = TcpHeader { destination: 80, ..header };
        self.send_frame(&Self::frame(&header, REMOTE, data));
    }

    pub(super) fn syn(&mut self, port: u16) {
        self.send(TcpHeader { mss: Some(1000), window_scale: Some(0), ..syn(port) }, &[]);
    }

    pub(super) fn poll(&mut self) {
        self.actions.extend(core::iter::from_fn(|| self.net.poll_action()));
        let mut head = Vec::new();
        while self.is_link_open
            && let Some(body) = self.net.poll_frame(&mut head, self.now)
        {
            head.extend(self.net.parts(&body).flatten());
            let packet = &head[ethernet::HEADER_LEN..];
            if let Ok(parsed) = IpPacket::parse_v4(packet)
                && parsed.header.protocol == ip::TCP
            {
                let segment = &packet[parsed.payload.clone()];
                let (header, data) = TcpHeader::parse(&parsed.header, segment).unwrap();
                self.segments.push((header, segment[data].to_vec()));
            }
        }
    }

    /// Time passes up to the next deadline.
    pub(super) fn wait(&mut self) -> Duration {
        let at = self.net.poll_timeout().expect("a deadline").at;
        let waited = at.since(self.now);
        self.now = self.now.max(at);
        self.net.handle_timeout(self.now);
        self.poll();
        waited
    }

    /// The flows that the network asked to connect since the last call.
    pub(super) fn connects(&mut self) -> Vec<FlowId> {
        let flow = |action| match action {
            NetAction::Connect { flow, .. } => Some(flow),
            _ => None,
        };
        self.actions.drain(..).filter_map(flow).collect()
    }

    /// What the network asked to do with the sockets since the last call.
    pub(super) fn socket_actions(&mut self) -> Vec<SocketAction> {
        let action = |action| match action {
            NetAction::Socket { action, .. } => Some(action),
            _ => None,
        };
        self.actions.drain(..).filter_map(action).collect()
    }

    pub(super) fn connected(&mut self, flow: FlowId) {
        self.net.handle_connected(flow, self.now);
        self.poll();
    }

    /// The guest opens a connection, with a window of 10,000 bytes.
    pub(super) fn open(&mut self, port: u16) -> OpenConnection {
        self.syn(port);
        let flow = *self.connects().last().expect("a connect");
        self.connected(flow);
        let (answer, _) = self.segments.pop().expect("an answer to the SYN");
        assert!(answer.flags.syn && answer.flags.ack, "{answer:?}");
        let their_start = answer.sequence.wrapping_add(1);
        let connection = OpenConnection { flow, port, start: GUEST_START + 1, their_start };
        self.send(connection.header(ACK, 0, 0), &[]);
        connection
    }

    /// The socket gives as much of `data` as there is space for. Returns how much that is.
    pub(super) fn give_some(&mut self, flow: FlowId, data: &[u8]) -> usize {
        let mut count = 0;
        for space in self.net.spaces(flow, data.len()) {
            let len = space.len().min(data.len() - count);
            space[..len].copy_from_slice(&data[count..count + len]);
            count += len;
        }
        self.net.filled(flow, count, self.now);
        self.poll();
        count
    }

    /// The socket gives `data`.
    pub(super) fn give(&mut self, flow: FlowId, data: &[u8]) {
        let mut given = 0;
        while given < data.len() {
            let count = self.give_some(flow, &data[given..]);
            assert!(count > 0, "no space");
            given += count;
        }
    }

    pub(super) fn has_reset(&self) -> bool {
        self.segments.iter().any(|(header, _)| header.flags.rst)
    }

    /// Nothing is left of any flow.
    pub(super) fn assert_empty(&self) {
        assert_eq!((self.net.flows(), self.net.reserved()), (0, 0));
        assert!(self.net.timers.is_empty() && self.net.closed.is_empty());
        assert!(self.net.datagram_ends.is_empty() && self.net.connecting == 0);
    }
}

impl OpenConnection {
    /// A segment at positions of both streams.
    pub(super) fn header(&self, flags: Flags, at: u32, acknowledged: u32) -> TcpHeader {
        TcpHeader {
            source: self.port,
            sequence: self.start.wrapping_add(at),
            acknowledgement: self.their_start.wrapping_add(acknowledged),
            flags,
            window: 10_000,
            ..TcpHeader::default()
        }
    }
}

pub(super) fn syn(port: u16) -> TcpHeader {
    TcpHeader {
        source: port,
        sequence: GUEST_START,
        flags: SYN,
        window: 10_000,
        ..TcpHeader::default()
    }
}
