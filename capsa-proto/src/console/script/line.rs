//! The command wrapper: the lines that run a command in a shell, and the marks that they print.
//!
//! ```text
//!  printf '%s:%s:%s\n' capsa begin ID;command eval 'CMD' </dev/null;printf '%s:%s:%s:%d;\n' capsa end ID $?
//! ```
//!
//! The reason for each part:
//!
//! - `printf` joins the parts of a mark with colons, which the line itself does not have there. So
//!   neither the echo, even if a line editor wraps it, nor the trace of `set -x` looks like a mark.
//! - `eval` of one quoted word: a syntax error in it ends the command, not the line, so the end mark
//!   is still printed. Without `command`, `eval` is a special built-in, whose errors abandon the whole
//!   line in dash and busybox ash.
//! - `</dev/null`: a command that reads gets the end of file; otherwise it would read the end of the
//!   wrapper, or wait forever.
//! - The leading blank keeps the line out of the history, if the shell is configured so.
//!
//! The terminal or a line editor interprets bytes other than printable ASCII (Tab completes; readline
//! mangles UTF-8 in the C locale), so a command with such bytes goes through `printf %b` with octal
//! escapes. So does a command of several lines.
//!
//! Tested with dash 0.5.12, bash 5.2 (xterm, vt100 and dumb terminals) and busybox ash 1.35.

use super::{ScriptError, Stdin};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// The maximum length of a command, in bytes after escaping: 64 KiB.
pub const COMMAND_MAX: usize = 64 << 10;

/// The maximum length of a line, including its newline.
///
/// The kernel's line discipline accepts 4095 bytes. busybox ash drops bytes after the first 1022
/// (`CONFIG_FEATURE_EDITING_MAX_LEN`, default: 1024) and then waits for the closing quote.
pub(super) const LINE_MAX: usize = 1000;

/// The maximum length of a quoted part of a command in a line of its own.
const PIECE_MAX: usize = 800;

/// The marks that the guest prints around the output of a command. The nonce identifies the command.
#[derive(Debug, Clone)]
pub(super) struct Marks {
    pub(super) begin: String,
    /// The exit status in decimal and a semicolon follow.
    pub(super) end: String,
    /// Printed after each line but the last, if a command needs several lines.
    pub(super) more: String,
}

impl Marks {
    pub(super) fn new(nonce: u64) -> Self {
        let mark = |what| format!("capsa:{what}:{nonce:016x}");
        Self { begin: mark("begin"), end: mark("end") + ":", more: mark("more") }
    }
}

/// A command in printable ASCII, ready for the wrapper.
#[derive(Debug, Clone)]
pub(super) struct EncodedCommand {
    /// Printable ASCII.
    payload: String,
    /// Whether `printf %b` must expand the payload.
    escaped: bool,
}

impl EncodedCommand {
    pub(super) fn parse(command: &str) -> Result<Self, ScriptError> {
        if command.contains('\0') {
            return Err(ScriptError::Untypeable { what: "command", byte: 0 });
        }
        let escaped = !command.bytes().all(|b| matches!(b, b' '..=b'~'));
        let payload = if escaped { escape(command) } else { command.into() };
        if payload.len() > COMMAND_MAX {
            return Err(ScriptError::CommandTooLong { len: payload.len(), max: COMMAND_MAX });
        }
        Ok(Self { payload, escaped })
    }

    /// The lines to write. Before each line but the first, wait for [`Marks::more`]: a busy shell may
    /// drop input.
    pub(super) fn lines(&self, nonce: u64, stdin: Stdin) -> VecDeque<Vec<u8>> {
        let line = self.last_line(&quote(&self.payload), nonce, stdin);
        if line.len() <= LINE_MAX {
            return VecDeque::from([line.into_bytes()]);
        }
        let mut lines = VecDeque::new();
        let mut before = "";
        for piece in pieces(&self.payload) {
            let line = format!(
                " capsa_command={before}{piece};printf '%s:%s:%s\\n' capsa more {nonce:016x}\n"
            );
            lines.push_back(line.into_bytes());
            before = "$capsa_command";
        }
        let line = self.last_line("\"$capsa_command\"", nonce, stdin);
        lines.push_back(line.into_bytes());
        lines
    }

