//! [`AgentPlan`]: the transports over which Capsa reaches the agent in the guest.

use core::fmt;

use serde::Serialize;

use crate::path::HostPath;

/// A stream of bytes between Capsa and the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentTransport {
    /// The agent's vsock port.
    Vsock,
    /// The agent's virtio-serial port.
    VirtioSerial,
    /// The second serial port.
    SerialPort,
}

impl AgentTransport {
    /// All transports, best first.
    pub const ALL: [Self; 3] = [Self::Vsock, Self::VirtioSerial, Self::SerialPort];
}

impl fmt::Display for AgentTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vsock => "vsock",
            Self::VirtioSerial => "virtio-serial",
            Self::SerialPort => "second serial port",
        })
    }
}

/// How Capsa reaches the agent. At least one transport is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgentPlan {
    /// The socket of the vsock device, with the handshake of [`VsockPlan::AnyPort`](super::VsockPlan);
    /// `None` without a vsock device.
    pub vsock: Option<HostPath>,
    /// The hypervisor inherits the host's end of a virtio-serial port:
    /// [`DescriptorKind::Agent`](super::DescriptorKind::Agent).
    pub virtio_serial: bool,
    /// The hypervisor inherits the host's end of the second serial port.
    pub serial_port: bool,
}

impl AgentPlan {
    /// Whether the plan has this transport.
    pub const fn has(&self, transport: AgentTransport) -> bool {
        match transport {
            AgentTransport::Vsock => self.vsock.is_some(),
            AgentTransport::VirtioSerial => self.virtio_serial,
            AgentTransport::SerialPort => self.serial_port,
        }
    }
}
