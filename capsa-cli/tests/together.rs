//! Many at once: viewers of which one never reads, stops that meet, a sweep among starts; and keys that
//! are nearly those that leave.

mod common;

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use capsa_testkit::fake;
use capsa_testkit::nano::{self, Nano};
use common::{Capsa, Terminal, ask, capsa, nano_arguments, run_dir};
use nix::sys::signal::Signal;

/// A machine with the name `kept`, ready.
fn start(how: Nano) -> Option<Capsa> {
    let mut machine = Capsa::start(how, &["--name", "kept"])?;
    machine.wait_for(nano::READY);
    machine.wait_until_listed("kept");
    Some(machine)
}

/// Another command about its machines, under way.
fn beside(machine: &Capsa, words: &[&str]) -> Child {
    let mut command: Command = capsa();
    command.args(words).env("CAPSA_RUN_DIR", run_dir(machine.dir()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn stops_that_meet_are_one_stop_and_all_are_told() {
    let Some(mut machine) = start(Nano { power_button: false }) else { return };
    let begin = Instant::now();
    let patient = beside(&machine, &["stop", "kept"]);
    let patient_too = beside(&machine, &["stop", "--grace", "1h", "kept"]);
    // The shortest grace counts, whoever came first.
    let hasty = beside(&machine, &["stop", "--grace", "500ms", "kept"]);
    for stop in [patient, patient_too, hasty] {
        let end = stop.wait_with_output().unwrap();
        let said = String::from_utf8(end.stdout).unwrap();
        assert_eq!(end.status.code(), Some(0), "{said}");
        assert!(said.starts_with("kept: "), "{said}");
    }
    assert!(begin.elapsed() < Duration::from_secs(25), "a later stop lengthened the grace");
    assert_eq!(machine.wait_for_end().0, 137);
    assert_eq!(machine.ask(&["stop", "kept"]).0, 118, "it is gone");
}

#[test]
fn a_viewer_that_does_not_keep_up_is_cut_off_and_told_and_holds_nobody_up() {
    // A guest says this much only under a hypervisor that is played.
    const MUCH: usize = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let mut arguments = nano_arguments(dir.path(), Nano::default());
    let words = format!("up console=ready console*{MUCH} console=over serve");
    let more = ["--name", "kept", "--quiet", "--cmdline-override", &words];
    arguments.extend(more.map(Into::into));
    let machines = run_dir(dir.path());
    let mut machine = capsa()
        .args(arguments)
        .env("CAPSA_RUN_DIR", &machines)
        .env("CAPSA_QEMU", fake::qemu())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Nobody reads the run itself yet, so the guest waits.
    let mut stdout = machine.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 5]).unwrap();
    let viewer = |stdout: Stdio| {
        let mut command = capsa();
        command.args(["console", "--read-only", "kept"]).env("CAPSA_RUN_DIR", &machines);
        command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap()
    };
    let log = dir.path().join("seen");
    let slow = viewer(Stdio::piped());
    let keen = viewer(fs::File::create(&log).unwrap().into());
    while fs::metadata(&log).unwrap().len() == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    let mut seen = Vec::new();
    while !seen.ends_with(b"over") {
        let mut chunk = [0; 1 << 16];
        let n = stdout.read(&mut chunk).unwrap();
        assert!(n > 0, "it ended after {} bytes", seen.len());
        seen.extend(&chunk[..n]);
        thread::sleep(Duration::from_millis(10)); // as fast as a busy machine lets the viewer be
    }
    assert!(seen.len() >= MUCH, "the run itself has it all");
    let slow = slow.wait_with_output().unwrap();
    let said = String::from_utf8(slow.stderr).unwrap();
    assert_eq!(slow.status.code(), Some(118), "{said}");
    assert!(
        said.contains("disconnected from kept: this client read the console too slowly"),
        "{said}"
    );
    assert!(slow.stdout.len() < MUCH);
    let (code, _, said) = ask(dir.path(), &["stop", "--kill", "kept"]);
    assert_eq!(code, 0, "{said}");
    let keen = keen.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(keen.stderr).unwrap(), "");
    assert!(keen.status.success());
    assert!(fs::read(&log).unwrap().ends_with(b"over"), "who keeps up sees the end");
    assert_eq!(machine.wait().unwrap().code(), Some(137));
}

#[test]
fn a_viewer_of_a_run_that_is_killed_ends() {
    let Some(mut machine) = start(Nano::default()) else { return };
    let viewer = ["console", "--read-only", "kept"].map(Into::into);
    let mut viewer = Capsa::with(tempfile::tempdir().unwrap(), &viewer, &run_dir(machine.dir()));
    viewer.wait_for(nano::READY);
    machine.signal(Signal::SIGKILL);
    machine.wait_until_killed();
    assert_eq!(viewer.wait_for_end().0, 0);
}

#[test]
fn a_sweep_among_starts_takes_none_of_them() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let arguments = nano_arguments(dir.path(), Nano::default());
    let start = |_| {
        let mut command = capsa();
        command.args(&arguments).args(["--timeout", "1s", "--quiet"]);
        command.env("CAPSA_RUN_DIR", run_dir(dir.path())).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut machines: Vec<Child> = (0..4).map(start).collect();
    let mut sweeps = 0;
    while machines.iter_mut().any(|machine| machine.try_wait().unwrap().is_none()) {
        let (code, said, wrong) = ask(dir.path(), &["gc"]);
        assert_eq!((code, wrong.as_str()), (0, ""), "{said}");
        assert!(said.starts_with("nothing to remove in "), "{said}");
        sweeps += 1;
        thread::sleep(Duration::from_millis(2));
    }
    assert!(sweeps > 5, "{sweeps}");
    for machine in machines {
        let end = machine.wait_with_output().unwrap();
        let said = String::from_utf8(end.stderr).unwrap();
        assert_eq!(end.status.code(), Some(114), "{said}");
    }
}

#[test]
fn keys_that_are_no_orders_reach_the_guest() {
    let Some(mut terminal) = Terminal::start(Nano::default()) else { return };
    terminal.wait_for(nano::READY);
    terminal.wait_until_raw();
    // The guest echoes what it gets: one Ctrl-] for two, and both keys where the second is unknown.
    terminal.write(b"<\x1d\x1d>");
    terminal.wait_for(b"<\x1d>");
    terminal.write(b"<\x1dx>");
    terminal.wait_for(b"<\x1dx>");
    // The two keys of an order may come one after the other.
    terminal.write(b"\x1d");
    thread::sleep(Duration::from_millis(300)); // as a person types
    terminal.write(b"q");
    assert_eq!(terminal.wait_for_end(), 0);
    assert_eq!(terminal.modes(), terminal.before);
}

#[test]
fn a_hypervisor_killed_while_it_stops_is_no_clean_end() {
    let deaf = Nano { power_button: false };
    let Some(mut terminal) = Terminal::start(deaf) else { return };
    terminal.wait_for(nano::READY);
    terminal.wait_until_raw();
    terminal.write(b"\x1dq<asked>");
    terminal.wait_for(b"<asked>");
    common::kill_hypervisor(terminal.pid());
    assert_eq!(terminal.wait_for_end(), 116);
    assert_eq!(terminal.modes(), terminal.before);
}
