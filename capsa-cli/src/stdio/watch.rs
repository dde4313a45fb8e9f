//! One poll(2) over everything a session waits for.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Descriptors to wait for, each with a word for who it is.
#[derive(Debug, Default)]
pub(crate) struct Watch<'fd, Who> {
    fds: Vec<PollFd<'fd>>,
    whose: Vec<Who>,
}

impl<'fd, Who: Copy> Watch<'fd, Who> {
    /// Nothing to wait for.
    pub(crate) fn new() -> Self {
        Self { fds: Vec::new(), whose: Vec::new() }
    }

    /// Waits until there is something to read.
    pub(crate) fn readable(&mut self, who: Who, fd: BorrowedFd<'fd>) {
        self.add(who, fd, PollFlags::POLLIN);
    }

    /// Waits until there is room to write.
    pub(crate) fn writable(&mut self, who: Who, fd: BorrowedFd<'fd>) {
        self.add(who, fd, PollFlags::POLLOUT);
    }

    fn add(&mut self, who: Who, fd: BorrowedFd<'fd>, flags: PollFlags) {
        self.fds.push(PollFd::new(fd, flags));
        self.whose.push(who);
    }

    /// Waits, and says who is ready. An error or a hang-up counts: the read or write will say which.
    pub(crate) fn wait(mut self, timeout: Option<Duration>) -> io::Result<Vec<Who>> {
        match poll(&mut self.fds, poll_timeout(timeout)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        let both = self.fds.iter().zip(self.whose);
        Ok(both.filter(|(fd, _)| is_ready(fd)).map(|(_, who)| who).collect())
    }
}

/// Rounded up: a poll that returns before the deadline would only be repeated.
fn poll_timeout(timeout: Option<Duration>) -> PollTimeout {
    let Some(timeout) = timeout else { return PollTimeout::NONE };
    let millis = timeout.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_rounded_up_and_may_be_huge() {
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
