//! [`FaultDetector`]: recognises guest faults in console output, once, as it enters the scrollback.
//!
//! A [`Scrollback`] has one detector, and every wait and script of the console asks it for the faults
//! at or after the offset where the wait began ([`FaultCheck`](super::fault_check::FaultCheck)); none
//! searches the bytes again. The detector does not decide what a fault means, and it has no clock.
//!
//! | text | where |
//! | --- | --- |
//! | a kernel panic, the last line of a panic, the first message of a kernel | anywhere in a line |
//! | an emergency shell, a refused login | at the start of a line |
//! | a restart, a power-off, the countdown after a panic | at the start of a line, or after time stamps |
//!
//! Escape sequences before the text do not matter. The first message of a kernel invalidates all faults
//! before it. The message of a restart or a power-off invalidates the panics before it: a kernel that
//! panicked prints none, so their text was printed by a program.
//!
//! # Work and state
//!
//! New bytes are searched once, for all waits together: for line starts that may be a text, and for
//! each text that may be within a line and that matters now. What each push reads again is bounded:
//! the end of a possible text, and the start of a line that is not decided yet, at most 192 bytes. The first [`PANICS_MAX`] panics since the kernel booted are
//! kept; beyond that **the newest replaces the one before it**. So a wait never misses a panic: one
//! that begins after the kept ones and before the newest reports the newest line instead of the first.
//! Of the other faults only the last counts, so only that one is kept.
//!
//! The texts are those of Linux 6.1 (`kernel/panic.c`, `kernel/reboot.c`), systemd 252 and util-linux
//! 2.38 (`sulogin`), dracut 059 and initramfs-tools 0.142.

use super::{ConsoleCrash, Stripper, kernel_log};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use memchr::memmem::Finder;

/// How many panics of one kernel are kept.
const PANICS_MAX: usize = 16;

/// How far after its first line the last line of a panic counts.
const TRACE_MAX: u64 = 32 << 10;

/// How many bytes of escape sequences may precede a text at the start of a line.
const ESCAPES_MAX: usize = 64;

/// The length of the longest text of a program.
const PROGRAM_TEXT_MAX: usize = 57;

/// How far before a panic its line starts, if it starts with the panic: escape sequences, a time stamp
/// with the number of a thread, and [`PANIC_END`].
const LINE_PREFIX_MAX: usize = 128;

/// The texts that are found within lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KernelText {
    Panic,
    Restart,
    PowerOff,
    /// The first message of a kernel.
    Boot,
    /// The countdown after a panic.
    Countdown,
}

const KERNEL_TEXTS: [(KernelText, &str); 5] = [
    (KernelText::Panic, PANIC),
    (KernelText::Restart, "reboot: Restarting system"),
    (KernelText::PowerOff, "reboot: Power down"),
    (KernelText::Boot, "Linux version "),
    (KernelText::Countdown, "Rebooting in "),
];

const PANIC: &str = "Kernel panic - not syncing";

/// The start of the last line of a panic, which repeats the text of the first.
const PANIC_END: &[u8] = b"---[ end ";

/// The texts at the start of lines that programs print.
const PROGRAM_TEXTS: &[(&str, GuestFault)] = &[
    ("You are in emergency mode", GuestFault::EmergencyShell),
    ("Press Enter for maintenance", GuestFault::EmergencyShell),
    ("Give root password for maintenance", GuestFault::EmergencyShell),
    ("Cannot open access to console, the root account is locked", GuestFault::EmergencyShell),
    ("Entering emergency mode", GuestFault::EmergencyShell),
    ("(initramfs) ", GuestFault::EmergencyShell),
    ("Login incorrect", GuestFault::LoginIncorrect),
];

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
            Self::KernelPanic => "the console shows a kernel panic",
            Self::EmergencyShell => "the guest is in an emergency shell",
            Self::LoginIncorrect => "the guest refused the login",
        })
    }
}

/// A guest fault, and the line of output that shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
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

/// A fault that was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DetectedFault {
    pub(super) fault: GuestFault,
    /// The offset of its text.
    pub(super) at: u64,
    pub(super) text: &'static str,
    /// Whether it is a panic whose last line was printed.
    pub(super) is_complete: bool,
}

