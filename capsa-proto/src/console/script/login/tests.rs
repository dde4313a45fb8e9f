//! Tests of `Login` on a simulated guest, with regular and hostile output.

use super::super::test_guest::{GuestAt, ScriptRun, TestGuest, run_script};
use super::*;
use alloc::format;
use alloc::string::ToString;
use proptest::prelude::*;

const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

fn login(password: Option<&str>) -> Login {
    Login::new("root", password, Instant::ZERO, MINUTE).expect("typeable")
}

fn guest(at: GuestAt, banner: &str) -> TestGuest {
    let mut guest = TestGuest::new(at);
    guest.print(banner);
    guest.prompt();
    guest
}

fn typed(run: &ScriptRun) -> Vec<&str> {
    run.typed.iter().map(|b| core::str::from_utf8(b).expect("UTF-8")).collect()
}

const BANNER: &str = "[    0.000000] Linux version 6.1\nWelcome to the guest\n\n";
const NOISE: &str = "[    4.812345] random: crng init done\n[    4.9] odd";

#[test]
fn login_any_chunking_answers_prompts_in_turn() {
    type Case = (GuestAt, Option<&'static str>, Option<&'static str>, &'static [&'static str]);
    let cases: [Case; 6] = [
        (GuestAt::Login, None, None, &["root\r"]),
        (GuestAt::Login, Some("s3cret"), Some("s3cret"), &["root\r", "s3cret\r"]),
        // A password is given, but the guest does not ask for it.
        (GuestAt::Login, None, Some("s3cret"), &["root\r"]),
        (GuestAt::Shell, None, Some("s3cret"), &[]),
        (GuestAt::Shell, None, None, &[]),
        (GuestAt::Login, Some(""), Some(""), &["root\r", "\r"]),
    ];
    for (at, wants, has, expected) in cases {
        for noise in ["", "[    4.812345] random: crng init done\n"] {
            for prompt in
                ["# ", "$ ", "\x1b]0;t\x07\x1b[1;32mroot@vm\x1b[0m:~# \x1b[6n", "sh-5.2> "]
            {
                for chunk in [1, 13, 10_000] {
                    let mut guest = TestGuest::new(at);
                    (guest.password, guest.noise, guest.prompt) = (wants, noise, prompt);
                    guest.print(BANNER);
                    guest.prompt();
                    let run = run_script(&mut login(has), &mut guest, chunk, 5);
                    assert!(run.result.is_ok(), "{:?} {at:?} {prompt:?}", run.result);
                    assert_eq!(typed(&run), expected, "{at:?} {noise:?} {prompt:?} {chunk}");
                    assert_eq!(run.cursor.peek(&run.log), b"", "all of it is consumed");
                    assert!(run.took < Duration::from_secs(1));
                }
            }
        }
    }
}

#[test]
fn login_wrong_password_is_refused() {
    let mut guest = guest(GuestAt::Login, BANNER);
    guest.password = Some("right");
    let run = run_script(&mut login(Some("wrong")), &mut guest, 3, 0);
    let error = run.result.expect_err("refused");
    assert_eq!(error.to_string(), "login as \"root\" refused by the guest");
    assert_eq!(run.cursor, Cursor::at(0), "the output can be read again");
}

#[test]
fn login_missing_password_is_error() {
    let mut guest = guest(GuestAt::Login, BANNER);
    guest.password = Some("right");
    let error = run_script(&mut login(None), &mut guest, 3, 0).result.expect_err("needed");
    assert_eq!(error, ScriptError::PasswordNeeded { username: "root".into() });
}

#[test]
fn login_silence_gets_bounded_number_of_enters() {
    let mut dead = TestGuest::new(GuestAt::Dead);
    let talk1 = run_script(&mut login(None), &mut dead, 3, 0);
    assert_eq!(typed(&talk1), ["\r", "\r", "\r"]);
    let error = talk1.result.expect_err("dead");
    let expected = "timed out after 60s waiting for a login prompt or a shell prompt: no output, \
                    although Enter was sent";
    assert_eq!(error.to_string(), expected);

    let mut strange = TestGuest::new(GuestAt::Dead);
    strange.print(BANNER);
    strange.print("\x1b[1mguest @ \x1b[0m");
    let error =
        run_script(&mut login(None), &mut strange, 3, 0).result.expect_err("no known prompt");
    assert!(
        error.to_string().ends_with(
            r##"the last line is "guest @ ": no prompt; expected a line that ends with "login:", "assword:", "# ", "$ ", "% " or "> ""##
        ),
        "{error}"
    );

    // A shell that printed its prompt before the login started.
    let mut shell = TestGuest::new(GuestAt::Shell);
    let talk2 = run_script(&mut login(None), &mut shell, 3, 0);
    assert!(talk2.result.is_ok());
    assert_eq!(typed(&talk2), ["\r"]);

    // A prompt hidden by kernel messages without time stamps.
    let mut hidden = guest(GuestAt::Shell, BANNER);
    hidden.print("random: crng init done\n");
    let talk3 = run_script(&mut login(None), &mut hidden, 3, 0);
    assert!(talk3.result.is_ok());
    assert_eq!(typed(&talk3), ["\r"]);
}

