//! Concurrent commands for one VM: slow console clients, several stops, `gc` during starts; and escape
//! keys.

mod common;

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use capsa_testkit::fake;
use capsa_testkit::nano::{self, Nano};
use common::{CapsaProcess, Terminal, ask, capsa, nano_arguments, run_dir};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A VM with the name `kept`, ready.
fn start(how: Nano) -> Option<CapsaProcess> {
    let mut vm = CapsaProcess::start(how, &["--name", "kept"])?;
    vm.wait_for(nano::READY);
    vm.wait_until_listed("kept");
    Some(vm)
}

/// Starts another command with the same run directories.
fn spawn_beside(vm: &CapsaProcess, words: &[&str]) -> Child {
    let mut command: Command = capsa();
    command.args(words).env("CAPSA_RUN_DIR", run_dir(vm.dir()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn concurrent_stops_all_get_the_report() {
    if !common::has_qemu() {
        return;
    }
    // The default grace period is 30 s; a later stop cannot lengthen the shortest one.
    common::assert_within(Duration::from_secs(25), || {
        let mut vm = start(Nano { power_button: false }).unwrap();
        let begin = Instant::now();
        let patient = spawn_beside(&vm, &["stop", "kept"]);
        let patient_too = spawn_beside(&vm, &["stop", "--grace", "1h", "kept"]);
        // The shortest grace period counts, in any order.
        let hasty = spawn_beside(&vm, &["stop", "--grace", "500ms", "kept"]);
        for stop in [patient, patient_too, hasty] {
            let end = stop.wait_with_output().unwrap();
            let stdout = String::from_utf8(end.stdout).unwrap();
            assert_eq!(end.status.code(), Some(0), "{stdout}");
            assert!(stdout.starts_with("kept: "), "{stdout}");
        }
        let took = begin.elapsed();
        assert_eq!(vm.wait_for_end().0, 137);
        assert_eq!(vm.ask(&["stop", "kept"]).0, 118, "the VM has ended");
        took
    });
}

#[test]
fn slow_console_client_is_disconnected() {
    // Only the fake QEMU produces this much output quickly.
    const MUCH: usize = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let mut arguments = nano_arguments(dir.path(), Nano::default());
    let words = format!("up console=ready console*{MUCH} console=over serve");
    let more = ["--name", "kept", "--quiet", "--cmdline-override", &words];
    arguments.extend(more.map(Into::into));
    let run_dirs = run_dir(dir.path());
    let mut vm = capsa()
        .args(arguments)
        .env("CAPSA_RUN_DIR", &run_dirs)
        .env("CAPSA_QEMU", fake::qemu())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The run's standard output is not read yet, so the guest is paused.
    let mut stdout = vm.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 5]).unwrap();
    let client = |stdout: Stdio| {
        let mut command = capsa();
        command.args(["console", "--read-only", "kept"]).env("CAPSA_RUN_DIR", &run_dirs);
        command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap()
    };
    let log = dir.path().join("seen");
    let slow = client(Stdio::piped());
    let fast = client(fs::File::create(&log).unwrap().into());
    while fs::metadata(&log).unwrap().len() == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    let mut seen = Vec::new();
    while !seen.ends_with(b"over") {
        let mut chunk = [0; 1 << 16];
        let n = stdout.read(&mut chunk).unwrap();
        assert!(n > 0, "the run exited after {} bytes", seen.len());
        seen.extend(&chunk[..n]);
        thread::sleep(Duration::from_millis(10)); // as slow as a client on a busy host
    }
    assert!(seen.len() >= MUCH, "the run's own output is complete");
    let slow = slow.wait_with_output().unwrap();
    let stderr = String::from_utf8(slow.stderr).unwrap();
    assert_eq!(slow.status.code(), Some(118), "{stderr}");
    assert!(
        stderr.contains("disconnected from kept: this client read the console too slowly"),
        "{stderr}"
    );
    assert!(slow.stdout.len() < MUCH);
    let (code, _, stderr) = ask(dir.path(), &["stop", "--kill", "kept"]);
    assert_eq!(code, 0, "{stderr}");
    let fast = fast.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(fast.stderr).unwrap(), "");
    assert!(fast.status.success());
    assert!(fs::read(&log).unwrap().ends_with(b"over"), "a fast client gets the end");
    assert_eq!(vm.wait().unwrap().code(), Some(137));
}

#[test]
fn console_client_ends_when_run_is_killed() {
    let Some(mut vm) = start(Nano::default()) else { return };
    let arguments = ["console", "--read-only", "kept"].map(Into::into);
    let mut client =
        CapsaProcess::with(tempfile::tempdir().unwrap(), &arguments, &run_dir(vm.dir()));
    client.wait_for(nano::READY);
    vm.signal(Signal::SIGKILL);
    vm.wait_until_killed();
    assert_eq!(client.wait_for_end().0, 0);
}