/// A message at the start of a line after which a kernel prints only messages of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CrashMessage {
    pub(super) crash: ConsoleCrash,
    /// The offset of its text.
    pub(super) at: u64,
}

/// The last text that says whether a kernel panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PanicText {
    /// Whether it is the text of a panic, not one that a kernel prints only if it did not panic.
    pub(super) is_panic: bool,
    /// The offset of the text.
    at: u64,
}

/// Recognises guest faults in the output of one console.
#[derive(Clone)]
pub(super) struct FaultDetector {
    /// One for each of [`KERNEL_TEXTS`].
    finders: [Finder<'static>; KERNEL_TEXTS.len()],
    /// The offset up to which the output was searched.
    searched: u64,
    /// The start of a line that more bytes decide.
    open_line: Option<u64>,
    /// The panics since the kernel booted, at most [`PANICS_MAX`].
    panics: Vec<DetectedFault>,
    /// The last other fault since the kernel booted.
    other: Option<DetectedFault>,
    crash: Option<CrashMessage>,
    panic_text: Option<PanicText>,
    /// Whether the VM ended, and not by a panic.
    ended_without_panic: bool,
    #[cfg(test)]
    work: DetectorWork,
}

/// How many bytes a detector has read.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct DetectorWork {
    /// In search of line starts.
    lines: u64,
    /// In search of kernel texts, summed over the texts.
    texts: u64,
    /// At the start of lines that may be a text.
    starts: u64,
}

impl FaultDetector {
    /// A detector for output from offset zero on.
    pub(super) fn new() -> Self {
        Self {
            finders: KERNEL_TEXTS.map(|(_, words)| Finder::new(words)),
            searched: 0,
            open_line: Some(0),
            panics: Vec::new(),
            other: None,
            crash: None,
            panic_text: None,
            ended_without_panic: false,
            #[cfg(test)]
            work: DetectorWork::default(),
        }
    }

    /// Searches the new output. `kept` is all that the scrollback keeps, and starts at offset `start`.
    /// A text that was dropped before it was complete is not recognised.
    pub(super) fn scan(&mut self, kept: &[u8], start: u64) {
        self.searched = self.searched.max(start);
        let open_line = self.open_line.take().filter(|line| *line >= start);
        open_line.inspect(|line| self.begin_line(&kept[(line - start) as usize..], *line));

        let end = start + kept.len() as u64;
        // A text may have started before the new bytes, but not ended there.
        let from = |len: usize| (self.searched + 1).saturating_sub(len as u64).max(start);
        let mut searches =
            KERNEL_TEXTS.map(|(_, text)| TextSearch { from: from(text.len()), found: None });
        loop {
            let next = (0..searches.len()).filter_map(|text| {
                self.find_text(text, &mut searches[text], kept, start).map(|at| (at, text))
            });
            let next = next.min();
            let is_done = self.find_lines(kept, start, next.map_or(end, |(at, _)| at));
            match next {
                // A fault that was found makes another text matter.
                _ if !is_done => {}
                Some((at, text)) => {
                    searches[text].found = None;
                    self.handle_text(KERNEL_TEXTS[text], kept, start, at);
                }
                None => break,
            }
        }
    }

    /// The fault for a wait that began at `from`: the first panic, or else the last other fault.
    pub(super) fn fault_since(&self, from: u64) -> Option<DetectedFault> {
        self.panic_since(from).or(self.other.filter(|other| other.at >= from))
    }

    /// The first panic at or after `from`.
    pub(super) fn panic_since(&self, from: u64) -> Option<DetectedFault> {
        self.panics.iter().find(|panic| panic.at >= from).copied()
    }

    /// The last message that may be the last one of a kernel.
    pub(super) fn crash_message(&self) -> Option<CrashMessage> {
        self.crash
    }

    /// The last text that says whether a kernel panicked, anywhere in a line.
    pub(super) fn panic_text(&self) -> Option<PanicText> {
        self.panic_text
    }

    /// The VM ended, and not by a panic: the text of one explains no wait from now on.
    pub(super) fn handle_end_without_panic(&mut self) {
        self.ended_without_panic = true;
    }