#[test]
fn login_late_password_prompt_gets_no_enter() {
    let mut script = login(Some("s3cret"));
    let (mut log, mut cursor, mut now) = (Scrollback::default(), Cursor::at(0), Instant::ZERO);
    let mut step = |text: &str, after: u64| {
        log.push(text.as_bytes());
        // Time passes only after the bytes were read.
        let first = script.poll_output(now, &log, &mut cursor, false);
        now = now + Duration::from_millis(after);
        match first {
            ScriptAction::Wait => script.poll_output(now, &log, &mut cursor, false),
            other => other,
        }
    };
    assert_eq!(step("vm login: ", 100), ScriptAction::Write(b"root\r".to_vec()));
    for _ in 0..20 {
        assert_eq!(step("", 1000), ScriptAction::Wait);
    }
    assert_eq!(step("root\r\nPassword: ", 50), ScriptAction::Wait, "not settled yet");
    assert_eq!(step("", 50), ScriptAction::Write(b"s3cret\r".to_vec()));
}

#[test]
fn login_automatic_login_is_no_prompt() {
    for chunk in [1, 100] {
        let mut guest = TestGuest::new(GuestAt::Shell);
        guest.print("guest login: root (automatic login)\n\nLast login: Mon Nov 23 on ttyS0\n# ");
        let run = run_script(&mut login(None), &mut guest, chunk, 0);
        assert!(run.result.is_ok());
        assert_eq!(typed(&run), [""; 0]);
    }
}

/// Logs in to a guest with another program that prints a line every `period` milliseconds, from `phase`
/// on. Returns the time that it took, or the error.
fn log_in_to_noise(
    guest: &mut TestGuest,
    line: &str,
    period: u64,
    phase: u64,
) -> Result<u64, ScriptError> {
    let mut script = login(guest.password);
    let (mut log, mut cursor) = (Scrollback::default(), Cursor::at(0));
    for millis in 0.. {
        if millis % period == phase {
            guest.print(line);
        }
        log.push(&guest.take_output());
        let now = Instant::ZERO + Duration::from_millis(millis);
        match script.poll_output(now, &log, &mut cursor, false) {
            ScriptAction::Write(bytes) => guest.input(&bytes),
            ScriptAction::Wait => {}
            ScriptAction::Done(result) => return result.map(|_| millis),
        }
    }
    unreachable!()
}

#[test]
fn login_noise_does_not_hide_prompts() {
    for line in ["tick\n", "a daemon says hello\n", "\ntwo\nlines\n"] {
        for (period, phase) in
            [(200, 0), (200, 1), (200, 95), (200, 199), (50, 0), (50, 7), (50, 49)]
        {
            for (at, password) in
                [(GuestAt::Login, None), (GuestAt::Login, Some("pw")), (GuestAt::Shell, None)]
            {
                for early in ["", "no prompt at the end\n"] {
                    let mut guest = guest(at, BANNER);
                    guest.password = password;
                    guest.print(early);
                    let took = log_in_to_noise(&mut guest, line, period, phase);
                    let case = format!("{line:?} {period} {phase} {at:?} {password:?} {early:?}");
                    assert!(matches!(took, Ok(0..16_000)), "{case}");
                    assert_eq!(guest.at, GuestAt::Shell, "{case}");
                }
            }
        }
    }
}

#[test]
fn login_typed_name_is_no_noise() {
    // Another writer logs in.
    let (mut log, mut cursor, mut script) =
        (Scrollback::default(), Cursor::at(0), login(Some("pw")));
    let at = |millis| Instant::ZERO + Duration::from_millis(millis);
    for (millis, text) in [(0, "vm login: "), (50, "root"), (60, "\r\nWelcome\r\n"), (70, "# ")] {
        log.push(text.as_bytes());
        assert_eq!(script.poll_output(at(millis), &log, &mut cursor, false), ScriptAction::Wait);
    }
    let output = script.poll_output(at(170), &log, &mut cursor, false);
    assert!(matches!(output, ScriptAction::Done(Ok(_))), "{output:?}");
}

#[test]
fn login_reboot_restarts_login() {
    let (mut log, mut cursor, mut now) = (Scrollback::default(), Cursor::at(0), Instant::ZERO);
    let mut script = login(Some("pw"));
    for boot in 0..3 {
        for (asked, answer) in [("vm login: ", "root\r"), ("Password: ", "pw\r")] {
            log.push(asked.as_bytes());
            assert_eq!(script.poll_output(now, &log, &mut cursor, false), ScriptAction::Wait);
            now = now + SETTLE_TIME;
            let output = script.poll_output(now, &log, &mut cursor, false);
            assert_eq!(output, ScriptAction::Write(answer.as_bytes().to_vec()), "boot {boot}");
        }
        script.handle_reboot();
    }
    log.push(b"\r\n# ");
    assert_eq!(script.poll_output(now, &log, &mut cursor, false), ScriptAction::Wait);
    let output = script.poll_output(now + SETTLE_TIME, &log, &mut cursor, false);
    assert!(matches!(output, ScriptAction::Done(Ok(_))), "{output:?}");
}

