//! [`FaultDetector`]: what a guest says when it has given up, so that nobody waits for it to the timeout.
//!
//! Three troubles are known by their words: a kernel panic, an emergency shell, and a login that was
//! refused. Words alone prove nothing, for a guest may print any text: a sighting counts once the
//! console **has been silent for [`SILENCE`]** after it, and is forgotten when a kernel boots again.
//! What a wait makes of it is the wait's business.
//!
//! The words are those of Linux 6.1 (`kernel/panic.c`), systemd 252 and util-linux 2.38 (`sulogin`),
//! dracut 059 and initramfs-tools 0.142.

use super::{Cursor, Matcher, PatternMatch, Scrollback, Search};
use crate::time::{Deadline, Instant};
use alloc::string::String;
use core::fmt;
use core::time::Duration;

/// How long a guest has said nothing more when a sighting counts. A panic prints its trace without
/// a pause; the whole is recognised within a second.
pub(super) const SILENCE: Duration = Duration::from_millis(500);

/// The most of a line that a sighting carries.
const LINE: usize = 256;

/// How far after its first words the last line of a panic is looked for.
const TRACE: usize = 32 << 10;

/// A kernel's first words. They end what the one before it said.
const BOOT: &str = "Linux version ";

/// What the last line of a panic begins with, before it says the words again.
const PANIC_END: &[u8] = b"---[ end ";

/// In what trouble a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestFault {
    /// Its kernel panicked.
    KernelPanic,
    /// It did not boot through and offers a shell for repair, or would if it had a password for it.
    EmergencyShell,
    /// It refused a login.
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

/// A trouble that was seen, and the line that told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultReport {
    /// What it is.
    pub fault: GuestFault,
    /// The line from the telling words on, 256 bytes at most, as text.
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

/// Looks out for trouble in what a guest says.
#[derive(Debug, Clone)]
pub(super) struct FaultDetector {
    words: &'static [(&'static str, GuestFault)],
    /// The words, and with something seen those of a new boot after them.
    matcher: Matcher,
    search: Search,
    seen: Option<FaultCandidate>,
    /// How much there was, and since when.
    silent: Option<(u64, Instant)>,
}

/// The words that were seen, and where.
#[derive(Debug, Clone, Copy)]
struct FaultCandidate {
    fault: GuestFault,
    at: u64,
}

impl FaultDetector {
    /// A watch for panics alone, from this offset on.
    pub(super) fn for_panic(from: u64) -> Self {
        Self::new(PANIC, from)
    }

    /// A watch for all troubles.
    pub(super) fn for_all(from: u64) -> Self {
        Self::new(ALL, from)
    }

    fn new(words: &'static [(&'static str, GuestFault)], from: u64) -> Self {
        let matcher = Matcher::new(words.iter().map(|(words, _)| words));
        Self { words, matcher, search: Search::from(from), seen: None, silent: None }
    }

    /// Takes in what is new. The work is linear in that.
    pub(super) fn look(&mut self, now: Instant, log: &Scrollback) {
        if self.silent.is_none_or(|(end, _)| end != log.end()) {
            self.silent = Some((log.end(), now));
        }
        while let Some(hit) = self.matcher.find(&mut self.search, log) {
            let had_seen = self.seen.is_some();
            self.judge(hit, log);
            if self.seen.is_some() != had_seen {
                let boot = self.seen.is_some().then_some(BOOT);
                self.matcher = Matcher::new(self.words.iter().map(|(words, _)| *words).chain(boot));
            }
            self.search = Search::from(hit.end);
        }
    }

    /// What was seen, whether or not it counts yet.
    pub(super) fn suspicion(&self) -> Option<GuestFault> {
        self.seen.as_ref().map(|seen| seen.fault)
    }

    /// What was seen, once the guest has been silent for long enough.
    pub(super) fn certain(&self, now: Instant, log: &Scrollback) -> Option<FaultReport> {
        let due = self.due()?;
        if now >= due.at { self.sighting(log) } else { None }
    }

    /// What was seen, as it is.
    pub(super) fn sighting(&self, log: &Scrollback) -> Option<FaultReport> {
        let seen = self.seen.as_ref()?;
        let line = log.since(seen.at);
        let line = &line[..line.len().min(LINE)];
        let line = line.split(|&b| matches!(b, b'\r' | b'\n')).next().unwrap_or_default();
        Some(FaultReport {
            fault: seen.fault,
            line: String::from_utf8_lossy(line).trim_end().into(),
        })
    }

    /// Since when the guest has said nothing.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        self.silent.map(|(_, since)| since)
    }

    /// What the guest said so far was not all read: that nothing more came proves nothing, and the
    /// silence begins anew.
    pub(super) fn forget_silence(&mut self) {
        self.silent = None;
    }

    /// When a suspicion becomes certain, if the guest says nothing more.
    pub(super) fn due(&self) -> Option<Deadline> {
        self.seen.as_ref()?;
        Some(Deadline { at: self.silent?.1 + SILENCE, why: "the guest may have given up" })
    }

    /// Whether the panic came with its last line, as a kernel's own does.
    pub(super) fn panic_is_whole(&self, log: &Scrollback) -> bool {
        let Some(FaultCandidate { fault: GuestFault::KernelPanic, at, .. }) = self.seen else {
            return false;
        };
        let text = log.since(at);
        let text = &text[..text.len().min(TRACE)];
        [&b"---[ end Kernel panic - not syncing"[..], b"Rebooting in "]
            .iter()
            .any(|words| memchr::memmem::find(text, words).is_some())
    }

    fn judge(&mut self, hit: PatternMatch, log: &Scrollback) {
        let Some(&(_, fault)) = self.words.get(hit.pattern) else {
            // A kernel boots: what the one before it said is over.
            self.seen = None;
            return;
        };
        let told = match fault {
            // The last line of a panic names it again.
            GuestFault::KernelPanic => !before(log, hit.start).ends_with(PANIC_END),
            _ => begins_line(before(log, hit.start)),
        };
        // After a panic there is nothing worse to come.
        if told && self.suspicion() != Some(GuestFault::KernelPanic) {
            self.seen = Some(FaultCandidate { fault, at: hit.start });
        }
    }
}

