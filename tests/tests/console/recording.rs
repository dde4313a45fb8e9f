//! Recordings of real and simulated guests, and their replay.

use std::path::Path;
use std::time::{Duration, Instant};

use capsa::blocking::{VmConsole, VmHandle};
use capsa::console::Overflow;
use capsa::recording::Recording;
use capsa::testing::{self, GuestReply, ReplayInput, ReplaySpeed, ScriptedGuest};
use capsa::{EndedBy, Error, VmStatus};
use capsa_testkit::nano;
use capsa_testkit::vm::{self, NanoGuest, PATIENCE};
use serde_json::Value;

/// For a real Linux guest in emulation, on a loaded host.
const LINUX_PATIENCE: Duration = Duration::from_secs(180);

/// The events of a file, each checked against asciicast v2.
fn events(path: &Path) -> Vec<(f64, String, String)> {
    let file = std::fs::read_to_string(path).unwrap();
    assert!(file.ends_with('\n'), "the last line has no newline");
    let mut lines = file.lines();
    let header: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!(header["version"], 2);
    for key in ["width", "height", "timestamp"] {
        assert!(header[key].is_u64(), "{key} in {header}");
    }
    let mut last = 0.0;
    lines
        .map(|line| {
            let (at, code, data): (f64, String, String) = serde_json::from_str(line).unwrap();
            assert!(at >= last, "{at} is less than {last}");
            last = at;
            (at, code, data)
        })
        .collect()
}

fn text(events: &[(f64, String, String)], code: &str) -> String {
    events.iter().filter(|(_, c, _)| c == code).map(|(_, _, data)| data.as_str()).collect()
}

fn fake() -> ScriptedGuest {
    ScriptedGuest::new()
        .print(b"\x1b[1mbooting\x1b[0m \xff\xfe caf\xc3\xa9\r\n")
        .login("root", Some("hunter2"))
        .shell("# ")
        .on("uname -r", GuestReply::output("6.1.0\n"))
        .on("slow", GuestReply::output("done\n").after(Duration::from_millis(200)))
}

/// A session with the guest, real or replayed.
fn session(console: &mut VmConsole) -> capsa::Result<String> {
    console.login_timeout("root", Some("hunter2"), PATIENCE)?;
    let kernel = console.run("uname -r", Some(PATIENCE))?;
    assert_eq!(console.run("slow", Some(PATIENCE))?.status, Some(0));
    Ok(String::from_utf8_lossy(&kernel.output).into_owned())
}

fn run(vm: &VmHandle) -> capsa::Result<String> {
    vm.start()?;
    let output = session(&mut vm.console()?)?;
    vm.stop()?;
    assert_eq!(vm.stop_report().unwrap().ended_by, EndedBy::GuestPowerOff);
    Ok(output)
}

fn recorded(path: &Path) {
    let recording = Recording::new(path).with_input();
    let vm = testing::vm(fake()).record(recording).build_blocking().unwrap();
    assert_eq!(run(&vm).unwrap(), "6.1.0\n");
}

#[test]
fn recording_is_asciicast_without_password() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session.cast");
    recorded(&path);
    let events = events(&path);
    assert!(text(&events, "o").contains("\u{1b}[1mbooting\u{1b}[0m \u{fffd}\u{fffd} café\r\n"));
    let input = text(&events, "i");
    assert!(input.starts_with("root\r") && input.contains("uname -r"), "{input:?}");
    assert!(!std::fs::read_to_string(&path).unwrap().contains("hunter2"));
    assert_eq!(events.iter().filter(|(_, code, _)| code == "secret").count(), 1);
    let codes: Vec<_> = events.iter().rev().take(2).map(|(_, code, _)| code.as_str()).collect();
    assert_eq!(codes, ["end", "button"]);
}

#[test]
fn recording_omits_input_by_default() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session.cast");
    let vm = testing::vm(fake()).record(&path).build_blocking().unwrap();
    run(&vm).unwrap();
    let events = events(&path);
    assert!(events.iter().all(|(_, code, _)| ["o", "bytes", "end"].contains(&code.as_str())));
}

