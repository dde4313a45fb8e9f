//! [`FaultDetector`]: recognises guest faults in console output, so that a wait can end before its
//! timeout.
//!
//! Three faults are recognised by their text: a kernel panic, an emergency shell, and a refused
//! login. The text alone is no proof, because a guest may print anything: a fault is confirmed once
//! the console **has been silent for [`SILENCE`]** after it, and dropped when a kernel boots. The wait
//! or script decides what a confirmed fault means for it.
//!
//! The texts are those of Linux 6.1 (`kernel/panic.c`), systemd 252 and util-linux 2.38 (`sulogin`),
//! dracut 059 and initramfs-tools 0.142.

use super::{Cursor, Matcher, PatternMatch, Scrollback, Search};
use crate::time::{Deadline, Instant};
use alloc::string::String;
use core::fmt;
use core::time::Duration;

/// The silence after which a fault is confirmed. A panic prints its trace without a pause, so it is
/// confirmed within a second.
pub(super) const SILENCE: Duration = Duration::from_millis(500);

/// Most bytes of a line that a report contains.
const REPORTED_LINE_MAX: usize = 256;

/// How far after its first line the last line of a panic is searched.
const TRACE_MAX: usize = 32 << 10;

/// The start of a kernel's first message. It invalidates a fault of the kernel before it.
const BOOT: &str = "Linux version ";

/// The start of the last line of a panic, which repeats the text of the first.
const PANIC_END: &[u8] = b"---[ end ";

/// A fault of the guest that its console output shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestFault {
    /// The guest kernel panicked.
    KernelPanic,
    /// The boot failed, and the guest offers an emergency shell or asks for its password.
    EmergencyShell,
    /// The guest refused a login.
    LoginIncorrect,
}

impl fmt::Display for GuestFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KernelPanic => "the guest's kernel panicked",
            Self::EmergencyShell => "the guest is in an emergency shell",
            Self::LoginIncorrect => "the guest refused the login",
        })
    }
}

/// A guest fault, and the line of output that shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultReport {
    /// The fault.
    pub fault: GuestFault,
    /// The line from the recognised text on, at most 256 bytes, as text.
    pub line: String,
}

impl fmt::Display for FaultReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.fault, self.line)
    }
}

const PANIC: &[(&str, GuestFault)] = &[("Kernel panic - not syncing", GuestFault::KernelPanic)];

const ALL: &[(&str, GuestFault)] = &[
    PANIC[0],
    ("You are in emergency mode", GuestFault::EmergencyShell),
    ("Press Enter for maintenance", GuestFault::EmergencyShell),
    ("Give root password for maintenance", GuestFault::EmergencyShell),
    ("Cannot open access to console, the root account is locked", GuestFault::EmergencyShell),
    ("Entering emergency mode", GuestFault::EmergencyShell),
    ("(initramfs) ", GuestFault::EmergencyShell),
    ("Login incorrect", GuestFault::LoginIncorrect),
];

/// Recognises guest faults in console output.
#[derive(Debug, Clone)]
pub(super) struct FaultDetector {
    texts: &'static [(&'static str, GuestFault)],
    /// Matches the texts and, while there is a candidate, [`BOOT`] after them.
    matcher: Matcher,
    search: Search,
    candidate: Option<FaultCandidate>,
    /// The end of the output, and the time of its last change.
    silent: Option<(u64, Instant)>,
}

/// A fault whose text was found at this offset, and which is not confirmed yet.
#[derive(Debug, Clone, Copy)]
struct FaultCandidate {
    fault: GuestFault,
    at: u64,
}

impl FaultDetector {
    /// A detector of kernel panics only, from this offset on.
    pub(super) fn for_panic(from: u64) -> Self {
        Self::new(PANIC, from)
    }

    /// A detector of all faults, from this offset on.
    pub(super) fn for_all(from: u64) -> Self {
        Self::new(ALL, from)
    }

