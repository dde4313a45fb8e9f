//! [`CrashCheck`]: decides whether the guest ended with the last kernel message on its console.
//!
//! Not every hypervisor reports a reset. The kernel prints a panic or restart message as its last line,
//! if its console still works. A program may print the same text, so a line counts only if
//!
//! 1. it starts with the text, after time stamps and colours at most, which
//!    [`FaultDetector`](super::fault::FaultDetector) recognises; and
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

use super::Scrollback;
use super::fault::CrashMessage;
use super::kernel_log::Timestamp;
use crate::time::{Deadline, Instant};
use core::time::Duration;

/// How long only kernel messages may follow the crash message. After a restart, a shell prompt comes
/// sooner; the first program of a kernel that boots again prints later.
const fn settle_time(crash: ConsoleCrash) -> Duration {
    match crash {
        ConsoleCrash::Panic => Duration::from_secs(5),
        ConsoleCrash::Restart => Duration::from_millis(200),
    }
}

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
    panic_lines: u64,
}

impl CrashCheck {
    /// Takes in what was recognised in the new output. Returns `true` if it contains the text of a
    /// panic, anywhere in a line and followed by anything.
    pub(super) fn observe(&mut self, now: Instant, log: &Scrollback) -> bool {
        let faults = log.faults();
        if faults.crash_message() != self.seen {
            self.seen = faults.crash_message();
            self.settles_at = self.seen.map(|message| now + settle_time(message.crash));
        }
        let before = core::mem::replace(&mut self.panic_lines, faults.panic_lines());
        before != self.panic_lines
    }

    /// When to call [`CrashCheck::poll_crash`].
    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        self.settles_at.map(|at| Deadline { at, why: "a crash message may be confirmed" })
    }

    /// The crash, once, when its message is confirmed to be the last one. Reads the bytes after the
    /// message, once for each message.
    pub(super) fn poll_crash(&mut self, now: Instant, log: &Scrollback) -> Option<ConsoleCrash> {
        self.settles_at.take_if(|at| *at <= now)?;
        let CrashMessage { crash, at } = self.seen?;
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
    Timestamp::parse(line) != Timestamp::No
        || FURTHER_MESSAGES
            .iter()
            .any(|prefix| line.starts_with(prefix) || prefix.starts_with(line))
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
            let (mut log, mut check) = (Scrollback::default(), CrashCheck::default());
            for bytes in text.as_bytes().chunks(chunk) {
                log.push(bytes);
                check.observe(at(0), &log);
                assert_eq!(check.poll_crash(at(199), &log), None, "too early");
            }
            let is_panic = text.contains("panic");
            assert!(!is_panic || check.poll_crash(at(4999), &log).is_none(), "too early");
            let crash = check.poll_crash(at(if is_panic { 5000 } else { 200 }), &log);
            assert_eq!(
                (check.poll_timeout(), check.poll_crash(at(9999), &log)),
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
        let trace = "[    1.600000] CPU: 0 PID: 1\r\n[    1.600000] Call Trace:\r\n";
        for (text, want) in [
            ("[   12.345678] reboot: Restarting system\r\n", Some(Restart)),
            (
                "[   12.345678][    T1] reboot: Restarting system with command 'x'\r\n",
                Some(Restart),
            ),
            ("bye\r\nreboot: Restarting system\r\nreboot: machine restart\r\n", Some(Restart)),
            // The guest boots again.
            (
                "[    9.100000] reboot: Restarting system\r\n[    0.000000] Linux version 6.1",
                Some(Restart),
            ),
            (&format!("[    1.500000] Kernel panic - not syncing: x\r\n{trace}"), Some(Panic)),
            (
                "Kernel panic - not syncing: x\nCPU: 0\n---[ end Kernel panic - not syncing: x ]---\n",
                Some(Panic),
            ),
            (
                "[    1.500000] Kernel panic - not syncing: x\r\n[    1.600000] Rebooting in 10 seconds..",
                Some(Panic),
            ),
            // The same text, printed by a program.
            ("# grep 'reboot: Restarting system' log\r\n", None),
            ("log: [    1.500000] reboot: Restarting system\r\n", None),
            ("[    1.500000] reboot: Restarting system\r\n# ", None),
            ("[    1.500000] reboot: Restarting system\r\n[root@guest ~]# ", None),
            ("[    1.500000] reboot: Restarting system\r\n[1]+  Done    qemu", None),
            (&format!("[    1.500000] Kernel panic - not syncing: x\r\n{trace}$ "), None),
            ("reboot: Power down\r\n", None),
            ("all is well", None),
        ] {
            assert_eq!(detect(text), want, "{text:?}");
        }
    }

    #[test]
    fn crash_output_after_settle_time_is_ignored() {
        let (mut log, mut check) = (Scrollback::default(), CrashCheck::default());
        log.push(b"[    1.500000] reboot: Restarting system\r\n");
        assert!(!check.observe(at(0), &log));
        assert_eq!(check.poll_timeout().unwrap().at, at(200));
        assert_eq!(check.poll_crash(at(200), &log), Some(ConsoleCrash::Restart));
        log.push(b"Welcome!\r\n");
        check.observe(at(300), &log);
        assert_eq!(check.poll_timeout(), None);
    }

    #[test]
    fn crash_scan_reports_panic_anywhere_in_line() {
        let (mut log, mut check) = (Scrollback::new(64), CrashCheck::default());
        log.push(b"it says: Kernel panic - not syncing, it says");
        assert!(check.observe(at(0), &log));
        assert_eq!(check.poll_timeout(), None);
        // Other output pushes the message out of the scrollback before it is confirmed.
        log.push(b"\nreboot: Restarting system\n");
        check.observe(at(0), &log);
        log.push(&[b'x'; 64]);
        assert_eq!(check.poll_crash(at(200), &log), None);
    }
}
