//! [`NetworkPlan`]: the network card of the guest and what is behind it.

use core::fmt;

use serde::Serialize;

use crate::path::HostPath;
use crate::spec::NetworkOptions;

/// The network of a VM. Capsa's own network stack serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkPlan {
    /// The hardware address of the guest's card.
    pub mac: MacAddress,
    /// The largest IP packet of the link, in bytes.
    pub mtu: u16,
    /// How frames travel between the hypervisor and the stack.
    pub link: NetworkLink,
    /// What the guest reaches, and what reaches it.
    pub options: NetworkOptions,
}

/// How frames travel between the hypervisor and the stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkLink {
    /// The hypervisor inherits one of a pair of stream sockets
    /// ([`DescriptorKind::Network`](super::DescriptorKind::Network)). A frame follows its length, 4 bytes
    /// in network byte order.
    Stream,
    /// The hypervisor inherits one of a pair of datagram sockets. A datagram is a frame.
    Datagram,
    /// The hypervisor connects to this socket and speaks vhost-user.
    VhostUser {
        /// The socket, which listens before the hypervisor starts, and for the life of the VM.
        socket: HostPath,
    },
}

/// A hardware address of Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The address of all stations of a link.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether the address is of several stations; the broadcast address is one.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for MacAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
