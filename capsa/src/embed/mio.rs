//! [`Vm`] as a source of mio's, behind the feature `mio`.
//!
//! Only the descriptor is mio's to watch; the deadline stays with the caller, who gives
//! [`Vm::next_timeout`] to `mio::Poll::poll`. Interest in writing is taken and never reported; alone it
//! is an error, since nothing would be.

use std::io;
use std::os::fd::AsRawFd;

use ::mio::event::Source;
use ::mio::unix::SourceFd;
use ::mio::{Interest, Registry, Token};

use super::Vm;

impl Source for Vm {
    fn register(&mut self, to: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        for_reading(interests)?;
        SourceFd(&self.as_raw_fd()).register(to, token, interests)
    }

    fn reregister(&mut self, to: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        for_reading(interests)?;
        SourceFd(&self.as_raw_fd()).reregister(to, token, interests)
    }

    fn deregister(&mut self, from: &Registry) -> io::Result<()> {
        SourceFd(&self.as_raw_fd()).deregister(from)
    }
}

fn for_reading(interests: Interest) -> io::Result<()> {
    let why = "a machine is watched for reading";
    if interests.is_readable() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, why))
    }
}
