//! What goes into a [`Net`](super::Net) and comes out of it.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::ops::Range;

use capsa_proto::policy::PolicyRules;

#[cfg(doc)]
use super::Net;
use crate::flow_table::FlowId;
use crate::tcp::{Interest, SocketAction};
use crate::wire::checksum::ChecksumPolicy;
use crate::wire::ethernet::MacAddress;

/// The addresses and limits of a network.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The hardware address of the guest's card.
    pub guest_mac: MacAddress,
    /// The hardware address of the gateway: of everything but the guest.
    pub gateway_mac: MacAddress,
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// The length of the network's prefix.
    pub prefix: u8,
    /// The gateway.
    pub gateway: Ipv4Addr,
    /// The name server.
    pub dns: Ipv4Addr,
    /// The addresses of IPv6. Absent, or with an MTU below 1280: the guest has no IPv6.
    pub ipv6: Option<Ipv6Network>,
    /// The largest IP packet of the link, at least 68 bytes.
    pub mtu: u16,
    /// The maximum number of TCP connections and UDP flows together. The limit of a policy replaces it.
    pub flows: usize,
    /// Memory for streams in bytes, beyond 16 KiB for each direction of a connection.
    pub memory: usize,
    /// The guest reaches private networks.
    pub allow_private: bool,
    /// Ports of the host's loopback that the guest reaches at the gateway's address, as
    /// `host.capsa.internal`.
    pub host_ports: BTreeSet<u16>,
    /// Names in the guest's network, each with a port.
    pub services: Vec<ServiceName>,
    /// The rules for what the guest reaches. `None`: the internet, and what the fields above open.
    pub policy: Option<PolicyRules>,
    /// Report events without a policy too: see [`Net::poll_event`]. With a policy they are always reported.
    pub audit: bool,
}

/// The addresses of IPv6 in a network, whose prefix has 64 bits. The guest chooses its own addresses within
/// the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Network {
    /// The gateway. Its upper 64 bits are the prefix of the network.
    pub gateway: Ipv6Addr,
    /// The name server.
    pub dns: Ipv6Addr,
}

impl Ipv6Network {
    /// The addresses of IPv6 beside the IPv4 network 10.0.2.0/24.
    pub const DEFAULT: Self = Self {
        gateway: Ipv6Addr::new(0xfd00, 0xca95, 0xa, 2, 0, 0, 0, 2),
        dns: Ipv6Addr::new(0xfd00, 0xca95, 0xa, 2, 0, 0, 0, 3),
    };

    /// The prefix, with zeros in the lower 64 bits.
    pub const fn prefix(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.gateway.to_bits() & !(u64::MAX as u128))
    }
}

impl NetworkConfig {
    /// The gateway's address.
    pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    /// The hardware address of the gateway.
    pub const GATEWAY_MAC: MacAddress = MacAddress([0x52, 0x55, 10, 0, 2, 2]);
    /// The guest's address.
    pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    /// The address of the name server.
    pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

    /// A network with the addresses that the guests of Capsa have, 1024 flows and 64 MiB. Everything but the
    /// internet is closed, and there is no service.
    pub const fn new(guest_mac: MacAddress, mtu: u16) -> Self {
        Self {
            guest_mac,
            gateway_mac: Self::GATEWAY_MAC,
            guest: Self::GUEST,
            prefix: 24,
            gateway: Self::GATEWAY,
            dns: Self::DNS,
            ipv6: Some(Ipv6Network::DEFAULT),
            mtu,
            flows: 1024,
            memory: 64 << 20,
            allow_private: false,
            host_ports: BTreeSet::new(),
            services: Vec::new(),
            policy: None,
            audit: false,
        }
    }
}

/// A name and a TCP port in the guest's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName {
    /// The name, in lower case and without a trailing dot.
    pub name: String,
    /// The port.
    pub port: u16,
}

/// Where a flow of the guest goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// An address that is not the guest network's own. The driver refuses it with
    /// [`ConnectError::Prohibited`] if the kernel would route it to the host itself.
    Remote(SocketAddr),
    /// The addresses of a name, in the order of the resolver, never empty. The driver tries one after the
    /// other, and refuses with [`ConnectError::Prohibited`] if the kernel would route all of them to the
    /// host itself.
    Name(Vec<SocketAddr>),
    /// A port of the host's loopback: of 127.0.0.1, and if that refuses, of ::1.
    Host(u16),
    /// A service, by its index in [`NetworkConfig::services`].
    Service(usize),
}

