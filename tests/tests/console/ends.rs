//! The errors of waits, logins and commands before the start, at the end of the guest and after it.

use std::io::ErrorKind;
use std::time::Duration;

use capsa::blocking::{VmConsole, VmHandle};
use capsa::console::{Overflow, Pattern};
use capsa::testing::{self, GuestReply, ScriptedGuest};
use capsa::{EndedBy, Error, Result};
use capsa_testkit::vm::{PATIENCE, in_time};

type Call = fn(&mut VmConsole) -> Result<()>;

const WAITS: [(&str, Call); 4] = [
    ("wait_for", |console| console.wait_for("never").map(drop)),
    ("wait_for_any", |console| console.wait_for_any(&["never", "ever"]).map(drop)),
    ("wait_for_pattern", |console| {
        console.wait_for_pattern(&Pattern::regex("ne+ver").unwrap(), None).map(drop)
    }),
    ("wait_for_silence", |console| console.wait_for_silence(PATIENCE, None).map(drop)),
];

const COMMANDS: [(&str, Call); 4] = [
    ("login", |console| console.login("root", None)),
    ("run", |console| console.run("true", None).map(drop)),
    ("run_command", |console| console.run_command("true", "# ").map(drop)),
    ("spawn", |console| console.spawn("true", None)?.wait().map(drop)),
];

const WRITES: [(&str, Call); 2] = [
    ("write", |console| console.write(b"x")),
    ("send_interrupt", |console| console.send_interrupt()),
];

fn built(guest: ScriptedGuest) -> VmHandle {
    testing::vm(guest).build_blocking().unwrap()
}

/// The error of a call on a console of its own, which must return in time.
fn error_of(vm: &VmHandle, name: &str, call: Call) -> Error {
    let mut console = vm.console().unwrap();
    in_time(name, move || call(&mut console)).expect_err(name)
}

#[test]
fn calls_before_start_return_not_running() {
    let vm = built(ScriptedGuest::new().login("root", None).shell("# "));
    for (name, call) in WAITS.iter().chain(&COMMANDS).chain(&WRITES) {
        let error = error_of(&vm, name, *call);
        assert!(matches!(error, Error::NotRunning), "{name}: {error}");
    }
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.login_timeout("root", None, PATIENCE).unwrap();
}

#[test]
fn embedded_calls_before_start_return_not_running() {
    let mut vm = testing::vm(ScriptedGuest::new().shell("# ")).build_embedded().unwrap();
    let reader = vm.add_reader();
    let begun = [
        vm.wait_for_any(reader, &["never"], None),
        vm.wait_for_silence(reader, PATIENCE, None),
        vm.login(reader, "root", None, None),
        vm.run(reader, "true", None),
        vm.spawn(reader, "true", None),
    ];
    for result in begun {
        assert!(matches!(result, Err(Error::NotRunning)), "{result:?}");
    }
    let error = vm.write(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
}

#[test]
fn guest_end_is_one_error_of_all_calls() {
    let guest = ScriptedGuest::new().print("booting\r\n").pause(Duration::from_millis(300));
    let vm = built(guest.power_off());
    vm.start().unwrap();
    let calling = WAITS.iter().chain(&COMMANDS).map(|(name, call)| {
        let mut console = vm.console().unwrap();
        (name, std::thread::spawn(move || call(&mut console)))
    });
    for (name, thread) in calling.collect::<Vec<_>>() {
        let error = in_time(name, || thread.join().unwrap()).expect_err(name);
        let text = error.to_string();
        let Error::GuestEnded { how, tail, .. } = error else { panic!("{name}: {text}") };
        assert_eq!((&how.ended_by, &*tail), (&EndedBy::GuestPowerOff, "booting\r\n"), "{name}");
        assert!(text.contains(": guest powered off, "), "{text}");
    }
}

#[test]
fn command_that_ends_guest_returns_guest_ended() {
    let vm = built(ScriptedGuest::new().shell("# ").on("halt", GuestReply::power_off()));
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.wait_for_timeout("# ", PATIENCE).unwrap();
    let error = in_time("the command ends", move || console.run("halt", None)).unwrap_err();
    assert!(matches!(error, Error::GuestEnded { .. }), "{error}");
}

#[test]
fn calls_after_end_return_at_once() {
    let vm = built(ScriptedGuest::new().print("last output\r\n").power_off());
    vm.start().unwrap();
    vm.wait_timeout(PATIENCE).unwrap().expect("the guest ends");
    for (name, call) in COMMANDS.iter().chain(&WRITES) {
        let error = error_of(&vm, name, *call);
        assert!(matches!(error, Error::NotRunning), "{name}: {error}");
    }
    for (name, call) in WAITS {
        let error = error_of(&vm, name, call);
        assert!(matches!(error, Error::GuestEnded { .. }), "{name}: {error}");
    }
    assert_eq!(vm.console().unwrap().wait_for("last output").unwrap(), "last output");
}

#[test]
fn empty_pattern_list_is_an_error() {
    let vm = built(ScriptedGuest::new().shell("# "));
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    let results = in_time("the waits end", move || {
        let any = console.wait_for_any(&[]).map(drop);
        [any, console.wait_for_any_pattern(&[], Some(PATIENCE)).map(drop)]
    });
    for result in results {
        assert!(matches!(result, Err(Error::NoPatterns)), "{result:?}");
    }
}

#[test]
fn paused_console_timeout_names_standing_reader() {
    let flood = GuestReply::output("x".repeat(64 << 10));
    let guest = ScriptedGuest::new().shell("# ").on("flood", flood);
    let vm = testing::vm(guest).scrollback(4096, Overflow::Pause).build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    let standing = vm.console().unwrap().reader().named("progress bar");
    let error = console.run("flood", Some(Duration::from_millis(300))).unwrap_err();
    let Error::Timeout { hint: Some(hint), .. } = &error else { panic!("{error}") };
    assert!(hint.starts_with("the reader \"progress bar\" has 4"), "{error}");
    assert!(hint.ends_with(" unread bytes, and the console pauses the guest until it reads"));
    drop(standing);
}
