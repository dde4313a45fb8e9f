//! Fuzz bodies of the console: they assert laws on arbitrary bytes. Not part of the API.

use super::Stripper;
use super::{
    CommandOutput, Cursor, Expect, LineSplitter, Login, Matcher, Outcome, Pattern, RunCommand,
    Script, ScriptAction, ScriptError, ScriptPoll, Scrollback, Search, ShellUse, Silence,
};
use crate::time::{Deadline, Instant};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

const NONCE: u64 = 7;
const LIMIT: usize = 64;
const SECOND: Duration = Duration::from_secs(1);

/// Patterns and a stream from `data`: chunking does not change the outcome of a wait, and the match follows
/// the rule.
///
/// The first byte gives the number of patterns. Each pattern is a line; if it starts with a slash and is
/// valid, it is a regular expression. The rest is the stream, and its low bits give the chunk sizes.
pub fn matching(data: &[u8]) {
    let Some((&head, data)) = data.split_first() else { return };
    let mut lines = data.splitn(usize::from(head % 5) + 2, |&b| b == b'\n');
    let mut patterns: Vec<&[u8]> = lines.by_ref().take(usize::from(head % 5) + 1).collect();
    let stream = lines.next().unwrap_or_else(|| patterns.pop().unwrap_or_default());

    let whole = {
        let mut log = Scrollback::new(stream.len());
        log.push(stream);
        wait(&patterns).poll(Instant::ZERO, &log, &mut Cursor::at(0), true)
    };
    let mut log = Scrollback::new(stream.len());
    let (mut wait, mut cursor) = (wait(&patterns), Cursor::at(0));
    let mut chunked = wait.poll(Instant::ZERO, &log, &mut cursor, stream.is_empty());
    let mut rest = stream;
    while chunked.is_none() && !rest.is_empty() {
        let (now, later) = rest.split_at((usize::from(rest[0] % 8) + 1).min(rest.len()));
        log.push(now);
        rest = later;
        chunked = wait.poll(Instant::ZERO, &log, &mut cursor, rest.is_empty());
    }
    assert_eq!(chunked, whole, "chunking made a difference");

    match whole {
        Some(Outcome::Matched { pattern: index, output, truncated, groups }) => {
            assert!(!truncated && stream.starts_with(&output));
            let whole = groups[0].clone().expect("a match is somewhere");
            assert_eq!(whole.end, output.len(), "a match ends where the output ends");
            for group in groups.iter().flatten() {
                assert!(whole.start <= group.start && group.end <= whole.end);
            }
            let all: Vec<Pattern> = patterns.iter().map(|line| pattern(line)).collect();
            if let Some(literal) = all[index].as_literal() {
                assert!(output.ends_with(literal));
            }
            let earlier = &output[..output.len().saturating_sub(1)];
            for (i, other) in all.iter().enumerate() {
                let Some(other) = other.as_literal() else { continue };
                assert!(i >= index || !output.ends_with(other), "tie not to the first listed");
                let ends_earlier = memchr::memmem::find(earlier, other).is_some();
                assert!(output.is_empty() || !ends_earlier, "an earlier end was passed over");
            }
            // Without its last byte there is no match, for any pattern.
            if !output.is_empty() {
                let mut log = Scrollback::new(output.len());
                log.push(earlier);
                let hit = Matcher::of(all).find(&mut Search::from(0), &log);
                assert_eq!(hit, None, "an earlier end was passed over");
            }
            assert_eq!(cursor.offset(), output.len() as u64);
        }
        Some(Outcome::Closed { .. } | Outcome::Panicked { .. }) => {
            assert_eq!(cursor.offset(), 0, "consumed without a match")
        }
        other => panic!("a closed console with no timeout gave {other:?}"),
    }
}

fn wait(patterns: &[&[u8]]) -> Expect {
    Expect::new(Matcher::of(patterns.iter().map(|line| pattern(line))), Instant::ZERO, None)
}

fn pattern(line: &[u8]) -> Pattern {
    #[cfg(feature = "regex")]
    if let Some(source) = line.strip_prefix(b"/")
        && let Ok(source) = core::str::from_utf8(source)
        && let Ok(regex) = Pattern::regex(source)
    {
        return regex;
    }
    Pattern::literal(line)
}

