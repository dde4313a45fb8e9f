//! [`VringLink`]: frames in the memory of the guest, over a vhost-user socket.
//!
//! The link listens for the life of the VM: a hypervisor connects at its start, and again when the guest
//! reboots. One connection is served; a new one replaces it. An error of a connection ends the connection,
//! and never the link. When a connection cannot be accepted, the link tries again after [`REST`].
//!
//! # What a hypervisor can do
//!
//! The hypervisor may be controlled by the guest. It passes files and events whose other users it keeps:
//!
//! - The memory is read and written by position, so a file that shrinks is an error. Only a file in memory
//!   is accepted: another file system could block.
//! - The kick events are never read. The poller reports each new kick, because it is edge-triggered. So a
//!   hypervisor that also reads them cannot block this process.
//! - A call event is written only when it is writable, and does not block. A hypervisor that fills the event
//!   and clears `O_NONBLOCK`, both between the check and the write, blocks the calling thread until it reads
//!   the event or ends. This is a known limit (`SECURITY.md`). The flag belongs to the open file, which an
//!   eventfd shares with the hypervisor: `/proc/self/fd` opens no second one (`ENXIO`). `RWF_NOWAIT` is
//!   rejected for a write (`EOPNOTSUPP`), since `fs/eventfd.c` has no `write_iter`. A read before the write
//!   leaves the same gap. A write of 0 blocks only at a count of 2^64 - 1, but is lost where the event is
//!   polled, and while its interrupt is masked.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use capsa_net::vhost::{
    FrameSent, HEADER_LEN, MAX_DESCRIPTORS, MAX_PAYLOAD, MemoryFault, MemoryFiles, MessageEffect,
    MessageHeader, VhostDevice, VhostError,
};
use capsa_net::{LinkOffload, SegmentOffload};
use capsa_proto::time::{Deadline, Instant};
use rustix::io::Errno;
use rustix::net::send;

use super::{Batch, LinkInput};
use crate::sys::{self, Poll, PollSource};

/// Messages that are handled in one call, at most.
const MESSAGES: usize = 16;
/// How long the listener has no interest after a connection that could not be accepted: its readiness would
/// not end.
const REST: Duration = Duration::from_secs(1);

/// The sources of a link, by their index: the listener is the first.
const CONNECTION: usize = 1;
/// The kick event of the first ring; that of the second follows.
const KICK: usize = 2;

/// A link over a vhost-user socket.
#[derive(Debug)]
pub(in crate::network) struct VringLink {
    pub(super) listener: OwnedFd,
    poll: Poll,
    /// The poller's key of the source with this index.
    key_of: fn(usize) -> usize,
    /// The listener has no interest until then.
    rests_until: Option<Instant>,
    connection: Option<FrontEnd>,
    /// What the driver accepts was negotiated, and not taken yet.
    offload: Option<LinkOffload>,
    has_client: bool,
    has_message: bool,
    /// The guest may have sent frames.
    has_frames: bool,
    /// Frames that the guest has no buffers for.
    backlog: VecDeque<(Vec<u8>, Option<SegmentOffload>)>,
}

/// The connection of a hypervisor.
#[derive(Debug)]
struct FrontEnd {
    socket: PollSource<OwnedFd>,
    /// A part of the next message, and its descriptors.
    input: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    device: VhostDevice,
    files: GuestFiles,
    kicks: [Option<PollSource<OwnedFd>>; 2],
    calls: [Option<OwnedFd>; 2],
}

impl VringLink {
    /// A link on a listener that does not block.
    pub(in crate::network) fn new(
        listener: OwnedFd,
        poll: &Poll,
        key_of: fn(usize) -> usize,
    ) -> Self {
        Self {
            listener,
            poll: poll.clone(),
            key_of,
            rests_until: None,
            connection: None,
            offload: None,
            has_client: false,
            has_message: false,
            has_frames: false,
            backlog: VecDeque::new(),
        }
    }

    /// The poller reported the source with this index.
    pub(super) fn on_event(&mut self, index: usize) {
        match index {
            0 => self.has_client = true,
            CONNECTION => self.has_message = true,
            _ => self.has_frames = true,
        }
    }

    /// What the guest accepts from now on, if that has changed.
    pub(super) fn poll_offload(&mut self) -> Option<LinkOffload> {
        self.offload.take()
    }

