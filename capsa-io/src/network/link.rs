//! [`FrameLink`]: how frames travel between the hypervisor and the stack.
//!
//! A link passes each received frame to a callback, and sends frames in batches. It takes every frame of a
//! batch: what its socket does not take is kept until [`flush`](FrameLink::flush). While [`is_full`](FrameLink::is_full),
//! no further batch may be sent.

mod datagram;
mod stream;
mod vring;

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};

use capsa_net::{LinkOffload, Net, SegmentBody};
use capsa_proto::time::{Deadline, Instant};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, sendmsg};

use crate::sys;

pub(super) use datagram::DatagramLink;
pub(super) use stream::StreamLink;
pub(super) use vring::VringLink;

/// The size of the buffer for received bytes.
pub(super) const INPUT: usize = 256 << 10;

/// The longest frame that a hypervisor sends. A longer one ends the link.
const FRAME_MAX: usize = 68 << 10;

/// Frames for the guest: a header each, and the body that follows it.
pub(super) struct Batch<'a> {
    pub(super) net: &'a Net,
    pub(super) heads: &'a [Vec<u8>],
    pub(super) bodies: &'a [SegmentBody],
}

/// What is left after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkInput {
    /// Nothing.
    All,
    /// Frames that are not received yet.
    More,
}

/// The link between the hypervisor and the stack.
#[derive(Debug)]
pub(super) enum FrameLink {
    /// A frame follows its length, 4 bytes in network byte order.
    Stream(StreamLink),
    /// A datagram is a frame.
    Datagram(DatagramLink),
    /// Frames are in the memory of the guest.
    Vring(Box<VringLink>),
}

impl FrameLink {
    /// The poller reported the source of the link with this index.
    pub(super) fn on_event(&mut self, index: usize) {
        if let Self::Vring(link) = self {
            link.on_event(index);
        }
    }

    /// What the guest's card does from now on, if that has changed.
    pub(super) fn poll_offload(&mut self) -> Option<LinkOffload> {
        match self {
            Self::Vring(link) => link.poll_offload(),
            Self::Stream(_) | Self::Datagram(_) => None,
        }
    }

    /// Passes at most `limit` received frames to `handle`. `spare` is a buffer of [`INPUT`] bytes, which the
    /// link may exchange for its own.
    ///
    /// # Errors
    ///
    /// When the link has ended.
    pub(super) fn receive(
        &mut self,
        limit: usize,
        spare: &mut Vec<u8>,
        handle: &mut dyn FnMut(&[u8]),
        now: Instant,
    ) -> io::Result<LinkInput> {
        match self {
            Self::Stream(link) => link.receive(limit, spare, handle),
            Self::Datagram(link) => link.receive(limit, spare, handle),
            Self::Vring(link) => Ok(link.receive(limit, spare, handle, now)),
        }
    }

    /// Sends all frames of a batch.
    ///
    /// # Errors
    ///
    /// When the link has ended.
    pub(super) fn send(&mut self, batch: &Batch<'_>, now: Instant) -> io::Result<()> {
        match self {
            Self::Stream(link) => link.send(batch),
            Self::Datagram(link) => link.send(batch, now),
            Self::Vring(link) => {
                link.send(batch);
                Ok(())
            }
        }
    }

    /// Sends what was kept.
    ///
    /// # Errors
    ///
    /// When the link has ended.
    pub(super) fn flush(&mut self, now: Instant) -> io::Result<()> {
        match self {
            Self::Stream(link) => link.flush(),
            Self::Datagram(link) => link.flush(now),
            Self::Vring(link) => {
                link.flush(now);
                Ok(())
            }
        }
    }

    /// Whether the link keeps frames that its socket has not taken.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Stream(link) => !link.output.is_empty(),
            Self::Datagram(link) => link.is_full(),
            Self::Vring(link) => link.is_full(),
        }
    }

    /// Whether the link takes what its descriptor reports as readable.
    pub(super) fn waits_for_readable(&self) -> bool {
        match self {
            Self::Stream(_) | Self::Datagram(_) => true,
            Self::Vring(link) => link.accepts(),
        }
    }

    /// Whether the descriptor becomes writable when it takes more.
    pub(super) fn waits_for_writable(&self) -> bool {
        match self {
            Self::Stream(_) => self.is_full(),
            Self::Datagram(link) => link.waits_for_writable(),
            // The guest kicks when it has posted buffers.
            Self::Vring(_) => false,
        }
    }

    /// When to flush although the descriptor is not ready.
    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        match self {
            Self::Stream(_) => None,
            Self::Datagram(link) => link.poll_timeout(),
            Self::Vring(link) => link.poll_timeout(),
        }
    }
}

impl AsFd for FrameLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stream(link) => link.socket.as_fd(),
            Self::Datagram(link) => link.descriptor.as_fd(),
            Self::Vring(link) => link.listener.as_fd(),
        }
    }
}

/// Sends as many bytes of `slices` as the socket takes now.
pub(super) fn send_slices(socket: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    loop {
        let control = &mut SendAncillaryBuffer::default();
        return match sendmsg(socket, slices, control, sys::NO_SIGPIPE) {
            Err(Errno::AGAIN) => Ok(0),
            Err(Errno::INTR) => continue,
            sent => Ok(sent?),
        };
    }
}
