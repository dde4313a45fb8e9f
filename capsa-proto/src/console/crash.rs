//! [`CrashDetector`]: that a guest fell, as its kernel says on the console.
//!
//! Not every hypervisor tells of a reset. The kernel does, unless its console was taken away before:
//! its last line is of a panic or of a restart. The same text may come from a file that somebody
//! prints, so a line counts only if
//!
//! 1. it begins with the words, after time stamps and colours at most; and
//! 2. for [`SETTLE`] after it nothing comes but more of the kernel's own lines: those with a time
//!    stamp, and those in which it says the same once more.
//!
//! A guest that prints such a line and then nothing is taken at its word. That is all it can gain: it
//! could have powered off as well. The words are those of Linux 6.1 (`kernel/panic.c`,
//! `kernel/reboot.c`).
//!
//! A panic comes through to the end on any console. The words of a restart come after
//! `device_shutdown`, and Linux 6.15 takes a virtio console away there (`virtio_dev_shutdown`); stable
//! kernels took that over, Debian's 6.1.192 among them. Such a restart is not heard.

use super::fault::{before, begins_line};
use super::{Matcher, Scrollback, Search};
use crate::time::{Deadline, Instant};
use core::time::Duration;

/// How long only the kernel may go on speaking after its last words. A shell's prompt comes sooner; a
/// kernel that boots again is at its first program later.
const SETTLE: Duration = Duration::from_millis(200);

/// What a kernel says last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleCrash {
    /// It panicked.
    Panic,
    /// It restarts the machine.
    Restart,
}

/// The words. Of two that end together the first counts, which is the one that begins its line.
const WORDS: &[(&str, ConsoleCrash)] = &[
    ("---[ end Kernel panic - not syncing", ConsoleCrash::Panic),
    ("Kernel panic - not syncing", ConsoleCrash::Panic),
    ("reboot: Restarting system", ConsoleCrash::Restart),
];

/// What lines without a time stamp begin with that a kernel says after such words.
const MORE: &[&[u8]] = &[b"reboot: ", b"---[ end Kernel panic", b"Rebooting in "];

/// Hears the last words of a guest's kernel.
#[derive(Debug, Clone)]
pub struct CrashDetector {
    matcher: Matcher,
    search: Search,
    heard: Option<Candidate>,
}

/// Words that may be the last.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    word: ConsoleCrash,
    at: u64,
    settles: Instant,
}

impl Default for CrashDetector {
    fn default() -> Self {
        let matcher = Matcher::new(WORDS.iter().map(|(words, _)| words));
        Self { matcher, search: Search::from(0), heard: None }
    }
}

impl CrashDetector {
    /// Takes in what is new, with work linear in that. `true` when the words of a panic were among it,
    /// wherever in a line and whatever came behind.
    pub fn scan(&mut self, now: Instant, log: &Scrollback) -> bool {
        let mut panic = false;
        while let Some(hit) = self.matcher.find(&mut self.search, log) {
            self.search = Search::from(hit.end);
            let (_, word) = WORDS[hit.pattern];
            panic |= word == ConsoleCrash::Panic;
            if begins_line(without_stamps(before(log, hit.start))) {
                self.heard = Some(Candidate { word, at: hit.start, settles: now + SETTLE });
            }
        }
        panic
    }

    /// When [`CrashDetector::poll_crash`] is to be asked.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let heard = self.heard.as_ref()?;
        Some(Deadline { at: heard.settles, why: "the kernel may have said its last words" })
    }

    /// The kernel's last words, once, when they have turned out to be that.
    pub fn poll_crash(&mut self, now: Instant, log: &Scrollback) -> Option<ConsoleCrash> {
        let Candidate { word, at, .. } = self.heard.take_if(|heard| heard.settles <= now)?;
        // Words that were dropped meanwhile were followed by a flood.
        let is_last = at >= log.start() && log.since(at).split(is_end).skip(1).all(is_kernels);
        is_last.then_some(word)
    }
}

