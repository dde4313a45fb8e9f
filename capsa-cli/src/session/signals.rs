//! Signals as something to read: a descriptor that is readable when one has come.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// What a signal wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// An end; the signal's number is in the exit code.
    End(u8),
    /// An end without asking the guest.
    Kill(u8),
    /// A pause of this program. The guest goes on.
    Suspend,
    /// The pause is over, or this program is in the foreground now.
    Resume,
}

/// The signals that have come since they were last taken.
#[derive(Debug)]
pub(crate) struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
}

impl Signals {
    /// Handles signals from now on, for good. Those that this program was started to ignore, as by
    /// `nohup`, stay ignored.
    pub(crate) fn install() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        let ignored = ignored();
        let wanted = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT]
            .into_iter()
            .filter(|signal| ignored & (1 << (signal - 1)) == 0);
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, wanted)?;
        Ok(Self { delivery })
    }

    /// Takes what has come.
    pub(crate) fn take(&mut self) -> Vec<Wish> {
        let wish = |signal| match signal {
            SIGTSTP => Wish::Suspend,
            SIGCONT => Wish::Resume,
            SIGQUIT => Wish::Kill(number(signal)),
            _ => Wish::End(number(signal)),
        };
        self.delivery.pending().map(wish).collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }
}

fn number(signal: i32) -> u8 {
    u8::try_from(signal).expect("the signals above have small numbers")
}

/// The signals ignored at the start, one bit each. Asking without setting takes an unsafe call, so
/// it is the kernel's own account that is read; where there is none, none is taken for ignored.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