#[test]
fn login_foreign_password_prompt_gets_enter() {
    let mut guest = guest(GuestAt::Password, "");
    guest.password = Some("s3cret");
    let run = run_script(&mut login(Some("s3cret")), &mut guest, 9, 0);
    assert!(run.result.is_ok(), "{:?}", run.result);
    assert_eq!(typed(&run), ["\r", "root\r", "s3cret\r"]);
}

#[test]
fn login_shell_wins_over_timeout() {
    for (text, ok) in [("# ", true), ("vm login: ", false)] {
        let mut log = Scrollback::default();
        log.push(text.as_bytes());
        let late = Instant::ZERO + Duration::from_secs(99);
        let output = login(None).poll_output(late, &log, &mut Cursor::at(0), false);
        assert!(matches!(output, ScriptAction::Done(ref r) if r.is_ok() == ok), "{output:?}");
    }
}

#[test]
fn login_password_is_not_shown() {
    let mut script = login(Some("s3cret"));
    assert!(!format!("{script:?}").contains("s3cret"));
    let mut guest = guest(GuestAt::Login, "");
    guest.password = Some("s3cret");
    let (mut log, mut cursor) = (Scrollback::default(), Cursor::at(0));
    log.push(b"login: ");
    let mut shown = alloc::string::String::new();
    let mut now = Instant::ZERO;
    for text in ["", "", "Password: ", "", ""] {
        log.push(text.as_bytes());
        shown += &format!("{:?}", script.poll_output(now, &log, &mut cursor, false));
        now = now + SETTLE_TIME;
    }
    assert!(shown.contains("Write(7 bytes)") && !shown.contains("s3cret"), "{shown}");
    let error = Login::new("root", Some("s3cret\n"), now, None).expect_err("control byte");
    assert_eq!(error.to_string(), "password contains the byte 0x0a, which cannot be typed");
}

#[test]
fn login_closed_console_is_error() {
    let mut log = Scrollback::default();
    log.push(b"reboot: Power down");
    let output = login(None).poll_output(Instant::ZERO, &log, &mut Cursor::at(0), true);
    let ScriptAction::Done(Err(ScriptError::Closed { tail, .. })) = output else {
        panic!("{output:?}")
    };
    assert_eq!(tail, b"reboot: Power down");
}

#[test]
fn login_guest_fault_fails_within_a_second() {
    let panic =
        "Kernel panic - not syncing: no init\nCPU: 0\n---[ end Kernel panic - not syncing\n";
    for (banner, expected) in [
        (
            panic,
            "guest kernel panicked while waiting for a login prompt or a shell prompt: Kernel panic - not syncing: no init",
        ),
        (
            "\nGive root password for maintenance\n(or press Control-D to continue): ",
            "guest is in an emergency shell while waiting for a login prompt or a shell prompt: Give root password for maintenance",
        ),
        (
            "\nEntering emergency mode. Exit the shell to continue.\ndracut:/# ",
            "guest is in an emergency shell while waiting for a login prompt or a shell prompt: Entering emergency mode. Exit the shell to continue.",
        ),
        (
            "\n\nBusyBox v1.35.0 built-in shell (ash)\n\n(initramfs) ",
            "guest is in an emergency shell while waiting for a login prompt or a shell prompt: (initramfs)",
        ),
    ] {
        for chunk in [1, 10_000] {
            let mut guest = TestGuest::new(GuestAt::Dead);
            guest.print(banner);
            let run = run_script(&mut login(None), &mut guest, chunk, 2);
            assert_eq!(run.result.expect_err("named").to_string(), expected);
            assert!(run.took < Duration::from_secs(1), "{:?}", run.took);
            assert_eq!(run.cursor, Cursor::at(0), "the output can be read again");
        }
    }
}

#[test]
fn login_fault_before_login_prompt_is_ignored() {
    for before in [
        "\nLogin incorrect\n",
        "\nPress Enter for maintenance\n",
        "Kernel panic - not syncing: x\n",
    ] {
        let run = run_script(&mut login(None), &mut guest(GuestAt::Login, before), 9, 3);
        assert!(run.result.is_ok(), "{before:?}: {:?}", run.result);
    }
}

proptest! {
    #[test]
    fn login_any_chunking_gives_same_result(seed in any::<u64>(), chunk in 1usize..200) {
        let run = |chunk, seed| {
            let mut guest = TestGuest::new(GuestAt::Login);
            (guest.password, guest.noise) = (Some("pw"), NOISE);
            guest.print(BANNER);
            guest.prompt();
            let run = run_script(&mut login(Some("pw")), &mut guest, chunk, seed);
            (run.result, run.cursor, run.typed, run.took)
        };
        prop_assert_eq!(run(chunk, seed), run(1 << 20, 0));
    }
}
