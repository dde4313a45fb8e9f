//! Tests of `RunCommand` on a simulated shell, with regular and hostile output.

mod streamed;

use super::super::test_guest::{
    Behaviour, ECHOES, GuestAt, ScriptRun, TestGuest, continue_script, run_script,
};
use super::*;
use crate::console::script::COMMAND_MAX;
use alloc::string::ToString;
use proptest::prelude::*;

const TIMEOUT: Option<Duration> = Some(Duration::from_secs(10));

fn command(text: &str, prompt: Option<&str>) -> RunCommand {
    RunCommand::new(text, prompt, 0xbeef, Instant::ZERO, TIMEOUT).expect("typeable")
}

fn shell(behaviour: fn(&str) -> (&'static [u8], Option<i32>)) -> TestGuest {
    let mut guest = TestGuest::new(GuestAt::Shell);
    guest.behaviour = behaviour;
    guest.prompt();
    guest
}

fn unread(run: &ScriptRun) -> String {
    String::from_utf8_lossy(run.cursor.peek(&run.log)).into()
}

#[test]
fn run_any_echo_and_chunking_gives_output() {
    type Case = (fn(&str) -> (&'static [u8], Option<i32>), &'static [u8], i32);
    let cases: [Case; 6] = [
        (|_| (b"hi\n", Some(0)), b"hi\n", 0),
        (|_| (b"no newline", Some(1)), b"no newline", 1),
        (|_| (b"", Some(127)), b"", 127),
        (|_| (b"# \n# ", Some(0)), b"# \n# ", 0),
        (|_| (b"\x00\xff\x1b[2J\r\t\x07", Some(255)), b"\x00\xff\x1b[2J\r\t\x07", 255),
        (
            |_| (b"capsa:end:000000000000beef:x;capsa:end:000000000000beef:1234;capsa", Some(3)),
            b"capsa:end:000000000000beef:x;capsa:end:000000000000beef:1234;capsa",
            3,
        ),
    ];
    for (behaviour, output, status) in cases {
        for echo in ECHOES {
            for (chunk, prompt) in [(1, None), (7, Some("# ")), (10_000, Some("# ")), (64, None)] {
                let mut guest = shell(behaviour);
                guest.echo = echo;
                // Long enough to wrap.
                let text = "echo 'it is' \"a command\" that is rather longer than a row of 80 columns; \
                            echo # ; echo capsa:begin:; true";
                let run = run_script(&mut command(text, prompt), &mut guest, chunk, 1);
                let reply = run.result.as_ref().expect("a reply");
                assert_eq!(reply.output, output, "{echo:?} {chunk}");
                assert_eq!((reply.status, reply.truncated), (Some(status), false));
                assert_eq!(guest.ran, [text]);
                let unread = unread(&run);
                assert_eq!(unread.ends_with("# "), prompt.is_none(), "{unread}");
                assert_eq!(guest.requests, ["ok"]);
            }
        }
    }
}

#[test]
fn run_long_command_is_split_into_lines() {
    for text in [
        "x".repeat(5000),
        "'".repeat(3000),
        "caf\u{e9}\n\t\\".repeat(700),
        format!("cat <<'E'\n{}\nE", "it's a line\n".repeat(400)),
        "y".repeat(COMMAND_MAX),
    ] {
        for echo in ECHOES {
            let mut guest = shell(|_| (b"done\n", Some(0)));
            guest.echo = echo;
            let run = run_script(&mut command(&text, Some("# ")), &mut guest, 900, 2);
            assert_eq!(run.result.map(|r| r.output), Ok(b"done\n".to_vec()));
            assert_eq!(guest.ran, [&*text]);
            assert!(run.typed.len() > 4 || text.len() < 3000);
        }
    }
}

#[test]
fn run_given_up_ends_by_repeated_signals() {
    let all = ["INT", "INT", "INT", "TERM", "TERM"].into_iter().chain(["KILL"; 10]).chain(["ok"]);
    let all: Vec<&str> = all.collect();
    let cases: [(&'static [&'static str], &[&str]); 4] = [
        (&[], &["INT", "KILL", "ok"]),
        (&["INT"], &["INT", "INT", "INT", "TERM", "KILL", "ok"]),
        (&["INT", "TERM"], &["INT", "INT", "INT", "TERM", "TERM", "KILL", "KILL", "ok"]),
        (&["INT", "TERM", "KILL"], &all),
    ];
    for (ignored, requests) in cases {
        let mut guest = shell(|_| (b"working...", None));
        guest.ignored = ignored;
        let mut script = command("sleep 999", None);
        let run = run_script(&mut script, &mut guest, 5, 3);
        let error = run.result.clone().expect_err("a timeout");
        assert_eq!(error.to_string(), "timed out after 10s waiting for the command to end");
        let ScriptError::TimedOut { tail, .. } = error else { panic!("{error}") };
        assert!(tail.ends_with(b"working..."));
        assert!(unread(&run).ends_with("working..."), "the cursor is back at the start");

        let now = Instant::ZERO + run.took;
        let (mut rest, cursor) = script.abandon(now, &run.cursor).expect("it runs");
        assert!(script.abandon(now, &run.cursor).is_none(), "only once");
        let rest = continue_script(rest.as_mut(), &mut guest, run.log, cursor, now);
        assert_eq!(guest.requests, requests);
        let stuck = ShellUse::Stuck("sleep 999".into());
        assert_eq!(rest.err(), (ignored.len() == 3).then_some(stuck));
    }
}

#[test]
fn run_given_up_waits_for_begin_mark() {
    let (mut log, mut cursor) = (Scrollback::default(), Cursor::at(0));
    let mut script = command("x", None);
    assert!(script.abandon(Instant::ZERO, &cursor).is_none(), "nothing was written");
    assert!(matches!(
        script.poll_output(Instant::ZERO, &log, &mut cursor, false),
        ScriptAction::Write(_)
    ));
    let (mut rest, mut cursor) = script.abandon(Instant::ZERO, &cursor).expect("it may run");
    let at = |millis| Instant::ZERO + Duration::from_millis(millis);
    for millis in [0, 3_000, 9_999] {
        assert_eq!(rest.poll_output(at(millis), &log, &mut cursor, false), ScriptAction::Wait);
        assert_eq!(rest.shell_use(), ShellUse::Busy);
    }
    assert_eq!(rest.poll_output(at(10_000), &log, &mut cursor, false), ScriptAction::Wait);
    assert_eq!(rest.shell_use(), ShellUse::Stuck("x".into()));
    log.push(b"capsa:begin:000000000000beef\r\n");
    let int = ScriptAction::Write(b" : 000000000000beef INT\n".to_vec());
    assert_eq!(rest.poll_output(at(19_990), &log, &mut cursor, false), ScriptAction::Wait);
    assert_eq!(rest.poll_output(at(20_000), &log, &mut cursor, false), int);
    assert_eq!(rest.shell_use(), ShellUse::Busy);
    log.push(b"\r\ncapsa:end:000000000000beef:130;\r\n");
    for request in ["KILL", "ok"] {
        let typed = ScriptAction::Write(format!(" : 000000000000beef {request}\n").into_bytes());
        assert_eq!(rest.poll_output(at(20_001), &log, &mut cursor, false), typed);
    }
    let done = rest.poll_output(at(20_300), &log, &mut cursor, false);
    assert!(matches!(done, ScriptAction::Done(Ok(_))), "{done:?}");
}

#[test]
fn run_given_up_at_a_prompt_is_over() {
    const ECHO: &str = r#" /bin/sh -c 'printf "%s:%s:%s\n" capsa begin $1;'"#;
    for (shown, over_after) in [
        (format!("{ECHO}\r\nvm login: "), Some(3)),
        (format!("{ECHO}\r\nx\r\n# "), Some(3)),
        // A slow shell has not echoed the line yet, or not all of it.
        ("\r\nvm login: ".into(), Some(10)),
        ("x\r\n# ".into(), Some(10)),
        (format!("# {ECHO}"), None),
        (format!("{ECHO}\r\n"), None),
        ("x\r\n".into(), None),
    ] {
        let (mut log, mut cursor) = (Scrollback::default(), Cursor::at(0));
        let mut script = command("x", None);
        let _ = script.poll_output(Instant::ZERO, &log, &mut cursor, false);
        log.push(shown.as_bytes());
        let (mut rest, mut cursor) = script.abandon(Instant::ZERO, &cursor).expect("it may run");
        let (mut now, mut over) = (Instant::ZERO, None);
        loop {
            if rest.poll_output(now, &log, &mut cursor, false) != ScriptAction::Wait {
                over = Some(now.since(Instant::ZERO).as_secs());
                break;
            }
            let Some(due) = rest.poll_timeout() else { break };
            assert!(due.at > now, "busy loop: {due}");
            now = due.at;
        }
        assert_eq!(over, over_after, "{shown}");
    }
}

#[test]
fn run_given_up_in_a_suspended_program_is_not_stuck() {
    let (mut log, mut cursor) = (Scrollback::default(), Cursor::at(0));
    let mut script = command("x", None);
    let _ = script.poll_output(Instant::ZERO, &log, &mut cursor, false);
    let (mut rest, mut cursor) = script.abandon(Instant::ZERO, &cursor).expect("it may run");
    let at = |secs| Instant::ZERO + Duration::from_secs(secs);
    for secs in [0, 240, 249] {
        assert_eq!(rest.poll_output(at(secs), &log, &mut cursor, false), ScriptAction::Wait);
        assert_eq!(rest.shell_use(), ShellUse::Busy);
    }
    log.push(b"capsa:begin:000000000000beef\r\n");
    assert_eq!(rest.poll_output(at(250), &log, &mut cursor, false), ScriptAction::Wait);
    let due = rest.poll_timeout().expect("a signal").at;
    assert!(matches!(rest.poll_output(due, &log, &mut cursor, false), ScriptAction::Write(_)));
}

#[test]
fn run_given_up_in_a_slow_echo_is_not_stuck() {
    let (mut log, mut cursor) = (Scrollback::default(), Cursor::at(0));
    let mut script = command("x", None);
    let _ = script.poll_output(Instant::ZERO, &log, &mut cursor, false);
    let (mut rest, mut cursor) = script.abandon(Instant::ZERO, &cursor).expect("it may run");
    let mut uses = (0..70).map(|second| {
        log.push(b"y");
        let now = Instant::ZERO + Duration::from_secs(second);
        assert_eq!(rest.poll_output(now, &log, &mut cursor, false), ScriptAction::Wait);
        rest.shell_use()
    });
    assert!(uses.by_ref().take(60).all(|shell| shell == ShellUse::Busy));
    assert_eq!(uses.last(), Some(ShellUse::Stuck("x".into())));
}

#[test]
fn run_waits_for_shell_and_fails_if_it_is_stuck() {
    let (log, mut cursor) = (Scrollback::default(), Cursor::at(0));
    let mut script = command("x", None);
    let mut poll = |shell| {
        let (now, cursor) = (Instant::ZERO, &mut cursor);
        script.poll(ScriptPoll { now, log: &log, cursor, closed: false, shell })
    };
    assert_eq!(poll(ShellUse::Busy), ScriptAction::Wait);
    let ScriptAction::Done(Err(error)) = poll(ShellUse::Stuck("sleep 9".into())) else { panic!() };
    let text = "the shell is still occupied by an earlier command that could not be ended: sleep 9";
    assert_eq!(error.to_string(), text);
}

#[test]
fn run_timeout_names_expected_text() {
    let mut dead = TestGuest::new(GuestAt::Dead);
    let error = run_script(&mut command("x", None), &mut dead, 1, 0).result.expect_err("dead");
    let expected = "for the shell to take the command: no output, and no echo of the input";
    assert!(error.to_string().ends_with(expected), "{error}");

    for (prompt, expected) in [
        ("$ ", r##"the prompt "$ ": the last line is "# ": this is a different prompt"##),
        (
            "\r# ",
            r##"the prompt "\r# ": "\r# " matches "# " except for its line ends, which are \r\n"##,
        ),
        ("$", r##"the prompt "$": the last line is "# ": this is a different prompt"##),
    ] {
        let mut guest = shell(|_| (b"hi\n", Some(0)));
        let error = run_script(&mut command("x", Some(prompt)), &mut guest, 1, 0).result;
        let error = error.expect_err("another prompt");
        assert!(error.to_string().ends_with(expected), "{error}");
    }
}

#[test]
fn run_timeout_explains_last_line() {
    for (shown, expected) in [
        ("\r\nvm login: ", r#": the last line is "vm login: ": no user is logged in"#),
        (
            "x\r\nPassword: [    1.234567] a\r\n",
            r#": the last line is "Password: ": the guest asks for a password"#,
        ),
        (
            "x\r\n> ",
            r#": the last line is "> ": the shell waits for the rest of an earlier command"#,
        ),
        ("x\r\n# ", r##": the last line is "# ": the input did not reach this prompt"##),
        (
            " printf '%s:%s:%s\\n' capsa begin 000000000000beef;command eval 'x'\r\n",
            ": the input was echoed, but no shell ran it",
        ),
        ("it is booting\r\n", ""),
    ] {
        let (error, took) = fail_with(shown, "");
        let begin = "timed out after 10s waiting for the shell to take the command";
        assert_eq!(error, format!("{begin}{expected}"));
        assert_eq!(Some(took), TIMEOUT);
    }
}

/// The error of a command, and its duration, when the guest prints `before` before its shell takes the
/// command, or `amid` within the output, and then nothing.
fn fail_with(before: &str, amid: &str) -> (String, Duration) {
    let mut script = command("x", None);
    let (mut log, mut cursor, mut now) = (Scrollback::default(), Cursor::at(0), Instant::ZERO);
    log.push(before.as_bytes());
    if !amid.is_empty() {
        log.push(b"capsa:begin:000000000000beef\r\n");
        log.push(amid.as_bytes());
    }
    loop {
        match script.poll_output(now, &log, &mut cursor, false) {
            ScriptAction::Write(_) => {}
            ScriptAction::Wait => now = script.poll_timeout().expect("a deadline").at,
            ScriptAction::Done(Ok(reply)) => panic!("{reply:?}"),
            ScriptAction::Done(Err(error)) => return (error.to_string(), now.since(Instant::ZERO)),
        }
    }
}

#[test]
fn run_guest_fault_fails_within_a_second() {
    let panic =
        "[ 1.0] Kernel panic - not syncing: x\r\n---[ end Kernel panic - not syncing: x ]---\r\n";
    for (before, expected) in [
        (
            panic,
            "guest kernel panicked while waiting for the shell to take the command: Kernel panic - not syncing: x",
        ),
        (
            "\r\nLogin incorrect\r\nvm login: ",
            "no user is logged in: the guest took the command for a login and refused it",
        ),
        (
            "\r\nPress Enter for maintenance",
            "guest is in an emergency shell while waiting for the shell to take the command: Press Enter for maintenance",
        ),
    ] {
        let (error, took) = fail_with(before, "");
        assert_eq!(error, expected);
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}

#[test]
fn run_kernel_messages_in_marks_are_skipped() {
    const OUTPUT: &str =
        "capsa:begin:000000000000beef\r\nout\rput\r\ncapsa:end:000000000000beef:42;\r\n# ";
    const KERNEL: &str = "[    4.812345] random: crng init done\r\n[   14.812345][  T1] more\r\n";
    let output =
        OUTPUT.find("out").expect("it is there")..OUTPUT.find("capsa:end").expect("as well");
    for cut in 0..=OUTPUT.len() {
        for (chunk, prompt) in [(1, Some("# ")), (200, Some("# ")), (7, None)] {
            let mut log = Scrollback::default();
            let (mut cursor, mut now) = (Cursor::at(0), Instant::ZERO);
            let mut script = command("x", prompt);
            assert!(matches!(
                script.poll_output(now, &log, &mut cursor, false),
                ScriptAction::Write(_)
            ));
            let printed = [&OUTPUT[..cut], KERNEL, &OUTPUT[cut..]].concat();
            let mut chunks = printed.as_bytes().chunks(chunk);
            let reply = loop {
                match script.poll_output(now, &log, &mut cursor, false) {
                    ScriptAction::Done(reply) => break reply.expect("a reply"),
                    ScriptAction::Write(bytes) => assert!(bytes.ends_with(b" ok\n"), "at {cut}"),
                    ScriptAction::Wait => match chunks.next() {
                        Some(bytes) => log.push(bytes),
                        None => now = script.poll_timeout().expect("a deadline").at,
                    },
                }
            };
            let mut expected = "out\rput\n".to_string();
            if output.contains(&cut) || cut == output.end {
                // Within the output it cannot be told from output.
                let kernel = KERNEL.replace("\r\n", "\n");
                let before = OUTPUT[output.start..cut].replace("\r\n", "\n");
                let after = OUTPUT[cut..output.end].replace("\r\n", "\n");
                expected = before + &kernel + &after;
            }
            assert_eq!(String::from_utf8_lossy(&reply.output), expected, "cut at {cut}");
            assert_eq!((reply.status, reply.truncated), (Some(42), false), "cut at {cut}");
            assert!(now.since(Instant::ZERO) < Duration::from_secs(2));
            let rest = if prompt.is_some() { "" } else { "# " };
            if cut < OUTPUT.len() - 2 {
                assert_eq!(cursor.peek(&log), rest.as_bytes(), "cut at {cut}");
            }
        }
    }
}

/// A guest that prints `text` for a command, and `answer` for each Enter, and then ends the command.
fn prompting(text: &str, answer: &str) -> (Result<CommandOutput, ScriptError>, Duration) {
    let mut script = command("x", None);
    let (mut log, mut cursor, mut now) = (Scrollback::default(), Cursor::at(0), Instant::ZERO);
    log.push(format!("capsa:begin:000000000000beef\r\n{text}").as_bytes());
    loop {
        match script.poll_output(now, &log, &mut cursor, false) {
            ScriptAction::Write(enter) if enter == b"\r" => {
                log.push(format!("\r\n{answer}").as_bytes());
            }
            ScriptAction::Write(_) => {}
            ScriptAction::Wait => match script.poll_timeout() {
                Some(at) if at.at < Instant::ZERO + Duration::from_secs(5) => now = at.at,
                _ => log.push(b"!\r\ncapsa:end:000000000000beef:3;\r\n"),
            },
            ScriptAction::Done(result) => return (result, now.since(Instant::ZERO)),
        }
    }
}

#[test]
fn run_lost_shell_fails_before_timeout() {
    for prompt in ["vm login: ", "/ # ", "sh-5.2$ "] {
        let (result, took) = prompting(&format!("out\r\n{prompt}"), prompt);
        assert!(matches!(result, Err(ScriptError::ShellExited { .. })), "{prompt}: {result:?}");
        assert!(took < Duration::from_secs(4), "{took:?}");
    }
}

#[test]
fn run_output_like_a_prompt_is_output() {
    for text in ["vm login: ", "a\n# ", "50% > ", "Password: ", "so far"] {
        let (result, _) = prompting(&text.replace('\n', "\r\n"), "");
        assert_eq!(result.map(|reply| reply.text().into_owned()), Ok(format!("{text}!\n")));
    }
}

#[test]
fn run_reboot_ends_running_command() {
    let done = "capsa:begin:000000000000beef\r\nok\r\ncapsa:end:000000000000beef:0;\r\n";
    for (printed, expected) in [
        (done, Ok(b"ok\n".to_vec())),
        (&done[..40], Err("guest rebooted while waiting for the command to end")),
        ("# ", Err("guest rebooted while waiting for the shell to take the command")),
        (
            "Kernel panic - not syncing: x\r\n",
            Err("guest kernel panicked while waiting for the shell to take the command: \
                 Kernel panic - not syncing: x"),
        ),
    ] {
        let (mut log, mut cursor) = (Scrollback::default(), Cursor::at(0));
        let mut script = command("x", None);
        let mut poll = |script: &mut RunCommand, log: &_| {
            script.poll_output(Instant::ZERO, log, &mut cursor, false)
        };
        assert!(matches!(poll(&mut script, &log), ScriptAction::Write(_)));
        log.push(printed.as_bytes());
        script.handle_reboot();
        let ScriptAction::Done(reply) = poll(&mut script, &log) else {
            panic!("not done: {printed:?}")
        };
        let reply = reply.map(|reply| reply.output).map_err(|error| error.to_string());
        assert_eq!(reply, expected.map_err(|text| text.to_string()));
        assert_eq!(script.poll_timeout(), None);
    }
}

#[test]
fn run_output_with_fault_text_is_no_fault() {
    for amid in [
        "Kernel panic - not syncing: x\r\n",
        "[ 1.0] Kernel panic - not syncing: x\r\n---[ end Kernel panic - not syncing: x ]---\r\n",
        "\r\nLogin incorrect\r\n",
        "\r\n(initramfs) ",
    ] {
        let (error, took) = fail_with("", amid);
        assert!(error.starts_with("timed out after 10s waiting for the command to end"), "{error}");
        assert_eq!(Some(took), TIMEOUT);
    }
}

#[test]
fn run_closed_console_uses_bytes_then_ends() {
    let done = "capsa:begin:000000000000beef\r\nok\r\ncapsa:end:000000000000beef:0;\r\n";
    for (text, closed) in [(done, false), (&done[..done.len() - 4], true)] {
        let mut log = Scrollback::default();
        let mut cursor = Cursor::at(0);
        let mut script = command("x", None);
        let now = Instant::ZERO;
        assert!(matches!(
            script.poll_output(now, &log, &mut cursor, false),
            ScriptAction::Write(_)
        ));
        log.push(text.as_bytes());
        let output = script.poll_output(now, &log, &mut cursor, true);
        match (output, closed) {
            (ScriptAction::Done(Ok(reply)), false) => assert_eq!(reply.output, b"ok\n"),
            (ScriptAction::Done(Err(ScriptError::Closed { .. })), true) => {
                assert_eq!(cursor, Cursor::at(0));
            }
            other => panic!("{other:?}"),
        }
        let again = script.poll_output(now, &log, &mut cursor, true);
        assert!(matches!(again, ScriptAction::Done(Err(_))), "sticky: {again:?}");
        assert_eq!(script.poll_timeout(), None);
    }
}

#[test]
fn run_output_beyond_limits_sets_truncated() {
    // More than the scrollback of `run_script` holds, in chunks that fit.
    static BIG: [u8; 300_000] = [b'z'; 300_000];
    let mut guest = shell(|_| (&BIG, Some(0)));
    let talk1 = run_script(&mut command("big", None), &mut guest, 4096, 4);
    let reply = talk1.result.expect("a reply");
    assert_eq!((reply.output.len(), reply.truncated), (BIG.len(), false));

    let mut guest = shell(|_| (&BIG, Some(5)));
    let mut script = command("big", None).output_limit(1000);
    let reply = run_script(&mut script, &mut guest, 4096, 4).result.expect("a reply");
    assert_eq!((reply.output.len(), reply.truncated, reply.status), (1000, true, Some(5)));

    let mut guest = shell(|_| (&BIG, Some(5)));
    let reply = run_script(&mut command("big", None), &mut guest, 1 << 20, 9).result;
    // The begin mark was dropped with the first bytes, or some of the output was.
    assert!(reply.is_err() || reply.is_ok_and(|r| r.truncated));
}

#[test]
fn run_output_dropped_unpolled_sets_truncated() {
    let mut log = Scrollback::new(64);
    let mut cursor = Cursor::at(0);
    let mut script = command("x", None);
    let mut poll = |log: &Scrollback| script.poll_output(Instant::ZERO, log, &mut cursor, false);
    assert!(matches!(poll(&log), ScriptAction::Write(_)));
    log.push(b"capsa:begin:000000000000beef\r\nhead");
    assert_eq!(poll(&log), ScriptAction::Wait);
    log.push(&[b'.'; 100]);
    log.push(b"tail capsa:end:000000000000beef:0;\r\n");
    assert!(matches!(poll(&log), ScriptAction::Write(_)));
    log.push(b" : 000000000000beef ok\r\n");
    let ScriptAction::Done(Ok(reply)) = poll(&log) else { panic!("done") };
    assert!(reply.truncated);
    assert!(reply.output.ends_with(b"tail "));
}

proptest! {
    #[test]
    fn run_any_chunking_gives_same_result(seed in any::<u64>(), chunk in 1usize..200, echo in 0usize..4) {
        let run = |chunk, seed| {
            let mut guest = shell(|_| (b"# a\nb\r\ncapsa:end:000000000000beef:;\n$ ", Some(2)));
            guest.echo = ECHOES[echo];
            let run = run_script(&mut command("x y z", Some("# ")), &mut guest, chunk, seed);
            (run.result, run.cursor, run.typed, run.took)
        };
        prop_assert_eq!(run(chunk, seed), run(1 << 20, 0));
    }
}
