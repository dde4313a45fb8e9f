//! `capsa run … -- COMMAND` by the guest agent, with real Linux guests in emulation.

mod common;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use capsa_testkit::guest::{self, LinuxGuest};
use capsa_testkit::{skip, vm};
use common::{Terminal, capsa, run_dir};

/// A directory with a config file for a guest with this kernel, initrd and disk.
fn directory(kernel: &Path, initrd: &Path, disk: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "[boot]\nkernel = {kernel:?}\ninitrd = {initrd:?}\n[disk]\npath = {disk:?}\n\
         ephemeral = true\n[network]\nmode = \"none\"\n[resources]\ntimeout = \"3m\"\n\
         [backend]\nname = \"qemu\"\naccel = \"emulation\"\n[guest]\nagent = \"required\"\n\
         [cmdline]\nextra = [\"quiet\", \"mitigations=off\", \"no_timer_check\"]\n"
    );
    fs::write(dir.path().join("vm.toml"), text).unwrap();
    dir
}

fn busybox() -> Option<(LinuxGuest, tempfile::TempDir)> {
    let guest = vm::linux_guest()?;
    let dir = directory(&guest.kernel, &guest.initrd, &guest.disk_qcow2);
    Some((guest, dir))
}

fn run(dir: &Path, more: &[&str]) -> Command {
    let mut command = capsa();
    command.args(["run", "--config"]).arg(dir.join("vm.toml")).args(more);
    command.env("CAPSA_RUN_DIR", run_dir(dir)).stdin(Stdio::null());
    command
}

/// The script, whose input is a file: its outputs are apart, and its status is the exit code.
fn streams_are_apart(dir: &Path) {
    let input = dir.join("input");
    // Bytes that a terminal would change.
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    fs::write(&input, &bytes).unwrap();
    let script = "echo a; echo b >&2; cat; exit 7";
    let mut command = run(dir, &["-q", "--", "sh", "-c", script]);
    let output = command.stdin(File::open(&input).unwrap()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*stderr), (Some(7), "b\n"));
    assert!(output.stdout == [b"a\n", &bytes[..]].concat(), "{} bytes", output.stdout.len());
}

#[test]
fn agent_command_has_input_and_both_outputs() {
    let Some((_guest, dir)) = busybox() else { return };
    streams_are_apart(dir.path());
}

#[test]
fn agent_runs_command_in_debian() {
    let guest = match guest::debian() {
        Ok(guest) => guest,
        Err(why) => return skip(why),
    };
    let dir = directory(&guest.kernel, &guest.initrd, &guest.disk);
    streams_are_apart(dir.path());
}

#[test]
fn agent_report_has_outputs_and_orderly_end() {
    let Some((_guest, dir)) = busybox() else { return };
    let script = "printf out; printf err >&2; kill -9 $$";
    let output = run(dir.path(), &["--json", "--", "sh", "-c", script]).output().unwrap();
    assert_eq!(output.status.code(), Some(137), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["command"]["output"], "out", "{report}");
    assert_eq!(report["command"]["error_output"], "err", "{report}");
    assert_eq!(report["ended_by"], "guest-power-off", "{report}");
}

#[test]
fn agent_program_missing_exits_127() {
    let Some((_guest, dir)) = busybox() else { return };
    let output = run(dir.path(), &["-q", "--", "no-such-program"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(127), "{stderr}");
    assert_eq!(stderr, "capsa: no-such-program: not found in the guest\n");
}

#[test]
fn agent_command_gets_the_signal() {
    let Some((_guest, dir)) = busybox() else { return };
    let script = "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let mut child =
        run(dir.path(), &["-q", "--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    common::send(&child, nix::sys::signal::Signal::SIGTERM);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("got\n", Some(143)));
}

#[test]
fn agent_terminal_has_size_and_keys() {
    let Some((_guest, dir)) = busybox() else { return };
    let config = dir.path().join("vm.toml");
    let script = "stty size; read -r line; echo \"got $line\"; sleep 100";
    let words = ["-q", "-t", "--", "sh", "-c", script].map(OsString::from);
    let arguments = [&["run".into(), "--config".into(), config.into()], &words[..]].concat();
    let run_dir = run_dir(dir.path());
    let Some(mut terminal) = Terminal::in_run_dir(dir, &run_dir, &arguments) else { return };
    let before = terminal.before.clone();
    terminal.wait_for(b"40 100\r\n");
    terminal.wait_until_raw();
    terminal.write(b"word\r");
    terminal.wait_for(b"got word\r\n");
    terminal.write(b"\x03");
    assert_eq!(terminal.wait_for_end(), 130);
    assert_eq!(terminal.modes(), before);
}