    /// Whether the listener takes a connection now.
    pub(super) fn accepts(&self) -> bool {
        self.rests_until.is_none()
    }

    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        let why = "a connection of the hypervisor could not be accepted";
        self.rests_until.map(|at| Deadline { at, why })
    }

    pub(super) fn is_full(&self) -> bool {
        !self.backlog.is_empty()
    }

    pub(super) fn receive(
        &mut self,
        limit: usize,
        buffer: &mut Vec<u8>,
        handle: &mut dyn FnMut(&[u8]),
        now: Instant,
    ) -> LinkInput {
        if self.has_message {
            // Frames wait for the next call: what the guest accepts may be negotiated now.
            self.receive_messages();
            return LinkInput::More;
        }
        if std::mem::take(&mut self.has_client) {
            self.accept(now);
        }
        let Some(front_end) = &mut self.connection else { return LinkInput::All };
        if !self.has_frames {
            return LinkInput::All;
        }
        let mut input = LinkInput::More;
        for _ in 0..limit {
            match front_end.device.receive(&front_end.files, buffer) {
                Ok(Some(frame)) => handle(frame),
                Ok(None) => {
                    self.has_frames = false;
                    input = LinkInput::All;
                    break;
                }
                Err(error) => {
                    report(error);
                    break;
                }
            }
        }
        front_end.publish();
        input
    }

    pub(super) fn send(&mut self, batch: &Batch<'_>) {
        let Some(front_end) = &mut self.connection else { return };
        for (head, body) in batch.heads.iter().zip(batch.bodies) {
            let mut parts: Vec<&[u8]> = vec![head];
            parts.extend(batch.net.parts(body));
            let is_kept = !self.backlog.is_empty() || !front_end.send(&parts, body.offload());
            if is_kept {
                self.backlog.push_back((parts.concat(), body.offload()));
            }
        }
        front_end.publish();
    }

    pub(super) fn flush(&mut self, now: Instant) {
        if self.rests_until.is_some_and(|until| until <= now) {
            self.rests_until = None;
        }
        let Some(front_end) = &mut self.connection else { return };
        if self.backlog.is_empty() {
            return;
        }
        while let Some((frame, offload)) = self.backlog.front() {
            if !front_end.send(&[frame], *offload) {
                break;
            }
            self.backlog.pop_front();
        }
        if self.backlog.is_empty() {
            self.backlog = VecDeque::new();
        }
        front_end.publish();
    }

    /// Accepts a connection, in place of the one that there is. If the process has no descriptor left, that
    /// one gives up its descriptors first.
    fn accept(&mut self, now: Instant) {
        let mut accepted = sys::accept(&self.listener);
        if let Err(Errno::MFILE | Errno::NFILE) = accepted
            && self.connection.is_some()
        {
            self.disconnect();
            accepted = sys::accept(&self.listener);
        }
        let socket = match accepted {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => return,
            Err(error) => {
                tracing::warn!("cannot accept the hypervisor's network connection: {error}");
                self.rests_until = Some(now + REST);
                return;
            }
        };
        match self.poll.add(socket, (self.key_of)(CONNECTION)) {
            Ok(socket) => {
                tracing::debug!("the hypervisor connected its network card");
                self.disconnect();
                self.connection = Some(FrontEnd::new(socket));
            }
            Err(error) => tracing::warn!("cannot watch the hypervisor's network: {error}"),
        }
    }

    fn disconnect(&mut self) {
        self.connection = None;
        self.backlog = VecDeque::new();
        self.has_frames = false;
        self.offload = Some(LinkOffload::default());
    }

    fn receive_messages(&mut self) {
        let Some(front_end) = &mut self.connection else {
            self.has_message = false;
            return;
        };
        let before = front_end.device.offload();
        for _ in 0..MESSAGES {
            match front_end.receive_message(&self.poll, self.key_of) {
                Ok(true) => {}
                Ok(false) => {
                    self.has_message = false;
                    break;
                }
                Err(error) => {
                    match error.kind() {
                        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                            tracing::debug!("the hypervisor disconnected its network card");
                        }
                        _ => tracing::warn!("the connection of the network card ends: {error}"),
                    }
                    self.has_message = false;
                    return self.disconnect();
                }
            }
        }
        let offload = front_end.device.offload();
        if offload != before {
            self.offload = Some(offload);
        }
        // A ring may have started, with frames in it.
        self.has_frames = true;
    }
}

impl FrontEnd {
    fn new(socket: PollSource<OwnedFd>) -> Self {
        Self {
            socket,
            input: Vec::new(),
            descriptors: Vec::new(),
            device: VhostDevice::new(),
            files: GuestFiles::default(),
            kicks: [None, None],
            calls: [None, None],
        }
    }

    /// Sends a frame to the guest, or drops it. Returns whether it is done.
    fn send(&mut self, parts: &[&[u8]], offload: Option<SegmentOffload>) -> bool {
        match self.device.send(&self.files, parts, offload) {
            Ok(FrameSent::Full) => false,
            Ok(FrameSent::Sent | FrameSent::Dropped) => true,
            Err(error) => {
                report(error);
                true
            }
        }
    }

