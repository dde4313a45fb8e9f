//! The guest's network: what it reaches, and which connections reach it.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::Serialize;

use crate::path::HostPath;
use crate::policy::NetworkPolicy;

/// The guest's network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NetworkMode {
    /// No network device.
    None,
    /// NAT: the guest can open connections to the internet. Connections to the guest are possible through
    /// forwarded ports only.
    ///
    /// The guest has the address 10.0.2.15 (by DHCP), the gateway 10.0.2.2 and the name server 10.0.2.3.
    /// Closed by default: the loopback and every other address of the host, private networks, link-local
    /// addresses, and the metadata services of clouds.
    #[default]
    Nat,
    /// NAT to the targets of a policy only. Everything else is refused.
    Policy(NetworkPolicy),
}

impl NetworkMode {
    /// Whether the guest has a network card.
    pub const fn has_card(&self) -> bool {
        !matches!(self, Self::None)
    }
}

/// What a guest with NAT reaches beyond the internet, and what reaches it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NetworkOptions {
    /// The guest reaches private networks.
    pub allow_private: bool,
    /// Ports of the host's loopback that the guest reaches, as `host.capsa.internal`.
    pub host_ports: BTreeSet<u16>,
    /// Ports of the host that are forwarded to the guest.
    pub forwards: Vec<PortForward>,
    /// Names and ports in the guest's network that are served by the owner of the VM.
    pub services: Vec<NetworkService>,
    /// A file for the packets of the guest's network card, as pcapng.
    pub pcap: Option<HostPath>,
    /// A file to which the events of the network are appended, as JSON lines.
    pub log: Option<HostPath>,
    /// The name of the VM in that file. `None`: the last component of its run directory.
    pub log_name: Option<String>,
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportProtocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host, or a unix socket, that is forwarded to a port of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PortForward {
    /// Where the host accepts connections or datagrams.
    pub host: ForwardHost,
    /// The port of the guest.
    pub guest: u16,
    /// TCP or UDP. A unix socket is a stream, so TCP.
    pub protocol: TransportProtocol,
}

impl PortForward {
    /// The address to connect to on this host; `None` for a unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.host {
            ForwardHost::Port { address, port } => {
                Some(SocketAddr::new(address.unwrap_or(Ipv4Addr::LOCALHOST.into()), port))
            }
            ForwardHost::Unix(_) => None,
        }
    }
}

impl fmt::Display for PortForward {
    /// As after `--forward`: `8080:80`, `127.0.0.1:5353:53/udp`, `unix:/run/web.sock:80`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            TransportProtocol::Tcp => "",
            TransportProtocol::Udp => "/udp",
        };
        write!(f, "{}:{}{protocol}", self.host, self.guest)
    }
}

/// Where a forward accepts connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardHost {
    /// A port of the host; 0: a free one.
    Port {
        /// The address; `None`: 127.0.0.1 and ::1.
        address: Option<IpAddr>,
        /// The port.
        port: u16,
    },
    /// A unix socket, which only the owner's user can connect to.
    Unix(HostPath),
}

impl fmt::Display for ForwardHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { address: Some(address), port } => {
                write!(f, "{}", SocketAddr::new(*address, *port))
            }
            Self::Port { address: None, port } => write!(f, "{port}"),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

/// A name and a port in the guest's network. Connections to it arrive at the owner of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkService {
    /// The name, in lower case: `llm.capsa.internal`.
    pub name: String,
    /// The TCP port.
    pub port: u16,
    /// What serves the connections.
    pub target: ServiceTarget,
}

impl fmt::Display for NetworkService {
    /// As after `--service`: `llm.capsa.internal:80=unix:/run/llm.sock`. Without a target if the owner is it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.port)?;
        match &self.target {
            ServiceTarget::Unix(path) => write!(f, "=unix:{path}"),
            ServiceTarget::Owner => Ok(()),
        }
    }
}

/// What serves the connections to a [`NetworkService`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceTarget {
    /// A program that listens on this unix socket.
    Unix(HostPath),
    /// The owner takes each connection as a stream.
    Owner,
}
