//! Names and ports in the guest's network that a program of the host serves, or the owner of the VM.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use capsa_net::FlowId;
use capsa_proto::spec::ServiceTarget;

use super::Network;
use crate::sys;

/// Connections of a service that the owner has not taken yet, at most.
const CONNECTIONS: usize = 64;

/// A service of the guest's network.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) target: ServiceTarget,
    /// For the owner.
    pub(super) connections: VecDeque<UnixStream>,
}

impl Network {
    /// Takes the oldest connection to a service of the [owner](ServiceTarget::Owner), by its index in the
    /// plan. The stream blocks. It is the guest's connection: reading ends when the guest shuts down its
    /// side, and dropping it closes the connection.
    pub fn take_service_connection(&mut self, index: usize) -> Option<UnixStream> {
        self.services.get_mut(index)?.connections.pop_front()
    }

    /// Whether a service has a connection to take.
    pub fn has_service_connection(&self, index: usize) -> bool {
        self.services.get(index).is_some_and(|service| !service.connections.is_empty())
    }

    pub(super) fn connect_service(&mut self, flow: FlowId, index: usize) -> io::Result<bool> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let service = self.services.get_mut(index).ok_or_else(refused)?;
        let ours = match &service.target {
            ServiceTarget::Unix(path) => sys::connect(Path::new(path.as_str()))?,
            ServiceTarget::Owner if service.connections.len() < CONNECTIONS => {
                let (ours, theirs) = sys::socket_pair()?;
                ours.set_nonblocking(true)?;
                service.connections.push_back(theirs);
                ours
            }
            ServiceTarget::Owner => return Err(refused()),
        };
        let source = self.poll.add_idle(ours.into(), 0);
        self.insert_stream(flow, source);
        Ok(true)
    }
}
