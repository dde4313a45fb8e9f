//! Tests of scripted guests and replays: what they do for given input.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use super::*;
use crate::codec::asciicast::{CastHeader, Encoder, RecordedEnd};

/// All actions until the simulation waits: the console output as text, and the other actions.
fn actions(sim: &mut dyn GuestSim, now: Instant) -> (String, Vec<SimAction>) {
    let (mut text, mut others) = (Vec::new(), Vec::new());
    for _ in 0..1000 {
        match sim.poll_action(now) {
            Some(SimAction::Output(bytes)) => text.extend(bytes),
            Some(other) => others.push(other),
            None => return (String::from_utf8(text).expect("text"), others),
        }
    }
    panic!("too many actions");
}

fn output(sim: &mut dyn GuestSim, now: Instant) -> String {
    let (text, others) = actions(sim, now);
    assert_eq!(others, []);
    text
}

fn send(sim: &mut dyn GuestSim, text: &str) -> String {
    sim.handle_input(Instant::ZERO, text.as_bytes());
    output(sim, Instant::ZERO)
}

#[test]
fn steps_run_in_order_and_wait_for_lines() {
    let guest = ScriptedGuest::new()
        .print("ready? ")
        .expect_line("yes")
        .pause(Duration::from_secs(1))
        .print("go");
    let mut sim = guest.simulate();
    assert_eq!(output(&mut *sim, Instant::ZERO), "ready? ");
    assert_eq!(sim.poll_timeout(), None);
    assert_eq!(send(&mut *sim, "no\nye"), "no\r\n");
    assert_eq!(send(&mut *sim, "s\r"), "yes\r\n");
    let at = sim.poll_timeout().expect("a pause").at;
    assert_eq!(at, Instant::ZERO + Duration::from_secs(1));
    assert_eq!(output(&mut *sim, at), "go");
}

#[test]
fn login_wrong_credentials_asks_again() {
    let mut sim = ScriptedGuest::new().login("root", Some("secret")).shell("# ").simulate();
    assert_eq!(output(&mut *sim, Instant::ZERO), "login: ");
    assert_eq!(send(&mut *sim, "root\r"), "root\r\nPassword: ");
    assert_eq!(send(&mut *sim, "wrong\r"), "\r\n\r\nLogin incorrect\r\nlogin: ");
    assert_eq!(send(&mut *sim, "user\rsecret\r").matches("Login incorrect").count(), 1);
    assert_eq!(send(&mut *sim, "root\rsecret\r"), "root\r\nPassword: \r\n# ");
}

#[test]
fn shell_replies_and_ctrl_c_ends_blocked_command() {
    let guest = ScriptedGuest::new().shell("$ ").on("pwd", GuestReply::output("/root\n"));
    let mut sim = guest.on("wait", GuestReply::blocks()).simulate();
    assert_eq!(output(&mut *sim, Instant::ZERO), "$ ");
    assert_eq!(send(&mut *sim, "pwd\n"), "pwd\r\n/root\r\n$ ");
    assert_eq!(send(&mut *sim, "wait\npwd\n"), "wait\r\n");
    assert_eq!(send(&mut *sim, "\x03"), "^C\r\n$ ");
    assert_eq!(send(&mut *sim, "nix\n"), "nix\r\nsh: nix: not found\r\n$ ");
}

#[test]
fn no_shell_replies_without_echo() {
    let mut sim = ScriptedGuest::new().on("ping", GuestReply::output("pong\n")).simulate();
    assert_eq!(send(&mut *sim, "what\nping\n"), "pong\n");
}

#[test]
fn power_button_ignored_or_hung_does_nothing() {
    for (guest, reacts) in [
        (ScriptedGuest::new(), true),
        (ScriptedGuest::new().shell("# "), true),
        (ScriptedGuest::new().ignore_power_button(), false),
        (ScriptedGuest::new().hang(), false),
    ] {
        let mut sim = guest.simulate();
        let _ = actions(&mut *sim, Instant::ZERO);
        sim.handle_power_button(Instant::ZERO);
        sim.handle_power_button(Instant::ZERO);
        let (_, others) = actions(&mut *sim, Instant::ZERO);
        let off = [SimAction::Event(GuestEvent::PoweredOff), SimAction::Exit(Exit::with_code(0))];
        assert_eq!(others, if reacts { &off[..] } else { &[] }, "{guest:?}");
    }
}

#[test]
fn panic_text_precedes_event() {
    let mut sim = ScriptedGuest::new().panic("no init").print("never").simulate();
    let (text, others) = actions(&mut *sim, Instant::ZERO);
    assert_eq!(text, "\r\nKernel panic - not syncing: no init\r\n");
    assert_eq!(others, [SimAction::Event(GuestEvent::Panicked)]);
}

#[test]
fn reboot_repeats_all_steps() {
    let mut sim = ScriptedGuest::new().print("boot\n").expect_line("reboot").reboot().simulate();
    assert_eq!(output(&mut *sim, Instant::ZERO), "boot\n");
    sim.handle_input(Instant::ZERO, b"reboot\n");
    let (text, others) = actions(&mut *sim, Instant::ZERO);
    assert_eq!(
        (text.as_str(), &others[..]),
        ("reboot\r\nboot\n", &[SimAction::Event(GuestEvent::Reset)][..])
    );
}

