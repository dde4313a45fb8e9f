//! The host side of the guest's vsock ports: Unix sockets in the run directory.

use alloc::format;
use alloc::vec::Vec;

use serde::Serialize;

use super::RunDirPlan;
use crate::path::HostPath;
use crate::spec::{VsockDirection, VsockPort};

/// The guest's context id. It has a meaning only inside the VM, so every VM uses the same one.
pub const GUEST_CID: u32 = 3;

/// How the guest's vsock ports are connected to Unix sockets of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VsockPlan {
    /// One Unix socket for all ports, with the protocol that Firecracker, Cloud Hypervisor and
    /// vhost-device-vsock share.
    ///
    /// To connect to a port of the guest: connect to `socket`, write `CONNECT <port>\n` and read
    /// `OK <n>\n`; then the stream is connected. If nothing listens on the port, the stream closes
    /// instead. When the guest connects to port `<port>` of the host (context id 2), the connection
    /// arrives at the listener on `<socket>_<port>`.
    AnyPort {
        /// The socket.
        socket: HostPath,
    },
    /// One Unix socket for each port in the spec. It carries the stream without a handshake.
    NamedPorts(Vec<NamedPort>),
}

/// A port in the spec, and its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamedPort {
    /// The port.
    #[serde(flatten)]
    pub port: VsockPort,
    /// For a port of the guest, the hypervisor listens on this socket; for a port of the host, it
    /// connects to it.
    pub socket: HostPath,
}

/// How to connect to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VsockRoute<'a> {
    /// Connect to this socket, then request the port with `CONNECT` and wait for `OK`.
    Handshake(&'a HostPath),
    /// Connect to this socket. The stream closes at once if nothing listens on the port.
    Direct(&'a HostPath),
}

impl VsockPlan {
    /// A device that serves any port, of the VM with this run directory.
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

    /// How to connect to this port of the guest. `None` if the backend serves only the ports in the
    /// spec and this is not one of them.
    pub fn to_guest(&self, port: u32) -> Option<VsockRoute<'_>> {
        match self {
            Self::AnyPort { socket } => Some(VsockRoute::Handshake(socket)),
            Self::NamedPorts(ports) => {
                named(ports, port, VsockDirection::ToGuest).map(VsockRoute::Direct)
            }
        }
    }

    /// The socket to listen on for the guest's connections to this port of the host. `None` if the
    /// backend serves only the ports in the spec and this is not one of them.
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
    fn any_port_uses_one_socket() {
        let plan = VsockPlan::any_port(&run_dir());
        let Some(VsockRoute::Handshake(socket)) = plan.to_guest(5) else { panic!("{plan:?}") };
        assert_eq!(socket.as_str(), "/r/vsock");
        assert_eq!(plan.listener(u32::MAX).unwrap().as_str(), "/r/vsock_4294967295");
    }

    #[test]
    fn named_port_serves_its_direction_only() {
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
