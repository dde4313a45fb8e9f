//! Whether the guest has ended, or a wait is in vain: the checks of faults and crashes.
//!
//! The scrollback's [`FaultDetector`](super::fault::FaultDetector) recognises texts; a check compares
//! offsets, and searches nothing. A text alone is no proof, because a guest may print anything. So both
//! checks look at what follows it.
//!
//! # Faults
//!
//! A [`FaultCheck`] belongs to one wait or script. A fault is confirmed once the console **has been
//! silent for [`SILENCE`]** after it, and dropped when a kernel boots. The wait or script decides what a
//! confirmed fault means for it.
//!
//! # Crashes
//!
//! A [`CrashCheck`] belongs to one console, and decides for the VM whether the guest ended with the last
//! kernel message. Not every hypervisor reports a reset. The kernel prints a panic or restart message as
//! its last line, if its console still works. A line counts only if
//!
//! 1. it starts with the text, after time stamps and colours at most; and
//! 2. within [`settle_time`] after it, only kernel messages follow: lines with a time stamp, and lines
//!    that repeat the message.
//!
//! A guest that prints such a line and then nothing is considered crashed. This gives an untrusted
//! guest nothing: it could also power off. A kernel that panicked stays silent, so that check takes its
//! time: a program that quotes a panic and pauses does not end its VM. One that restarts boots again
//! soon.
//!
//! The message of a panic reaches any console. The message of a restart comes after
//! `device_shutdown`, where Linux 6.15 disables virtio consoles (`virtio_dev_shutdown`); stable kernels
//! have this too, among them Debian's 6.1.192. Such a restart is not recognised.

use super::fault::{CrashMessage, DetectedFault, PanicText};
use super::kernel_log::Timestamp;
use super::{Cursor, FaultReport, GuestFault, Scrollback};
use crate::time::{Deadline, Instant};
use alloc::string::String;
use core::time::Duration;

/// The silence after which a fault is confirmed. A panic prints its trace without a pause, so it is
/// confirmed within a second.
pub(super) const SILENCE: Duration = Duration::from_millis(500);

/// Most bytes of a line that a report contains.
const REPORTED_LINE_MAX: usize = 256;

/// The check of one wait.
#[derive(Debug, Clone)]
pub(super) struct FaultCheck {
    /// Faults before this offset do not count.
    from: u64,
    only_panics: bool,
    candidate: Option<DetectedFault>,
    /// The end of the output, and the time of its last change.
    silent: Option<(u64, Instant)>,
}

impl FaultCheck {
    /// A check for kernel panics only, in the output that is kept from this offset on.
    pub(super) fn for_panic(log: &Scrollback, from: u64) -> Self {
        Self { only_panics: true, ..Self::for_all(log, from) }
    }

    /// A check for all faults, in the output that is kept from this offset on.
    pub(super) fn for_all(log: &Scrollback, from: u64) -> Self {
        // A fault in output that was dropped before the wait began is not part of what it reads.
        let from = from.max(log.start());
        Self { from, only_panics: false, candidate: None, silent: None }
    }

    /// Takes in what was recognised in the new output.
    pub(super) fn observe(&mut self, now: Instant, log: &Scrollback) {
        if self.silent.is_none_or(|(end, _)| end != log.end()) {
            self.silent = Some((log.end(), now));
        }
        self.candidate = if self.only_panics {
            log.faults().panic_since(self.from)
        } else {
            log.faults().fault_since(self.from)
        };
    }

    /// The fault that was found, confirmed or not.
    pub(super) fn candidate(&self) -> Option<GuestFault> {
        self.candidate.map(|candidate| candidate.fault)
    }

    /// The fault that was found, once the guest has been silent for [`SILENCE`].
    pub(super) fn confirmed(&self, now: Instant, log: &Scrollback) -> Option<FaultReport> {
        let deadline = self.confirmed_at()?;
        if now >= deadline.at { self.report(log) } else { None }
    }

    /// A report of the fault that was found, confirmed or not.
    pub(super) fn report(&self, log: &Scrollback) -> Option<FaultReport> {
        let DetectedFault { fault, at, text, .. } = self.candidate?;
        // Of a line that was dropped meanwhile only the recognised text is known.
        let line = if at < log.start() { text.as_bytes() } else { log.since(at) };
        let line = &line[..line.len().min(REPORTED_LINE_MAX)];
        let line = line.split(|&b| matches!(b, b'\r' | b'\n')).next().unwrap_or_default();
        Some(FaultReport { fault, line: String::from_utf8_lossy(line).trim_end().into() })
    }

    /// The fault that was found, as an explanation of the end of the VM.
    pub(super) fn at_end(&self, log: &Scrollback) -> Option<FaultReport> {
        let is_refuted = log.faults().ended_without_panic();
        self.report(log).filter(|report| report.fault != GuestFault::KernelPanic || !is_refuted)
    }

