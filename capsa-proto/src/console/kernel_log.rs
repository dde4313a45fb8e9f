//! Recognises kernel log messages by their time stamps, and searches text that they interrupt.
//!
//! The kernel may print into the middle of a program's output. Its message ends with a newline, so
//! removing the message restores the interrupted text:
//!
//! ```text
//! guest lo[    4.812345] random: crng init done\r\ngin:        is  "guest login:"
//! ```
//!
//! Messages without time stamps are not recognised.

use core::ops::Range;

/// The maximum length of a message: the kernel truncates its messages at 1 KiB (`CONSOLE_LOG_MAX`,
/// Linux 6.1).
const MESSAGE_MAX: usize = 4 << 10;

/// What is at the start of a text: a time stamp `[   12.345678]` of blanks, seconds, and six digits of
/// microseconds (`print_time` in the kernel's `printk.c`, `"[%5lu.%06lu]"`), or something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timestamp {
    /// A time stamp of this length.
    Whole {
        len: usize,
    },
    /// More bytes may complete it.
    Partial,
    No,
}

impl Timestamp {
    /// Longer than any time stamp of the kernel.
    const LONGEST: usize = 32;

    /// Parses the start of `text`, at most [`LONGEST`](Self::LONGEST) bytes.
    pub(super) fn parse(text: &[u8]) -> Self {
        let window = &text[..text.len().min(Self::LONGEST)];
        let at_end = if window.len() < Self::LONGEST { Self::Partial } else { Self::No };
        let digits = |from: usize| {
            from + window[from..].iter().take_while(|byte| byte.is_ascii_digit()).count()
        };
        if window.first() != Some(&b'[') {
            return Self::No;
        }
        let seconds = 1 + window[1..].iter().take_while(|&&byte| byte == b' ').count();
        let point = digits(seconds);
        match window.get(point) {
            None => return at_end,
            Some(b'.') if point > seconds => {}
            Some(_) => return Self::No,
        }
        let end = digits(point + 1);
        match (window.get(end), end - point - 1) {
            (Some(b']'), 6) => Self::Whole { len: end + 1 },
            (None, 0..=6) => at_end,
            _ => Self::No,
        }
    }
}

/// The length of the kernel's prefix at the start of a line: a time stamp and, on some kernels, the
/// number of a thread or CPU, as in `[    1.234567][    T1] `. Zero if there is none; `None` if more
/// bytes decide it.
pub(super) fn prefix_len(line: &[u8]) -> Option<usize> {
    /// The longest `[    T1]` (`print_caller`, `"[%6s]"`).
    const CALLER_MAX: usize = 16;
    let stamp = match Timestamp::parse(line) {
        Timestamp::Whole { len } => len,
        Timestamp::Partial => return None,
        Timestamp::No if line.is_empty() => return None,
        Timestamp::No => return Some(0),
    };
    let rest = &line[stamp..];
    let is_inside = |byte: &&u8| matches!(byte, b' ' | b'T' | b'C' | b'0'..=b'9');
    let caller = match rest.first() {
        None => return None,
        Some(b'[') => {
            let end = 1 + rest[1..].iter().take(CALLER_MAX).take_while(is_inside).count();
            match rest.get(end) {
                None => return None,
                Some(b']') => end + 1,
                Some(_) => 0,
            }
        }
        Some(_) => 0,
    };
    let blank = match rest.get(caller) {
        None => return None,
        Some(byte) => usize::from(*byte == b' '),
    };
    Some(stamp + caller + blank)
}

/// An iterator over the bytes of a text that skips kernel messages.
#[derive(Debug, Clone)]
pub(super) struct KernelLogFilter<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> KernelLogFilter<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    /// The index of the next byte.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Whether the last byte may be the first of an incomplete message.
    pub(super) fn is_in_message(&self) -> bool {
        let text = &self.text[self.at.saturating_sub(1)..];
        Timestamp::parse(text) != Timestamp::No
            && text.len() < MESSAGE_MAX
            && memchr::memchr(b'\n', text).is_none()
    }
}

impl Iterator for KernelLogFilter<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        while let Some(message) = message(&self.text[self.at..]) {
            self.at += message;
        }
        let byte = self.text.get(self.at)?;
        self.at += 1;
        Some(*byte)
    }
}

/// The length of the kernel message at the start of `text`, including its newline.
fn message(text: &[u8]) -> Option<usize> {
    let Timestamp::Whole { .. } = Timestamp::parse(text) else { return None };
    Some(memchr::memchr(b'\n', &text[..text.len().min(MESSAGE_MAX)])? + 1)
}

/// The first occurrence of `words` in `text`, which kernel messages may interrupt.
pub(super) fn find_across_kernel_log(text: &[u8], words: &[u8]) -> Option<Range<usize>> {
    find_then_parse(text, words, |_| Some(())).map(|(place, ())| place)
}

/// Like [`find_across_kernel_log`], and parses the text after the words with `read`; the first
/// occurrence for which that succeeds counts. A naive search, for short texts.
pub(super) fn find_then_parse<T>(
    text: &[u8],
    words: &[u8],
    read: impl Fn(&mut KernelLogFilter<'_>) -> Option<T>,
) -> Option<(Range<usize>, T)> {
    let first = *words.first()?;
    memchr::memchr_iter(first, text).find_map(|start| {
        let mut through = KernelLogFilter { text, at: start };
        let is_there = words.iter().all(|&byte| through.next() == Some(byte));
        let found = if is_there { read(&mut through)? } else { return None };
        Some((start..through.at, found))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_any_cut_is_undecided_then_whole() {
        for (line, len) in [
            (&b"[    0.000000] Linux"[..], 15),
            (b"[12345.678901]x", 14),
            (b"[    1.234567][    T1] reboot: ", 23),
            (b"[    1.234567][   C12]x", 22),
            (b"[    1.234567][x", 14),
            (b"[    1.234567]  two blanks", 15),
            (b"[1.23] x", 0),
            (b"[    1.2345678] x", 0),
            (b"[.123456] x", 0),
            (b"[                                1.234567] x", 0),
            (b"plain", 0),
        ] {
            let decided = (0..=line.len()).find_map(|cut| prefix_len(&line[..cut]));
            assert_eq!((decided, prefix_len(line)), (Some(len), Some(len)), "{line:?}");
        }
        for undecided in
            [&b""[..], b"[", b"[   ", b"[    1", b"[    1.23", b"[1.234567]", b"[1.234567][ T"]
        {
            assert_eq!(prefix_len(undecided), None, "{undecided:?}");
        }
    }

    #[test]
    fn find_across_kernel_log_skips_messages() {
        for (text, expected) in [
            ("guest login:", Some("login:")),
            ("guest lo[    4.812345] crng\r\ngin: ", Some("lo[    4.812345] crng\r\ngin:")),
            (
                "l[    1.000000] a\r\no[    2.000000][    T1] b\r\n[12345.000000] c\r\ngin:",
                Some("l[    1.000000] a\r\no[    2.000000][    T1] b\r\n[12345.000000] c\r\ngin:"),
            ),
            ("lologin:", Some("login:")),
            ("lo[    4.812345] never ended", None),
            ("lo[4.8] not the kernel\r\ngin:", None),
            ("lo\r\ngin:", None),
            ("[    4.812345] login:", Some("login:")),
            ("", None),
        ] {
            let found =
                find_across_kernel_log(text.as_bytes(), b"login:").map(|place| &text[place]);
            assert_eq!(found, expected, "{text:?}");
        }
        assert_eq!(find_across_kernel_log(b"x", b""), None);
    }
}