/// Arbitrary bytes, whose low bits give the chunk sizes: chunking does not change the text and the lines,
/// no byte is added, and no text is lost.
pub fn ansi(data: &[u8]) {
    let mut whole = Vec::new();
    Stripper::default().strip(data, &mut whole);
    let (mut stripper, mut text, mut lines) =
        (Stripper::default(), Vec::new(), LineSplitter::default());
    let (mut rest, mut seen) = (data, Vec::new());
    while !rest.is_empty() {
        let (now, later) = rest.split_at((usize::from(rest[0] % 8) + 1).min(rest.len()));
        stripper.strip(now, &mut text);
        lines.push(now);
        seen.extend(core::iter::from_fn(|| lines.next_line()));
        rest = later;
    }
    seen.extend(lines.finish());
    assert_eq!(text, whole, "chunking made a difference");
    assert!(!whole.contains(&0x1b), "an escape is left");
    let mut source = data.iter();
    assert!(whole.iter().all(|byte| source.any(|other| other == byte)), "bytes were invented");
    if !data.contains(&0x1b) {
        assert_eq!(whole, data, "text was lost");
    }
    let ends = |bytes: &[u8]| bytes.iter().filter(|&&byte| byte == b'\n').count();
    assert_eq!(ends(&whole), ends(data), "a line was lost");

    let mut expected: Vec<&[u8]> = data.split(|&byte| byte == b'\n').collect();
    let last = expected.pop().filter(|last| !last.is_empty());
    let mut expected: Vec<&[u8]> = expected
        .into_iter()
        .map(|line| {
            let returns = line.iter().rev().take_while(|&&byte| byte == b'\r').count();
            &line[..line.len() - returns]
        })
        .collect();
    expected.extend(last);
    if data.len() <= super::lines::LINE_MAX {
        assert_eq!(seen, expected, "a line came otherwise");
    }
}

/// Output and times from `data`: every script ends within its bounds, and chunking does not change its
/// actions.
///
/// The byte 0xff lets time pass, 0xfe is replaced by the begin mark and 0xfd by the end mark. 0xfc as the
/// first byte after 0xff means that the guest was reset.
pub fn scripts(data: &[u8]) {
    let Some((&head, data)) = data.split_first() else { return };
    let script = || -> Box<dyn Script> {
        let (now, timeout) = (Instant::ZERO, Some(30 * SECOND));
        match head % 5 {
            0 => Box::new(Login::new("root", None, now, timeout).expect("typeable")),
            1 => Box::new(Login::new("root", Some("pw"), now, timeout).expect("typeable")),
            4 => Box::new(Silence::new(2 * SECOND, now, timeout)),
            n => {
                let prompt = if n == 2 { None } else { Some("# ") };
                let run = RunCommand::new("x", prompt, NONCE, now, timeout).expect("typeable");
                Box::new(run.output_limit(LIMIT))
            }
        }
    };
    let moments = data.split(|&b| b == 0xff).map(|moment| {
        let mut bytes = Vec::new();
        for &byte in moment {
            match byte {
                0xfe => bytes.extend_from_slice(b"capsa:begin:0000000000000007\r\n"),
                0xfd => bytes.extend_from_slice(b"capsa:end:0000000000000007:0;\r\n"),
                _ => bytes.push(byte),
            }
        }
        bytes
    });
    let moments: Vec<Vec<u8>> = moments.collect();
    let whole = run_actions(script().as_mut(), &moments, usize::MAX);
    if let Some(ScriptAction::Done(Ok(CommandOutput { output, status: Some(_), .. }))) =
        whole.last()
    {
        assert!(output.len() <= LIMIT, "more than a command may keep");
    }
    for chunk in [1, 5] {
        assert_eq!(
            run_actions(script().as_mut(), &moments, chunk),
            whole,
            "chunking made a difference"
        );
    }
    if head % 5 == 2 {
        streams(&moments);
    }
}

