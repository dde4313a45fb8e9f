//! [`Screen`]: the text at the end of the output, as a person would see it, to recognise prompts.
//!
//! Escape sequences and kernel messages are removed. A kernel message is recognised by its time stamp.
//! It ends with a newline, so removing the message restores the line that it interrupts:
//!
//! ```text
//! guest login: [    4.812345] random: crng init done\r\n        is the prompt  "guest login: "
//! ```
//!
//! Messages without time stamps are not removed; [`Login`](super::Login) then has to request a new
//! prompt.

use crate::console::Stripper;
use crate::console::kernel_log::Timestamp;
use alloc::vec::Vec;
use memchr::memmem;

/// How many of the last bytes are kept.
pub(super) const WINDOW: usize = 4096;

/// The maximum size of one push, so that a short text is visible between two pushes.
pub(super) const PIECE: usize = WINDOW / 4;

/// The kind of prompt at the end of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PromptKind {
    /// `login:`, but not `Last login:`.
    Login,
    /// `assword:`, which covers `Password:` and `password:`.
    Password,
    /// `# `, `$ ` or `> `, or `% ` that is no percentage.
    Shell,
}

/// The end of the output since the last [`clear`](Self::clear).
#[derive(Debug, Clone, Default)]
pub(super) struct Screen {
    text: Vec<u8>,
    shown: u64,
    stripper: Stripper,
    /// Whether the next byte belongs to a kernel message, up to the end of the line.
    in_message: bool,
    /// A possible start of a time stamp. It becomes text when it turns out to be none.
    pending: Vec<u8>,
}

impl Screen {
    /// Adds output, at most [`PIECE`] bytes at a time.
    pub(super) fn push(&mut self, piece: &[u8]) {
        for &byte in piece {
            if self.stripper.is_text(byte) {
                self.push_text(byte);
            }
        }
        let excess = self.text.len().saturating_sub(WINDOW);
        self.text.drain(..excess);
    }

    /// Removes the text and keeps the state of an incomplete sequence.
    pub(super) fn clear(&mut self) {
        self.text.clear();
    }

    /// The number of visible bytes so far. While it does not change, the text does not change.
    pub(super) fn shown(&self) -> u64 {
        self.shown
    }

    /// The last line, which has no line end yet.
    pub(super) fn line(&self) -> &[u8] {
        let line = self.text.rsplit(|&b| b == b'\n').next().unwrap_or_default();
        // A line editor may return to the start of the line and print the prompt again.
        line.rsplit(|&b| b == b'\r').find(|part| !part.is_empty()).unwrap_or_default()
    }

    /// The line from this count of visible bytes on, without its end, and whether it has one. `None` when
    /// the screen has dropped its start.
    pub(super) fn line_from(&self, shown: u64) -> Option<(&[u8], bool)> {
        let len = usize::try_from(self.shown - shown).ok()?;
        let text = &self.text[self.text.len().checked_sub(len)?..];
        let end = text.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
        Some((&text[..end.unwrap_or(len)], end.is_some()))
    }

    /// The kind of prompt at the end of the output, if there is one.
    pub(super) fn prompt_kind(&self) -> Option<PromptKind> {
        let line = self.line();
        if [&b"# "[..], b"$ ", b"> "].iter().any(|end| line.ends_with(end)) || is_zsh(line) {
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

    /// Whether the guest has refused the user name or password.
    pub(super) fn has_login_incorrect(&self) -> bool {
        self.has(b"Login incorrect")
    }

    /// Whether the text contains these words.
    pub(super) fn has(&self, words: &[u8]) -> bool {
        memmem::find(&self.text, words).is_some()
    }

    /// Whether a line that has its end contains these words.
    pub(super) fn has_line_with(&self, words: &[u8]) -> bool {
        let found = memmem::find(&self.text, words);
        found.is_some_and(|at| self.text[at..].contains(&b'\n'))
    }

    fn push_text(&mut self, byte: u8) {
        if self.in_message {
            self.in_message = byte != b'\n';
        } else if matches!(byte, b'\t' | b'\n' | b'\r' | b' '..) {
            self.push_visible(byte);
        }
    }

    fn push_visible(&mut self, byte: u8) {
        if !self.pending.is_empty() {
            self.pending.push(byte);
            match Timestamp::parse(&self.pending) {
                Timestamp::Whole { .. } => {
                    self.pending.clear();
                    self.in_message = true;
                    return;
                }
                Timestamp::Partial => return,
                Timestamp::No => {
                    self.pending.pop();
                    self.shown += self.pending.len() as u64;
                    self.text.append(&mut self.pending);
                }
            }
        }
        if byte == b'[' {
            self.pending.push(byte);
        } else {
            self.text.push(byte);
            self.shown += 1;
        }
    }
}

/// Whether a line ends like the default prompt of zsh and csh, and not with a percentage.
fn is_zsh(line: &[u8]) -> bool {
    let word = line.strip_suffix(b"% ").and_then(|line| line.rsplit(|b| *b == b' ').next());
    word.is_some_and(|word| !word.iter().all(|b| matches!(b, b'0'..=b'9' | b'.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt_kind(text: &str) -> Option<PromptKind> {
        let mut screen = Screen::default();
        for piece in text.as_bytes().chunks(PIECE) {
            screen.push(piece);
        }
        screen.prompt_kind()
    }

    #[test]
    fn screen_prompt_at_end_is_recognised() {
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
            ("host1% ", Some(PromptKind::Shell)),
            ("\x1b[1m%\x1b[0m   \r \r\r\x1b[Jguest% \x1b[K", Some(PromptKind::Shell)),
            ("fsck: 45.2% ", None),
            ("100% ", None),
            ("% ", None),
            ("# \r\n", None),
            ("# ls", None),
            ("", None),
            ("\x1b", None),
            ("\x1b]0;never ended", None),
            ("caf\u{e9} # ", Some(PromptKind::Shell)),
        ] {
            assert_eq!(prompt_kind(text), expected, "{text:?}");
        }
    }

    #[test]
    fn screen_kernel_messages_do_not_hide_prompt() {
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
            assert_eq!(prompt_kind(text), expected, "{text:?}");
        }
    }

    #[test]
    fn screen_invisible_bytes_are_not_counted() {
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
    fn screen_login_incorrect_in_long_output_is_found() {
        let mut screen = Screen::default();
        let text = [&[b'x'; 700][..], b"\r\nLogin incorrect\r\n", &[b'y'; 5000]].concat();
        let seen = text.chunks(PIECE).filter(|piece| {
            screen.push(piece);
            screen.has_login_incorrect()
        });
        assert!(seen.count() > 0);
    }
}
