//! Signals as requests that are read: the descriptor is readable when a signal has come.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// What a signal asks this program to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalRequest {
    /// Stop, with this signal's number in the exit code.
    Stop(u8),
    /// Stop without asking the guest to power off.
    Kill(u8),
    /// Suspend this program. The guest keeps running.
    Suspend,
    /// This program was resumed, or is in the foreground now.
    Resume,
    /// The terminal has another size.
    Resize,
}

/// The signals that have come and are not taken yet.
#[derive(Debug)]
pub(crate) struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
}

impl Signals {
    /// Handles signals until the program exits. Signals that were ignored at its start, as under
    /// `nohup`, stay ignored.
    pub(crate) fn install() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        let ignored = ignored();
        let handled = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT, SIGWINCH]
            .into_iter()
            .filter(|signal| ignored & (1 << (signal - 1)) == 0);
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, handled)?;
        Ok(Self { delivery })
    }

    /// Takes the signals that have come.
    pub(crate) fn take(&mut self) -> Vec<SignalRequest> {
        let request = |signal| match signal {
            SIGTSTP => SignalRequest::Suspend,
            SIGCONT => SignalRequest::Resume,
            SIGWINCH => SignalRequest::Resize,
            SIGQUIT => SignalRequest::Kill(number(signal)),
            _ => SignalRequest::Stop(number(signal)),
        };
        self.delivery.pending().map(request).collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }
}

fn number(signal: i32) -> u8 {
    u8::try_from(signal).expect("the handled signals have numbers below 32")
}

/// The signals that are ignored, one bit each, from `/proc/self/status`, because sigaction(2) needs
/// unsafe code. Without that file no signal counts as ignored.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
