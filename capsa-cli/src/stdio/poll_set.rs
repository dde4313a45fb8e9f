//! One poll(2) over all descriptors of a loop, each with the caller's identifier.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Descriptors to poll, each with its source.
#[derive(Debug, Default)]
pub(crate) struct PollSet<'fd, Source> {
    fds: Vec<PollFd<'fd>>,
    sources: Vec<Source>,
}

impl<'fd, Source: Copy> PollSet<'fd, Source> {
    /// An empty set.
    pub(crate) fn new() -> Self {
        Self { fds: Vec::new(), sources: Vec::new() }
    }

    /// Adds a descriptor to read from.
    pub(crate) fn readable(&mut self, source: Source, fd: BorrowedFd<'fd>) {
        self.add(source, fd, PollFlags::POLLIN);
    }

    /// Adds a descriptor to write to.
    pub(crate) fn writable(&mut self, source: Source, fd: BorrowedFd<'fd>) {
        self.add(source, fd, PollFlags::POLLOUT);
    }

    fn add(&mut self, source: Source, fd: BorrowedFd<'fd>, flags: PollFlags) {
        self.fds.push(PollFd::new(fd, flags));
        self.sources.push(source);
    }

    /// Waits, and returns the sources that are ready. Errors and hang-ups count as ready: the read or
    /// write then returns the error.
    pub(crate) fn wait(mut self, timeout: Option<Duration>) -> io::Result<Vec<Source>> {
        match poll(&mut self.fds, poll_timeout(timeout)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        let both = self.fds.iter().zip(self.sources);
        Ok(both.filter(|(fd, _)| is_ready(fd)).map(|(_, source)| source).collect())
    }
}

/// The timeout in milliseconds, rounded up, so that poll does not return before the deadline.
fn poll_timeout(timeout: Option<Duration>) -> PollTimeout {
    let Some(timeout) = timeout else { return PollTimeout::NONE };
    let millis = timeout.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poll_timeout_is_rounded_up_and_capped() {
        for (timeout, want) in [
            (None, PollTimeout::NONE),
            (Some(Duration::ZERO), PollTimeout::ZERO),
            (Some(Duration::from_nanos(1)), PollTimeout::from(1u8)),
            (Some(Duration::MAX), PollTimeout::MAX),
        ] {
            assert_eq!(poll_timeout(timeout), want);
        }
    }
}