const SECOND: Duration = Duration::from_secs(1);

/// A recorded login and power-off, a second between events.
fn recording() -> Replay {
    let mut encoder = Encoder::new();
    let mut file = encoder.header(&CastHeader::default());
    file += &encoder.output(SECOND, b"login: ");
    file += &encoder.input(2 * SECOND, b"root\r");
    file += &encoder.output(3 * SECOND, b"root\r\nPassword: ");
    file += &encoder.secret(4 * SECOND);
    file += &encoder.output(5 * SECOND, b"\r\n# ");
    file += &encoder.power_button(6 * SECOND);
    file += &encoder.output(7 * SECOND, b"bye\r\n");
    file += &encoder.end(8 * SECOND, RecordedEnd::PoweredOff);
    Replay::parse(file.as_bytes()).expect("well-formed")
}

#[test]
fn replay_output_waits_for_recorded_input() {
    let mut sim = recording().simulate();
    sim.begin(Instant::ZERO);
    assert_eq!(output(&mut *sim, Instant::ZERO), "login: ");
    assert_eq!(send(&mut *sim, "ro"), "");
    assert_eq!(send(&mut *sim, "ot\r"), "root\r\nPassword: ");
    assert_eq!(send(&mut *sim, "anything\r"), "\r\n# ");
    sim.handle_power_button(Instant::ZERO);
    let (text, others) = actions(&mut *sim, Instant::ZERO);
    assert_eq!(text, "bye\r\n");
    assert_eq!(
        others,
        [SimAction::Event(GuestEvent::PoweredOff), SimAction::Exit(Exit::with_code(0))]
    );
}

#[test]
fn replay_original_speed_counts_from_inputs() {
    let mut sim = recording().speed(ReplaySpeed::Original).simulate();
    let mut now = Instant::from_micros(7);
    sim.begin(now);
    assert_eq!(output(&mut *sim, now), "");
    now = now + SECOND;
    assert_eq!(sim.poll_timeout().expect("output").at, now);
    assert_eq!(output(&mut *sim, now), "login: ");
    now = now + 100 * SECOND;
    sim.handle_input(now, b"root\r");
    assert_eq!(output(&mut *sim, now), "");
    assert_eq!(sim.poll_timeout().expect("output").at, now + SECOND);
    assert_eq!(output(&mut *sim, now + SECOND), "root\r\nPassword: ");
}

#[test]
fn replay_other_input_exits_with_both_texts() {
    let mut sim = recording().simulate();
    sim.handle_input(Instant::ZERO, b"rost\r");
    let (_, others) = actions(&mut *sim, Instant::ZERO);
    let [SimAction::Exit(exit)] = &others[..] else { panic!("{others:?}") };
    let text = r#"exited with status 1: the replay expected the input "ot\r" but got "st\r""#;
    assert_eq!(exit.to_string(), text);
    let mut sim = recording().input(ReplayInput::Ignored).simulate();
    assert!(send(&mut *sim, "rost\r").ends_with("Password: "));
}

#[test]
fn replay_ignores_enter_nudges() {
    let mut sim = recording().simulate();
    assert_eq!(send(&mut *sim, "\r\rroot\r"), "login: root\r\nPassword: ");
}

#[test]
fn replay_without_input_accepts_any_input() {
    let file = "{\"version\":2,\"width\":80,\"height\":24}\n[1,\"o\",\"a\"]\n\
                [1,\"end\",\"cut\"]\n";
    let mut sim = Replay::parse(file.as_bytes()).expect("well-formed").simulate();
    assert_eq!(send(&mut *sim, "whatever\n"), "a");
}

#[test]
fn replay_without_end_record_is_rejected() {
    let file = "{\"version\":2,\"width\":80,\"height\":24}\n[1.5,\"o\",\"a\"]\n";
    let error = Replay::parse(file.as_bytes()).unwrap_err();
    assert_eq!(error, ReplayError::NoEnd { events: 1, at: 1.5 });
    let line = "[1.5, \"end\", \"cut\"]";
    assert!(error.to_string().contains(line), "{error}");
    Replay::parse([file, line].concat().as_bytes()).expect("the remedy of the error");
}

#[test]
fn replay_nonce_is_the_recorded_one() {
    let line = "[1,\"o\",\"x capsa:begin:00000000000000ff\\r\\n\"]\n[2,\"end\",\"cut\"]\n";
    let header = "{\"version\":2,\"width\":80,\"height\":24}\n";
    let output_alone = Replay::parse([header, line].concat().as_bytes()).expect("well-formed");
    assert_eq!(output_alone.simulate().nonce(2), Some(0xff));
    assert_eq!(output_alone.simulate().nonce(3), None);
    let input = "[0,\"i\",\"\\u0003\"]\n[0,\"i\",\" printf x capsa begin 00000000000000aa;\"]\n";
    let both = Replay::parse([header, input, line].concat().as_bytes()).expect("well-formed");
    assert_eq!(both.simulate().nonce(0), Some(0xaa));
}
