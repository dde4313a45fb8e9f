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

/// Whether bytes are a time stamp `[   12.345678]`: blanks, seconds, and six digits of microseconds
/// (`print_time` in the kernel's `printk.c`, `"[%5lu.%06lu]"`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timestamp {
    Whole,
    /// More bytes may complete it.
    Partial,
    No,
}

impl Timestamp {
    /// Longer than any time stamp of the kernel.
    const LONGEST: usize = 32;

    /// Classifies bytes that start with `[`.
    pub(super) fn classify(bytes: &[u8]) -> Self {
        let digits = |bytes: &[u8]| bytes.iter().take_while(|b| b.is_ascii_digit()).count();
        let blanks = bytes[1..].iter().take_while(|&&b| b == b' ').count();
        let rest = &bytes[1 + blanks..];
        let seconds = digits(rest);
        if bytes.len() > Self::LONGEST {
            return Self::No;
        }
        match rest[seconds..] {
            [] => Self::Partial,
            [b'.', ref rest @ ..] if seconds > 0 => match (digits(rest), rest) {
                (6, [.., b']']) if rest.len() == 7 => Self::Whole,
                (n, rest) if n == rest.len() && n <= 6 => Self::Partial,
                _ => Self::No,
            },
            _ => Self::No,
        }
    }
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
        let stamp = memchr::memchr(b']', &text[..text.len().min(Timestamp::LONGEST)]);
        text.first() == Some(&b'[')
            && Timestamp::classify(&text[..stamp.map_or(text.len(), |at| at + 1)]) != Timestamp::No
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
    if text.first() != Some(&b'[') {
        return None;
    }
    let stamp = memchr::memchr(b']', &text[..text.len().min(Timestamp::LONGEST)])?;
    if Timestamp::classify(&text[..=stamp]) != Timestamp::Whole {
        return None;
    }
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
