//! [`Screen`]: what a person would take for the prompt, looking at the end of the output.
//!
//! Two things are taken out first: escape sequences, and messages of the kernel, known by their
//! time stamp. Such a message ends with a newline, so without it the line that it cut into is
//! whole again:
//!
//! ```text
//! guest login: [    4.812345] random: crng init done\r\n        is the prompt  "guest login: "
//! ```
//!
//! A kernel that prints no time stamps is not seen through; [`Login`](super::Login) then has to ask
//! for a new prompt.

use crate::console::kernel_log::Timestamp;
use alloc::vec::Vec;
use memchr::memmem;

/// How much of the output's end is looked at.
pub(super) const WINDOW: usize = 4096;

/// How much output is taken at a time, so that nothing short is missed between two looks.
pub(super) const PIECE: usize = WINDOW / 4;

/// What stands at the end of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PromptKind {
    /// `login:`, but not that of `Last login:`.
    Login,
    /// `assword:`, so with either first letter.
    Password,
    /// `# `, `$ ` or `> `.
    Shell,
}

/// The end of the output since the last [`clear`](Self::clear), as a person would read it.
#[derive(Debug, Clone, Default)]
pub(super) struct Screen {
    text: Vec<u8>,
    shown: u64,
    state: ScreenState,
    /// What may become a time stamp of the kernel, and is not shown until it cannot.
    held: Vec<u8>,
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum ScreenState {
    #[default]
    Text,
    /// A message of the kernel, to the end of the line.
    Kernel,
    /// After an ESC, and intermediate bytes.
    Escape,
    /// CSI: parameters, then one final byte.
    Csi,
    /// A string (window title), to BEL or ST. A newline ends it too, or a stray one would hide
    /// everything after it.
    String,
}

impl Screen {
    /// Takes what came, [`PIECE`] bytes or fewer at a time.
    pub(super) fn push(&mut self, piece: &[u8]) {
        for &byte in piece {
            self.state = self.next(byte);
        }
        let excess = self.text.len().saturating_sub(WINDOW);
        self.text.drain(..excess);
    }

    /// Forgets the text, not what an unfinished sequence is.
    pub(super) fn clear(&mut self) {
        self.text.clear();
    }

    /// How many bytes were ever shown: while it stays the same, so does what a person sees.
    pub(super) fn shown(&self) -> u64 {
        self.shown
    }

    /// The line that is not at its end yet.
    pub(super) fn line(&self) -> &[u8] {
        let line = self.text.rsplit(|&b| b == b'\n').next().unwrap_or_default();
        // A line editor may go back and draw the prompt again.
        line.rsplit(|&b| b == b'\r').find(|part| !part.is_empty()).unwrap_or_default()
    }

    /// What is asked for at the end of the output, if anything.
    pub(super) fn prompt_kind(&self) -> Option<PromptKind> {
        let line = self.line();
        if [&b"# "[..], b"$ ", b"> "].iter().any(|end| line.ends_with(end)) {
            return Some(PromptKind::Shell);
        }
        let line = line.trim_ascii_end().to_ascii_lowercase();
        if line.ends_with(b"assword:") {
            Some(PromptKind::Password)
        } else if line.ends_with(b"login:") && !line.ends_with(b"last login:") {
            Some(PromptKind::Login)
        } else {
            None
        }
    }

    /// Whether the guest has said that name and password do not fit.
    pub(super) fn says_incorrect(&self) -> bool {
        self.has(b"Login incorrect")
    }

    /// Whether these words can be read.
    pub(super) fn has(&self, words: &[u8]) -> bool {
        memmem::find(&self.text, words).is_some()
    }

    fn next(&mut self, byte: u8) -> ScreenState {
        match (self.state, byte) {
            (ScreenState::String, 0x07 | b'\n') => ScreenState::Text,
            // ESC begins the end of a string as it begins anything else; ST is `ESC \`.
            (_, 0x1b) => ScreenState::Escape,
            (ScreenState::String, _) => ScreenState::String,
            (ScreenState::Escape, b'[') => ScreenState::Csi,
            (ScreenState::Escape, b']' | b'P' | b'X' | b'^' | b'_') => ScreenState::String,
            (ScreenState::Escape, 0x20..=0x2f) => ScreenState::Escape,
            (ScreenState::Csi, 0x20..=0x3f) => ScreenState::Csi,
            (ScreenState::Escape | ScreenState::Csi, _) => ScreenState::Text,
            (ScreenState::Kernel, b'\n') => ScreenState::Text,
            (ScreenState::Kernel, _) => ScreenState::Kernel,
            (ScreenState::Text, b'\t' | b'\n' | b'\r' | b' '..) => self.letter(byte),
            (ScreenState::Text, _) => ScreenState::Text,
        }
    }

