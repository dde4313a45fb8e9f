//! [`LineSplitter`]: splits a stream that arrives in chunks into lines.

use alloc::vec::Vec;

/// The longest line that is returned whole: 64 KiB. A longer line comes in pieces of that length.
pub(crate) const LINE_MAX: usize = 64 << 10;

/// Collects bytes and returns lines, without the `\n` and any `\r` before it.
///
/// ```
/// use capsa_proto::console::LineSplitter;
///
/// let mut lines = LineSplitter::default();
/// lines.push(b"Booting\r\nguest lo");
/// assert_eq!(lines.next_line(), Some(b"Booting".to_vec()));
/// assert_eq!(lines.next_line(), None);
/// lines.push(b"gin: ");
/// assert_eq!(lines.finish(), Some(b"guest login: ".to_vec()));
/// ```
#[derive(Debug, Clone, Default)]
pub struct LineSplitter {
    buffer: Vec<u8>,
    /// The index of the next line.
    start: usize,
    /// The index up to which there is no line end.
    scanned: usize,
}

impl LineSplitter {
    /// Adds bytes. Memory grows until they are taken with [`next_line`](Self::next_line).
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete line, or the first 64 KiB of a longer one.
    pub fn next_line(&mut self) -> Option<Vec<u8>> {
        let most = self.buffer.len().min(self.start + LINE_MAX + 1);
        let from = self.scanned.min(most);
        if let Some(len) = memchr::memchr(b'\n', &self.buffer[from..most]) {
            let line = &self.buffer[self.start..from + len];
            let returns = line.iter().rev().take_while(|&&b| b == b'\r').count();
            let line = line[..line.len() - returns].to_vec();
            self.advance(from + len + 1);
            return Some(line);
        }
        self.scanned = most;
        if most - self.start <= LINE_MAX {
            return None;
        }
        let piece = self.buffer[self.start..self.start + LINE_MAX].to_vec();
        self.advance(self.start + LINE_MAX);
        Some(piece)
    }

    /// The rest at the end of the stream: the last line, without a line end.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        let rest = self.buffer.split_off(self.start);
        *self = Self::default();
        (!rest.is_empty()).then_some(rest)
    }

    fn advance(&mut self, to: usize) {
        self.start = to;
        self.scanned = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn split(bytes: &[u8], chunk: usize) -> Vec<Vec<u8>> {
        let (mut lines, mut out) = (LineSplitter::default(), vec![]);
        for bytes in bytes.chunks(chunk) {
            lines.push(bytes);
            out.extend(core::iter::from_fn(|| lines.next_line()));
        }
        out.extend(lines.finish());
        out
    }

    #[test]
    fn line_splitter_strips_ends_keeps_empty_lines() {
        for chunk in [1, 3, 100] {
            assert_eq!(
                split(b"a\r\n\r\n\nb\rc\r\r\nd", chunk),
                [&b"a"[..], b"", b"", b"b\rc", b"d"]
            );
        }
        assert_eq!(split(b"a\n", 1), [b"a"]);
        assert!(split(b"", 1).is_empty());
    }

    #[test]
    fn line_splitter_long_line_comes_in_pieces() {
        let long = vec![b'x'; 2 * LINE_MAX + 5];
        for chunk in [1000, 1 << 20] {
            let pieces = split(&long, chunk);
            assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [LINE_MAX, LINE_MAX, 5]);
        }
        let mut exact = vec![b'x'; LINE_MAX];
        exact.push(b'\n');
        assert_eq!(split(&exact, 7).len(), 1);
    }

    proptest! {
        #[test]
        fn line_splitter_any_chunking_equals_split(text in "[ab\r\n]{0,40}", chunk in 1usize..9) {
            let mut expected: Vec<&str> = text.split('\n').collect();
            let last = expected.pop().filter(|last| !last.is_empty());
            let expected = expected.iter().map(|line| line.trim_end_matches('\r'));
            let expected: Vec<&[u8]> = expected.chain(last).map(str::as_bytes).collect();
            prop_assert_eq!(split(text.as_bytes(), chunk), expected);
        }
    }
}
