//! The last lines of console output as plain text, for a failure report of the test kit.

use capsa_proto::console::Stripper;
use capsa_proto::text::escape_control_line;

/// The largest number of lines shown.
const LINES: usize = 40;

/// The largest number of bytes taken from the end of the output.
pub(super) const TAIL: usize = 16 * 1024;

/// The last lines of console output: escape sequences removed, other control characters escaped.
pub(super) fn last_lines(bytes: &[u8]) -> Vec<String> {
    let mut text = Vec::new();
    Stripper::default().strip(bytes, &mut text);
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let last = &lines[lines.len().saturating_sub(LINES)..];
    last.iter().map(|line| escape_control_line(line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_escapes_control_characters() {
        let output =
            b"\x1b[2J\x1b]0;title\x07Welcome\r\r\n\x1b[1;31mred\x1b[0m \x1b(Bplain\x08\r\n\r\n";
        assert_eq!(last_lines(output), ["Welcome", "red plain\\u{8}"]);
    }

    #[test]
    fn last_lines_are_bounded() {
        let output: String = (0..100).map(|n| format!("{n}\n")).collect();
        let lines = last_lines(output.as_bytes());
        assert_eq!((lines.len(), lines.last().unwrap().as_str()), (LINES, "99"));
    }
}