    fn letter(&mut self, byte: u8) -> ScreenState {
        if !self.held.is_empty() {
            self.held.push(byte);
            match Timestamp::judge(&self.held) {
                Timestamp::Whole => {
                    self.held.clear();
                    return ScreenState::Kernel;
                }
                Timestamp::Partial => return ScreenState::Text,
                Timestamp::No => {
                    self.held.pop();
                    self.shown += self.held.len() as u64;
                    self.text.append(&mut self.held);
                }
            }
        }
        if byte == b'[' {
            self.held.push(byte);
        } else {
            self.text.push(byte);
            self.shown += 1;
        }
        ScreenState::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(text: &str) -> Option<PromptKind> {
        let mut screen = Screen::default();
        for piece in text.as_bytes().chunks(PIECE) {
            screen.push(piece);
        }
        screen.prompt_kind()
    }

    #[test]
    fn a_sign_is_what_stands_at_the_end() {
        for (text, expected) in [
            ("guest login: ", Some(PromptKind::Login)),
            ("guest login:", Some(PromptKind::Login)),
            ("\r\n\r\nLogin: ", Some(PromptKind::Login)),
            ("Last login: ", None),
            ("Last login: Mon Nov 23\r\n# ", Some(PromptKind::Shell)),
            ("guest login: root (automatic login)", None),
            ("guest login: \r\n", None),
            ("Password: ", Some(PromptKind::Password)),
            ("root's password:", Some(PromptKind::Password)),
            ("/ # ", Some(PromptKind::Shell)),
            ("/ # \x1b[6n", Some(PromptKind::Shell)),
            ("\x1b[?2004h\x1b[1;32mroot@vm\x1b[0m:~# \x1b[K", Some(PromptKind::Shell)),
            ("\x1b]0;root@vm: ~\x07user@vm:~$ ", Some(PromptKind::Shell)),
            ("\x1b]0;title\x1b\\sh-5.2> \x1b[", Some(PromptKind::Shell)),
            ("\x1b(B# ", Some(PromptKind::Shell)),
            ("\r\x1b[K\r# ", Some(PromptKind::Shell)),
            ("# \r", Some(PromptKind::Shell)),
            ("# \r\n", None),
            ("# ls", None),
            ("", None),
            ("\x1b", None),
            ("\x1b]0;never ended", None),
            ("caf\u{e9} # ", Some(PromptKind::Shell)),
        ] {
            assert_eq!(sign(text), expected, "{text:?}");
        }
    }

    #[test]
    fn the_kernel_does_not_hide_a_prompt() {
        for (text, expected) in [
            ("# [    1.234567] random: crng init done\r\n", Some(PromptKind::Shell)),
            ("lo[    1.234567] a\r\n[    1.234568] b\r\ngin: ", Some(PromptKind::Login)),
            ("Password: [12345.678901][    T1] usb 1-1: new", Some(PromptKind::Password)),
            ("# [1.23] not the kernel\r\n", None),
            ("# [    1.234567 not the kernel\r\n", None),
            ("[root@vm ~]# ", Some(PromptKind::Shell)),
            ("# [", Some(PromptKind::Shell)),
            ("# [  1.2345", Some(PromptKind::Shell)),
            ("# [x", None),
            ("[[    1.234567] a\r\n# ", Some(PromptKind::Shell)),
        ] {
            assert_eq!(sign(text), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_not_seen_does_not_count_as_shown() {
        let mut screen = Screen::default();
        screen.push(b"# ");
        let shown = screen.shown();
        for byte in b"\x1b[0m[    1.234567] random: crng init done\r\n\x1b]0;title\x07" {
            screen.push(&[*byte]);
            assert_eq!((screen.shown(), screen.prompt_kind()), (shown, Some(PromptKind::Shell)));
        }
        screen.push(b" ");
        assert_eq!(screen.shown(), shown + 1);
    }

    #[test]
    fn incorrect_is_seen_in_the_middle_of_much_output() {
        let mut screen = Screen::default();
        let text = [&[b'x'; 700][..], b"\r\nLogin incorrect\r\n", &[b'y'; 5000]].concat();
        let seen = text.chunks(PIECE).filter(|piece| {
            screen.push(piece);
            screen.says_incorrect()
        });
        assert!(seen.count() > 0);
    }
}
