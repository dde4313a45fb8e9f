//! Creates the descriptors that a process inherits, as its plan lists them.
//!
//! Each connection has two ends: the process inherits one, and the VM's I/O keeps the other. The ends
//! of the process are closed here once it runs, so a connection ends when the process exits.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use capsa_proto::agent::protocol::NONCE_LEN;
use capsa_proto::plan::{
    DescriptorKind, DescriptorPlan, LaunchPlan, NetworkLink, NetworkPlan, OverlayPlan, ProcessPlan,
};
use capsa_proto::vm::Channel;

use crate::stream::ByteStream;
use crate::sys::{self, InheritedDescriptor};
use crate::{ephemeral, initrd};

/// The descriptors of a process that is about to start.
#[derive(Debug, Default)]
pub(crate) struct DescriptorSet {
    /// Those that the process inherits.
    pub(crate) numbered: Vec<InheritedDescriptor>,
    /// The other ends of its channels.
    pub(crate) channels: Vec<(Channel, ByteStream)>,
    /// A duplicate of the process's end of the console whose writes must block. The two ends share the
    /// flag for that.
    pub(crate) blocking: Option<UnixStream>,
    /// The stack's end of the network's link.
    pub(crate) network: Option<OwnedFd>,
}

impl DescriptorSet {
    /// Creates the descriptors of `process`, and with them the initrd with this `nonce` of the agent. The run
    /// directory must exist, and the numbers must be
    /// [reserved](sys::ReservedNumbers).
    pub(crate) fn new(
        plan: &LaunchPlan,
        process: &ProcessPlan,
        nonce: &[u8; NONCE_LEN],
    ) -> io::Result<Self> {
        let mut set = Self::default();
        for DescriptorPlan { number, kind } in &process.descriptors {
            let descriptor = match kind {
                DescriptorKind::Control => set.pair(Channel::Control)?.into(),
                DescriptorKind::Console => set.pair(Channel::Console)?.into(),
                DescriptorKind::BlockingConsole => {
                    let theirs = set.pair(Channel::Console)?;
                    set.blocking = Some(theirs.try_clone()?);
                    theirs.into()
                }
                DescriptorKind::Agent { transport } => set.pair(Channel::Agent(*transport))?.into(),
                DescriptorKind::Network => {
                    let (ours, theirs) = network_pair(plan.network.as_ref())?;
                    sys::set_nonblocking(ours.as_fd())?;
                    set.network = Some(ours);
                    theirs
                }
                DescriptorKind::Events => set.pipe(Channel::Events)?,
                DescriptorKind::Listener { socket } => sys::listen(Path::new(socket.as_str()))?,
                DescriptorKind::Overlay { at } => {
                    let overlay = plan.overlays.iter().find_map(|overlay| match overlay {
                        OverlayPlan::Qcow2 { at: path, overlay } if path == at => Some(overlay),
                        _ => None,
                    });
                    let missing = || io::Error::other(format!("the plan has no overlay at {at}"));
                    ephemeral::overlay(overlay.ok_or_else(missing)?, at, *number)?.into()
                }
                DescriptorKind::Initrd { at } => {
                    let agent = plan.agent.as_ref().map(|agent| &agent.initrd);
                    let missing = || io::Error::other(format!("the plan has no initrd at {at}"));
                    initrd::unnamed(agent.ok_or_else(missing)?, *number, nonce)?.into()
                }
            };
            set.numbered.push(InheritedDescriptor { number: *number, descriptor });
        }
        Ok(set)
    }

    /// Creates a pair of sockets for a channel. Returns the end of the process.
    fn pair(&mut self, channel: Channel) -> io::Result<UnixStream> {
        let (ours, theirs) = sys::socket_pair()?;
        ours.set_nonblocking(true)?;
        self.channels.push((channel, ByteStream::Socket(ours)));
        Ok(theirs)
    }

    /// Creates a pipe for a channel. Returns its write end.
    fn pipe(&mut self, channel: Channel) -> io::Result<OwnedFd> {
        let (ours, theirs) = io::pipe()?;
        sys::set_nonblocking(ours.as_fd())?;
        self.channels.push((channel, ByteStream::File(File::from(OwnedFd::from(ours)))));
        Ok(theirs.into())
    }
}

/// The ends of a network's link.
fn network_pair(plan: Option<&NetworkPlan>) -> io::Result<(OwnedFd, OwnedFd)> {
    match plan.map(|plan| &plan.link) {
        Some(NetworkLink::Stream) => sys::socket_pair().map(|(a, b)| (a.into(), b.into())),
        Some(NetworkLink::Datagram) => sys::datagram_pair().map(|(a, b)| (a.into(), b.into())),
        Some(NetworkLink::VhostUser { .. }) | None => {
            Err(io::Error::other("the plan has no link that a process inherits"))
        }
    }
}
