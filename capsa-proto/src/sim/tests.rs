//! Plays by example: what fake guests and replays do about what is typed.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use super::*;
use crate::codec::asciicast::{Encoder, End, Header};

/// Everything a play does until it waits, with its console as text.
fn deeds(play: &mut dyn GuestSim, now: Instant) -> (String, Vec<SimAction>) {
    let (mut said, mut others) = (Vec::new(), Vec::new());
    for _ in 0..1000 {
        match play.poll_action(now) {
            Some(SimAction::Output(bytes)) => said.extend(bytes),
            Some(other) => others.push(other),
            None => return (String::from_utf8(said).expect("text"), others),
        }
    }
    panic!("no end in sight");
}

fn said(play: &mut dyn GuestSim, now: Instant) -> String {
    let (said, others) = deeds(play, now);
    assert_eq!(others, []);
    said
}

fn type_in(play: &mut dyn GuestSim, text: &str) -> String {
    play.handle_input(Instant::ZERO, text.as_bytes());
    said(play, Instant::ZERO)
}

#[test]
fn acts_come_in_order_and_wait_for_their_lines() {
    let guest = ScriptedGuest::new()
        .print("ready? ")
        .expect_line("yes")
        .pause(Duration::from_secs(1))
        .print("go");
    let mut play = guest.simulate();
    assert_eq!(said(&mut *play, Instant::ZERO), "ready? ");
    assert_eq!(play.poll_timeout(), None);
    assert_eq!(type_in(&mut *play, "no\nye"), "no\r\n");
    assert_eq!(type_in(&mut *play, "s\r"), "yes\r\n");
    let at = play.poll_timeout().expect("a pause").at;
    assert_eq!(at, Instant::ZERO + Duration::from_secs(1));
    assert_eq!(said(&mut *play, at), "go");
}

#[test]
fn a_login_asks_until_both_are_right() {
    let mut play = ScriptedGuest::new().login("root", Some("secret")).shell("# ").simulate();
    assert_eq!(said(&mut *play, Instant::ZERO), "login: ");
    assert_eq!(type_in(&mut *play, "root\r"), "root\r\nPassword: ");
    assert_eq!(type_in(&mut *play, "wrong\r"), "\r\n\r\nLogin incorrect\r\nlogin: ");
    assert_eq!(type_in(&mut *play, "user\rsecret\r").matches("Login incorrect").count(), 1);
    assert_eq!(type_in(&mut *play, "root\rsecret\r"), "root\r\nPassword: \r\n# ");
}

#[test]
fn a_shell_answers_and_ctrl_c_ends_what_does_not() {
    let guest = ScriptedGuest::new().shell("$ ").on("pwd", GuestReply::output("/root\n"));
    let mut play = guest.on("wait", GuestReply::blocks()).simulate();
    assert_eq!(said(&mut *play, Instant::ZERO), "$ ");
    assert_eq!(type_in(&mut *play, "pwd\n"), "pwd\r\n/root\r\n$ ");
    assert_eq!(type_in(&mut *play, "wait\npwd\n"), "wait\r\n");
    assert_eq!(type_in(&mut *play, "\x03"), "^C\r\n$ ");
    assert_eq!(type_in(&mut *play, "nix\n"), "nix\r\nsh: nix: not found\r\n$ ");
}

#[test]
fn without_a_shell_lines_are_answered_and_nothing_is_echoed() {
    let mut play = ScriptedGuest::new().on("ping", GuestReply::output("pong\n")).simulate();
    assert_eq!(type_in(&mut *play, "what\nping\n"), "pong\n");
}

#[test]
fn a_power_button_is_heard_unless_the_guest_is_deaf_or_hangs() {
    for (guest, heard) in [
        (ScriptedGuest::new(), true),
        (ScriptedGuest::new().shell("# "), true),
        (ScriptedGuest::new().ignore_power_button(), false),
        (ScriptedGuest::new().hang(), false),
    ] {
        let mut play = guest.simulate();
        let _ = deeds(&mut *play, Instant::ZERO);
        play.handle_power_button(Instant::ZERO);
        play.handle_power_button(Instant::ZERO);
        let (_, others) = deeds(&mut *play, Instant::ZERO);
        let off = [SimAction::Event(GuestEvent::PoweredOff), SimAction::Exit(Exit::with_code(0))];
        assert_eq!(others, if heard { &off[..] } else { &[] }, "{guest:?}");
    }
}

#[test]
fn a_panic_is_said_before_it_is_told() {
    let mut play = ScriptedGuest::new().panic("no init").print("never").simulate();
    let (said, others) = deeds(&mut *play, Instant::ZERO);
    assert_eq!(said, "\r\nKernel panic - not syncing: no init\r\n");
    assert_eq!(others, [SimAction::Event(GuestEvent::Panicked)]);
}

