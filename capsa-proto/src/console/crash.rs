//! [`CrashDetector`]: recognises kernel panics and restarts in console output.
//!
//! Not every hypervisor reports a reset. The kernel prints a panic or restart message as its last line,
//! if its console still works. A program may print the same text, so a line counts only if
//!
//! 1. it starts with the text, after time stamps and colours at most; and
//! 2. within [`SETTLE_TIME`] after it, only kernel messages follow: lines with a time stamp, and lines
//!    that repeat the message.
//!
//! A guest that prints such a line and then nothing is considered crashed. This gives an untrusted
//! guest nothing: it could also power off. The texts are those of Linux 6.1 (`kernel/panic.c`,
//! `kernel/reboot.c`).
//!
//! The message of a panic reaches any console. The message of a restart comes after
//! `device_shutdown`, where Linux 6.15 disables virtio consoles (`virtio_dev_shutdown`); stable kernels
//! have this too, among them Debian's 6.1.192. Such a restart is not recognised.

use super::fault::{bytes_before, is_line_start};
use super::{Matcher, Scrollback, Search};
use crate::time::{Deadline, Instant};
use core::time::Duration;

/// How long only kernel messages may follow the crash message. A shell prompt comes sooner; the first
/// program of a kernel that boots again prints later.
const SETTLE_TIME: Duration = Duration::from_millis(200);

/// How the guest kernel ended, according to its console output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleCrash {
    /// The kernel panicked.
    Panic,
    /// The kernel restarts the VM.
    Restart,
}

/// The messages. If two end at the same offset, the first one wins: it is the one that starts its
/// line.
const MESSAGES: &[(&str, ConsoleCrash)] = &[
    ("---[ end Kernel panic - not syncing", ConsoleCrash::Panic),
    ("Kernel panic - not syncing", ConsoleCrash::Panic),
    ("reboot: Restarting system", ConsoleCrash::Restart),
];

/// Prefixes of lines without a time stamp that a kernel prints after such a message.
const FURTHER_MESSAGES: &[&[u8]] = &[b"reboot: ", b"---[ end Kernel panic", b"Rebooting in "];

/// Recognises kernel panics and restarts in console output.
#[derive(Debug, Clone)]
pub struct CrashDetector {
    matcher: Matcher,
    search: Search,
    candidate: Option<CrashCandidate>,
}

/// A message that may be the last one.
#[derive(Debug, Clone, Copy)]
struct CrashCandidate {
    crash: ConsoleCrash,
    at: u64,
    settles_at: Instant,
}

impl Default for CrashDetector {
    fn default() -> Self {
        let matcher = Matcher::new(MESSAGES.iter().map(|(text, _)| text));
        Self { matcher, search: Search::from(0), candidate: None }
    }
}

impl CrashDetector {
    /// Searches the new output, in linear time. Returns `true` if it contains the text of a panic,
    /// anywhere in a line and followed by anything.
    pub fn scan(&mut self, now: Instant, log: &Scrollback) -> bool {
        let mut panic = false;
        while let Some(found) = self.matcher.find(&mut self.search, log) {
            self.search = Search::from(found.end);
            let (_, crash) = MESSAGES[found.pattern];
            panic |= crash == ConsoleCrash::Panic;
            if is_line_start(without_timestamps(bytes_before(log, found.start))) {
                self.candidate =
                    Some(CrashCandidate { crash, at: found.start, settles_at: now + SETTLE_TIME });
            }
        }
        panic
    }

    /// When to call [`CrashDetector::poll_crash`].
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let candidate = self.candidate.as_ref()?;
        Some(Deadline { at: candidate.settles_at, why: "a crash message may be confirmed" })
    }

    /// The crash, once, when its message is confirmed to be the last one.
    pub fn poll_crash(&mut self, now: Instant, log: &Scrollback) -> Option<ConsoleCrash> {
        let CrashCandidate { crash, at, .. } =
            self.candidate.take_if(|candidate| candidate.settles_at <= now)?;
        // If the message was dropped meanwhile, much other output followed it.
        let is_last =
            at >= log.start() && log.since(at).split(is_line_end).skip(1).all(is_kernel_line);
        is_last.then_some(crash)
    }
}