/// Identifies a query of the guest's resolver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(pub u64);

/// What is asked about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QueryType {
    /// Its addresses: answer with [`Net::handle_addresses`].
    Addresses,
    /// Records of this type: answer with [`Net::handle_records`].
    Records(u16),
}

/// Why a name was not resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResolveError {
    /// There is no such name.
    NoName,
    /// No resolver answered, or its answer is not usable.
    Failed,
}

/// What the driver does on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetAction {
    /// Connect a TCP socket, then call [`Net::handle_connected`] or [`Net::handle_connect_error`].
    Connect {
        /// The flow.
        flow: FlowId,
        /// Where to.
        destination: Destination,
    },
    /// Open a UDP socket that is connected to the destination.
    OpenUdp {
        /// The flow.
        flow: FlowId,
        /// Where to.
        destination: Destination,
    },
    /// Open a socket for ICMP echo requests (`SOCK_DGRAM` with `IPPROTO_ICMP` or `IPPROTO_ICMPV6`) that is
    /// connected to `remote`. Each [`Delivery::Echo`] is a message for it; give replies to
    /// [`Net::handle_echo_reply`].
    OpenEcho {
        /// The flow.
        flow: FlowId,
        /// Where to.
        remote: IpAddr,
    },
    /// Find out whether the host has a route to the internet over IPv6, then call
    /// [`Net::set_ipv6_route`].
    FindIpv6Route,
    /// Resolve a name.
    Resolve {
        /// The query, for the answer.
        query: QueryId,
        /// The name, in lower case and without a trailing dot. It is absolute.
        name: String,
        /// What is asked.
        query_type: QueryType,
    },
    /// Close the socket of a UDP flow, or of echo requests.
    Close {
        /// The flow.
        flow: FlowId,
    },
    /// Do this with the socket of a TCP connection.
    Socket {
        /// The flow.
        flow: FlowId,
        /// What to do.
        action: SocketAction,
    },
    /// Wait for this on the socket of a TCP connection; replaces what was waited for before.
    Interest {
        /// The flow.
        flow: FlowId,
        /// What to wait for.
        interest: Interest,
    },
}

/// Data of a frame for a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// Bytes for a TCP socket: write them, then call [`Net::taken`] with the number of bytes that the
    /// socket took, before any other call.
    Stream {
        /// The flow.
        flow: FlowId,
        /// Where the bytes are in the frame.
        data: Range<usize>,
    },
    /// A datagram for a UDP socket. It may be dropped.
    Datagram {
        /// The flow.
        flow: FlowId,
        /// Where the payload is.
        payload: Payload,
    },
    /// An echo request for the socket of an [`NetAction::OpenEcho`]. It may be dropped.
    Echo {
        /// The flow.
        flow: FlowId,
        /// Where the ICMP message is: a header of 8 bytes (type, code, checksum, the guest's identifier,
        /// sequence number), and data. The host's kernel may replace the identifier.
        payload: Payload,
    },
}

impl Delivery {
    /// A delivery of a packet whose payload is at `start` in the frame, not in a reassembled packet.
    pub(super) fn within_frame(self, start: usize) -> Self {
        let shift = |range: Range<usize>| range.start + start..range.end + start;
        let in_frame =
            |payload: Payload| Payload { range: shift(payload.range), is_reassembled: false };
        match self {
            Self::Stream { flow, data } => Self::Stream { flow, data: shift(data) },
            Self::Datagram { flow, payload } => Self::Datagram { flow, payload: in_frame(payload) },
            Self::Echo { flow, payload } => Self::Echo { flow, payload: in_frame(payload) },
        }
    }
}

/// Where the payload of a [`Delivery`] is: [`Net::payload`] returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    pub(super) range: Range<usize>,
    /// The bytes are in the last reassembled packet, not in the frame.
    pub(super) is_reassembled: bool,
}