    /// Whether the VM ended, and not by a panic.
    pub(super) fn ended_without_panic(&self) -> bool {
        self.ended_without_panic
    }

    fn shows_panic(&self) -> bool {
        self.panic_text.is_some_and(|text| text.is_panic)
    }

    fn has_fault(&self) -> bool {
        !self.panics.is_empty() || self.other.is_some()
    }

    /// The next place of a text, if it matters now. No byte is searched twice for it.
    fn find_text(
        &mut self,
        text: usize,
        search: &mut TextSearch,
        kept: &[u8],
        start: u64,
    ) -> Option<u64> {
        let matters = match KERNEL_TEXTS[text].0 {
            KernelText::Panic | KernelText::Restart => true,
            KernelText::Boot => self.has_fault() || self.shows_panic(),
            KernelText::PowerOff => self.shows_panic(),
            KernelText::Countdown => {
                let is_open =
                    |p: &DetectedFault| !p.is_complete && self.searched < p.at + TRACE_MAX;
                self.panics.iter().any(is_open)
            }
        };
        if matters && search.found.is_none() {
            let rest = &kept[(search.from - start) as usize..];
            let len = self.finders[text].find(rest);
            search.found = len.map(|len| search.from + len as u64);
            let read = len.map_or(rest.len(), |len| len + KERNEL_TEXTS[text].1.len());
            search.from += read as u64;
            self.count_work(0, read, 0);
        }
        search.found.filter(|_| matters)
    }

    /// Handles the lines that start up to `upto`. Returns `false`, before all are handled, if there is
    /// a fault now and there was none.
    fn find_lines(&mut self, kept: &[u8], start: u64, upto: u64) -> bool {
        let had_fault = self.has_fault();
        let upto = (upto.max(self.searched) - start) as usize;
        let mut at = (self.searched - start) as usize;
        while let Some(len) = find_line_start(&kept[at..upto]) {
            self.count_work(len, 0, 0);
            at += len;
            self.begin_line(&kept[at..], start + at as u64);
            if self.has_fault() != had_fault {
                self.searched = start + at as u64;
                return false;
            }
        }
        self.count_work(upto - at, 0, 0);
        self.searched = start + upto as u64;
        true
    }

    /// Handles the line that starts at this offset, or leaves it open.
    fn begin_line(&mut self, line: &[u8], offset: u64) {
        self.count_work(0, 0, line.len().min(ESCAPES_MAX + PROGRAM_TEXT_MAX));
        match LineStart::parse(line) {
            LineStart::Open => self.open_line = Some(offset),
            LineStart::Other => {}
            LineStart::Fault { fault, text, escapes } => {
                let at = offset + escapes as u64;
                self.other = Some(DetectedFault { fault, at, text, is_complete: false });
            }
        }
    }

    fn handle_text(&mut self, text: (KernelText, &str), kept: &[u8], start: u64, at: u64) {
        match text.0 {
            KernelText::Panic => self.handle_panic(kept, start, at),
            KernelText::Restart if starts_line(kept, start, at) => {
                self.crash = Some(CrashMessage { crash: ConsoleCrash::Restart, at });
                self.refute_panics(at);
                // The text of a panic may be on another console.
                self.panic_text = Some(PanicText { is_panic: false, at });
            }
            KernelText::PowerOff if starts_line(kept, start, at) => self.refute_panics(at),
            KernelText::Countdown if starts_line(kept, start, at) => self.complete_panics(at),
            KernelText::Restart | KernelText::PowerOff | KernelText::Countdown => {}
            KernelText::Boot => {
                self.refute_panics(at);
                self.other = self.other.filter(|other| other.at > at);
            }
        }
    }

    fn handle_panic(&mut self, kept: &[u8], start: u64, at: u64) {
        self.panic_text = Some(PanicText { is_panic: true, at });
        let before = &kept[..(at - start) as usize];
        let is_end = before.ends_with(PANIC_END);
        let line = if is_end { at - PANIC_END.len() as u64 } else { at };
        if starts_line(kept, start, line) {
            self.crash = Some(CrashMessage { crash: ConsoleCrash::Panic, at: line });
        }
        if is_end {
            self.complete_panics(line);
            return;
        }
        if self.panics.len() == PANICS_MAX {
            self.panics.pop();
        }
        let fault = GuestFault::KernelPanic;
        self.panics.push(DetectedFault { fault, at, text: PANIC, is_complete: false });
    }

