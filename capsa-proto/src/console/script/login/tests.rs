//! Logins on a fake guest, from the plain to the hostile.

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
    guest.say(banner);
    guest.prompt();
    guest
}

fn typed(talk: &ScriptRun) -> Vec<&str> {
    talk.typed.iter().map(|b| core::str::from_utf8(b).expect("UTF-8")).collect()
}

const BANNER: &str = "[    0.000000] Linux version 6.1\nWelcome to the guest\n\n";
const NOISE: &str = "[    4.812345] random: crng init done\n[    4.9] odd";

#[test]
fn prompts_are_answered_in_turn_under_any_chunking() {
    type Case = (GuestAt, Option<&'static str>, Option<&'static str>, &'static [&'static str]);
    let cases: [Case; 6] = [
        (GuestAt::Login, None, None, &["root\r"]),
        (GuestAt::Login, Some("s3cret"), Some("s3cret"), &["root\r", "s3cret\r"]),
        // Given, but nobody asks.
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
                    guest.say(BANNER);
                    guest.prompt();
                    let talk = run_script(&mut login(has), &mut guest, chunk, 5);
                    assert!(talk.result.is_ok(), "{:?} {at:?} {prompt:?}", talk.result);
                    assert_eq!(typed(&talk), expected, "{at:?} {noise:?} {prompt:?} {chunk}");
                    assert_eq!(talk.cursor.peek(&talk.log), b"", "all of it is consumed");
                    assert!(talk.took < Duration::from_secs(1));
                }
            }
        }
    }
}

#[test]
fn a_wrong_password_is_named() {
    let mut guest = guest(GuestAt::Login, BANNER);
    guest.password = Some("right");
    let talk = run_script(&mut login(Some("wrong")), &mut guest, 3, 0);
    let error = talk.result.expect_err("refused");
    assert_eq!(error.to_string(), "login as \"root\" refused by the guest");
    assert_eq!(talk.cursor, Cursor::at(0), "what the guest said can be read again");
}

#[test]
fn a_password_that_is_asked_for_and_missing_is_named() {
    let mut guest = guest(GuestAt::Login, BANNER);
    guest.password = Some("right");
    let error = run_script(&mut login(None), &mut guest, 3, 0).result.expect_err("needed");
    assert_eq!(error, ScriptError::PasswordNeeded { username: "root".into() });
}

#[test]
fn silence_gets_a_bounded_number_of_enters() {
    let mut dead = TestGuest::new(GuestAt::Dead);
    let talk1 = run_script(&mut login(None), &mut dead, 3, 0);
    assert_eq!(typed(&talk1), ["\r", "\r", "\r"]);
    let error = talk1.result.expect_err("dead");
    let expected = "timed out after 60s waiting for a login prompt or a shell prompt: nothing came, \
                    though Enter was pressed";
    assert_eq!(error.to_string(), expected);

    let mut strange = TestGuest::new(GuestAt::Dead);
    strange.say(BANNER);
    strange.say("\x1b[1mguest % \x1b[0m");
    let error =
        run_script(&mut login(None), &mut strange, 3, 0).result.expect_err("no known prompt");
    assert!(
        error.to_string().ends_with(
            r##"the last line is "guest % ": a prompt ends with "login:", "assword:", "# ", "$ " or "> ""##
        ),
        "{error}"
    );

    // A shell whose prompt came before we did.
    let mut shell = TestGuest::new(GuestAt::Shell);
    let talk2 = run_script(&mut login(None), &mut shell, 3, 0);
    assert!(talk2.result.is_ok());
    assert_eq!(typed(&talk2), ["\r"]);

    // A prompt hidden by a kernel without time stamps.
    let mut hidden = guest(GuestAt::Shell, BANNER);
    hidden.say("random: crng init done\n");
    let talk3 = run_script(&mut login(None), &mut hidden, 3, 0);
    assert!(talk3.result.is_ok());
    assert_eq!(typed(&talk3), ["\r"]);
}

