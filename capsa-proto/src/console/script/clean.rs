//! Removes the lines and marks of command wrappers from output that an error shows.
//!
//! A line editor echoes a wrapper in rows, with escape sequences and, for some terminals, with NUL bytes
//! between its words. So the echo is recognised in the printable text, from its first words to its last.

use crate::console::Stripper;
use alloc::vec::Vec;
use memchr::memmem;

/// The first words of an echoed line, and its last ones.
const ECHOES: [(&[u8], &[u8]); 4] = [
    (b" -c 'printf \"%s:%s:%s", b"'"),
    (b" -c 'capsa_command=;while printf", b"'"),
    (b" printf \"%s:%s:%s\\n\" capsa begin ", b"$?"),
    (b" capsa_command=;while printf", b"$?"),
];

/// The most printable text of an echo: a line with its rows.
const ECHO_MAX: usize = 1500;

/// The output in which an echo has its beginning: fish repaints a line with many escape sequences.
pub(in crate::console) const ECHO_WINDOW: usize = 32 << 10;

/// `output` without the echoes of wrappers and of the requests to them, and without marks.
pub(in crate::console) fn without_wrappers(output: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(output.len());
    let mut echo: Option<(&[u8], usize)> = None;
    let mut in_pieces = false;
    for line in output.split_inclusive(|byte| *byte == b'\n') {
        let text = printable(line);
        echo = echo.or_else(|| Some((last_words(&text)?, 0)));
        if let Some((end, len)) = echo {
            let len = len + text.len();
            echo = (!text.ends_with(end) && len <= ECHO_MAX).then_some((end, len));
            continue;
        }
        if core::mem::take(&mut in_pieces) && (text.starts_with(b"+") || text == b".") {
            continue;
        }
        match wrapper_text(line) {
            Some(at) => {
                in_pieces = line[at..].starts_with(MORE);
                kept.extend_from_slice(&line[..at]);
            }
            None => kept.extend_from_slice(line),
        }
    }
    kept
}

/// The last words of the echo that begins in a line.
fn last_words(text: &[u8]) -> Option<&'static [u8]> {
    let begun = ECHOES.iter().find(|(begin, _)| memmem::find(text, begin).is_some());
    begun.map(|(_, end)| *end)
}

/// The printable text of a line.
fn printable(line: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(line.len());
    Stripper::default().strip(line, &mut text);
    text.retain(|byte| *byte >= b' ');
    text.truncate(text.trim_ascii_end().len());
    text
}

/// The mark after each line of a long command.
const MORE: &[u8] = b"capsa:more:";

/// Where a mark or a request begins in a line.
fn wrapper_text(line: &[u8]) -> Option<usize> {
    let starts = [&b"capsa:begin:"[..], MORE, b"capsa:end:", b" : "];
    let at = |start: &[u8]| {
        let at = memmem::find(line, start)?;
        let nonce = line[at + start.len()..].get(..16)?;
        nonce.iter().all(u8::is_ascii_hexdigit).then_some(at)
    };
    let interrupted = || memmem::find(line, b" printf '%s:%s:%s:%d;\\n' capsa end ");
    starts.into_iter().filter_map(at).chain(interrupted()).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::script::CommandScope;
    use crate::console::{Cursor, RunCommand, Script, ScriptAction, Scrollback};
    use crate::time::Instant;
    use alloc::format;

    /// The first line that is typed for a command.
    fn typed(command: &str, scope: CommandScope) -> Vec<u8> {
        let script = RunCommand::new(command, None, 7, Instant::ZERO, None).unwrap();
        let mut script = script.scope(scope);
        let (log, mut cursor) = (Scrollback::default(), Cursor::at(0));
        let action = script.poll_output(Instant::ZERO, &log, &mut cursor, false);
        let ScriptAction::Write(typed) = action else { panic!("nothing typed") };
        typed
    }

    /// A line as fish paints it: escape sequences and padding between the words.
    fn painted(line: &[u8]) -> Vec<u8> {
        let words: Vec<_> = line.trim_ascii_end().split(|byte| *byte == b' ').collect();
        let padding = [&b"\x1b[m\x0f"[..], &[0; 25], b" "].concat();
        [&words.join(&padding[..])[..], b"\r\x1b[538C\x1b[m\x0f", &[0; 25], b"\r\n"].concat()
    }

    #[test]
    fn wrappers_are_removed_from_output() {
        for scope in [CommandScope::Process, CommandScope::Shell] {
            for command in ["echo 'hi'", &"x".repeat(2000)] {
                let typed = typed(command, scope);
                let wrapped = typed.chunks(80).collect::<Vec<_>>().join(&b"\r\r\n"[..]);
                for echo in [painted(&typed), typed, wrapped] {
                    let parts: [&[u8]; 6] = [
                        b"boot\r\n# ",
                        &echo,
                        b"capsa:more:0000000000000007\r\n+xx\r\ncapsa:more:0000000000000007\r\n.\r\n",
                        b"capsa:begin:0000000000000007\r\nhi\r\n : 0000000000000007 INT\r\n",
                        b"^C printf '%s:%s:%s:%d;\\n' capsa end 0000000000000007 130\r\n",
                        b"no end capsa:end:0000000000000007:0;\r\n : 0000000000000007 ok\r\n# ",
                    ];
                    let shown = without_wrappers(&parts.concat());
                    let expected = b"boot\r\nhi\r\n^Cno end # ";
                    assert_eq!(shown, expected, "{:?}", shown.escape_ascii());
                }
            }
        }
    }

    #[test]
    fn output_after_a_cut_echo_is_kept() {
        let typed = typed("x", CommandScope::Process);
        let output = format!("{}\r\n", "an own line ".repeat(10)).repeat(200);
        let shown = without_wrappers(&[&typed[..100], b"\r\n", output.as_bytes()].concat());
        assert!(shown.len() > output.len() - 2 * ECHO_MAX, "{}", shown.len());
    }
}
