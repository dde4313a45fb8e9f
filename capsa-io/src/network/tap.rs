//! A tap device as the link: the kernel of this host is the guest, in tests. Each call reads or writes one
//! frame, and the device takes every frame.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;

use rustix::io::{Errno, read, writev};

use super::link::{Batch, LinkInput};

#[derive(Debug)]
pub(super) struct TapLink(pub(super) OwnedFd);

impl TapLink {
    pub(super) fn receive(
        &self,
        limit: usize,
        buffer: &mut [u8],
        handle: &mut dyn FnMut(&[u8]),
    ) -> io::Result<LinkInput> {
        for _ in 0..limit {
            match read(&self.0, &mut *buffer) {
                Ok(len) => handle(&buffer[..len]),
                Err(Errno::AGAIN) => return Ok(LinkInput::All),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(LinkInput::More)
    }

    pub(super) fn send(&self, batch: &Batch<'_>) -> io::Result<()> {
        for (head, body) in batch.heads.iter().zip(batch.bodies) {
            let parts = batch.net.parts(body).map(IoSlice::new);
            let slices: Vec<_> = [IoSlice::new(head)].into_iter().chain(parts).collect();
            match writev(&self.0, &slices) {
                // The device is down, or its memory is full: the frame is lost, as on a wire.
                Ok(_) | Err(Errno::IO | Errno::AGAIN | Errno::NOBUFS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
