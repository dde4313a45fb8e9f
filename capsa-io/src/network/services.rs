//! Names and ports in the guest's network that a program of the host serves, or the owner of the VM.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use capsa_net::FlowId;

use super::{Key, Network};
use crate::sys::{self, PollSource};

impl Network {
    /// Connects to the socket of a service. A service of the owner has one only while the owner
    /// listens.
    pub(super) fn connect_service(
        &mut self,
        flow: FlowId,
        index: usize,
    ) -> io::Result<PollSource<OwnedFd>> {
        let socket = self.services.get(index).ok_or(io::ErrorKind::ConnectionRefused)?;
        let ours =
            sys::connect(Path::new(socket.as_str())).map_err(|error| match error.kind() {
                // The guest is allowed to connect, so a missing permission of this process is no refusal by
                // address.
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                    io::ErrorKind::ConnectionRefused.into()
                }
                _ => error,
            })?;
        Ok(self.poll.add_idle(ours.into(), Key::Flow(flow.index()).encode()))
    }
}
