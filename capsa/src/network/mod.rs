//! The guest's network: what it reaches, and what reaches it.
//!
//! A VM has a network unless [`LinuxVmBuilder::no_network`](crate::LinuxVmBuilder::no_network) removes
//! it. Capsa's own stack serves it, the same on every backend; nothing has to be installed.
//! The manual, `manual::network`, describes what the guest sees.
//!
//! | task | items |
//! | --- | --- |
//! | open what is closed by default | [`LinuxVmBuilder::allow_private`](crate::LinuxVmBuilder::allow_private), [`LinuxVmBuilder::allow_host_port`](crate::LinuxVmBuilder::allow_host_port) |
//! | connect to a server in the guest | [`LinuxVmBuilder::forward`](crate::LinuxVmBuilder::forward), [`VmHandle::forwards`](crate::VmHandle::forwards) |
//! | serve connections of the guest | [`LinuxVmBuilder::service`](crate::LinuxVmBuilder::service), [`VmHandle::service_listen`](crate::VmHandle::service_listen) |
//! | allow some targets only | [`NetworkPolicy`], [`NetworkMode::Policy`](crate::NetworkMode::Policy), [`VmHandle::set_network_policy`](crate::VmHandle::set_network_policy) |
//! | check a policy without a VM | [`PolicyRules::new`], [`PolicyRules::explain`] |
//! | see what happens | [`VmHandle::network_events`](crate::VmHandle::network_events), [`LinuxVmBuilder::network_log`](crate::LinuxVmBuilder::network_log), [`VmHandle::network_counters`](crate::VmHandle::network_counters), [`LinuxVmBuilder::network_pcap`](crate::LinuxVmBuilder::network_pcap) |

#[cfg(feature = "async")]
mod stream;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use capsa_proto::spec::{ForwardHost, PortForward};

#[cfg(feature = "async")]
#[cfg_attr(docsrs, doc(cfg(feature = "async")))]
pub use stream::{ServiceListener, ServiceStream};

pub use capsa_io::network::Counters;
pub use capsa_proto::policy::{
    AllowRule, DestinationError, FlowTotals, NetworkEvent, NetworkEventKind, NetworkPolicy,
    PolicyDestination, PolicyLimits, PolicyMistake, PolicyMode, PolicyProtocol, PolicyRules,
    PolicyVerdict, PolicyWarning, ResolveMode, StreamCheck, TargetError, VerdictReason, suggest,
};
pub use capsa_proto::spec::TransportProtocol;

/// Where this host accepts the connections of a forward: a port, or a unix socket.
///
/// ```
/// use std::net::SocketAddr;
/// use capsa::network::ListenAddress;
///
/// // Port 8080 of 127.0.0.1 and ::1, so that only programs of this host reach it.
/// let port = ListenAddress::from(8080);
/// // A free port, on every address of the host.
/// let any = ListenAddress::from(SocketAddr::from(([0, 0, 0, 0], 0)));
/// // As text, where the port is in a configuration.
/// assert_eq!("0.0.0.0:0".parse(), Ok(any));
/// assert_eq!("unix:web.sock".parse(), Ok(ListenAddress::unix("web.sock")));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListenAddress {
    place: ListenPlace,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum ListenPlace {
    Port { address: Option<IpAddr>, port: u16 },
    Unix(PathBuf),
}

impl ListenAddress {
    /// A unix socket, which is created.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self { place: ListenPlace::Unix(path.into()) }
    }

    /// The address to connect to; `None` for a unix socket. Of a forward on both loopback addresses it is
    /// that of 127.0.0.1.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.place {
            ListenPlace::Port { address, port } => {
                Some(SocketAddr::new(address.unwrap_or(IpAddr::from([127, 0, 0, 1])), port))
            }
            ListenPlace::Unix(_) => None,
        }
    }

    /// The path of the unix socket; `None` for a port.
    pub fn socket(&self) -> Option<&Path> {
        match &self.place {
            ListenPlace::Port { .. } => None,
            ListenPlace::Unix(path) => Some(path),
        }
    }

    pub(crate) const fn place(&self) -> &ListenPlace {
        &self.place
    }
}

/// A port of 127.0.0.1 and of ::1; 0: a free one.
impl From<u16> for ListenAddress {
    fn from(port: u16) -> Self {
        Self { place: ListenPlace::Port { address: None, port } }
    }
}

/// A port of one address; the address 0.0.0.0 is all of IPv4, the address :: all of IPv6.
impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        let (address, port) = (Some(address.ip()), address.port());
        Self { place: ListenPlace::Port { address, port } }
    }
}

/// A port, an address with a port, or `unix:` and a path.
impl FromStr for ListenAddress {
    type Err = InvalidListenAddress;

    fn from_str(text: &str) -> Result<Self, InvalidListenAddress> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::unix(path));
        }
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        let port = || text.parse::<u16>().ok().filter(|_| is_number).map(Self::from);
        let address = || text.parse::<SocketAddr>().ok().map(Self::from);
        port().or_else(address).ok_or_else(|| InvalidListenAddress { text: text.into() })
    }
}

impl fmt::Display for ListenAddress {
    /// The form that [`FromStr`] accepts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            ListenPlace::Port { address: None, port } => write!(f, "{port}"),
            ListenPlace::Port { address: Some(address), port } => {
                write!(f, "{}", SocketAddr::new(*address, *port))
            }
            ListenPlace::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A text that is no [`ListenAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid address {text:?}: expected a port, an address with a port such as 127.0.0.1:8080 or \
     [::1]:8080, or unix:PATH"
)]
#[non_exhaustive]
pub struct InvalidListenAddress {
    /// The text.
    pub text: String,
}

/// A forward of a VM, bound on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BoundForward {
    /// Where this host accepts connections or datagrams, with the port that was chosen.
    pub host: ListenAddress,
    /// The port of the guest.
    pub guest: u16,
    /// TCP or UDP.
    pub protocol: TransportProtocol,
}

impl BoundForward {
    pub(crate) fn new(forward: PortForward) -> Self {
        let PortForward { host, guest, protocol } = forward;
        let place = match host {
            ForwardHost::Port { address, port } => ListenPlace::Port { address, port },
            ForwardHost::Unix(path) => ListenPlace::Unix(path.as_str().into()),
        };
        Self { host: ListenAddress { place }, guest, protocol }
    }
}

impl fmt::Display for BoundForward {
    /// As after `--forward` of the command: `8080:80`, `127.0.0.1:5353:53/udp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            TransportProtocol::Tcp => "",
            TransportProtocol::Udp => "/udp",
        };
        write!(f, "{}:{}{protocol}", self.host, self.guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_address_text_round_trips() {
        for text in ["0", "8080", "127.0.0.1:0", "[::1]:80", "unix:/run/a:b"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "65536", "-1", "localhost:80", "::1:80", ":80", "127.0.0.1"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }
}
