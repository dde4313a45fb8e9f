//! [`NetworkPlan`]: the network card of the guest and what is behind it.

use alloc::format;
use core::fmt;

use serde::Serialize;

use super::Message;
use crate::path::HostPath;
use crate::policy::NetworkPolicy;
use crate::spec::{NetworkMode, NetworkOptions, ServiceTarget, VmSpec};

/// The network of a VM. Capsa's own network stack serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkPlan {
    /// The hardware address of the guest's card.
    pub mac: MacAddress,
    /// The largest IP packet of the link, in bytes.
    pub mtu: u16,
    /// How frames travel between the hypervisor and the stack.
    pub link: NetworkLink,
    /// The rules for what the guest reaches. `None`: the internet, and what the options open.
    pub policy: Option<NetworkPolicy>,
    /// What the guest reaches, and what reaches it.
    pub options: NetworkOptions,
    /// How the guest sees the link go down and up; `None` if the hypervisor cannot show it.
    pub carrier: Option<CarrierPlan>,
}

impl NetworkPlan {
    /// The network of a VM, on this link; `None` if the VM has none.
    pub fn new(spec: &VmSpec, link: NetworkLink, mtu: u16) -> Option<Self> {
        let options = spec.network_options.clone();
        let policy = match &spec.network {
            NetworkMode::None => return None,
            NetworkMode::Nat => None,
            NetworkMode::Policy(policy) => Some(policy.clone()),
        };
        Some(Self { mac: MacAddress::GUEST, mtu, link, policy, options, carrier: None })
    }

    /// The unix socket that serves a service, by its index in [`NetworkOptions::services`]. The one of a
    /// service of the owner is in the run directory, and exists while the owner listens.
    pub fn service_socket(&self, index: usize, run_dir: &HostPath) -> Option<HostPath> {
        Some(match &self.options.services.get(index)?.target {
            ServiceTarget::Unix(path) => path.clone(),
            ServiceTarget::Owner => run_dir.join(&format!("service_{index}")),
        })
    }
}

/// The messages that change the carrier of the guest's card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CarrierPlan {
    /// Takes the carrier up.
    pub up: Message,
    /// Takes it down.
    pub down: Message,
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
    /// The address of every guest's card. No two guests share a link.
    pub const GUEST: Self = Self([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);

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
