//! [`LineSplitter`]: a stream in lines, wherever it is cut.

use alloc::vec::Vec;

/// The longest line that is given whole: 64 KiB. A longer one comes in pieces of that length.
pub const LINE_MAX: usize = 64 << 10;

/// Gathers bytes and gives lines, without their `\n` and the `\r`s before it.
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
    /// Where the next line begins.
    start: usize,
    /// Up to where there is no end of a line.
    scanned: usize,
}

impl LineSplitter {
    /// Takes what came. What is pushed and not taken as lines stays in memory.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line, or the first 64 KiB of one that is longer.
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

    /// What is left when no more will come and there is no whole line: the last, without an end.
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
    fn ends_of_lines_go_and_empty_lines_stay() {
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
    fn a_line_without_end_comes_in_pieces() {
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
        fn lines_are_what_is_between_the_ends(text in "[ab\r\n]{0,40}", chunk in 1usize..9) {
            let mut expected: Vec<&str> = text.split('\n').collect();
            let last = expected.pop().filter(|last| !last.is_empty());
            let expected = expected.iter().map(|line| line.trim_end_matches('\r'));
            let expected: Vec<&[u8]> = expected.chain(last).map(str::as_bytes).collect();
            prop_assert_eq!(split(text.as_bytes(), chunk), expected);
        }
    }
}