/// Why a connection attempt or a datagram failed, for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectError {
    /// The remote host refused it: the guest gets a reset, or for UDP an ICMP error (port unreachable).
    Refused,
    /// There is no route: the guest gets an ICMP error.
    NetworkUnreachable,
    /// The remote host does not answer: the guest gets an ICMP error.
    HostUnreachable,
    /// A policy forbids it: the guest gets a reset, or for UDP and echo requests an ICMP error.
    Prohibited,
}

/// What the card of the guest does in place of this network, as negotiated for the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkOffload {
    /// The guest's card sends TCP and UDP with any checksum: its checksums are not verified.
    pub ignores_checksums: bool,
    /// The card takes TCP segments whose checksum covers the pseudo header only.
    pub completes_checksums: bool,
    /// The card takes TCP segments over IPv4 that are larger than the link. Requires
    /// `completes_checksums`.
    pub large_ipv4: bool,
    /// The same over IPv6.
    pub large_ipv6: bool,
}

impl LinkOffload {
    pub(super) fn checksum_policy(&self) -> ChecksumPolicy {
        match self.ignores_checksums {
            true => ChecksumPolicy::Ignore,
            false => ChecksumPolicy::Verify,
        }
    }
}

/// The data of a frame for the guest, which follows the header that [`Net::poll_frame`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentBody {
    pub(super) flow: FlowId,
    pub(super) range: Range<u64>,
    pub(super) offload: Option<SegmentOffload>,
}

impl SegmentBody {
    /// What the guest's card has left to do. Always `None` on a link without [`LinkOffload`].
    pub fn offload(&self) -> Option<SegmentOffload> {
        self.offload
    }
}

/// A TCP segment whose checksum the card of the guest completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentOffload {
    /// Where the TCP header starts in the frame.
    pub tcp_start: u16,
    /// Whether the packet is of IPv6.
    pub is_ipv6: bool,
    /// The payload of each segment that the card makes of the frame. `None`: the frame is one segment.
    pub mss: Option<u16>,
}

/// What the network carried, dropped and refused, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// TCP connections, UDP flows and flows of echo requests, in both directions.
    pub flows: u64,
    /// Bytes of the frames that the guest sent.
    pub bytes_from_guest: u64,
    /// Bytes of the frames for the guest.
    pub bytes_to_guest: u64,
    /// DNS queries of the guest.
    pub queries: u64,
    /// Frames that are not packets of a supported format, or have a wrong checksum.
    pub malformed: u64,
    /// Frames with addresses that are not the guest's, or of a protocol that is not supported.
    pub ignored: u64,
    /// Flows to the host, or to another address of the guest's network, that were refused.
    pub refused_host: u64,
    /// Flows to private networks that were refused.
    pub refused_private: u64,
    /// Flows to addresses that no host of the internet has, or to metadata services, that were refused.
    pub refused_special: u64,
    /// Flows that the policy refused.
    pub refused_policy: u64,
    /// Flows that were refused because the table was full.
    pub refused_full: u64,
    /// Flows that were refused because the host has no descriptor or memory for a socket, or does not permit
    /// it (`net.ipv4.ping_group_range`). The driver counts them.
    pub refused_resources: u64,
    /// Echo requests, fragments and ICMP errors that were dropped because of a limit of rate or size.
    pub limited: u64,
    /// DNS queries that were too many, in a second or at one time.
    pub queries_limited: u64,
    /// Lines of the log that could not be written, or were left out because the file took none. The driver
    /// counts them.
    pub dropped_log_lines: u64,
}

impl Counters {
    /// All counters with their names, for output.
    pub fn named(&self) -> [(&'static str, u64); 15] {
        [
            ("flows", self.flows),
            ("bytes_from_guest", self.bytes_from_guest),
            ("bytes_to_guest", self.bytes_to_guest),
            ("queries", self.queries),
            ("malformed", self.malformed),
            ("ignored", self.ignored),
            ("refused_host", self.refused_host),
            ("refused_private", self.refused_private),
            ("refused_special", self.refused_special),
            ("refused_policy", self.refused_policy),
            ("refused_full", self.refused_full),
            ("refused_resources", self.refused_resources),
            ("limited", self.limited),
            ("queries_limited", self.queries_limited),
            ("dropped_log_lines", self.dropped_log_lines),
        ]
    }
}