    /// The time since which the guest has printed nothing.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        self.silent.map(|(_, since)| since)
    }

    /// Restarts the silence. Called while output is not read: then silence proves nothing.
    pub(super) fn restart_silence(&mut self) {
        self.silent = None;
    }

    /// When the fault is confirmed, if the guest prints nothing more.
    pub(super) fn confirmed_at(&self) -> Option<Deadline> {
        self.candidate?;
        Some(Deadline { at: self.silent?.1 + SILENCE, why: "a guest fault may be confirmed" })
    }

    /// Whether the fault is a panic that is complete: a kernel prints a last line too.
    pub(super) fn panic_is_complete(&self) -> bool {
        self.candidate.is_some_and(|candidate| candidate.is_complete)
    }
}

/// The last guest fault in the unread output, confirmed or not, for the error of a wait.
pub(super) fn last_fault(log: &Scrollback, cursor: &Cursor) -> Option<FaultReport> {
    let mut check = FaultCheck::for_all(log, cursor.offset());
    check.observe(Instant::ZERO, log);
    check.report(log)
}

/// How long only kernel messages may follow the crash message. After a restart, a shell prompt comes
/// sooner; the first program of a kernel that boots again prints later.
const fn settle_time(crash: ConsoleCrash) -> Duration {
    match crash {
        ConsoleCrash::Panic => Duration::from_secs(5),
        ConsoleCrash::Restart => Duration::from_millis(200),
    }
}

/// How much longer the console is silent before a panic counts while the output of a command is read: the
/// command may have printed the text and be silent, and its own end tells.
const COMMAND_SETTLE_TIME: Duration = Duration::from_secs(55);

/// Prefixes of lines without a time stamp that a kernel prints after such a message.
const FURTHER_MESSAGES: &[&[u8]] = &[b"reboot: ", b"---[ end Kernel panic", b"Rebooting in "];

/// How the guest kernel ended, according to its console output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleCrash {
    /// The kernel panicked.
    Panic,
    /// The kernel restarts the VM.
    Restart,
}

/// The check of one console.
#[derive(Debug, Clone, Default)]
pub(super) struct CrashCheck {
    /// The last crash message that was observed.
    seen: Option<CrashMessage>,
    /// When `seen` settles, until it is decided.
    settles_at: Option<Instant>,
    panic_text: Option<PanicText>,
}

impl CrashCheck {
    /// Takes in what was recognised in the new output. Returns `true` if it contains the text of a
    /// panic, anywhere in a line and followed by anything, and `false` if it contains a text that a
    /// kernel prints only if it did not panic. The last one counts.
    pub(super) fn observe(&mut self, now: Instant, log: &Scrollback) -> Option<bool> {
        let faults = log.faults();
        if faults.crash_message() != self.seen {
            self.seen = faults.crash_message();
            self.settles_at = self.seen.map(|message| now + settle_time(message.crash));
        }
        let before = core::mem::replace(&mut self.panic_text, faults.panic_text());
        self.panic_text.filter(|_| before != self.panic_text).map(|text| text.is_panic)
    }

    /// When to call [`CrashCheck::poll_crash`].
    pub(super) fn poll_timeout(&self, in_command: bool) -> Option<Deadline> {
        let at = self.settles_at? + self.delay(in_command);
        Some(Deadline { at, why: "a crash message may be confirmed" })
    }

    /// The crash, once, when its message is confirmed to be the last one. Reads the bytes after the
    /// message, once for each message.
    pub(super) fn poll_crash(
        &mut self,
        now: Instant,
        log: &Scrollback,
        in_command: bool,
    ) -> Option<ConsoleCrash> {
        let delay = self.delay(in_command);
        self.settles_at.take_if(|at| *at + delay <= now)?;
        let CrashMessage { crash, at } = self.seen?;
        // If the message was dropped meanwhile, much other output followed it.
        let is_last =
            at >= log.start() && log.since(at).split(is_line_end).skip(1).all(is_kernel_line);
        is_last.then_some(crash)
    }

    fn delay(&self, in_command: bool) -> Duration {
        let is_panic = self.seen.is_some_and(|message| message.crash == ConsoleCrash::Panic);
        if in_command && is_panic { COMMAND_SETTLE_TIME } else { Duration::ZERO }
    }
}

fn is_line_end(byte: &u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

/// Whether a line, possibly incomplete, is a kernel message.
fn is_kernel_line(line: &[u8]) -> bool {
    Timestamp::parse(line) != Timestamp::No
        || FURTHER_MESSAGES
            .iter()
            .any(|prefix| line.starts_with(prefix) || prefix.starts_with(line))
}

#[cfg(test)]
mod tests;
