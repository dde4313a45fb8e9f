//! [`OutputBuffer`]: collects the output of a command, up to a limit.
//!
//! It reverts the terminal's change of `\n` to `\r\n` and nothing else: a lone `\r`, control bytes and
//! invalid UTF-8 are output of the command. The output of a command on a terminal is not changed.

use alloc::vec::Vec;

/// The output collected so far.
#[derive(Debug, Clone)]
pub(super) struct OutputBuffer {
    bytes: Vec<u8>,
    limit: usize,
    /// Whether `\r\n` is kept.
    is_unchanged: bool,
    /// Whether the last byte was a `\r`, which is dropped if a `\n` follows.
    pending_cr: bool,
    /// The length of the output, including bytes beyond the limit.
    len: usize,
}

impl OutputBuffer {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, is_unchanged: false, pending_cr: false, len: 0 }
    }

    /// Keeps `\r\n`.
    pub(super) fn set_unchanged(&mut self) {
        self.is_unchanged = true;
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        if self.is_unchanged {
            return self.keep(bytes);
        }
        while let Some(&first) = bytes.first() {
            if core::mem::take(&mut self.pending_cr) && first != b'\n' {
                self.keep(b"\r");
            }
            match memchr::memchr(b'\r', bytes) {
                Some(i) => {
                    self.keep(&bytes[..i]);
                    self.pending_cr = true;
                    bytes = &bytes[i + 1..];
                }
                None => {
                    self.keep(bytes);
                    break;
                }
            }
        }
    }

    /// Removes the bytes that were pushed last. They must not start with `\n`.
    pub(super) fn remove_last(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut same = Self { is_unchanged: self.is_unchanged, ..Self::new(usize::MAX) };
        same.push(bytes);
        self.len = self.len.saturating_sub(same.len);
        self.pending_cr = false;
        self.bytes.truncate(self.len);
    }

    /// The length of the output that was not taken yet.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Takes the output. A `\r` at its end stays in the buffer until the next byte is known.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.len = 0;
        core::mem::take(&mut self.bytes)
    }

    /// The output, and whether it was cut at the limit.
    pub(super) fn finish(&mut self) -> (Vec<u8>, bool) {
        self.close();
        (core::mem::take(&mut self.bytes), self.len > self.limit)
    }

    /// Ends the output: a `\r` at its end is kept.
    pub(super) fn close(&mut self) {
        if core::mem::take(&mut self.pending_cr) {
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
    fn output_buffer_removes_only_terminal_crs() {
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
    fn output_buffer_limit_keeps_front_and_reports() {
        assert_eq!(collect(&["ab\r\n", "cd"], 3), ("ab\n".into(), true));
        assert_eq!(collect(&["ab\r\n"], 3), ("ab\n".into(), false));
        assert_eq!(collect(&["a\r"], 1), ("a".into(), true));
    }

    #[test]
    fn output_buffer_taken_pieces_equal_whole() {
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
    fn output_buffer_remove_last_reverts_push() {
        for limit in [0, 1, 3, 4, 5, 99] {
            for back in ["", "x", "x\r", "x\r\ny\r\r\n", "xy\r"] {
                let mut collected = OutputBuffer::new(limit);
                collected.push(b"ab\r\nc\r");
                collected.push(back.as_bytes());
                collected.remove_last(back.as_bytes());
                let without = OutputBuffer::new(limit);
                let (mut same, expected) = (without, "ab\r\nc\r");
                same.push(expected.as_bytes());
                assert_eq!(collected.finish(), same.finish(), "{back:?} up to {limit}");
            }
        }
    }
}