    fn last_line(&self, word: &str, nonce: u64, stdin: Stdin) -> String {
        let (open, close) = if self.escaped { ("\"$(printf %b ", ")\"") } else { ("", "") };
        let stdin = match stdin {
            Stdin::Null => " </dev/null",
            Stdin::Terminal => "",
        };
        format!(
            " printf '%s:%s:%s\\n' capsa begin {nonce:016x};\
             command eval {open}{word}{close}{stdin};\
             printf '%s:%s:%s:%d;\\n' capsa end {nonce:016x} $?\n"
        )
    }
}

/// One shell word that expands to exactly `text`.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Splits `text`, which is ASCII, into quoted parts of bounded length.
fn pieces(text: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut piece = String::new();
    for c in text.chars() {
        if piece.len() + r"'\''".len() > PIECE_MAX {
            pieces.push(format!("'{}'", core::mem::take(&mut piece)));
        }
        match c {
            '\'' => piece.push_str(r"'\''"),
            c => piece.push(c),
        }
    }
    pieces.push(format!("'{piece}'"));
    pieces
}

/// Escapes `text` for `printf %b`: printable ASCII stays, other bytes become octal escapes.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'\\' => out.push_str(r"\\"),
            b' '..=b'~' => out.push(byte as char),
            // Writing to a `String` does not fail.
            _ => _ = write!(out, r"\0{byte:03o}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    fn wrap(command: &str) -> Vec<String> {
        let lines = EncodedCommand::parse(command).expect("typeable").lines(7, Stdin::Null);
        lines.into_iter().map(|l| String::from_utf8(l).expect("ASCII")).collect()
    }

    #[test]
    fn short_command_is_one_line() {
        assert_eq!(
            wrap("echo 'hi'"),
            [" printf '%s:%s:%s\\n' capsa begin 0000000000000007;\
              command eval 'echo '\\''hi'\\''' </dev/null;\
              printf '%s:%s:%s:%d;\\n' capsa end 0000000000000007 $?\n"]
        );
    }

    #[test]
    fn command_non_printable_bytes_are_escaped() {
        let line = wrap("echo a\\b\n\té").concat();
        assert!(line.contains(r#"eval "$(printf %b 'echo a\\b\0012\0011\0303\0251')" "#), "{line}");
    }

    #[test]
    fn command_nul_or_too_long_is_rejected() {
        let error = |c: &str| EncodedCommand::parse(c).expect_err("rejected").to_string();
        assert_eq!(error("a\0"), "command contains the byte 0x00, which cannot be typed");
        assert_eq!(
            error(&"x".repeat(COMMAND_MAX + 1)),
            "command of 65537 bytes is longer than 65536 bytes"
        );
        assert!(EncodedCommand::parse(&"x".repeat(COMMAND_MAX)).is_ok());
    }

    #[test]
    fn stdin_terminal_omits_dev_null() {
        let lines = EncodedCommand::parse("cat").expect("typeable").lines(7, Stdin::Terminal);
        assert!(!String::from_utf8_lossy(&lines[0]).contains("/dev/null"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn wrapper_lines_are_short_printable_without_marks(
            command in r#"([ -~]|'|\n|é|capsa:end:0000000000000007:){0,900}"#,
        ) {
            let marks = Marks::new(7);
            for line in wrap(&command) {
                prop_assert!(line.len() <= LINE_MAX, "{}", line.len());
                let body = line.strip_suffix('\n').expect("a newline at the end");
                prop_assert!(body.bytes().all(|b| matches!(b, b' '..=b'~')));
                // A user may write the mark of another command, but does not know this nonce.
                if !command.contains("capsa:") {
                    for mark in [&marks.begin, &marks.end, &marks.more] {
                        prop_assert!(!body.contains(mark.as_str()));
                    }
                }
            }
        }
    }
}
