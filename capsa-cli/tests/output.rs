//! Errors of standard output, on every command: a full disk is reported with exit code 119, and a
//! closed reader is no error.

mod common;

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use capsa_testkit::nano::{self, Nano};
use capsa_testkit::skip;
use common::{CapsaProcess, capsa, nano_arguments, run_dir};

/// A file on which every write fails with ENOSPC.
fn full() -> Option<File> {
    File::options().write(true).open("/dev/full").ok()
}

/// Every command that prints and needs no VM.
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
fn run_with_stdout(command: &mut Command, stdout: Stdio) -> (i32, String) {
    let child = command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn();
    let output = child.unwrap().wait_with_output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn full_disk_exits_119_on_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = nano::write_to(dir.path()).unwrap();
    let plan = ["run", "linux", "--backend", "qemu", "--dry-run", "--network", "none", "--kernel"];
    let plan = [&plan[..], &[kernel.to_str().unwrap()]].concat();
    for words in COMMANDS.iter().copied().chain([plan.as_slice()]) {
        let Some(full) = full() else { return skip("there is no /dev/full") };
        let mut command = capsa();
        command.args(words).env("CAPSA_RUN_DIR", run_dir(dir.path()));
        let (code, text) = run_with_stdout(&mut command, full.into());
        assert_eq!(code, 119, "{words:?}: {text}");
        assert!(text.contains("cannot write to standard output: "), "{words:?}: {text}");
        assert!(text.contains("free disk space"), "{words:?}: {text}");
    }
}

#[test]
fn closed_stdout_exits_0_on_every_command() {
    let dir = tempfile::tempdir().unwrap();
    for words in COMMANDS {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let mut command = capsa();
        command.args(*words).env("CAPSA_RUN_DIR", run_dir(dir.path()));
        let (code, text) = run_with_stdout(&mut command, write.into());
        assert_eq!((code, text.as_str()), (0, ""), "{words:?}");
    }
}

#[test]
fn console_on_full_disk_exits_119() {
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
    let is_ready = |log: Vec<u8>| log.windows(nano::READY.len()).any(|w| w == nano::READY);
    while !fs::read(&log).is_ok_and(is_ready) {
        assert!(Instant::now() < end, "no console output");
        thread::sleep(Duration::from_millis(5));
    }
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), &[nano::POWER_OFF]).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(119), "{text}");
    assert_eq!(text.matches("cannot write to standard output: ").count(), 1, "{text}");
    assert!(text.contains("guest powered off"), "the VM keeps running: {text}");
}

#[test]
fn console_client_stdout_closed_or_full_disk() {
    let Some(mut vm) = CapsaProcess::start(Nano::default(), &["--name", "seen"]) else {
        return;
    };
    vm.wait_for(nano::READY);
    vm.wait_until_listed("seen");
    let client = || {
        let mut command = capsa();
        command.args(["console", "--read-only", "seen"]);
        command.env("CAPSA_RUN_DIR", run_dir(vm.dir()));
        command
    };
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    assert_eq!(run_with_stdout(&mut client(), write.into()), (0, String::new()));
    if let Some(full) = full() {
        let (code, text) = run_with_stdout(&mut client(), full.into());
        assert_eq!(code, 119, "{text}");
        assert!(text.contains("cannot write to standard output: "), "{text}");
    }
    vm.write(&[nano::POWER_OFF]);
    assert_eq!(vm.wait_for_end().0, 0);
}
