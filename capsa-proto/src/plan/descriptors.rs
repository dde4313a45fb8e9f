//! [`DescriptorPlan`]: the descriptors that a process inherits, under fixed numbers.
//!
//! Capsa creates them before it starts the process. A process that inherits its end of a connection
//! needs no socket path, and Capsa need not poll until it listens.
//!
//! The numbers are part of the plan, because the arguments of the process contain them. They are
//! consecutive from [`FIRST_DESCRIPTOR`]; 0 to 2 are the standard streams.

use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;

use super::AgentTransport;
use crate::path::HostPath;

/// The number of the first descriptor after the standard streams.
pub(crate) const FIRST_DESCRIPTOR: u32 = 3;

/// A descriptor that a process inherits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DescriptorPlan {
    /// The number in the process.
    pub number: u32,
    /// What the descriptor is.
    #[serde(flatten)]
    pub kind: DescriptorKind,
}

/// What an inherited descriptor is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum DescriptorKind {
    /// One of a pair of connected sockets. Capsa's control channel is the other.
    Control,
    /// One of a pair of connected sockets. Capsa reads and writes the console on the other.
    Console,
    /// Like [`Console`](Self::Console), but writes of the process block while the socket is full: it
    /// would drop what the socket does not take. Capsa makes them block before it sends the boot
    /// messages, because the process makes its descriptors non-blocking when it starts.
    BlockingConsole,
    /// One of a pair of connected sockets: the host's end of a transport of the agent.
    Agent {
        /// The transport, which is not vsock.
        transport: AgentTransport,
    },
    /// The write end of a pipe, to which the hypervisor writes its events as a sequence of JSON
    /// objects.
    Events,
    /// A socket that listens on a path from before the process starts. A client may connect at once:
    /// the connection waits until the process accepts it, and ends if the process exits.
    Listener {
        /// The path.
        socket: HostPath,
    },
    /// One of a pair of sockets, of the kind that the [network's link](super::NetworkPlan::link) has.
    /// Capsa's network stack has the other.
    Network,
    /// The unnamed file with the initrd of a VM [with the agent](super::AgentInitrd).
    Initrd {
        /// The path by which the hypervisor opens it.
        at: HostPath,
    },
    /// The unnamed file of an [overlay](super::OverlayPlan::Qcow2).
    Overlay {
        /// The path by which the hypervisor opens it.
        at: HostPath,
    },
}

impl fmt::Display for DescriptorPlan {
    /// `3: one of a pair of sockets: the control channel`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.number)?;
        match &self.kind {
            DescriptorKind::Control => f.write_str("one of a pair of sockets: the control channel"),
            DescriptorKind::Console | DescriptorKind::BlockingConsole => {
                f.write_str("one of a pair of sockets: the console")
            }
            DescriptorKind::Network => f.write_str("one of a pair of sockets: the network"),
            DescriptorKind::Agent { transport } => {
                write!(f, "one of a pair of sockets: the agent's {transport}")
            }
            DescriptorKind::Events => f.write_str("the write end of a pipe: events"),
            DescriptorKind::Listener { socket } => write!(f, "a socket that listens on {socket}"),
            DescriptorKind::Initrd { at } | DescriptorKind::Overlay { at } => {
                write!(f, "the file behind {at}")
            }
        }
    }
}

/// Adds a descriptor to those of a process, and returns its number.
pub fn add_descriptor(to: &mut Vec<DescriptorPlan>, kind: DescriptorKind) -> u32 {
    let number = to.last().map_or(FIRST_DESCRIPTOR, |last| last.number + 1);
    to.push(DescriptorPlan { number, kind });
    number
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn add_descriptor_numbers_from_three() {
        let mut descriptors = Vec::new();
        assert_eq!(add_descriptor(&mut descriptors, DescriptorKind::Control), 3);
        let socket = HostPath::new("/r/api").unwrap();
        assert_eq!(add_descriptor(&mut descriptors, DescriptorKind::Listener { socket }), 4);
        let texts: Vec<_> = descriptors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "3: one of a pair of sockets: the control channel",
                "4: a socket that listens on /r/api"
            ]
        );
        assert_eq!(
            serde_json::to_value(&descriptors).unwrap(),
            serde_json::json!([
                { "number": 3, "kind": "control" },
                { "number": 4, "kind": "listener", "socket": "/r/api" },
            ])
        );
    }
}
