//! Standard output that cannot be written: a full disk is said and has its exit code, on every
//! command; that nobody reads any more is no error.

mod common;

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use capsa_testkit::nano::{self, Nano};
use capsa_testkit::skip;
use common::{Capsa, capsa, nano_arguments, run_dir};

/// A disk that is always full.
fn full() -> Option<File> {
    File::options().write(true).open("/dev/full").ok()
}

/// Every command that prints and needs no machine.
const COMMANDS: &[&[&str]] = &[
    &["help"],
    &["help", "run"],
    &["help", "--man"],
    &["run", "--help"],
    &["version"],
    &["version", "--json"],
    &["backends"],
    &["backends", "--json"],
    &["doctor"],
    &["doctor", "--json"],
    &["config", "schema"],
    &["completions", "bash"],
    &["completions", "zsh"],
    &["completions", "fish"],
    &["ps"],
    &["ps", "--json"],
    &["gc"],
    &["gc", "--json"],
    &["gc", "--dry-run"],
    &["stop", "--all", "--json"],
];

/// Runs it with this standard output: exit code and standard error.
fn said(command: &mut Command, stdout: Stdio) -> (i32, String) {
    let child = command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn();
    let output = child.unwrap().wait_with_output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_full_disk_is_an_error_of_its_own_on_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = nano::write_to(dir.path()).unwrap();
    let plan = ["run", "linux", "--backend", "qemu", "--dry-run", "--network", "none", "--kernel"];
    let plan = [&plan[..], &[kernel.to_str().unwrap()]].concat();
    for words in COMMANDS.iter().copied().chain([plan.as_slice()]) {
        let Some(full) = full() else { return skip("there is no /dev/full") };
        let mut command = capsa();
        command.args(words).env("CAPSA_RUN_DIR", run_dir(dir.path()));
        let (code, text) = said(&mut command, full.into());
        assert_eq!(code, 119, "{words:?}: {text}");
        assert!(text.contains("cannot write to standard output: "), "{words:?}: {text}");
        assert!(text.contains("free disk space"), "{words:?}: {text}");
    }
}

#[test]
fn a_reader_that_left_is_no_error_on_any_command() {
    let dir = tempfile::tempdir().unwrap();
    for words in COMMANDS {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let mut command = capsa();
        command.args(*words).env("CAPSA_RUN_DIR", run_dir(dir.path()));
        let (code, text) = said(&mut command, write.into());
        assert_eq!((code, text.as_str()), (0, ""), "{words:?}");
    }
}

#[test]
fn a_console_on_a_full_disk_is_said_and_told_by_the_exit_code() {
    if !common::has_qemu() {
        return;
    }
    let Some(full) = full() else { return skip("there is no /dev/full") };
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut command = capsa();
    command.args(nano_arguments(dir.path(), Nano::default())).arg("--log").arg(&log);
    command.env("CAPSA_RUN_DIR", run_dir(dir.path()));
    let mut child =
        command.stdin(Stdio::piped()).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let is_ready = |said: Vec<u8>| said.windows(nano::READY.len()).any(|w| w == nano::READY);
    while !fs::read(&log).is_ok_and(is_ready) {
        assert!(Instant::now() < end, "the guest does not speak");
        thread::sleep(Duration::from_millis(5));
    }
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), &[nano::POWER_OFF]).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(119), "{text}");
    assert_eq!(text.matches("cannot write to standard output: ").count(), 1, "{text}");
    assert!(text.contains("guest powered off"), "the machine ends as it would: {text}");
}

#[test]
fn a_viewer_that_nobody_reads_leaves_and_one_on_a_full_disk_says_why() {
    let Some(mut machine) = Capsa::start(Nano::default(), &["--name", "seen"]) else {
        return;
    };
    machine.wait_for(nano::READY);
    machine.wait_until_listed("seen");
    let viewer = || {
        let mut command = capsa();
        command.args(["console", "--read-only", "seen"]);
        command.env("CAPSA_RUN_DIR", run_dir(machine.dir()));
        command
    };
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    assert_eq!(said(&mut viewer(), write.into()), (0, String::new()));
    if let Some(full) = full() {
        let (code, text) = said(&mut viewer(), full.into());
        assert_eq!(code, 119, "{text}");
        assert!(text.contains("cannot write to standard output: "), "{text}");
    }
    machine.write(&[nano::POWER_OFF]);
    assert_eq!(machine.wait_for_end().0, 0);
}