#[test]
fn gc_during_starts_removes_nothing() {
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
    let mut runs: Vec<Child> = (0..4).map(start).collect();
    let mut sweeps = 0;
    while runs.iter_mut().any(|run| run.try_wait().unwrap().is_none()) {
        let (code, stdout, stderr) = ask(dir.path(), &["gc"]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
        assert!(stdout.starts_with("nothing to remove in "), "{stdout}");
        sweeps += 1;
        thread::sleep(Duration::from_millis(2));
    }
    assert!(sweeps > 5, "{sweeps}");
    for run in runs {
        let end = run.wait_with_output().unwrap();
        let stderr = String::from_utf8(end.stderr).unwrap();
        assert_eq!(end.status.code(), Some(114), "{stderr}");
    }
}

#[test]
fn other_escape_keys_reach_the_guest() {
    let Some(mut terminal) = Terminal::start(Nano::default()) else { return };
    terminal.wait_for(nano::READY);
    terminal.wait_until_raw();
    // The guest echoes its input: one Ctrl-] for two, and both keys if the second is no command.
    terminal.write(b"<\x1d\x1d>");
    terminal.wait_for(b"<\x1d>");
    terminal.write(b"<\x1dx>");
    terminal.wait_for(b"<\x1dx>");
    // The two keys of a command may arrive separately.
    terminal.write(b"\x1d");
    thread::sleep(Duration::from_millis(300)); // as a person types
    terminal.write(b"q");
    assert_eq!(terminal.wait_for_end(), 0);
    assert_eq!(terminal.modes(), terminal.before);
}

#[test]
fn hypervisor_killed_while_stopping_exits_116() {
    let ignores_button = Nano { power_button: false };
    let Some(mut terminal) = Terminal::start(ignores_button) else { return };
    terminal.wait_for(nano::READY);
    terminal.wait_until_raw();
    terminal.write(b"\x1dq<asked>");
    terminal.wait_for(b"<asked>");
    common::kill_hypervisor(terminal.pid());
    assert_eq!(terminal.wait_for_end(), 116);
    assert_eq!(terminal.modes(), terminal.before);
}

#[test]
fn resume_before_the_next_disk_error_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let mut arguments = nano_arguments(dir.path(), Nano::default());
    let error = r#"control={"event":"STOP","timestamp":{"seconds":0,"microseconds":0}}"#;
    // The console takes 20 ms for each tick, during which no command is read.
    let words = format!("up {error} ticks*100 reply {error} serve");
    arguments.extend(["--name", "kept", "--cmdline-override", &words].map(Into::into));
    let mut vm = capsa()
        .args(arguments)
        .env("CAPSA_RUN_DIR", run_dir(dir.path()))
        .env("CAPSA_QEMU", fake::qemu())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !ask(dir.path(), &["ps"]).1.contains("paused") {
        assert!(vm.try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(5));
    }
    let at = dir.path().to_owned();
    let resume = thread::spawn(move || ask(&at, &["resume", "kept"]));
    thread::sleep(Duration::from_millis(500));
    // Meanwhile the reply and the next pause arrive, so that the run reads both at once.
    let pid = Pid::from_raw(vm.id().cast_signed());
    kill(pid, Signal::SIGSTOP).unwrap();
    thread::sleep(Duration::from_millis(2500));
    kill(pid, Signal::SIGCONT).unwrap();
    let begin = Instant::now();
    while !resume.is_finished() && begin.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(5));
    }
    let is_answered = resume.is_finished();
    assert_eq!(ask(dir.path(), &["stop", "--kill", "kept"]).0, 0);
    vm.wait().unwrap();
    let (code, stdout, stderr) = resume.join().unwrap();
    assert!(is_answered, "no answer");
    assert_eq!((code, stdout.as_str()), (0, "kept: running\n"), "{stderr}");
}

#[test]
fn resume_draws_no_status_line_over_console() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (at, run_dirs) = (dir.path().to_owned(), run_dir(dir.path()));
    let mut arguments = nano_arguments(&at, Nano::default());
    arguments.extend(["--name", "kept"].map(Into::into));
    let Some(mut terminal) = Terminal::in_run_dir(dir, &run_dirs, &arguments) else { return };
    terminal.wait_for(nano::READY);
    terminal.wait_until_raw();
    for command in ["pause", "resume"] {
        assert_eq!(ask(&at, &[command, "kept"]).0, 0);
    }
    // A status line is drawn at once, and each second.
    terminal.write(b"<after>");
    terminal.wait_for(b"<after>");
    thread::sleep(Duration::from_millis(1200));
    terminal.write(b"<end>");
    terminal.wait_for(b"<end>");
    assert!(terminal.seen().ends_with("continues it\r\n<after><end>"), "{:?}", terminal.seen());
    terminal.write(b"\x1dq");
    assert_eq!(terminal.wait_for_end(), 0);
}