#[test]
fn enter_is_never_the_answer_to_a_late_password_prompt() {
    let mut script = login(Some("s3cret"));
    let (mut log, mut cursor, mut now) = (Scrollback::default(), Cursor::at(0), Instant::ZERO);
    let mut step = |text: &str, after: u64| {
        log.push(text.as_bytes());
        // The clock moves only after the bytes were seen.
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
fn an_automatic_login_is_not_a_prompt() {
    for chunk in [1, 100] {
        let mut guest = TestGuest::new(GuestAt::Shell);
        guest.say("guest login: root (automatic login)\n\nLast login: Mon Nov 23 on ttyS0\n# ");
        let talk = run_script(&mut login(None), &mut guest, chunk, 0);
        assert!(talk.result.is_ok());
        assert_eq!(typed(&talk), [""; 0]);
    }
}

#[test]
fn a_reboot_begins_the_login_anew() {
    let (mut log, mut cursor, mut now) = (Scrollback::default(), Cursor::at(0), Instant::ZERO);
    let mut script = login(Some("pw"));
    for boot in 0..3 {
        for (asked, answer) in [("vm login: ", "root\r"), ("Password: ", "pw\r")] {
            log.push(asked.as_bytes());
            assert_eq!(script.poll_output(now, &log, &mut cursor, false), ScriptAction::Wait);
            now = now + SETTLE;
            let output = script.poll_output(now, &log, &mut cursor, false);
            assert_eq!(output, ScriptAction::Write(answer.as_bytes().to_vec()), "boot {boot}");
        }
        script.handle_reboot();
    }
    log.push(b"\r\n# ");
    assert_eq!(script.poll_output(now, &log, &mut cursor, false), ScriptAction::Wait);
    let output = script.poll_output(now + SETTLE, &log, &mut cursor, false);
    assert!(matches!(output, ScriptAction::Done(Ok(_))), "{output:?}");
}

#[test]
fn a_password_prompt_of_somebody_else_is_ended_with_enter() {
    let mut guest = guest(GuestAt::Password, "");
    guest.password = Some("s3cret");
    let talk = run_script(&mut login(Some("s3cret")), &mut guest, 9, 0);
    assert!(talk.result.is_ok(), "{:?}", talk.result);
    assert_eq!(typed(&talk), ["\r", "root\r", "s3cret\r"]);
}

#[test]
fn a_shell_beats_the_timeout_and_nothing_is_typed_after_it() {
    for (text, ok) in [("# ", true), ("vm login: ", false)] {
        let mut log = Scrollback::default();
        log.push(text.as_bytes());
        let late = Instant::ZERO + Duration::from_secs(99);
        let output = login(None).poll_output(late, &log, &mut Cursor::at(0), false);
        assert!(matches!(output, ScriptAction::Done(ref r) if r.is_ok() == ok), "{output:?}");
    }
}

#[test]
fn the_password_shows_nowhere() {
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
        now = now + SETTLE;
    }
    assert!(shown.contains("Write(7 bytes)") && !shown.contains("s3cret"), "{shown}");
    let error = Login::new("root", Some("s3cret\n"), now, None).expect_err("control byte");
    assert_eq!(error.to_string(), "password contains the byte 0x0a, which cannot be typed");
}

#[test]
fn a_closed_console_ends_it() {
    let mut log = Scrollback::default();
    log.push(b"reboot: Power down");
    let output = login(None).poll_output(Instant::ZERO, &log, &mut Cursor::at(0), true);
    let ScriptAction::Done(Err(ScriptError::Closed { tail, .. })) = output else {
        panic!("{output:?}")
    };
    assert_eq!(tail, b"reboot: Power down");
}

#[test]
fn a_guest_that_did_not_come_up_is_named_within_a_second() {
    let panic =
        "Kernel panic - not syncing: no init\nCPU: 0\n---[ end Kernel panic - not syncing\n";
    for (banner, expected) in [
        (
            panic,
            "guest kernel panicked while waiting for a login prompt or a shell prompt: Kernel panic - not syncing: no init",
        ),
        (
            "\nGive root password for maintenance\n(or press Control-D to continue): ",
            "guest is in an emergency shell, while waiting for a login prompt or a shell prompt: Give root password for maintenance",
        ),
        (
            "\nEntering emergency mode. Exit the shell to continue.\ndracut:/# ",
            "guest is in an emergency shell, while waiting for a login prompt or a shell prompt: Entering emergency mode. Exit the shell to continue.",
        ),
        (
            "\n\nBusyBox v1.35.0 built-in shell (ash)\n\n(initramfs) ",
            "guest is in an emergency shell, while waiting for a login prompt or a shell prompt: (initramfs)",
        ),
    ] {
        for chunk in [1, 10_000] {
            let mut guest = TestGuest::new(GuestAt::Dead);
            guest.say(banner);
            let talk = run_script(&mut login(None), &mut guest, chunk, 2);
            assert_eq!(talk.result.expect_err("named").to_string(), expected);
            assert!(talk.took < Duration::from_secs(1), "{:?}", talk.took);
            assert_eq!(talk.cursor, Cursor::at(0), "what the guest said can be read again");
        }
    }
}

#[test]
fn trouble_from_before_a_login_prompt_is_over() {
    for before in [
        "\nLogin incorrect\n",
        "\nPress Enter for maintenance\n",
        "Kernel panic - not syncing: x\n",
    ] {
        let talk = run_script(&mut login(None), &mut guest(GuestAt::Login, before), 9, 3);
        assert!(talk.result.is_ok(), "{before:?}: {:?}", talk.result);
    }
}

proptest! {
    #[test]
    fn chunking_makes_no_difference(seed in any::<u64>(), chunk in 1usize..200) {
        let run = |chunk, seed| {
            let mut guest = TestGuest::new(GuestAt::Login);
            (guest.password, guest.noise) = (Some("pw"), NOISE);
            guest.say(BANNER);
            guest.prompt();
            let talk = run_script(&mut login(Some("pw")), &mut guest, chunk, seed);
            (talk.result, talk.cursor, talk.typed, talk.took)
        };
        prop_assert_eq!(run(chunk, seed), run(1 << 20, 0));
    }
}