    /// Lets the guest see the used buffers, and interrupts it if it waits for them.
    fn publish(&mut self) {
        match self.device.publish(&self.files) {
            Ok(waits) => {
                for (call, waits) in self.calls.iter().zip(waits) {
                    if let Some(call) = call
                        && waits
                        && sys::is_writable(call.as_fd())
                    {
                        // An event that is not writable is pending.
                        let _ = rustix::io::write(call, &1u64.to_ne_bytes());
                    }
                }
            }
            Err(error) => report(error),
        }
    }

    /// Receives and handles a message. Returns false if there is none yet.
    fn receive_message(&mut self, poll: &Poll, key_of: fn(usize) -> usize) -> io::Result<bool> {
        let mut bytes = [0; HEADER_LEN + MAX_PAYLOAD];
        let header = loop {
            let header = match self.input.first_chunk() {
                Some(header) => Some(MessageHeader::parse(header).map_err(invalid)?),
                None => None,
            };
            let len = HEADER_LEN + header.map_or(0, |header| header.len);
            if let Some(header) = header
                && self.input.len() == len
            {
                break header;
            }
            // At most to the end of this message: descriptors belong to the message with their byte.
            let room = &mut bytes[..len - self.input.len()];
            match sys::receive_with_descriptors(self.socket.io(), room, &mut self.descriptors) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.input.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.descriptors.len() > MAX_DESCRIPTORS {
                return Err(invalid("more descriptors than a message has"));
            }
        };
        let input = std::mem::take(&mut self.input);
        let descriptors = std::mem::take(&mut self.descriptors);
        let count = descriptors.len();
        let (effect, reply) =
            self.device.handle_message(header, &input[HEADER_LEN..], count).map_err(invalid)?;
        self.carry_out(effect, descriptors, poll, key_of)?;
        if let Some(reply) = reply {
            // The replies to all messages fit into the socket's buffer, if the hypervisor reads them.
            let sent = send(self.socket.io(), &reply, sys::NO_SIGPIPE)?;
            if sent != reply.len() {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(true)
    }

    fn carry_out(
        &mut self,
        effect: MessageEffect,
        mut descriptors: Vec<OwnedFd>,
        poll: &Poll,
        key_of: fn(usize) -> usize,
    ) -> io::Result<()> {
        let is_event = matches!(effect, MessageEffect::Kick(_) | MessageEffect::Call(_));
        if is_event && !descriptors.iter().all(|event| sys::is_event_counter(event.as_fd())) {
            return Err(invalid("an event of a ring is not an eventfd"));
        }
        match effect {
            MessageEffect::Memory => {
                if !descriptors.iter().all(|file| sys::is_memory_file(file.as_fd())) {
                    return Err(invalid(
                        "the guest's memory is not a file of tmpfs, such as a memfd without huge pages",
                    ));
                }
                self.files = GuestFiles(descriptors.into_iter().map(File::from).collect());
            }
            MessageEffect::Kick(ring) => {
                self.kicks[ring] = None;
                let key = key_of(KICK + ring);
                self.kicks[ring] =
                    descriptors.pop().map(|kick| poll.add_edge(kick, key)).transpose()?;
            }
            MessageEffect::Call(ring) => {
                let call = descriptors.pop();
                if let Some(call) = &call {
                    sys::set_nonblocking(call.as_fd())?;
                }
                self.calls[ring] = call;
            }
            // The descriptors are closed.
            _ => {}
        }
        Ok(())
    }
}

/// The files of the guest's memory.
#[derive(Debug, Default)]
struct GuestFiles(Vec<File>);

impl MemoryFiles for GuestFiles {
    fn read(&self, region: usize, offset: u64, into: &mut [u8]) -> Result<(), MemoryFault> {
        let file = self.0.get(region).ok_or(MemoryFault)?;
        file.read_exact_at(into, offset).map_err(|_| MemoryFault)
    }

    fn write(&self, region: usize, offset: u64, parts: &[&[u8]]) -> Result<(), MemoryFault> {
        let file = self.0.get(region).ok_or(MemoryFault)?;
        let written = match parts {
            [part] => file.write_all_at(part, offset),
            parts => write_parts_at(file, parts, offset),
        };
        written.map_err(|_| MemoryFault)
    }
}

fn write_parts_at(file: &File, parts: &[&[u8]], mut offset: u64) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut slices = &mut slices[..];
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match rustix::io::pwritev(file, slices, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                offset += count as u64;
                IoSlice::advance_slices(&mut slices, count);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn invalid(error: impl std::fmt::Debug) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("invalid vhost-user message: {error:?}"))
}

/// A ring stops until the guest's driver is reset. It happens once for each ring.
fn report(error: VhostError) {
    tracing::warn!("the guest's network card stops: {error:?}");
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