    fn new(texts: &'static [(&'static str, GuestFault)], from: u64) -> Self {
        let matcher = Matcher::new(texts.iter().map(|(text, _)| text));
        Self { texts, matcher, search: Search::from(from), candidate: None, silent: None }
    }

    /// Searches the new output, in linear time.
    pub(super) fn scan(&mut self, now: Instant, log: &Scrollback) {
        if self.silent.is_none_or(|(end, _)| end != log.end()) {
            self.silent = Some((log.end(), now));
        }
        while let Some(found) = self.matcher.find(&mut self.search, log) {
            let had_candidate = self.candidate.is_some();
            self.handle_match(found, log);
            if self.candidate.is_some() != had_candidate {
                let boot = self.candidate.is_some().then_some(BOOT);
                self.matcher = Matcher::new(self.texts.iter().map(|(text, _)| *text).chain(boot));
            }
            self.search = Search::from(found.end);
        }
    }

    /// The fault that was found, confirmed or not.
    pub(super) fn candidate(&self) -> Option<GuestFault> {
        self.candidate.as_ref().map(|candidate| candidate.fault)
    }

    /// The fault that was found, once the guest has been silent for [`SILENCE`].
    pub(super) fn confirmed(&self, now: Instant, log: &Scrollback) -> Option<FaultReport> {
        let deadline = self.confirmed_at()?;
        if now >= deadline.at { self.report(log) } else { None }
    }

    /// A report of the fault that was found, confirmed or not.
    pub(super) fn report(&self, log: &Scrollback) -> Option<FaultReport> {
        let candidate = self.candidate.as_ref()?;
        let line = log.since(candidate.at);
        let line = &line[..line.len().min(REPORTED_LINE_MAX)];
        let line = line.split(|&b| matches!(b, b'\r' | b'\n')).next().unwrap_or_default();
        Some(FaultReport {
            fault: candidate.fault,
            line: String::from_utf8_lossy(line).trim_end().into(),
        })
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
        self.candidate.as_ref()?;
        Some(Deadline { at: self.silent?.1 + SILENCE, why: "a guest fault may be confirmed" })
    }

    /// Whether the panic is complete: a kernel prints a last line too.
    pub(super) fn panic_is_complete(&self, log: &Scrollback) -> bool {
        let Some(FaultCandidate { fault: GuestFault::KernelPanic, at, .. }) = self.candidate else {
            return false;
        };
        let text = log.since(at);
        let text = &text[..text.len().min(TRACE_MAX)];
        [&b"---[ end Kernel panic - not syncing"[..], b"Rebooting in "]
            .iter()
            .any(|words| memchr::memmem::find(text, words).is_some())
    }

    fn handle_match(&mut self, found: PatternMatch, log: &Scrollback) {
        let Some(&(_, fault)) = self.texts.get(found.pattern) else {
            // A kernel boots: the fault of the kernel before it is over.
            self.candidate = None;
            return;
        };
        let is_fault = match fault {
            // The last line of a panic repeats the text.
            GuestFault::KernelPanic => !bytes_before(log, found.start).ends_with(PANIC_END),
            _ => is_line_start(bytes_before(log, found.start)),
        };
        // A panic is not replaced by another fault.
        if is_fault && self.candidate() != Some(GuestFault::KernelPanic) {
            self.candidate = Some(FaultCandidate { fault, at: found.start });
        }
    }
}

/// Up to 32 bytes before this offset, if the scrollback still has them.
pub(super) fn bytes_before(log: &Scrollback, offset: u64) -> &[u8] {
    let bytes = log.since(offset.saturating_sub(32));
    let len = bytes.len() - log.since(offset).len();
    &bytes[..len]
}

/// Whether the text after `before` starts a line, apart from escape sequences.
pub(super) fn is_line_start(mut before: &[u8]) -> bool {
    while let Some(csi) = memchr::memmem::rfind(before, b"\x1b[")
        && before[csi + 2..].iter().all(|b| matches!(b, b' '..=b'?' | b'm' | b'K' | b'J' | b'H'))
    {
        before = &before[..csi];
    }
    matches!(before.last(), None | Some(b'\n'))
}

/// The last guest fault in the unread output, confirmed or not, for the error of a wait. Linear in the
/// unread output.
pub(super) fn last_fault(log: &Scrollback, cursor: &Cursor) -> Option<FaultReport> {
    let mut detector = FaultDetector::for_all(cursor.offset());
    detector.scan(Instant::ZERO, log);
    detector.report(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    /// The confirmed fault in `text`, the same for any chunking.
    fn detect(text: &str) -> Option<(GuestFault, String)> {
        let mut answers = [1, 7, 4096].map(|chunk| {
            let (mut log, mut detector) = (Scrollback::default(), FaultDetector::for_all(0));
            for bytes in text.as_bytes().chunks(chunk) {
                log.push(bytes);
                detector.scan(at(0), &log);
                assert_eq!(detector.confirmed(at(499), &log), None, "too early");
            }
            detector.confirmed(at(500), &log).map(|s| (s.fault, s.line))
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
        let (mut log, mut detector) = (Scrollback::default(), FaultDetector::for_panic(0));
        log.push(b"Kernel panic - not syncing: x\n");
        for n in 0..10 {
            log.push(b"but on it goes\n");
            detector.scan(at(n * 400), &log);
            assert_eq!(detector.confirmed(at(n * 400), &log), None);
            assert_eq!(detector.confirmed_at().unwrap().at, at(n * 400 + 500));
        }
        assert!(!detector.panic_is_complete(&log));
        log.push(b"---[ end Kernel panic - not syncing: x ]---\n");
        assert!(detector.panic_is_complete(&log));
    }
}
