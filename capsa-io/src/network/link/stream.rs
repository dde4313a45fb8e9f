//! [`StreamLink`]: frames on a stream socket.

use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv, send};

use crate::sys;

use super::{Batch, FRAME_MAX, LinkInput, send_slices};

/// The length that precedes a frame.
const LENGTH: usize = 4;

/// A stream socket. A frame follows its length, 4 bytes in network byte order.
#[derive(Debug)]
pub(in crate::network) struct StreamLink {
    pub(super) socket: OwnedFd,
    /// The buffer, while it has received bytes at `start..end` that are not handled.
    input: Vec<u8>,
    start: usize,
    end: usize,
    /// The end of a batch that the socket has not taken.
    pub(super) output: Vec<u8>,
}

impl StreamLink {
    pub(in crate::network) fn new(socket: OwnedFd) -> Self {
        Self { socket, input: Vec::new(), start: 0, end: 0, output: Vec::new() }
    }

    pub(super) fn receive(
        &mut self,
        limit: usize,
        spare: &mut Vec<u8>,
        handle: &mut dyn FnMut(&[u8]),
    ) -> io::Result<LinkInput> {
        if self.input.is_empty() {
            mem::swap(&mut self.input, spare);
        }
        let received = self.receive_frames(limit, handle);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if spare.is_empty() {
                mem::swap(&mut self.input, spare);
            } else {
                self.input = Vec::new();
            }
        }
        received
    }

    fn receive_frames(
        &mut self,
        limit: usize,
        handle: &mut dyn FnMut(&[u8]),
    ) -> io::Result<LinkInput> {
        let mut frames = 0;
        loop {
            while let Some(len) = self.next_frame()? {
                if frames == limit {
                    return Ok(LinkInput::More);
                }
                frames += 1;
                let at = self.start + LENGTH;
                handle(&self.input[at..at + len]);
                self.start = at + len;
            }
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            } else if self.input.len() - self.start < LENGTH + FRAME_MAX {
                self.input.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            let room = &mut self.input[self.end..];
            let size = room.len();
            match recv(&self.socket, room, RecvFlags::empty()) {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((count, _)) => {
                    self.end += count;
                    if count < size && self.next_frame()?.is_none() {
                        return Ok(LinkInput::All);
                    }
                }
                Err(Errno::AGAIN) => return Ok(LinkInput::All),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The length of the next frame, if all of it is received.
    fn next_frame(&self) -> io::Result<Option<usize>> {
        let received = &self.input[self.start..self.end];
        let Some((length, rest)) = received.split_first_chunk() else { return Ok(None) };
        let len = u32::from_be_bytes(*length) as usize;
        if len > FRAME_MAX {
            let text = format!("a frame of {len} bytes; the limit is {FRAME_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok((len <= rest.len()).then_some(len))
    }

    pub(super) fn send(&mut self, batch: &Batch<'_>) -> io::Result<()> {
        let len = |(head, body): (&Vec<u8>, _)| {
            let body = batch.net.parts(body).map(<[u8]>::len).sum::<usize>();
            ((head.len() + body) as u32).to_be_bytes()
        };
        let frames = || batch.heads.iter().zip(batch.bodies);
        let lengths: Vec<_> = frames().map(len).collect();
        let mut slices = Vec::with_capacity(4 * lengths.len());
        for (length, (head, body)) in lengths.iter().zip(frames()) {
            slices.push(IoSlice::new(length));
            slices.push(IoSlice::new(head));
            slices.extend(batch.net.parts(body).map(IoSlice::new));
        }
        let mut left = send_slices(self.socket.as_fd(), &slices)?;
        for slice in slices {
            let sent = left.min(slice.len());
            self.output.extend_from_slice(&slice[sent..]);
            left -= sent;
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.output.len() {
            match send(&self.socket, &self.output[sent..], sys::NO_SIGPIPE) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if sent == self.output.len() {
            self.output = Vec::new();
        } else {
            self.output.drain(..sent);
        }
        Ok(())
    }
}
