//! [`Vm`] as an event source of mio (feature `mio`).
//!
//! mio watches the descriptor only; the caller passes the deadline, [`Vm::next_timeout`], to
//! `mio::Poll::poll`. Write interest is accepted and never reported; without read interest,
//! registration is an error.

use std::io;
use std::os::fd::AsRawFd;

use ::mio::event::Source;
use ::mio::unix::SourceFd;
use ::mio::{Interest, Registry, Token};

use super::Vm;

#[cfg_attr(docsrs, doc(cfg(feature = "mio")))]
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
    let why = "invalid interest: a VM needs read interest";
    if interests.is_readable() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, why))
    }
}