/// Streamed output equals the output of a command that is not streamed. If kernel messages interrupt the
/// end mark, the streamed output also has the first part of the mark.
fn streams(moments: &[Vec<u8>]) {
    let run = || RunCommand::new("x", None, NONCE, Instant::ZERO, Some(30 * SECOND));
    let run = || run().expect("typeable").output_limit(usize::MAX);
    let end = |outputs: Vec<ScriptAction>| match outputs.into_iter().last() {
        Some(ScriptAction::Done(result)) => result,
        other => panic!("ended with {other:?}"),
    };
    let whole = end(run_actions(&mut run(), moments, usize::MAX));
    for chunk in [1, 5, usize::MAX] {
        let mut streamed = Streamed { script: run().streamed(), taken: Vec::new() };
        match (end(run_actions(&mut streamed, moments, chunk)), &whole) {
            (Ok(reply), Ok(whole)) => {
                streamed.taken.extend(reply.output);
                assert_eq!((reply.status, reply.truncated), (whole.status, whole.truncated));
                assert!(streamed.taken.starts_with(&whole.output), "output was lost");
            }
            (streamed, whole) => assert_eq!(&streamed, whole, "streaming made a difference"),
        }
    }
}

/// A command whose output is taken after each poll.
pub(super) struct Streamed {
    pub(super) script: RunCommand,
    pub(super) taken: Vec<u8>,
}

impl Script for Streamed {
    fn begin(&mut self, cursor: &Cursor) -> Option<ScriptError> {
        self.script.begin(cursor)
    }

    fn advance(&mut self, poll: ScriptPoll<'_>) -> ScriptAction {
        let output = self.script.advance(poll);
        self.taken.extend(self.script.take_output());
        output
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        self.script.poll_timeout()
    }

    fn handle_reboot(&mut self) {
        self.script.handle_reboot();
    }

    fn abandon(&mut self, now: Instant, at: &Cursor) -> Option<(Box<dyn Script + Send>, Cursor)> {
        self.script.abandon(now, at)
    }
}

/// All writes of a script, and its end.
fn run_actions(script: &mut dyn Script, moments: &[Vec<u8>], chunk: usize) -> Vec<ScriptAction> {
    let mut log = Scrollback::new(1 << 20);
    let (mut cursor, mut now, mut outputs) = (Cursor::at(0), Instant::ZERO, Vec::new());
    for moment in moments {
        if moment.first() == Some(&0xfc) {
            script.handle_reboot();
            if settle(script, now, &log, &mut cursor, &mut outputs) {
                return outputs;
            }
        }
        for bytes in moment.chunks(chunk.min(moment.len()).max(1)) {
            log.push(bytes);
            if settle(script, now, &log, &mut cursor, &mut outputs) {
                return outputs;
            }
        }
        now = now + SECOND;
        if settle(script, now, &log, &mut cursor, &mut outputs) {
            return outputs;
        }
    }
    // Without further output, timeouts end the script.
    for _ in 0..20 {
        if settle(script, now, &log, &mut cursor, &mut outputs) {
            return outputs;
        }
        now = script.poll_timeout().expect("a script that waits has a deadline").at.max(now);
    }
    panic!("the script does not end: {outputs:?}");
}

/// Polls until the script waits. Returns `true` if it is done.
fn settle(
    script: &mut dyn Script,
    now: Instant,
    log: &Scrollback,
    cursor: &mut Cursor,
    outputs: &mut Vec<ScriptAction>,
) -> bool {
    for _ in 0..10 {
        let output = script.poll_output(now, log, cursor, false);
        assert!(cursor.offset() <= log.end());
        match &output {
            ScriptAction::Wait => return false,
            ScriptAction::Write(bytes) => assert!(bytes.len() <= 4095, "more than a terminal line"),
            ScriptAction::Done(result) => {
                assert_eq!(script.poll_timeout(), None);
                let rest = script.abandon(now, cursor);
                let is_late = matches!(result, Err(ScriptError::TimedOut { .. }));
                assert!(rest.is_none() || is_late, "input after the end");
                if let Some((mut rest, mut cursor)) = rest {
                    ends_or_is_stuck(rest.as_mut(), now, log, &mut cursor);
                }
                outputs.push(output);
                return true;
            }
        }
        outputs.push(output);
    }
    panic!("the script writes without end: {outputs:?}");
}