/// The last bytes before this offset, as far as they are still here.
pub(super) fn before(log: &Scrollback, offset: u64) -> &[u8] {
    let bytes = log.since(offset.saturating_sub(32));
    let len = bytes.len() - log.since(offset).len();
    &bytes[..len]
}

/// Whether what comes next is at the beginning of a line, colours aside.
pub(super) fn begins_line(mut before: &[u8]) -> bool {
    while let Some(csi) = memchr::memmem::rfind(before, b"\x1b[")
        && before[csi + 2..].iter().all(|b| matches!(b, b' '..=b'?' | b'm' | b'K' | b'J' | b'H'))
    {
        before = &before[..csi];
    }
    matches!(before.last(), None | Some(b'\n'))
}

/// What trouble there is in the unread bytes of a console, for an error of somebody who waited in
/// vain. The last sighting; linear in what is unread.
pub(super) fn last_fault(log: &Scrollback, cursor: &Cursor) -> Option<FaultReport> {
    let mut watch = FaultDetector::for_all(cursor.offset());
    watch.look(Instant::ZERO, log);
    watch.sighting(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    /// What counts after a silence, however the text was cut.
    fn seen(text: &str) -> Option<(GuestFault, String)> {
        let mut answers = [1, 7, 4096].map(|chunk| {
            let (mut log, mut watch) = (Scrollback::default(), FaultDetector::for_all(0));
            for bytes in text.as_bytes().chunks(chunk) {
                log.push(bytes);
                watch.look(at(0), &log);
                assert_eq!(watch.certain(at(499), &log), None, "too early");
            }
            watch.certain(at(500), &log).map(|s| (s.fault, s.line))
        });
        let [first, rest @ ..] = &mut answers;
        assert!(rest.iter().all(|other| other == first), "chunking made a difference");
        first.take()
    }

    #[test]
    fn troubles_are_known_by_their_words() {
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
            // In the middle of a line it is somebody's text.
            ("# grep 'Login incorrect' log\r\n", None),
            ("---[ end Kernel panic - not syncing: x ]---\r\n", None),
            ("Kernel panic - not syncing: x\r\n[    0.000000] Linux version 6.1\r\n", None),
            ("all is well", None),
        ] {
            let expected = expected.map(|(fault, line)| (fault, String::from(line)));
            assert_eq!(seen(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_guest_that_goes_on_talking_is_not_given_up() {
        let (mut log, mut watch) = (Scrollback::default(), FaultDetector::for_panic(0));
        log.push(b"Kernel panic - not syncing: x\n");
        for n in 0..10 {
            log.push(b"but on it goes\n");
            watch.look(at(n * 400), &log);
            assert_eq!(watch.certain(at(n * 400), &log), None);
            assert_eq!(watch.due().unwrap().at, at(n * 400 + 500));
        }
        assert!(!watch.panic_is_whole(&log));
        log.push(b"---[ end Kernel panic - not syncing: x ]---\n");
        assert!(watch.panic_is_whole(&log));
    }
}
