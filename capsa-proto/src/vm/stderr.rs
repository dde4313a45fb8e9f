//! [`StderrTail`]: the standard error of one process: its lines, and the last part for reports.

use alloc::string::String;
use alloc::vec::Vec;

/// The number of bytes that are kept.
const TAIL: usize = 4096;
/// The largest number of bytes of a line that are examined.
const LINE: usize = 1024;
/// The number of lines in a report. The reason of an exit is usually in the last ones.
const LAST_LINES: usize = 6;

/// What a process wrote to its standard error.
#[derive(Debug, Default)]
pub(super) struct StderrTail {
    tail: Vec<u8>,
    /// The current incomplete line, cut at [`LINE`] bytes.
    line: Vec<u8>,
}

impl StderrTail {
    /// Takes bytes, and passes each complete line to `on_line`.
    pub(super) fn handle_bytes(&mut self, bytes: &[u8], mut on_line: impl FnMut(&str)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                on_line(String::from_utf8_lossy(&self.line).trim_end());
                self.line.clear();
            }
        }
        self.tail.extend_from_slice(bytes);
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
    }

    /// The last lines.
    pub(super) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.tail);
        let lines: Vec<&str> = text.trim().lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::borrow::ToOwned;

    #[test]
    fn stderr_lines_are_whole_and_cut_at_limit() {
        let mut stderr = StderrTail::default();
        let mut lines = Vec::new();
        let long = [b'x'; 2 * LINE];
        for read in [&b"one\ntw"[..], b"o\r\n\n", &long, &long, b"\nan incomplete line"] {
            stderr.handle_bytes(read, |line| lines.push(line.to_owned()));
        }
        assert_eq!(lines, ["one", "two", "", &"x".repeat(LINE)]);
    }

    #[test]
    fn stderr_text_has_last_lines() {
        let mut stderr = StderrTail::default();
        for n in 0..2000 {
            stderr.handle_bytes(alloc::format!("line {n}\n").as_bytes(), |_| {});
        }
        assert_eq!(stderr.tail.len(), TAIL);
        assert_eq!(stderr.text().lines().count(), LAST_LINES);
        assert!(stderr.text().ends_with("line 1999"));
    }
}
