//! [`ShellReader`]: parses the lines that [`RunCommand`](crate::console::RunCommand) writes, as a
//! shell would: which command they carry, and the nonce of its marks.
//!
//! It understands only the lines of `console/script/line.rs`. A test checks that the two agree.

use super::line_discipline::INTERRUPT;
use crate::console::CommandScope;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// A line of input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ShellLine {
    /// A line that `RunCommand` did not write.
    Plain(String),
    /// A line of a long command; more lines follow.
    Part { nonce: u64 },
    /// A command, the nonce of its marks and its wrapper.
    Run { command: String, nonce: u64, scope: CommandScope },
    /// A request to the wrapper of a command.
    Request { nonce: u64, request: String },
}

/// A long command of which the last line has not come yet.
#[derive(Debug, Default)]
pub(super) struct ShellReader(Option<LongCommand>);

#[derive(Debug)]
struct LongCommand {
    nonce: u64,
    scope: CommandScope,
    payload: String,
}

impl ShellReader {
    /// Parses one line.
    pub(super) fn read(&mut self, line: &str) -> ShellLine {
        if let Some(mut long) = self.0.take() {
            if let Some(piece) = line.strip_prefix('+') {
                long.payload.push_str(piece);
                let nonce = long.nonce;
                self.0 = Some(long);
                return ShellLine::Part { nonce };
            }
            let LongCommand { nonce, scope, payload } = long;
            let command = if line == "." { unescape(&payload) } else { String::new() };
            return ShellLine::Run { command, nonce, scope };
        }
        self.parse(line).unwrap_or_else(|| ShellLine::Plain(String::from(line)))
    }

    fn parse(&mut self, line: &str) -> Option<ShellLine> {
        if let Some((nonce, request)) = line.strip_prefix(" : ").and_then(|l| l.split_once(' ')) {
            return Some(ShellLine::Request { nonce: hex(nonce)?, request: request.into() });
        }
        let (program, scope, nonce, payload) = match line.strip_prefix(" /bin/sh -c '") {
            Some(rest) => {
                let (program, words) = rest.split_once("' capsa ")?;
                let (nonce, payload) = words.split_once(' ')?;
                let has_terminal = program.contains("stty -g");
                let scope =
                    if has_terminal { CommandScope::Terminal } else { CommandScope::Process };
                (program, scope, nonce, payload.strip_prefix('\'')?.strip_suffix('\'')?)
            }
            None => {
                let (_, rest) = line.split_once(" capsa begin ")?;
                let (nonce, rest) = rest.split_once(";command eval \"$(printf %b ")?;
                let payload = rest.strip_prefix('\'').and_then(|rest| rest.split_once('\''));
                (line, CommandScope::Shell, nonce, payload.map_or("", |(payload, _)| payload))
            }
        };
        let nonce = hex(nonce)?;
        if program.contains(" capsa more ") {
            self.0 = Some(LongCommand { nonce, scope, payload: String::new() });
            return Some(ShellLine::Part { nonce });
        }
        Some(ShellLine::Run { command: unescape(payload), nonce, scope })
    }
}

/// The nonce in a line that begins a command.
pub(super) fn nonce(line: &str) -> Option<u64> {
    ["' capsa ", " capsa begin "].iter().find_map(|mark| {
        let (_, rest) = line.split_once(mark)?;
        hex(rest.get(..16)?)
    })
}

/// What input of `RunCommand` means, without its wrapper.
pub(super) fn command(input: &[u8]) -> Option<String> {
    let line = String::from_utf8_lossy(input.split(|byte| *byte == b'\n').next()?);
    match ShellReader::default().read(&line) {
        ShellLine::Run { command, .. } => Some(format!("of the command {command:?}")),
        ShellLine::Part { .. } => Some("of a long command".into()),
        ShellLine::Request { .. } => Some("that ends a command".into()),
        ShellLine::Plain(_) => None,
    }
}

/// Whether this input asks to end a command, which `RunCommand` repeats until the end.
pub(super) fn is_repeatable(input: &[u8]) -> bool {
    let line = String::from_utf8_lossy(input);
    match line.trim_end().strip_prefix(" : ").and_then(|line| line.split_once(' ')) {
        Some((_, request)) => request != "ok",
        None => input == [INTERRUPT],
    }
}

/// Expands escapes like `printf %b`.
fn unescape(text: &str) -> String {
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                let digits = bytes.by_ref().skip(1).take(3);
                let value = digits
                    .fold(0, |n: u8, d| n.wrapping_mul(8).wrapping_add(d.wrapping_sub(b'0') & 7));
                out.push(value);
            }
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
    use alloc::string::ToString;
    use proptest::prelude::*;

    /// Writes a command line by line with `RunCommand`, and parses these lines.
    fn round_trip(command: &str, scope: CommandScope) -> ShellLine {
        let (mut log, mut cursor) = (Scrollback::default(), Cursor::at(0));
        let script = RunCommand::new(command, None, 0xcafe, Instant::ZERO, None);
        let mut script = script.expect("typeable").scope(scope);
        let mut reader = ShellReader::default();
        for n in 0..1000 {
            let ScriptAction::Write(line) =
                script.poll_output(Instant::ZERO, &log, &mut cursor, false)
            else {
                panic!("no line written");
            };
            let line = String::from_utf8(line).expect("ASCII");
            assert_eq!(nonce(&line), (n == 0).then_some(0xcafe));
            match reader.read(line.trim_end_matches('\n')) {
                ShellLine::Part { nonce } => {
                    log.push(format!("capsa:more:{nonce:016x}\r\n").as_bytes());
                }
                read => return read,
            }
        }
        panic!("too many lines");
    }

    fn check(command: &str) {
        for scope in [CommandScope::Process, CommandScope::Terminal, CommandScope::Shell] {
            let run = ShellLine::Run { command: command.to_string(), nonce: 0xcafe, scope };
            assert_eq!(round_trip(command, scope), run);
        }
    }

    #[test]
    fn shell_reader_command_lines_yield_command() {
        let long = "echo 'x\\0' ".repeat(200);
        for command in ["uname -r", "echo 'it'\\''s'", "a\nb\té\\n", "", &long] {
            check(command);
        }
    }

    #[test]
    fn shell_reader_other_lines_are_plain() {
        for line in ["ls", " printf x", " capsa_command='", "", "'", "+x", "."] {
            assert_eq!(ShellReader::default().read(line), ShellLine::Plain(line.to_string()));
        }
        let request = ShellLine::Request { nonce: 0xcafe, request: "INT".into() };
        assert_eq!(ShellReader::default().read(" : 000000000000cafe INT"), request);
        assert_eq!(command(b" : 000000000000cafe ok\n").as_deref(), Some("that ends a command"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn shell_reader_any_command_round_trips(command in r#"([ -~]|'|\\|\n|é){0,900}"#) {
            check(&command);
        }
    }
}
