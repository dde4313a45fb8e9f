//! The end of a console, as a person can read it: without what a terminal would act on.

/// Lines shown of a console.
const LINES: usize = 40;

/// Bytes looked at from the end, at most.
pub(super) const TAIL: usize = 16 * 1024;

/// What the next byte belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Text,
    Escape,
    Csi,
    /// A window title and the like, to BEL or ST.
    String,
}

/// The last lines of what the guest said, escape sequences and control characters taken out.
pub(super) fn last_lines(bytes: &[u8]) -> Vec<String> {
    let mut text = String::new();
    let mut state = State::Text;
    for c in String::from_utf8_lossy(bytes).chars() {
        state = match (state, c) {
            (State::Text | State::String, '\u{1b}') => State::Escape,
            (State::Escape, '[') => State::Csi,
            (State::Escape, ']' | 'P' | '_' | '^') => State::String,
            (State::Escape, ' '..='/') => State::Escape,
            (State::Csi, ' '..='?') => State::Csi,
            (State::String, '\u{7}' | '\n') | (State::Escape | State::Csi, _) => State::Text,
            (State::String, _) => State::String,
            (State::Text, c) => {
                if c == '\n' || c == '\t' || !c.is_control() {
                    text.push(c);
                }
                State::Text
            }
        };
    }
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|line| (*line).to_owned()).collect()
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
