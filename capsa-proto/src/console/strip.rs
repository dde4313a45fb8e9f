//! [`Stripper`]: removes escape sequences from a stream that arrives in chunks.
//!
//! It removes the sequences of ECMA-48 that start with ESC: control sequences (colours, cursor
//! movements), strings (window titles) and the short ones. Carriage returns, backspaces and bells are
//! kept as text, and cursor movements have no effect.

use alloc::vec::Vec;

const ESC: u8 = 0x1b;

/// Removes escape sequences from a stream of bytes.
///
/// A byte that cannot belong to a sequence ends it and is kept: a control byte other than ESC, or a
/// non-ASCII byte. A string ends at its terminator or at the end of the line, so that an unterminated
/// string hides at most one line.
///
/// ```
/// # use capsa_proto::console::Stripper;
/// let (mut stripper, mut text) = (Stripper::default(), Vec::new());
/// stripper.strip(b"\x1b]0;title\x07\x1b[1;3", &mut text);
/// stripper.strip(b"2mroot@vm\x1b[0m:~# ", &mut text);
/// assert_eq!(text, b"root@vm:~# ");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stripper {
    state: StripState,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum StripState {
    #[default]
    Text,
    /// After ESC and intermediate bytes.
    Escape,
    /// In a control sequence (CSI): parameters, then one final byte.
    Csi,
    /// In a string, up to BEL, ST or the end of the line.
    String,
}

impl Stripper {
    /// Appends `bytes` without escape sequences to `text`.
    pub fn strip(&mut self, mut bytes: &[u8], text: &mut Vec<u8>) {
        while !bytes.is_empty() {
            if self.state == StripState::Text {
                let len = memchr::memchr(ESC, bytes).unwrap_or(bytes.len());
                text.extend_from_slice(&bytes[..len]);
                bytes = &bytes[len..];
            }
            if let Some((&byte, rest)) = bytes.split_first() {
                if self.is_text(byte) {
                    text.push(byte);
                }
                bytes = rest;
            }
        }
    }

    /// The length of the complete escape sequences at the start of `bytes`, apart from strings. `None`
    /// if more bytes decide it.
    pub(super) fn leading_len(bytes: &[u8]) -> Option<usize> {
        let (mut stripper, mut len) = (Self::default(), 0);
        for (i, &byte) in bytes.iter().enumerate() {
            if stripper.is_text(byte) || stripper.state == StripState::String {
                return Some(len);
            }
            if stripper.state == StripState::Text {
                len = i + 1;
            }
        }
        None
    }

    /// Whether the next byte is text.
    pub(super) fn is_text(&mut self, byte: u8) -> bool {
        let (state, is_text) = match (self.state, byte) {
            // ESC always starts a new sequence. ST, which ends a string, is `ESC \`.
            (_, ESC) => (StripState::Escape, false),
            (StripState::Text, _) => (StripState::Text, true),
            (StripState::String, b'\n') => (StripState::Text, true),
            (StripState::String, 0x07) => (StripState::Text, false),
            (StripState::String, _) => (StripState::String, false),
            (StripState::Escape, b'[') => (StripState::Csi, false),
            (StripState::Escape, b']' | b'P' | b'X' | b'^' | b'_') => (StripState::String, false),
            (StripState::Escape, b' '..=b'/') => (StripState::Escape, false),
            (StripState::Csi, b' '..=b'?') => (StripState::Csi, false),
            (StripState::Escape, b'0'..=b'~') | (StripState::Csi, b'@'..=b'~') => {
                (StripState::Text, false)
            }
            (StripState::Escape | StripState::Csi, _) => (StripState::Text, true),
        };
        self.state = state;
        is_text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use proptest::prelude::*;

    fn strip(bytes: &[u8], chunk: usize) -> Vec<u8> {
        let (mut stripper, mut text) = (Stripper::default(), Vec::new());
        bytes.chunks(chunk).for_each(|bytes| stripper.strip(bytes, &mut text));
        text
    }

    #[test]
    fn stripper_removes_sequences_keeps_text() {
        for (text, expected) in [
            ("plain\r\n\t\x08\x07", "plain\r\n\t\x08\x07"),
            ("\x1b[1;32mroot\x1b[0m# \x1b[6n\x1b[?2004h", "root# "),
            ("\x1b]0;title\x07a\x1b]0;title\x1b\\b", "ab"),
            ("\x1b(Ba\x1b=b\x1b>c\x1b7", "abc"),
            ("\x1b]never ended\r\nnext", "\nnext"),
            ("\x1b[12\nnext", "\nnext"),
            ("\x1b[1é", "é"),
            ("\x1b[\x1b[31mred", "red"),
            ("\x1b", ""),
            ("", ""),
        ] {
            for chunk in [1, 2, 100] {
                assert_eq!(String::from_utf8(strip(text.as_bytes(), chunk)).unwrap(), expected);
            }
        }
    }

    proptest! {
        #[test]
        fn stripper_any_chunking_gives_same_text(
            bytes in r"(\x1b|\[|\]|\\|[ -~]|\x07|\n|é){0,60}",
            chunk in 1usize..9,
        ) {
            let whole = strip(bytes.as_bytes(), 1000);
            prop_assert_eq!(strip(bytes.as_bytes(), chunk), &whole[..]);
            prop_assert!(!whole.contains(&ESC));
            prop_assert_eq!(strip(&whole, chunk), &whole[..]);
        }
    }
}
