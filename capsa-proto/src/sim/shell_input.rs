//! [`ShellReader`]: parses the lines that [`RunCommand`](crate::console::RunCommand) writes, as a
//! shell would: which command they carry, and the nonce of its marks.
//!
//! It understands only the lines of `console/script/line.rs`. A test checks that the two agree.

use alloc::string::String;
use alloc::vec::Vec;

/// A line at the shell prompt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ShellLine {
    /// A line that `RunCommand` did not write.
    Plain(String),
    /// A part of a long command; more lines follow.
    Part { nonce: u64 },
    /// A command and the nonce of its marks.
    Run { command: String, nonce: u64 },
}

/// The shell variable that collects the parts of a long command.
#[derive(Debug, Default)]
pub(super) struct ShellReader(String);

impl ShellReader {
    /// Parses one line.
    pub(super) fn read(&mut self, line: &str) -> ShellLine {
        self.part(line)
            .or_else(|| self.run(line))
            .unwrap_or_else(|| ShellLine::Plain(String::from(line)))
    }

    fn part(&mut self, line: &str) -> Option<ShellLine> {
        let rest = line.strip_prefix(" capsa_command=")?;
        let (rest, goes_on) = match rest.strip_prefix("$capsa_command") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let (piece, rest) = quoted(rest)?;
        let nonce = hex(rest.strip_prefix(";printf '%s:%s:%s\\n' capsa more ")?)?;
        if !goes_on {
            self.0.clear();
        }
        self.0.push_str(&piece);
        Some(ShellLine::Part { nonce })
    }

    fn run(&self, line: &str) -> Option<ShellLine> {
        let rest = line.strip_prefix(" printf '%s:%s:%s\\n' capsa begin ")?;
        let (nonce, rest) = rest.split_once(";command eval ")?;
        let (rest, escaped) = match rest.strip_prefix("\"$(printf %b ") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let (word, rest) = match rest.strip_prefix("\"$capsa_command\"") {
            Some(rest) => (self.0.clone(), rest),
            None => quoted(rest)?,
        };
        if !rest.contains(";printf '%s:%s:%s:%d;\\n' capsa end ") {
            return None;
        }
        let command = if escaped { unescape(&word) } else { word };
        Some(ShellLine::Run { command, nonce: hex(nonce)? })
    }
}

/// The nonce in a line that `RunCommand` wrote.
pub(super) fn nonce(line: &str) -> Option<u64> {
    ["capsa begin ", "capsa more "].iter().find_map(|mark| {
        let (_, rest) = line.split_once(mark)?;
        hex(rest.get(..16)?)
    })
}

/// The word in quotes at the beginning of `text`, and the text after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut word = String::new();
    let mut rest = text.strip_prefix('\'')?;
    loop {
        let (inner, after) = rest.split_once('\'')?;
        word.push_str(inner);
        match after.strip_prefix(r"\''") {
            Some(after) => {
                word.push('\'');
                rest = after;
            }
            None => return Some((word, after)),
        }
    }
}

/// Expands escapes like `printf %b`.
fn unescape(text: &str) -> String {
    let (mut out, mut bytes) = (Vec::new(), text.bytes().peekable());
    while let Some(byte) = bytes.next() {
        match (byte, bytes.peek()) {
            (b'\\', Some(b'0')) => {
                bytes.next();
                let digits = bytes.by_ref().take(3);
                let value = digits
                    .fold(0, |n: u8, d| n.wrapping_mul(8).wrapping_add(d.wrapping_sub(b'0') & 7));
                out.push(value);
            }
            (b'\\', Some(_)) => out.extend(bytes.next()),
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::{Cursor, RunCommand, Script, ScriptAction, Scrollback};
    use crate::time::Instant;
    use alloc::format;
    use alloc::string::ToString;
    use alloc::vec;
    use proptest::prelude::*;

    /// Writes a command line by line with `RunCommand`, and parses these lines.
    fn round_trip(command: &str) -> ShellLine {
        let (mut log, mut cursor) = (Scrollback::default(), Cursor::at(0));
        let script = RunCommand::new(command, None, 0xcafe, Instant::ZERO, None);
        let mut script = script.expect("typeable");
        let mut reader = ShellReader::default();
        for _ in 0..1000 {
            let ScriptAction::Write(line) =
                script.poll_output(Instant::ZERO, &log, &mut cursor, false)
            else {
                panic!("no line written");
            };
            let line = String::from_utf8(line).expect("ASCII");
            assert_eq!(nonce(&line), Some(0xcafe));
            match reader.read(line.trim_end_matches('\n')) {
                ShellLine::Part { nonce } => {
                    log.push(format!("capsa:more:{nonce:016x}\r\n").as_bytes());
                }
                read => return read,
            }
        }
        panic!("too many lines");
    }

    #[test]
    fn shell_reader_command_lines_yield_command() {
        let long = "echo 'x\\0' ".repeat(200);
        for command in ["uname -r", "echo 'it'\\''s'", "a\nb\té\\n", "", &long] {
            let run = ShellLine::Run { command: command.to_string(), nonce: 0xcafe };
            assert_eq!(round_trip(command), run);
        }
    }

    #[test]
    fn shell_reader_other_lines_are_plain() {
        for line in ["ls", " printf x", " capsa_command='", "", "'"] {
            assert_eq!(ShellReader::default().read(line), ShellLine::Plain(line.to_string()));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn shell_reader_any_command_round_trips(command in r#"([ -~]|'|\\|\n|é){0,900}"#) {
            let run = vec![ShellLine::Run { command: command.clone(), nonce: 0xcafe }];
            prop_assert_eq!(vec![round_trip(&command)], run);
        }
    }
}
