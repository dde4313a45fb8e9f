//! Tests of the checks of faults and crashes.

use super::*;
use alloc::format;

fn at(millis: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(millis)
}

fn check(from: u64) -> FaultCheck {
    FaultCheck::for_all(&Scrollback::default(), from)
}

/// The confirmed fault in `text`, the same for any chunking.
fn detect_fault(text: &str) -> Option<(GuestFault, String)> {
    let mut answers = [1, 7, 4096].map(|chunk| {
        let (mut log, mut check) = (Scrollback::default(), check(0));
        for bytes in text.as_bytes().chunks(chunk) {
            log.push(bytes);
            check.observe(at(0), &log);
            assert_eq!(check.confirmed(at(499), &log), None, "too early");
        }
        check.confirmed(at(500), &log).map(|s| (s.fault, s.line))
    });
    let [first, rest @ ..] = &mut answers;
    assert!(rest.iter().all(|other| other == first), "chunking made a difference");
    first.take()
}

#[test]
fn fault_texts_at_line_start_are_recognised() {
    for (text, expected) in [
        (
            "[    1.5] Kernel panic - not syncing: VFS: no root\r\n[    1.6] CPU: 0\r\n",
            Some((GuestFault::KernelPanic, "Kernel panic - not syncing: VFS: no root")),
        ),
        (
            "\r\nYou are in emergency mode. After logging in, type \"journalctl -xb\"\r\n",
            Some((
                GuestFault::EmergencyShell,
                "You are in emergency mode. After logging in, type \"journalctl -xb\"",
            )),
        ),
        (
            "x\r\n\x1b[0m\x1b[1;31mGive root password for maintenance\r\n",
            Some((GuestFault::EmergencyShell, "Give root password for maintenance")),
        ),
        ("\r\n(initramfs) ", Some((GuestFault::EmergencyShell, "(initramfs)"))),
        ("\r\nLogin incorrect\r\n", Some((GuestFault::LoginIncorrect, "Login incorrect"))),
        // In the middle of a line it is not a fault.
        ("# grep 'Login incorrect' log\r\n", None),
        ("---[ end Kernel panic - not syncing: x ]---\r\n", None),
        ("Kernel panic - not syncing: x\r\n[    0.000000] Linux version 6.1\r\n", None),
        ("Kernel panic - not syncing: x\r\n[    2.000000] reboot: Power down\r\n", None),
        ("Kernel panic - not syncing: x\r\n[    2.000000] reboot: Restarting system\r\n", None),
        ("all is well", None),
    ] {
        let expected = expected.map(|(fault, line)| (fault, String::from(line)));
        assert_eq!(detect_fault(text), expected, "{text:?}");
    }
}

#[test]
fn fault_guest_keeps_printing_is_not_confirmed() {
    let (mut log, mut check) = (Scrollback::default(), check(0));
    log.push(b"Kernel panic - not syncing: x\n");
    for n in 0..10 {
        log.push(b"but on it goes\n");
        check.observe(at(n * 400), &log);
        assert_eq!(check.confirmed(at(n * 400), &log), None);
        assert_eq!(check.confirmed_at().unwrap().at, at(n * 400 + 500));
    }
    assert!(!check.panic_is_complete());
    log.push(b"---[ end Kernel panic - not syncing: x ]---\n");
    check.observe(at(4000), &log);
    assert!(check.panic_is_complete());
}

#[test]
fn fault_dropped_before_the_wait_does_not_count() {
    let mut log = Scrollback::new(256);
    let mut early = check(0);
    log.push(b"Kernel panic - not syncing: dropped\n");
    early.observe(at(0), &log);
    log.push(&[b'x'; 256]);
    early.observe(at(0), &log);
    // The reader is behind the dropped output.
    let mut late = check(0);
    late = FaultCheck { from: log.start(), ..late };
    late.observe(at(0), &log);
    assert_eq!(late.candidate(), None);
    assert_eq!(last_fault(&log, &Cursor::at(0)), None);
    let line = early.report(&log).map(|report| report.line);
    assert_eq!(line.as_deref(), Some("Kernel panic - not syncing"), "its line is gone");
}

#[test]
fn fault_check_in_the_past_counts_kept_faults() {
    let mut log = Scrollback::default();
    log.push(b"Kernel panic - not syncing: first\nKernel panic - not syncing: second\n");
    for (from, line) in [(0, Some("first")), (1, Some("second")), (35, None)] {
        let mut check = FaultCheck::for_panic(&log, from);
        check.observe(at(0), &log);
        assert_eq!(check.confirmed(at(499), &log), None, "silence counts from the wait on");
        let found = check.confirmed(at(500), &log).map(|report| report.line);
        let line = line.map(|line| format!("Kernel panic - not syncing: {line}"));
        assert_eq!(found, line, "from {from}");
    }
}

