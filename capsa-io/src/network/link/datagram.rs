//! [`DatagramLink`]: a frame for each read and write of a descriptor: a datagram socket, or a tap device.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use capsa_proto::time::{Deadline, Instant};
use rustix::io::{Errno, read, writev};

use super::{Batch, LinkInput};

/// How long to wait after the answer "no buffer space" of macOS, which no readiness follows.
const NO_BUFFER_DELAY: Duration = Duration::from_micros(50);

/// Writes a frame.
pub(in crate::network) type WriteFrame = fn(BorrowedFd<'_>, &[IoSlice<'_>]) -> Result<usize, Errno>;

/// A descriptor that takes and gives one frame with each call.
#[derive(Debug)]
pub(in crate::network) struct DatagramLink {
    pub(super) descriptor: OwnedFd,
    write: WriteFrame,
    /// The frames of a batch that the descriptor has not taken.
    output: VecDeque<Vec<u8>>,
    /// When to try again, if the descriptor does not become writable.
    retry_at: Option<Instant>,
}

impl DatagramLink {
    pub(in crate::network) fn new(descriptor: OwnedFd) -> Self {
        Self::with_write(descriptor, |descriptor, frame| writev(descriptor, frame))
    }

    pub(in crate::network) fn with_write(descriptor: OwnedFd, write: WriteFrame) -> Self {
        Self { descriptor, write, output: VecDeque::new(), retry_at: None }
    }

    pub(super) fn receive(
        &mut self,
        limit: usize,
        buffer: &mut [u8],
        handle: &mut dyn FnMut(&[u8]),
    ) -> io::Result<LinkInput> {
        let mut frames = 0;
        while frames < limit {
            match read(&self.descriptor, &mut *buffer) {
                Ok(count) => handle(&buffer[..count]),
                Err(Errno::AGAIN) => return Ok(LinkInput::All),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            frames += 1;
        }
        Ok(LinkInput::More)
    }

    pub(super) fn send(&mut self, batch: &Batch<'_>, now: Instant) -> io::Result<()> {
        for (head, body) in batch.heads.iter().zip(batch.bodies) {
            let parts: Vec<_> = std::iter::once(&head[..]).chain(batch.net.parts(body)).collect();
            if self.is_full() || !self.write(&parts, now)? {
                self.output.push_back(parts.concat());
            }
        }
        Ok(())
    }

    pub(super) fn flush(&mut self, now: Instant) -> io::Result<()> {
        if self.retry_at.is_some_and(|at| now < at) {
            return Ok(());
        }
        self.retry_at = None;
        while let Some(frame) = self.output.pop_front() {
            if !self.write(&[&frame], now)? {
                self.output.push_front(frame);
                return Ok(());
            }
        }
        self.output = VecDeque::new();
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether the descriptor becomes writable when it can take a frame.
    pub(super) fn waits_for_writable(&self) -> bool {
        self.is_full() && self.retry_at.is_none()
    }

    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        self.retry_at.map(|at| Deadline { at, why: "no buffer for a frame" })
    }

    /// Writes a frame; `false` if it has to wait.
    fn write(&mut self, parts: &[&[u8]], now: Instant) -> io::Result<bool> {
        let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        loop {
            match (self.write)(self.descriptor.as_fd(), &slices) {
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::NOBUFS) => {
                    self.retry_at = Some(now + NO_BUFFER_DELAY);
                    return Ok(false);
                }
                // The frame is lost, as on a cable: the device is down, or takes no frame of this length.
                Err(Errno::IO | Errno::INVAL | Errno::MSGSIZE) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