#[test]
fn replay_prints_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session.cast");
    recorded(&path);
    // With 1000 s before the first output, which a replay without delays skips.
    let file = std::fs::read_to_string(&path).unwrap().replace("\n[0.", "\n[1000.");
    std::fs::write(&path, file).unwrap();
    let began = Instant::now();
    let vm = testing::vm(testing::recording(&path).unwrap()).build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    let mut first = vec![0; 21];
    let mut tail = vm.console().unwrap();
    assert_eq!(session(&mut console).unwrap(), "6.1.0\n");
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    tail.read(&mut first).unwrap();
    assert_eq!(first, b"\x1b[1mbooting\x1b[0m \xff\xfe ca");
    vm.stop().unwrap();
    assert_eq!(vm.stop_report().unwrap().ended_by, EndedBy::GuestPowerOff);
}

#[test]
fn replay_at_original_speed_takes_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session.cast");
    recorded(&path);
    let replay = testing::recording(&path).unwrap().speed(ReplaySpeed::Original);
    let began = Instant::now();
    assert_eq!(run(&testing::vm(replay).build_blocking().unwrap()).unwrap(), "6.1.0\n");
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
}

#[test]
fn replay_mismatch_names_expected_and_actual() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session.cast");
    recorded(&path);
    let replay = testing::recording(&path).unwrap();
    let vm = testing::vm(replay.clone()).build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    let error = console.login_timeout("admin", Some("hunter2"), PATIENCE).unwrap_err();
    assert!(error.to_string().contains("the replay expected"), "{error}");
    let Some(VmStatus::Failed { message }) = vm.wait_timeout(PATIENCE).unwrap() else {
        panic!("{}", vm.status());
    };
    assert!(message.contains(r#"expected the input "root\r""#), "{message}");
    assert!(message.contains(r#"got "admin\r""#), "{message}");
    // A lenient replay accepts any input.
    let vm = testing::vm(replay.input(ReplayInput::Ignored)).build_blocking().unwrap();
    vm.start().unwrap();
    vm.console().unwrap().login_timeout("admin", Some("any"), PATIENCE).unwrap();
}

#[test]
fn recorder_started_late_has_scrollback() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("late.cast");
    let vm = testing::vm(fake()).build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.wait_for_timeout("login: ", PATIENCE).unwrap();
    console.record(&path).unwrap();
    // The first console has read the prompt; another one starts at the beginning.
    let mut console = vm.console().unwrap();
    console.login_timeout("root", Some("hunter2"), PATIENCE).unwrap();
    vm.kill().unwrap();
    let events = events(&path);
    assert!(text(&events, "o").ends_with("Password: \r\n# "), "{events:?}");
    assert!(text(&events, "o").starts_with("\u{1b}[1mbooting"), "{events:?}");
    assert_eq!(text(&events, "end"), "cut");
}

#[test]
fn recording_of_paused_guest_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("whole.cast");
    let printed: String = (0..50_000).map(|n| format!("line {n}\r\n")).collect();
    let guest = ScriptedGuest::new().print(&printed).power_off();
    let vm = testing::vm(guest).scrollback(1000, Overflow::Pause).record(&path);
    let vm = vm.build_blocking().unwrap();
    vm.start().unwrap();
    // The recorder has read all output and waits for more.
    std::thread::sleep(Duration::from_millis(50));
    let (mut reader, mut all) = (vm.console().unwrap().split().0, Vec::new());
    std::io::Read::read_to_end(&mut reader, &mut all).unwrap();
    assert!(all == printed.as_bytes(), "{} of {} bytes", all.len(), printed.len());
    vm.wait().unwrap();
    assert!(text(&events(&path), "o") == printed);
}

#[cfg(target_os = "linux")] // Only Linux has /dev/full.
#[test]
fn recording_disk_full_does_not_stop_vm() {
    let vm = testing::vm(fake()).record("/dev/full").build_blocking().unwrap();
    assert_eq!(run(&vm).unwrap(), "6.1.0\n");
}

/// Writes to a nano guest and makes it power off.
fn nano_session(vm: &VmHandle) {
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.wait_for_timeout("NANO READY\r\n", PATIENCE).unwrap();
    console.write(b"echo \xf0\x9f\x98\x80 \xff\x03!").unwrap();
    let output = console.wait_for_timeout("!", PATIENCE).unwrap();
    assert_eq!(output, "echo \u{1f600} \u{fffd}\u{3}!");
    console.write(&[nano::FLOOD]).unwrap();
    let flood = String::from_utf8(nano::flood()).unwrap();
    console.wait_for_timeout(&flood[flood.len() - 32..], PATIENCE).unwrap();
    console.write(&[nano::POWER_OFF]).unwrap();
    assert_eq!(vm.wait_timeout(PATIENCE).unwrap(), Some(VmStatus::Stopped { exit_code: Some(0) }));
    assert_eq!(vm.stop_report().unwrap().ended_by, EndedBy::GuestPowerOff);
}

#[test]
fn recording_of_nano_guest_is_replayed() {
    let Some(guest) = NanoGuest::new() else { return };
    let path = guest.dir().join("nano.cast");
    let builder = guest.builder().record(Recording::new(&path).with_input());
    let real = builder.build_blocking().unwrap();
    let began = Instant::now();
    nano_session(&real);
    let took = began.elapsed();
    assert!(text(&events(&path), "o").contains("echo \u{1f600} \u{fffd}\u{3}!"));
    let replay = testing::recording(&path).unwrap();
    let played = testing::vm(replay).build_blocking().unwrap();
    let began = Instant::now();
    nano_session(&played);
    println!("real {took:?}, replayed {:?}", began.elapsed());
    // Every byte, including the flood.
    let all_output = |vm: &VmHandle| {
        let (mut reader, mut all) = (vm.console().unwrap().split().0, Vec::new());
        std::io::Read::read_to_end(&mut reader, &mut all).unwrap();
        all
    };
    let (real, played) = (all_output(&real), all_output(&played));
    assert!(real.len() > nano::flood().len() && real == played, "{} {}", real.len(), played.len());
}

/// A session with a Linux guest.
fn linux_session(vm: &VmHandle) -> capsa::Result<Vec<u8>> {
    vm.start()?;
    let mut console = vm.console()?;
    console.login_timeout("user", Some("secret"), LINUX_PATIENCE)?;
    assert_eq!(console.run("id -un", Some(LINUX_PATIENCE))?.output, b"user\n");
    let interrupted = console.run("sleep 1000", Some(Duration::from_millis(300)));
    assert!(matches!(interrupted, Err(Error::Timeout { .. })), "{interrupted:?}");
    let numbers =
        console.run("seq 2000; exit_code() { return 7; }; exit_code", Some(LINUX_PATIENCE))?;
    assert_eq!(numbers.status, Some(7));
    let kernel = console.run("uname -a; printf 'é\\n'", Some(LINUX_PATIENCE))?;
    vm.stop_with_timeout(LINUX_PATIENCE)?;
    assert_eq!(vm.stop_report().unwrap().ended_by, EndedBy::GuestPowerOff);
    Ok([numbers.output, kernel.output].concat())
}

#[test]
fn recording_of_linux_guest_is_replayed() {
    let Some(guest) = vm::linux_guest() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("linux.cast");
    let real = vm::linux(&guest).record(Recording::new(&path).with_input());
    let began = Instant::now();
    let output = linux_session(&real.build_blocking().unwrap()).unwrap();
    let took = began.elapsed();
    assert!(!std::fs::read_to_string(&path).unwrap().contains("secret\\r"));
    for replay in [
        testing::recording(&path).unwrap(),
        testing::recording(&path).unwrap().speed(ReplaySpeed::Original),
    ] {
        let played = testing::vm(replay).build_blocking().unwrap();
        let began = Instant::now();
        assert_eq!(linux_session(&played).unwrap(), output);
        println!("real {took:?}, replayed {:?}", began.elapsed());
    }
    events(&path);
}
