//! Removes the lines and marks of command wrappers from output that an error shows.

use alloc::vec::Vec;
use memchr::memmem;

/// The beginning of the echo of a wrapper.
const ECHO: &[u8] = b" -c 'printf \"%s:%s:%s";

/// `output` without the echoes of wrappers and of the requests to them, and without marks.
pub(in crate::console) fn without_wrappers(output: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(output.len());
    let mut in_echo = false;
    for line in output.split_inclusive(|byte| *byte == b'\n') {
        let text = line.trim_ascii_end();
        in_echo |= memmem::find(text, ECHO).is_some();
        if in_echo {
            // A line editor wraps the echo, which ends with the word of the command.
            in_echo = !text.ends_with(b"'");
            continue;
        }
        match wrapper_text(text) {
            Some(at) => kept.extend_from_slice(&text[..at]),
            None => kept.extend_from_slice(line),
        }
    }
    kept
}

/// Where a mark or a request begins in a line.
fn wrapper_text(line: &[u8]) -> Option<usize> {
    let starts = [&b"capsa:begin:"[..], b"capsa:more:", b"capsa:end:", b" : "];
    let at = |start: &[u8]| {
        let at = memmem::find(line, start)?;
        let nonce = line[at + start.len()..].get(..16)?;
        nonce.iter().all(u8::is_ascii_hexdigit).then_some(at)
    };
    starts.into_iter().filter_map(at).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::{Cursor, RunCommand, Script, ScriptAction, Scrollback};
    use crate::time::Instant;

    #[test]
    fn wrappers_are_removed_from_output() {
        let mut script = RunCommand::new("echo 'hi'", None, 7, Instant::ZERO, None).unwrap();
        let (log, mut cursor) = (Scrollback::default(), Cursor::at(0));
        let action = script.poll_output(Instant::ZERO, &log, &mut cursor, false);
        let ScriptAction::Write(typed) = action else { panic!("nothing typed") };
        let wrapped = typed.chunks(80).collect::<Vec<_>>().join(&b"\r\r\n"[..]);
        for echo in [typed, wrapped] {
            let parts: [&[u8]; 4] = [
                b"boot\r\n# ",
                &echo,
                b"capsa:begin:0000000000000007\r\nhi\r\n : 0000000000000007 INT\r\n",
                b"no end capsa:end:0000000000000007:0;\r\n : 0000000000000007 ok\r\n# ",
            ];
            let shown = without_wrappers(&parts.concat());
            assert_eq!(shown, b"boot\r\nhi\r\nno end # ", "{:?}", shown.escape_ascii());
        }
    }
}