fn is_end(byte: &u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

/// Whether a line, or as much of it as there is, is a kernel's.
fn is_kernels(line: &[u8]) -> bool {
    is_stamped(line) || MORE.iter().any(|more| line.starts_with(more) || more.starts_with(line))
}

/// Whether it begins with a time stamp: `[    1.234567]`.
fn is_stamped(line: &[u8]) -> bool {
    let Some(line) = line.strip_prefix(b"[") else { return false };
    let len = line.iter().take_while(|byte| matches!(byte, b' ' | b'.' | b'0'..=b'9')).count();
    line.len() == len || line[len] == b']' && line[..len].contains(&b'.')
}

/// The beginning of a line up to some words, without what a kernel puts before them: a time stamp,
/// and in some the number of a thread, `[    1.234567][    T1] `.
fn without_stamps(mut before: &[u8]) -> &[u8] {
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

    /// What counts in the end, however the text was cut.
    fn heard(text: &str) -> Option<ConsoleCrash> {
        let answers = [1, 7, 4096].map(|chunk| {
            let (mut log, mut words) = (Scrollback::default(), CrashDetector::default());
            for bytes in text.as_bytes().chunks(chunk) {
                log.push(bytes);
                words.scan(at(0), &log);
                assert_eq!(words.poll_crash(at(199), &log), None, "too early");
            }
            let word = words.poll_crash(at(200), &log);
            assert_eq!(
                (words.poll_timeout(), words.poll_crash(at(999), &log)),
                (None, None),
                "once"
            );
            word
        });
        assert!(answers.iter().all(|other| *other == answers[0]), "chunking made a difference");
        answers[0]
    }

    #[test]
    fn a_kernel_is_taken_at_its_last_word() {
        use ConsoleCrash::{Panic, Restart};
        let trace = "[    1.6] CPU: 0 PID: 1\r\n[    1.6] Call Trace:\r\n";
        for (text, want) in [
            ("[   12.345678] reboot: Restarting system\r\n", Some(Restart)),
            (
                "[   12.345678][    T1] reboot: Restarting system with command 'x'\r\n",
                Some(Restart),
            ),
            ("bye\r\nreboot: Restarting system\r\nreboot: machine restart\r\n", Some(Restart)),
            // Its next life has begun.
            ("[9.1] reboot: Restarting system\r\n[    0.000000] Linux version 6.1", Some(Restart)),
            (&format!("[    1.5] Kernel panic - not syncing: x\r\n{trace}"), Some(Panic)),
            (
                "Kernel panic - not syncing: x\nCPU: 0\n---[ end Kernel panic - not syncing: x ]---\n",
                Some(Panic),
            ),
            ("[1.5] Kernel panic - not syncing: x\r\n[1.6] Rebooting in 10 seconds..", Some(Panic)),
            // Somebody's text.
            ("# grep 'reboot: Restarting system' log\r\n", None),
            ("log: [    1.5] reboot: Restarting system\r\n", None),
            ("[    1.5] reboot: Restarting system\r\n# ", None),
            ("[    1.5] reboot: Restarting system\r\n[root@guest ~]# ", None),
            ("[    1.5] reboot: Restarting system\r\n[1]+  Done    qemu", None),
            (&format!("[    1.5] Kernel panic - not syncing: x\r\n{trace}$ "), None),
            ("reboot: Power down\r\n", None),
            ("all is well", None),
        ] {
            assert_eq!(heard(text), want, "{text:?}");
        }
    }

    #[test]
    fn whatever_comes_late_comes_from_the_next_life() {
        let (mut log, mut words) = (Scrollback::default(), CrashDetector::default());
        log.push(b"[    1.5] reboot: Restarting system\r\n");
        assert!(!words.scan(at(0), &log));
        assert_eq!(words.poll_timeout().unwrap().at, at(200));
        assert_eq!(words.poll_crash(at(200), &log), Some(ConsoleCrash::Restart));
        log.push(b"Welcome!\r\n");
        words.scan(at(300), &log);
        assert_eq!(words.poll_timeout(), None);
    }

    #[test]
    fn a_panic_is_told_wherever_it_stands() {
        let (mut log, mut words) = (Scrollback::new(64), CrashDetector::default());
        log.push(b"it says: Kernel panic - not syncing, it says");
        assert!(words.scan(at(0), &log));
        assert_eq!(words.poll_timeout(), None);
        // A flood took the words away before they could settle.
        log.push(b"\nreboot: Restarting system\n");
        words.scan(at(0), &log);
        log.push(&[b'x'; 64]);
        assert_eq!(words.poll_crash(at(200), &log), None);
    }
}
