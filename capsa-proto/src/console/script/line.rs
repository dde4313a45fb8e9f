//! The lines that carry a command to a shell, and the marks that come back.
//!
//! ```text
//!  printf '%s:%s:%s\n' capsa begin ID;command eval 'CMD' </dev/null;printf '%s:%s:%s:%d;\n' capsa end ID $?
//! ```
//!
//! Each part has its reason:
//!
//! - `printf` joins the marks with colons, which the typed line does not have there. So neither the
//!   echo, however a line editor wraps it, nor the trace of `set -x` can be taken for a mark.
//! - `eval` of one quoted word: a syntax error in it ends the command, not the line, so the end
//!   mark still comes. `command` takes from `eval` the right of a special built-in to abandon the
//!   whole line in dash and busybox ash.
//! - `</dev/null`: a command that reads finds the end, rather than the end mark or nothing for ever.
//! - The blank in front keeps the line out of the history where the shell is set up so.
//!
//! Bytes other than printable ASCII would be acted on by the terminal or by a line editor (Tab
//! completes; readline mangles UTF-8 in the C locale), so a command that has any goes through
//! `printf %b` with octal escapes. A command of several lines is carried the same way.
//!
//! Checked on dash 0.5.12, bash 5.2 (xterm, vt100 and dumb terminals) and busybox ash 1.35.

use super::{ScriptError, Stdin};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// The longest command that is carried, in bytes after escaping: 64 KiB.
pub const COMMAND_MAX: usize = 64 << 10;

/// The longest line that is typed, newline included.
///
/// The kernel's line discipline takes 4095 bytes; busybox ash drops what comes after 1022 of its
/// own (`CONFIG_FEATURE_EDITING_MAX_LEN`, 1024 by default) and then waits for the closing quote.
pub(super) const LINE_MAX: usize = 1000;

/// Room for a quoted piece of command in a line of its own.
const PIECE_MAX: usize = 800;

/// What the guest prints around a command, told apart from other commands by their id.
#[derive(Debug, Clone)]
pub(super) struct Marks {
    pub(super) begin: String,
    /// Followed by the exit status in decimal and a semicolon.
    pub(super) end: String,
    /// After each line but the last, when a command takes several.
    pub(super) more: String,
}

impl Marks {
    pub(super) fn new(nonce: u64) -> Self {
        let mark = |what| format!("capsa:{what}:{nonce:016x}");
        Self { begin: mark("begin"), end: mark("end") + ":", more: mark("more") }
    }
}

/// A command that can be carried.
#[derive(Debug, Clone)]
pub(super) struct EncodedCommand {
    /// Printable ASCII.
    payload: String,
    /// The payload is for `printf %b` rather than for the shell itself.
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

    /// What to type. Before each line but the first, [`Marks::more`] has to come back: what is
    /// typed ahead while a shell is busy may be dropped.
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

/// One shell word that stands for exactly `text`.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// `text` quoted in pieces of bounded length, which joined are the whole. It is ASCII.
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

/// `text` as `printf %b` takes it: printable ASCII, anything else in octal.
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

    fn typed(command: &str) -> Vec<String> {
        let lines = EncodedCommand::parse(command).expect("typeable").lines(7, Stdin::Null);
        lines.into_iter().map(|l| String::from_utf8(l).expect("ASCII")).collect()
    }

    #[test]
    fn a_short_command_is_one_line() {
        assert_eq!(
            typed("echo 'hi'"),
            [" printf '%s:%s:%s\\n' capsa begin 0000000000000007;\
              command eval 'echo '\\''hi'\\''' </dev/null;\
              printf '%s:%s:%s:%d;\\n' capsa end 0000000000000007 $?\n"]
        );
    }

    #[test]
    fn what_a_terminal_would_act_on_is_escaped() {
        let line = typed("echo a\\b\n\té").concat();
        assert!(line.contains(r#"eval "$(printf %b 'echo a\\b\0012\0011\0303\0251')" "#), "{line}");
    }

    #[test]
    fn nul_and_oversize_are_refused() {
        let refused = |c: &str| EncodedCommand::parse(c).expect_err("refused").to_string();
        assert_eq!(refused("a\0"), "command contains the byte 0x00, which cannot be typed");
        assert_eq!(
            refused(&"x".repeat(COMMAND_MAX + 1)),
            "command of 65537 bytes is longer than 65536 bytes"
        );
        assert!(EncodedCommand::parse(&"x".repeat(COMMAND_MAX)).is_ok());
    }

    #[test]
    fn the_terminal_stays_stdin_when_wanted() {
        let lines = EncodedCommand::parse("cat").expect("typeable").lines(7, Stdin::Terminal);
        assert!(!String::from_utf8_lossy(&lines[0]).contains("/dev/null"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_line_is_short_printable_and_free_of_marks(
            command in r#"([ -~]|'|\n|é|capsa:end:0000000000000007:){0,900}"#,
        ) {
            let marks = Marks::new(7);
            for line in typed(&command) {
                prop_assert!(line.len() <= LINE_MAX, "{}", line.len());
                let body = line.strip_suffix('\n').expect("a newline at the end");
                prop_assert!(body.bytes().all(|b| matches!(b, b' '..=b'~')));
                // A user may type the mark of another command; ours has an id nobody knew.
                if !command.contains("capsa:") {
                    for mark in [&marks.begin, &marks.end, &marks.more] {
                        prop_assert!(!body.contains(mark.as_str()));
                    }
                }
            }
        }
    }
}
