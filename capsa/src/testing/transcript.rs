//! The end of a console, as a person can read it: without what a terminal would act on.

use capsa_proto::console::Stripper;

/// Lines shown of a console.
const LINES: usize = 40;

/// Bytes looked at from the end, at most.
pub(super) const TAIL: usize = 16 * 1024;

/// The last lines of what the guest said, escape sequences and control characters taken out.
pub(super) fn last_lines(bytes: &[u8]) -> Vec<String> {
    let mut text = Vec::new();
    Stripper::default().strip(bytes, &mut text);
    let text = String::from_utf8_lossy(&text).replace(is_control, "");
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|line| (*line).to_owned()).collect()
}

fn is_control(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_is_left() {
        let said =
            b"\x1b[2J\x1b]0;title\x07Welcome\r\n\x1b[1;31mred\x1b[0m \x1b(Bplain\x08\r\n\r\n";
        assert_eq!(last_lines(said), ["Welcome", "red plain"]);
    }

    #[test]
    fn no_more_than_the_last_lines() {
        let said: String = (0..100).map(|n| format!("{n}\n")).collect();
        let lines = last_lines(said.as_bytes());
        assert_eq!((lines.len(), lines.last().unwrap().as_str()), (LINES, "99"));
    }
}