/// A command that was given up ends, or is stuck, in a bounded number of steps.
fn ends_or_is_stuck(script: &mut dyn Script, mut now: Instant, log: &Scrollback, at: &mut Cursor) {
    for _ in 0..40 {
        match script.poll_output(now, log, at, false) {
            ScriptAction::Write(bytes) => assert!(bytes.len() <= 4095, "more than a terminal line"),
            ScriptAction::Done(_) => return,
            ScriptAction::Wait => match script.poll_timeout() {
                Some(deadline) => now = deadline.at.max(now),
                None => return assert!(matches!(script.shell_use(), ShellUse::Stuck(_))),
            },
        }
    }
    panic!("the shell is never given up");
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use std::panic::catch_unwind;

    #[test]
    fn matching_holds_on_a_small_table() {
        for data in [
            &b""[..],
            b"\0",
            b"\x01",
            b"\0a\nbab",
            b"\x01ab\nb\nxxab",
            b"\x04a\nb\nc\nd\n\nabcd",
            b"\x02aa\naaa\na\nbaaa",
            b"\x03login:\nPassword:\n# \n$ \nguest login: ",
            b"\x01/(a|b)+c\nbc\nxabababc",
            b"\0/[^\n]*x\nno yes x",
            b"\x02/a*\n/^a\n/(\n/b{3}\nabbb",
        ] {
            matching(data);
        }
    }

    #[test]
    fn ansi_holds_on_a_small_table() {
        for data in [
            &b""[..],
            b"plain\r\n",
            b"\x1b[1;31mred\x1b[0m\r\n\x1b]0;t\x07x",
            b"\x1b]\n\x1b[\n\x1b\n\x1b(\n\x1bP\n",
            b"\r\r\n\n\r",
        ] {
            ansi(data);
        }
    }

    #[test]
    fn scripts_hold_on_a_small_table() {
        for data in [
            &b""[..], b"\0", b"\x01", b"\x02", b"\x03",
            b"\0login: \xff\xffroot\r\n# \xff", b"\x01login: \xffPassword: \xff\xff# \xff",
            b"\x01login: \xffPassword: \xffLogin incorrect\r\nlogin: ",
            b"\x02\xfehello\r\n\xfd", b"\x03\xfehello\xff\xfd# ", b"\x03\xfe\xfe\xfd\xfd\xff\xff# ",
            b"\x02\xfeaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n\xfd",
            b"\0\x1b]\xff\x1b[\xff[  1.000000]\xff\xff", b"\x04so much\xffand more\xff\xff\xff",
            b"\x02\xfex\xff\xfclogin: ", b"\x01login: \xff\xfclogin: \xffPassword: \xff# \xff",
            b"\x02capsa:begin:00000000[    1.234567] x\r\n00000007\r\nout\r\ncapsa:end:0000000000000007:[    1.234567] y\r\n0;\r\n",
        ] {
            scripts(data);
        }
    }

    #[test]
    fn random_bytes_hold_too() {
        let mut random = fastrand::Rng::with_seed(11);
        let words: [&[u8]; 31] = [
            b"\xff\xfc",
            b"0000000000000007:",
            b"[    1.234567] x\r\n",
            b"/a+b",
            b"/(a|b)*\r",
            b"\n/.a",
            b"Kernel panic - not syncing",
            b"a",
            b"b",
            b"\n",
            b"\r\n",
            b"# ",
            b"$ ",
            b"> ",
            b"login: ",
            b"assword: ",
            b"[",
            b" ",
            b"Login incorrect",
            b"[    1.234567] x",
            b"\x1b[0m",
            b"\x1b]",
            b"\x1b",
            b"\x07",
            b"7;",
            b"capsa:end:",
            b"\xff",
            b"\xff",
            b"\xfe",
            b"\xfd",
            b"\r",
        ];
        for _ in 0..1000 {
            let mut data: Vec<u8> = [random.u8(..)].into();
            for _ in 0..random.usize(0..20) {
                data.extend_from_slice(words[random.usize(0..words.len())]);
            }
            let held = catch_unwind(|| {
                matching(&data);
                scripts(&data);
                ansi(&data);
            });
            assert!(held.is_ok(), "broken by {:?}", data.escape_ascii().to_string());
        }
    }
}