fn is_line_end(byte: &u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

/// Whether a line, possibly incomplete, is a kernel message.
fn is_kernel_line(line: &[u8]) -> bool {
    has_timestamp(line)
        || FURTHER_MESSAGES
            .iter()
            .any(|prefix| line.starts_with(prefix) || prefix.starts_with(line))
}

/// Whether a line starts with a time stamp: `[    1.234567]`.
fn has_timestamp(line: &[u8]) -> bool {
    let Some(line) = line.strip_prefix(b"[") else { return false };
    let len = line.iter().take_while(|byte| matches!(byte, b' ' | b'.' | b'0'..=b'9')).count();
    line.len() == len || line[len] == b']' && line[..len].contains(&b'.')
}

/// Removes a kernel's prefix from the end of `before`: a time stamp and, on some kernels, the number of
/// a thread, as in `[    1.234567][    T1] `.
fn without_timestamps(mut before: &[u8]) -> &[u8] {
    let is_inside = |byte: &u8| matches!(byte, b' ' | b'.' | b'T' | b'C' | b'0'..=b'9');
    while let Some(inside) = before.strip_suffix(b"] ").or(before.strip_suffix(b"]"))
        && let Some(bracket) = inside.iter().rposition(|byte| *byte == b'[')
        && inside[bracket + 1..].iter().all(is_inside)
    {
        before = &before[..bracket];
    }
    before
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    /// The crash in `text`, the same for any chunking.
    fn detect(text: &str) -> Option<ConsoleCrash> {
        let answers = [1, 7, 4096].map(|chunk| {
            let (mut log, mut detector) = (Scrollback::default(), CrashDetector::default());
            for bytes in text.as_bytes().chunks(chunk) {
                log.push(bytes);
                detector.scan(at(0), &log);
                assert_eq!(detector.poll_crash(at(199), &log), None, "too early");
            }
            let crash = detector.poll_crash(at(200), &log);
            assert_eq!(
                (detector.poll_timeout(), detector.poll_crash(at(999), &log)),
                (None, None),
                "once"
            );
            crash
        });
        assert!(answers.iter().all(|other| *other == answers[0]), "chunking made a difference");
        answers[0]
    }

    #[test]
    fn crash_message_as_last_line_is_recognised() {
        use ConsoleCrash::{Panic, Restart};
        let trace = "[    1.6] CPU: 0 PID: 1\r\n[    1.6] Call Trace:\r\n";
        for (text, want) in [
            ("[   12.345678] reboot: Restarting system\r\n", Some(Restart)),
            (
                "[   12.345678][    T1] reboot: Restarting system with command 'x'\r\n",
                Some(Restart),
            ),
            ("bye\r\nreboot: Restarting system\r\nreboot: machine restart\r\n", Some(Restart)),
            // The guest boots again.
            ("[9.1] reboot: Restarting system\r\n[    0.000000] Linux version 6.1", Some(Restart)),
            (&format!("[    1.5] Kernel panic - not syncing: x\r\n{trace}"), Some(Panic)),
            (
                "Kernel panic - not syncing: x\nCPU: 0\n---[ end Kernel panic - not syncing: x ]---\n",
                Some(Panic),
            ),
            ("[1.5] Kernel panic - not syncing: x\r\n[1.6] Rebooting in 10 seconds..", Some(Panic)),
            // The same text, printed by a program.
            ("# grep 'reboot: Restarting system' log\r\n", None),
            ("log: [    1.5] reboot: Restarting system\r\n", None),
            ("[    1.5] reboot: Restarting system\r\n# ", None),
            ("[    1.5] reboot: Restarting system\r\n[root@guest ~]# ", None),
            ("[    1.5] reboot: Restarting system\r\n[1]+  Done    qemu", None),
            (&format!("[    1.5] Kernel panic - not syncing: x\r\n{trace}$ "), None),
            ("reboot: Power down\r\n", None),
            ("all is well", None),
        ] {
            assert_eq!(detect(text), want, "{text:?}");
        }
    }

    #[test]
    fn crash_output_after_settle_time_is_ignored() {
        let (mut log, mut detector) = (Scrollback::default(), CrashDetector::default());
        log.push(b"[    1.5] reboot: Restarting system\r\n");
        assert!(!detector.scan(at(0), &log));
        assert_eq!(detector.poll_timeout().unwrap().at, at(200));
        assert_eq!(detector.poll_crash(at(200), &log), Some(ConsoleCrash::Restart));
        log.push(b"Welcome!\r\n");
        detector.scan(at(300), &log);
        assert_eq!(detector.poll_timeout(), None);
    }

    #[test]
    fn crash_scan_reports_panic_anywhere_in_line() {
        let (mut log, mut detector) = (Scrollback::new(64), CrashDetector::default());
        log.push(b"it says: Kernel panic - not syncing, it says");
        assert!(detector.scan(at(0), &log));
        assert_eq!(detector.poll_timeout(), None);
        // Other output pushes the message out of the scrollback before it is confirmed.
        log.push(b"\nreboot: Restarting system\n");
        detector.scan(at(0), &log);
        log.push(&[b'x'; 64]);
        assert_eq!(detector.poll_crash(at(200), &log), None);
    }
}