    /// A kernel that has panicked does not print the text at this offset.
    fn refute_panics(&mut self, at: u64) {
        self.panics.retain(|panic| panic.at > at);
        if let Some(text) = self.panic_text.as_mut().filter(|text| text.is_panic && text.at < at) {
            *text = PanicText { is_panic: false, at };
        }
    }

    /// The last line of a panic is at this offset.
    fn complete_panics(&mut self, at: u64) {
        for panic in &mut self.panics {
            panic.is_complete |= panic.at < at && at - panic.at < TRACE_MAX;
        }
    }

    fn count_work(&mut self, _lines: usize, _texts: usize, _starts: usize) {
        #[cfg(test)]
        {
            self.work.lines += _lines as u64;
            self.work.texts += _texts as u64;
            self.work.starts += _starts as u64;
        }
    }
}

/// The progress of the search for one text in one scan.
#[derive(Debug, Clone, Copy)]
struct TextSearch {
    /// The offset up to which the bytes were searched.
    from: u64,
    found: Option<u64>,
}

/// What a line starts with.
enum LineStart {
    /// More bytes decide it.
    Open,
    /// A text of a program after this many bytes of escape sequences.
    Fault {
        fault: GuestFault,
        text: &'static str,
        escapes: usize,
    },
    Other,
}

impl LineStart {
    fn parse(line: &[u8]) -> Self {
        let window = &line[..line.len().min(ESCAPES_MAX)];
        let Some(escapes) = Stripper::leading_len(window) else {
            return if window.len() < ESCAPES_MAX { Self::Open } else { Self::Other };
        };
        for &(text, fault) in PROGRAM_TEXTS {
            let rest = &line[escapes..];
            let len = text.len().min(rest.len());
            if text.as_bytes()[..len] == rest[..len] {
                let is_whole = len == text.len();
                return if is_whole { Self::Fault { fault, text, escapes } } else { Self::Open };
            }
        }
        Self::Other
    }
}

/// The index of the first line start in `bytes` that may be a text of a program or, at the end of
/// `bytes`, is not known. The first byte is not considered.
fn find_line_start(bytes: &[u8]) -> Option<usize> {
    const BLOCK: usize = 64;
    // An upper-case letter, a parenthesis or an escape sequence. No branches, so that the compiler
    // vectorises it: most lines start otherwise, and jumping from line to line takes longer.
    let is_start = |end: u8, first: u8| {
        (end == b'\n') & ((first.wrapping_sub(b'A') < 26) | (first == b'(') | (first == 0x1b))
    };
    let mut at = 0;
    while let Some(block) = bytes.get(at..at + BLOCK + 1) {
        let pairs = block.iter().zip(&block[1..]);
        if pairs.fold(false, |any, (&end, &first)| any | is_start(end, first)) {
            break;
        }
        at += BLOCK;
    }
    while let Some(len) = memchr::memchr(b'\n', &bytes[at..]) {
        at += len + 1;
        if bytes.get(at).is_none_or(|&first| is_start(b'\n', first)) {
            return Some(at);
        }
    }
    None
}

/// Whether the text at `at` starts its line, after escape sequences and a time stamp at most.
fn starts_line(kept: &[u8], start: u64, at: u64) -> bool {
    let at = (at - start) as usize;
    let window = at.saturating_sub(LINE_PREFIX_MAX);
    let line = match memchr::memrchr(b'\n', &kept[window..at]) {
        Some(newline) => window + newline + 1,
        None if window == 0 && start == 0 => 0,
        None => return false,
    };
    let Some(escapes) = Stripper::leading_len(&kept[line..]) else { return false };
    let stamp = kernel_log::prefix_len(&kept[line + escapes..]);
    stamp.is_some_and(|stamp| line + escapes + stamp == at)
}

#[cfg(test)]
mod tests;
