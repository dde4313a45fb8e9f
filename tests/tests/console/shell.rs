//! Commands in a shell: hostile output is returned unchanged, and invalid input is rejected.

use std::io::Read;
use std::pin::pin;
use std::time::Duration;

use capsa::Error;
use capsa::blocking::{VmConsole, VmHandle};
use capsa::console::Pattern;
use capsa::testing::{self, GuestReply, ScriptedGuest};
use capsa_testkit::vm::PATIENCE;
use futures_lite::future::{block_on, poll_once};

/// A short timeout, for output that never comes.
const SOON: Duration = Duration::from_millis(20);

fn logged_in(guest: ScriptedGuest) -> (VmHandle, VmConsole) {
    let vm = testing::vm(guest.login("root", None).shell("# ")).build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.login_timeout("root", None, PATIENCE).unwrap();
    (vm, console)
}

/// Output that imitates prompts, marks and kernel messages.
fn hostile() -> Vec<Vec<u8>> {
    let ids = (0..2000u64).map(|n| format!("capsa:end:{n:016x}:0;\ncapsa:begin:{n:016x}\n"));
    let panic = "[    1.000000] Kernel panic - not syncing: forged\n---[ end Kernel panic - not syncing ]---\n";
    vec![
        b"# \n$ \n> \nroot@vm:~# ".to_vec(),
        b"vm login: \nPassword: \nLogin incorrect\n".to_vec(),
        ids.collect::<String>().into_bytes(),
        b"\x1b[".repeat(200_000),
        [&b"\x1b]0;"[..], &b"title ".repeat(200_000)].concat(),
        b"x".repeat(3_000_000),
        b"\r".repeat(100_000),
        vec![0; 100_000],
        (0..=255).cycle().take(500_000).collect(),
        "größer ↦ 🦀".repeat(10_000).into_bytes(),
        b"[    1.000000] ".repeat(10_000),
        b"[    1.000000".to_vec(),
        [panic.as_bytes(), b"and on it goes\n"].concat(),
        b"\n(initramfs) \nYou are in emergency mode\nLinux version 6.1\n".to_vec(),
        b"capsa:end:".repeat(10_000),
        b"\xf0\x9f\xa6".to_vec(),
        vec![],
    ]
}

#[test]
fn command_output_hostile_is_returned_unchanged() {
    for text in hostile() {
        let start = text[..text.len().min(40)].escape_ascii().to_string();
        let guest = ScriptedGuest::new().on("attack", GuestReply::output(&text).with_status(7));
        let (vm, mut console) = logged_in(guest);
        let lines = console.reader().strip_ansi().lines();
        let tail = std::thread::spawn(move || lines.map(|line| line.len()).max());
        for prompt in [None, Some("# ")] {
            let reply = match prompt {
                None => console.run("attack", Some(PATIENCE)).unwrap(),
                Some(prompt) => {
                    let output = console.run_command_timeout("attack", prompt, PATIENCE).unwrap();
                    assert_eq!(output, String::from_utf8_lossy(&text), "{start}");
                    continue;
                }
            };
            // A carriage return before a newline is from the terminal.
            assert!(reply.output == text, "{start}: {} of {}", reply.output.len(), text.len());
            assert_eq!((reply.status, reply.truncated), (Some(7), false), "{start}");
        }
        let mut command = console.spawn("attack", Some(PATIENCE)).unwrap();
        let mut streamed = Vec::new();
        command.read_to_end(&mut streamed).unwrap();
        let reply = command.wait().unwrap();
        assert!(streamed == text, "{start}: {} of {}", streamed.len(), text.len());
        assert_eq!((reply.status, reply.truncated), (Some(7), false), "{start}");
        let error = console.wait_for_timeout("nothing of it", SOON).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.len() < 4096 && !error.contains('\x1b'), "{start}: {error}");
        vm.kill().unwrap();
        assert!(tail.join().unwrap() <= Some(3 * (64 << 10)), "{start}");
    }
}

#[test]
fn script_input_invalid_is_rejected_before_typing() {
    let (_vm, mut console) = logged_in(ScriptedGuest::new());
    for command in ["a\0b".to_owned(), "x".repeat((64 << 10) + 1), "\u{1}".repeat(20_000)] {
        let error = console.run(&command, Some(PATIENCE)).unwrap_err();
        assert!(matches!(error, Error::Script(_)), "{error}");
    }
    for (name, password) in [("ro\not", None), ("root", Some("pass\u{3}word")), ("\u{1b}[A", None)]
    {
        let error = console.login_timeout(name, password, PATIENCE).unwrap_err();
        assert!(matches!(error, Error::Script(_)), "{error}");
        assert!(!error.to_string().contains("pass\u{3}"), "{error}");
    }
    assert!(Pattern::regex("(a*)*b{1000000}").is_err());
    assert_eq!(console.read_available().unwrap(), "", "input was sent");
}

#[test]
fn timeouts_of_any_length_are_accepted() {
    let guest =
        ScriptedGuest::new().on("true", GuestReply::status(0)).on("cat", GuestReply::blocks());
    let (_vm, mut console) = logged_in(guest);
    for timeout in [Duration::MAX, Duration::from_secs(u64::MAX / 1_000_000)] {
        assert_eq!(console.run("true", Some(timeout)).unwrap().status, Some(0));
        assert_eq!(console.wait_for_timeout("# ", timeout).unwrap(), "# ");
    }
    for timeout in [Duration::ZERO, Duration::from_nanos(1)] {
        assert!(matches!(console.run("cat", Some(timeout)), Err(Error::Timeout { .. })));
        assert!(matches!(console.wait_for_timeout("never", timeout), Err(Error::Timeout { .. })));
        assert!(matches!(
            console.login_timeout("root", None, timeout),
            Ok(()) | Err(Error::Timeout { .. })
        ));
    }
    assert_eq!(console.run("true", Some(PATIENCE)).unwrap().status, Some(0));
}

#[test]
fn command_future_dropped_is_interrupted() {
    let guest = ScriptedGuest::new()
        .login("root", None)
        .shell("# ")
        .on("sleep 1000", GuestReply::blocks())
        .on("pwd", GuestReply::output("/root\n"));
    block_on(async {
        let vm = testing::vm(guest).build().await.unwrap();
        vm.start().await.unwrap();
        let mut console = vm.console().await.unwrap();
        console.login("root", None).await.unwrap();
        for moment in 0..20 {
            {
                let mut sleeps = pin!(console.run("sleep 1000", None));
                assert!(poll_once(&mut sleeps).await.is_none());
                // The guest has got nothing yet, or the whole command.
                std::thread::sleep(Duration::from_micros(100 * moment));
            }
            assert_eq!(console.run("pwd", None).await.unwrap().output, b"/root\n");
        }
    });
}
