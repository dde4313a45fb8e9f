//! Where the guest's vsock ports are on the host: unix sockets in the run directory.

use alloc::format;
use alloc::vec::Vec;

use serde::Serialize;

use super::RunDirPlan;
use crate::path::HostPath;
use crate::spec::{VsockDirection, VsockPort};

/// The guest's context id. It means nothing outside of its own machine.
pub const GUEST_CID: u32 = 3;

/// Where the guest's vsock ports are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VsockPlan {
    /// One unix socket for all ports, and the protocol that Firecracker, Cloud Hypervisor and
    /// vhost-device-vsock have in common.
    ///
    /// To a port of the guest: connect to `socket`, write `CONNECT <port>\n`, read `OK <n>\n`; from
    /// there on the stream is the guest's. Where nobody listens in the guest it closes instead. From
    /// the guest: a connection to port `<port>` of the host (context id 2) arrives at a listener on
    /// `<socket>_<port>`.
    AnyPort {
        /// The socket.
        socket: HostPath,
    },
    /// A unix socket for each port that was named, with the stream itself and nothing before it.
    NamedPorts(Vec<NamedPort>),
}

/// A port that was named, and its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamedPort {
    /// The port.
    #[serde(flatten)]
    pub port: VsockPort,
    /// The hypervisor listens on it for a port of the guest, and connects to it for one of the host.
    pub socket: HostPath,
}

/// How a port of the guest is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VsockRoute<'a> {
    /// The device is asked for the port, and says when the stream is the guest's.
    Handshake(&'a HostPath),
    /// The stream is the guest's, or ends at once where nobody listens.
    Direct(&'a HostPath),
}

impl VsockPlan {
    /// A device that serves any port, of a machine in this run directory.
    pub fn any_port(run_dir: &RunDirPlan) -> Self {
        Self::AnyPort { socket: Self::socket(run_dir) }
    }

    /// The socket of a device that serves any port.
    pub fn socket(run_dir: &RunDirPlan) -> HostPath {
        run_dir.socket("vsock")
    }

    /// A device that serves these ports.
    pub fn named_ports(run_dir: &RunDirPlan, ports: &[VsockPort]) -> Self {
        let named = ports.iter().map(|&port| {
            let prefix = match port.direction {
                VsockDirection::ToGuest => "guest",
                VsockDirection::ToHost => "vsock",
            };
            NamedPort { port, socket: run_dir.socket(&format!("{prefix}_{}", port.port)) }
        });
        Self::NamedPorts(named.collect())
    }

    /// How this port of the guest is reached. `None` where it was not named and has to be.
    pub fn to_guest(&self, port: u32) -> Option<VsockRoute<'_>> {
        match self {
            Self::AnyPort { socket } => Some(VsockRoute::Handshake(socket)),
            Self::NamedPorts(ports) => {
                named(ports, port, VsockDirection::ToGuest).map(VsockRoute::Direct)
            }
        }
    }

    /// Where a listener hears the guest's connections to this port of the host. `None` where it was
    /// not named and has to be.
    pub fn listener(&self, port: u32) -> Option<HostPath> {
        match self {
            Self::AnyPort { socket } => Some(socket.with_suffix(&format!("_{port}"))),
            Self::NamedPorts(ports) => named(ports, port, VsockDirection::ToHost).cloned(),
        }
    }
}

fn named(ports: &[NamedPort], port: u32, direction: VsockDirection) -> Option<&HostPath> {
    let is_it = |named: &&NamedPort| named.port == VsockPort { port, direction };
    ports.iter().find(is_it).map(|named| &named.socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_dir() -> RunDirPlan {
        RunDirPlan::new(HostPath::new("/r").unwrap())
    }

    #[test]
    fn any_port_is_behind_one_socket() {
        let plan = VsockPlan::any_port(&run_dir());
        let Some(VsockRoute::Handshake(socket)) = plan.to_guest(5) else { panic!("{plan:?}") };
        assert_eq!(socket.as_str(), "/r/vsock");
        assert_eq!(plan.listener(u32::MAX).unwrap().as_str(), "/r/vsock_4294967295");
    }

    #[test]
    fn a_named_port_is_served_in_its_direction_alone() {
        let port = |port, direction| VsockPort { port, direction };
        let ports = [
            port(5, VsockDirection::ToGuest),
            port(u32::MAX, VsockDirection::ToGuest),
            port(5, VsockDirection::ToHost),
            port(6, VsockDirection::ToHost),
        ];
        let plan = VsockPlan::named_ports(&run_dir(), &ports);
        let Some(VsockRoute::Direct(socket)) = plan.to_guest(5) else { panic!("{plan:?}") };
        assert_eq!(socket.as_str(), "/r/guest_5");
        assert_eq!(plan.to_guest(6), None);
        assert_eq!(plan.listener(5).unwrap().as_str(), "/r/vsock_5");
        assert_eq!(plan.listener(7), None);
    }
}
