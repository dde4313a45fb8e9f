//! [`OutputBuffer`]: a command's output, gathered as it comes, up to a limit.
//!
//! It undoes what the terminal did on the way out (`\n` became `\r\n`) and nothing else: a lone
//! `\r`, control bytes and invalid UTF-8 are the command's own.

use alloc::vec::Vec;

/// Bytes gathered so far.
#[derive(Debug, Clone)]
pub(super) struct OutputBuffer {
    bytes: Vec<u8>,
    limit: usize,
    /// A `\r` came last, and whether it stays depends on the next byte.
    held: bool,
    /// How much there was for keeping, also beyond the limit.
    len: usize,
}

impl OutputBuffer {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, held: false, len: 0 }
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while let Some(&first) = bytes.first() {
            if core::mem::take(&mut self.held) && first != b'\n' {
                self.keep(b"\r");
            }
            match memchr::memchr(b'\r', bytes) {
                Some(i) => {
                    self.keep(&bytes[..i]);
                    self.held = true;
                    bytes = &bytes[i + 1..];
                }
                None => {
                    self.keep(bytes);
                    break;
                }
            }
        }
    }

    /// Takes back what was pushed last: exactly these bytes, which began with no `\n`.
    pub(super) fn take_back(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut same = Self::new(usize::MAX);
        same.push(bytes);
        self.len = self.len.saturating_sub(same.len);
        self.held = false;
        self.bytes.truncate(self.len);
    }

    /// How much was gathered and not taken.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What was gathered since it was taken last. Whether a `\r` at its end stays is not known yet.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.len = 0;
        core::mem::take(&mut self.bytes)
    }

    /// The output, and whether it was cut at the limit.
    pub(super) fn finish(&mut self) -> (Vec<u8>, bool) {
        self.close();
        (core::mem::take(&mut self.bytes), self.len > self.limit)
    }

    /// Nothing follows: a `\r` that came last stays.
    pub(super) fn close(&mut self) {
        if core::mem::take(&mut self.held) {
            self.keep(b"\r");
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = self.limit.saturating_sub(self.bytes.len());
        self.len += bytes.len();
        self.bytes.extend_from_slice(&bytes[..room.min(bytes.len())]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;

    fn collect(chunks: &[&str], limit: usize) -> (String, bool) {
        let mut collected = OutputBuffer::new(limit);
        for chunk in chunks {
            collected.push(chunk.as_bytes());
        }
        let (bytes, truncated) = collected.finish();
        (String::from_utf8(bytes).expect("ASCII"), truncated)
    }

    #[test]
    fn only_the_terminal_s_carriage_returns_go() {
        for (text, expected) in [
            ("a\r\nb\r\n", "a\nb\n"),
            ("50%\r100%\r\n", "50%\r100%\n"),
            ("a\r\r\nb", "a\r\nb"),
            ("a\r", "a\r"),
            ("\r\r\r", "\r\r\r"),
            ("a\nb", "a\nb"),
            ("", ""),
        ] {
            assert_eq!(collect(&[text], 99), (expected.into(), false), "{text:?}");
            let bytewise: Vec<&str> = text.split_inclusive(|_| true).collect();
            assert_eq!(collect(&bytewise, 99), (expected.into(), false), "{text:?} bytewise");
        }
    }

    #[test]
    fn the_limit_keeps_the_front_and_says_so() {
        assert_eq!(collect(&["ab\r\n", "cd"], 3), ("ab\n".into(), true));
        assert_eq!(collect(&["ab\r\n"], 3), ("ab\n".into(), false));
        assert_eq!(collect(&["a\r"], 1), ("a".into(), true));
    }

    #[test]
    fn what_is_taken_in_pieces_is_the_whole() {
        let text = b"a\r\nb\r\r\nc\rd\r";
        for chunk in 1..text.len() {
            let (mut collected, mut taken) = (OutputBuffer::new(usize::MAX), Vec::new());
            for bytes in text.chunks(chunk) {
                collected.push(bytes);
                taken.extend(collected.take());
            }
            taken.extend(collected.finish().0);
            assert_eq!(taken, b"a\nb\r\nc\rd\r", "by {chunk}");
        }
    }

    #[test]
    fn what_is_taken_back_was_never_there() {
        for limit in [0, 1, 3, 4, 5, 99] {
            for back in ["", "x", "x\r", "x\r\ny\r\r\n", "xy\r"] {
                let mut collected = OutputBuffer::new(limit);
                collected.push(b"ab\r\nc\r");
                collected.push(back.as_bytes());
                collected.take_back(back.as_bytes());
                let without = OutputBuffer::new(limit);
                let (mut same, expected) = (without, "ab\r\nc\r");
                same.push(expected.as_bytes());
                assert_eq!(collected.finish(), same.finish(), "{back:?} up to {limit}");
            }
        }
    }
}