#[test]
fn a_reboot_begins_everything_once_more() {
    let mut play = ScriptedGuest::new().print("boot\n").expect_line("reboot").reboot().simulate();
    assert_eq!(said(&mut *play, Instant::ZERO), "boot\n");
    play.handle_input(Instant::ZERO, b"reboot\n");
    let (said, others) = deeds(&mut *play, Instant::ZERO);
    assert_eq!(
        (said.as_str(), &others[..]),
        ("reboot\r\nboot\n", &[SimAction::Event(GuestEvent::Reset)][..])
    );
}

const SECOND: Duration = Duration::from_secs(1);

/// A recorded login and power-off, a second between events.
fn recording() -> Replay {
    let mut encoder = Encoder::new();
    let mut file = encoder.header(&Header::default());
    file += &encoder.output(SECOND, b"login: ");
    file += &encoder.input(2 * SECOND, b"root\r");
    file += &encoder.output(3 * SECOND, b"root\r\nPassword: ");
    file += &encoder.secret(4 * SECOND);
    file += &encoder.output(5 * SECOND, b"\r\n# ");
    file += &encoder.power_button(6 * SECOND);
    file += &encoder.output(7 * SECOND, b"bye\r\n");
    file += &encoder.end(8 * SECOND, End::PoweredOff);
    Replay::parse(file.as_bytes()).expect("well-formed")
}

#[test]
fn a_replay_answers_no_sooner_than_it_is_asked() {
    let mut play = recording().simulate();
    play.begin(Instant::ZERO);
    assert_eq!(said(&mut *play, Instant::ZERO), "login: ");
    assert_eq!(type_in(&mut *play, "ro"), "");
    assert_eq!(type_in(&mut *play, "ot\r"), "root\r\nPassword: ");
    assert_eq!(type_in(&mut *play, "anything\r"), "\r\n# ");
    play.handle_power_button(Instant::ZERO);
    let (said, others) = deeds(&mut *play, Instant::ZERO);
    assert_eq!(said, "bye\r\n");
    assert_eq!(
        others,
        [SimAction::Event(GuestEvent::PoweredOff), SimAction::Exit(Exit::with_code(0))]
    );
}

#[test]
fn a_replay_in_its_original_tempo_counts_from_the_inputs() {
    let mut play = recording().speed(ReplaySpeed::Original).simulate();
    let mut now = Instant::from_micros(7);
    play.begin(now);
    assert_eq!(said(&mut *play, now), "");
    now = now + SECOND;
    assert_eq!(play.poll_timeout().expect("output").at, now);
    assert_eq!(said(&mut *play, now), "login: ");
    now = now + 100 * SECOND;
    play.handle_input(now, b"root\r");
    assert_eq!(said(&mut *play, now), "");
    assert_eq!(play.poll_timeout().expect("output").at, now + SECOND);
    assert_eq!(said(&mut *play, now + SECOND), "root\r\nPassword: ");
}

#[test]
fn another_input_than_the_recorded_ends_the_replay_and_shows_both() {
    let mut play = recording().simulate();
    play.handle_input(Instant::ZERO, b"rost\r");
    let (_, others) = deeds(&mut *play, Instant::ZERO);
    let [SimAction::Exit(exit)] = &others[..] else { panic!("{others:?}") };
    let text =
        r#"exited with status 1: the replay expected "ot\r" to be typed here, and got "st\r""#;
    assert_eq!(exit.to_string(), text);
    let mut play = recording().input(ReplayInput::Ignored).simulate();
    assert!(type_in(&mut *play, "rost\r").ends_with("Password: "));
}

#[test]
fn an_enter_out_of_impatience_is_not_missed_and_not_minded() {
    let mut play = recording().simulate();
    assert_eq!(type_in(&mut *play, "\r\rroot\r"), "login: root\r\nPassword: ");
}

#[test]
fn a_recording_of_output_alone_minds_nothing() {
    let file = "{\"version\":2,\"width\":80,\"height\":24}\n[1,\"o\",\"a\"]\n";
    let mut play = Replay::parse(file.as_bytes()).expect("well-formed").simulate();
    assert_eq!(type_in(&mut *play, "whatever\n"), "a");
}

#[test]
fn the_number_of_a_command_is_that_of_the_recording() {
    let line = "[1,\"o\",\"x capsa:begin:00000000000000ff\\r\\n\"]\n";
    let header = "{\"version\":2,\"width\":80,\"height\":24}\n";
    let output_alone = Replay::parse([header, line].concat().as_bytes()).expect("well-formed");
    assert_eq!(output_alone.simulate().nonce(2), Some(0xff));
    assert_eq!(output_alone.simulate().nonce(3), None);
    let input = "[0,\"i\",\"\\u0003\"]\n[0,\"i\",\" printf x capsa begin 00000000000000aa;\"]\n";
    let both = Replay::parse([header, input, line].concat().as_bytes()).expect("well-formed");
    assert_eq!(both.simulate().nonce(0), Some(0xaa));
}
