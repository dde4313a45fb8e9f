//! [`FaultCheck`]: whether a guest fault has ended the output that one wait or script reads.
//!
//! The scrollback's detector recognises the text of a fault; a check compares offsets, and searches
//! nothing. The text alone is no proof, because a guest may print anything: a fault is confirmed once
//! the console **has been silent for [`SILENCE`]** after it, and dropped when a kernel boots. The wait
//! or script decides what a confirmed fault means for it.

use super::fault::DetectedFault;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    fn check(from: u64) -> FaultCheck {
        FaultCheck::for_all(&Scrollback::default(), from)
    }

    /// The confirmed fault in `text`, the same for any chunking.
    fn detect(text: &str) -> Option<(GuestFault, String)> {
        let mut answers = [1, 7, 4096].map(|chunk| {
            let (mut log, mut check) = (Scrollback::default(), check(0));
            for bytes in text.as_bytes().chunks(chunk) {
                log.push(bytes);
                check.observe(at(0), &log);
                assert_eq!(check.confirmed(at(499), &log), None, "too early");
            }
            check.confirmed(at(500), &log).map(|s| (s.fault, s.line))
        });
        let [first, rest @ ..] = &mut answers;
        assert!(rest.iter().all(|other| other == first), "chunking made a difference");
        first.take()
    }

    #[test]
    fn fault_texts_at_line_start_are_recognised() {
        for (text, expected) in [
            (
                "[    1.5] Kernel panic - not syncing: VFS: no root\r\n[    1.6] CPU: 0\r\n",
                Some((GuestFault::KernelPanic, "Kernel panic - not syncing: VFS: no root")),
            ),
            (
                "\r\nYou are in emergency mode. After logging in, type \"journalctl -xb\"\r\n",
                Some((
                    GuestFault::EmergencyShell,
                    "You are in emergency mode. After logging in, type \"journalctl -xb\"",
                )),
            ),
            (
                "x\r\n\x1b[0m\x1b[1;31mGive root password for maintenance\r\n",
                Some((GuestFault::EmergencyShell, "Give root password for maintenance")),
            ),
            ("\r\n(initramfs) ", Some((GuestFault::EmergencyShell, "(initramfs)"))),
            ("\r\nLogin incorrect\r\n", Some((GuestFault::LoginIncorrect, "Login incorrect"))),
            // In the middle of a line it is not a fault.
            ("# grep 'Login incorrect' log\r\n", None),
            ("---[ end Kernel panic - not syncing: x ]---\r\n", None),
            ("Kernel panic - not syncing: x\r\n[    0.000000] Linux version 6.1\r\n", None),
            ("all is well", None),
        ] {
            let expected = expected.map(|(fault, line)| (fault, String::from(line)));
            assert_eq!(detect(text), expected, "{text:?}");
        }
    }

    #[test]
    fn fault_guest_keeps_printing_is_not_confirmed() {
        let (mut log, mut check) = (Scrollback::default(), check(0));
        log.push(b"Kernel panic - not syncing: x\n");
        for n in 0..10 {
            log.push(b"but on it goes\n");
            check.observe(at(n * 400), &log);
            assert_eq!(check.confirmed(at(n * 400), &log), None);
            assert_eq!(check.confirmed_at().unwrap().at, at(n * 400 + 500));
        }
        assert!(!check.panic_is_complete());
        log.push(b"---[ end Kernel panic - not syncing: x ]---\n");
        check.observe(at(4000), &log);
        assert!(check.panic_is_complete());
    }

    #[test]
    fn fault_dropped_before_the_wait_does_not_count() {
        let mut log = Scrollback::new(256);
        let mut early = check(0);
        log.push(b"Kernel panic - not syncing: dropped\n");
        early.observe(at(0), &log);
        log.push(&[b'x'; 256]);
        early.observe(at(0), &log);
        // The reader is behind the dropped output.
        let mut late = check(0);
        late = FaultCheck { from: log.start(), ..late };
        late.observe(at(0), &log);
        assert_eq!(late.candidate(), None);
        assert_eq!(last_fault(&log, &Cursor::at(0)), None);
        let line = early.report(&log).map(|report| report.line);
        assert_eq!(line.as_deref(), Some("Kernel panic - not syncing"), "its line is gone");
    }

    #[test]
    fn fault_check_in_the_past_counts_kept_faults() {
        let mut log = Scrollback::default();
        log.push(b"Kernel panic - not syncing: first\nKernel panic - not syncing: second\n");
        for (from, line) in [(0, Some("first")), (1, Some("second")), (35, None)] {
            let mut check = FaultCheck::for_panic(&log, from);
            check.observe(at(0), &log);
            assert_eq!(check.confirmed(at(499), &log), None, "silence counts from the wait on");
            let found = check.confirmed(at(500), &log).map(|report| report.line);
            let line = line.map(|line| alloc::format!("Kernel panic - not syncing: {line}"));
            assert_eq!(found, line, "from {from}");
        }
    }
}