/// The crash in `text`, the same for any chunking.
fn detect_crash(text: &str) -> Option<ConsoleCrash> {
    let answers = [1, 7, 4096].map(|chunk| {
        let (mut log, mut check) = (Scrollback::default(), CrashCheck::default());
        for bytes in text.as_bytes().chunks(chunk) {
            log.push(bytes);
            check.observe(at(0), &log);
            assert_eq!(check.poll_crash(at(199), &log, false), None, "too early");
        }
        let is_panic = text.contains("panic");
        assert!(!is_panic || check.poll_crash(at(4999), &log, false).is_none(), "too early");
        let crash = check.poll_crash(at(if is_panic { 5000 } else { 200 }), &log, false);
        assert_eq!(
            (check.poll_timeout(false), check.poll_crash(at(9999), &log, false)),
            (None, None),
            "once"
        );
        crash
    });
    assert!(answers.iter().all(|other| *other == answers[0]), "chunking made a difference");
    answers[0]
}

#[test]
fn crash_message_as_last_line_is_recognised() {
    use ConsoleCrash::{Panic, Restart};
    let trace = "[    1.600000] CPU: 0 PID: 1\r\n[    1.600000] Call Trace:\r\n";
    for (text, want) in [
        ("[   12.345678] reboot: Restarting system\r\n", Some(Restart)),
        ("[   12.345678][    T1] reboot: Restarting system with command 'x'\r\n", Some(Restart)),
        ("bye\r\nreboot: Restarting system\r\nreboot: machine restart\r\n", Some(Restart)),
        // The guest boots again.
        (
            "[    9.100000] reboot: Restarting system\r\n[    0.000000] Linux version 6.1",
            Some(Restart),
        ),
        (&format!("[    1.500000] Kernel panic - not syncing: x\r\n{trace}"), Some(Panic)),
        (
            "Kernel panic - not syncing: x\nCPU: 0\n---[ end Kernel panic - not syncing: x ]---\n",
            Some(Panic),
        ),
        (
            "[    1.500000] Kernel panic - not syncing: x\r\n[    1.600000] Rebooting in 10 seconds..",
            Some(Panic),
        ),
        // The same text, printed by a program.
        ("# grep 'reboot: Restarting system' log\r\n", None),
        ("log: [    1.500000] reboot: Restarting system\r\n", None),
        ("[    1.500000] reboot: Restarting system\r\n# ", None),
        ("[    1.500000] reboot: Restarting system\r\n[root@guest ~]# ", None),
        ("[    1.500000] reboot: Restarting system\r\n[1]+  Done    qemu", None),
        (&format!("[    1.500000] Kernel panic - not syncing: x\r\n{trace}$ "), None),
        ("reboot: Power down\r\n", None),
        ("all is well", None),
    ] {
        assert_eq!(detect_crash(text), want, "{text:?}");
    }
}

#[test]
fn crash_in_command_needs_longer_silence() {
    for (text, in_command, after) in [
        ("[    1.500000] Kernel panic - not syncing: x\r\n", false, 5_000),
        ("[    1.500000] Kernel panic - not syncing: x\r\n", true, 60_000),
        ("[    1.500000] reboot: Restarting system\r\n", true, 200),
    ] {
        let (mut log, mut check) = (Scrollback::default(), CrashCheck::default());
        log.push(text.as_bytes());
        check.observe(at(0), &log);
        assert_eq!(check.poll_timeout(in_command).map(|due| due.at), Some(at(after)), "{text}");
        assert_eq!(check.poll_crash(at(after - 1), &log, in_command), None, "{text}");
        assert!(check.poll_crash(at(after), &log, in_command).is_some(), "{text}");
    }
}

#[test]
fn crash_output_after_settle_time_is_ignored() {
    let (mut log, mut check) = (Scrollback::default(), CrashCheck::default());
    log.push(b"[    1.500000] reboot: Restarting system\r\n");
    assert_eq!(check.observe(at(0), &log), Some(false));
    assert_eq!(check.poll_timeout(false).unwrap().at, at(200));
    assert_eq!(check.poll_crash(at(200), &log, false), Some(ConsoleCrash::Restart));
    log.push(b"Welcome!\r\n");
    check.observe(at(300), &log);
    assert_eq!(check.poll_timeout(false), None);
}

#[test]
fn crash_scan_reports_panic_anywhere_in_line() {
    let (mut log, mut check) = (Scrollback::new(64), CrashCheck::default());
    log.push(b"it says: Kernel panic - not syncing, it says");
    assert_eq!(check.observe(at(0), &log), Some(true));
    assert_eq!(check.poll_timeout(false), None);
    // Other output pushes the message out of the scrollback before it is confirmed.
    log.push(b"\nreboot: Restarting system\n");
    check.observe(at(0), &log);
    log.push(&[b'x'; 64]);
    assert_eq!(check.poll_crash(at(200), &log, false), None);
}
