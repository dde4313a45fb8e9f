//! What a run leaves for others: its name, its door, its files, and what a crash leaves behind.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use capsa::asciicast::{CastEventKind, Decoder};
use capsa_testkit::nano::{self, Nano};
use common::{Capsa, Terminal, capsa, run_dir};
use nix::sys::signal::Signal;

/// A machine with the name `kept`, which others see.
fn start(how: Nano, more: &[&str]) -> Option<Capsa> {
    let capsa = Capsa::start(how, &[&["--name", "kept"], more].concat())?;
    capsa.wait_until_listed("kept");
    Some(capsa)
}

#[test]
fn ps_lists_a_machine_and_stop_asks_its_guest() {
    let Some(mut capsa) = start(Nano::default(), &[]) else { return };
    capsa.wait_for(nano::READY);
    let (code, stdout, _) = capsa.ask(&["ps"]);
    assert_eq!(code, 0);
    let rows: Vec<Vec<&str>> = stdout.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "ID", "BACKEND", "OWNER", "SINCE", "CONSOLE"]);
    let owner = capsa.pid().to_string();
    assert_eq!((rows[1][0], rows[1][2], rows[1][3]), ("kept", "qemu", owner.as_str()));
    let (_, json, _) = capsa.ask(&["ps", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["kind"], &json["machines"][0]["name"]), (&"ps".into(), &"kept".into()));

    let (code, stdout, stderr) = capsa.ask(&["stop", "kept"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(stdout, "kept: guest powered off, as asked\n");
    assert_eq!(capsa.wait_for_end().0, 0);
    assert_eq!(capsa.ask(&["ps"]).1.lines().count(), 1);
}

#[test]
fn names_of_machines_are_completed() {
    if !common::has_bash() {
        return;
    }
    let Some(mut capsa) = start(Nano::default(), &[]) else { return };
    assert_eq!(common::completed(capsa.dir(), &["capsa", "stop", "k"]), ["kept"]);
    assert_eq!(common::completed(capsa.dir(), &["capsa", "console", "x"]), [""; 0]);
    assert_eq!(capsa.ask(&["stop", "--kill", "kept"]).0, 0);
    assert_eq!(capsa.wait_for_end().0, 137);
}

#[test]
fn stop_gives_a_deaf_guest_its_grace_and_no_more() {
    let deaf = Nano { power_button: false };
    let Some(mut capsa) = start(deaf, &[]) else { return };
    capsa.wait_for(nano::READY);
    let (code, stdout, _) = capsa.ask(&["stop", "--grace", "100ms", "--json", "kept"]);
    assert_eq!(code, 0);
    let told: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(told["machines"][0]["end"]["ended_by"], "owner");
    assert_eq!(capsa.wait_for_end().0, 137);
}

#[test]
fn names_are_unique_and_unknown_ones_are_refused() {
    let Some(mut capsa) = start(Nano::default(), &[]) else { return };
    capsa.wait_for(nano::READY);
    let kernel = capsa.dir().join("nano.elf");
    let kernel = kernel.to_str().unwrap();
    let twin = ["run", "linux", "--name", "kept", "--kernel", kernel, "--network", "none"];
    let (code, _, stderr) = capsa.ask(&twin);
    assert_eq!(code, 111, "{stderr}");
    let words = format!("process {} runs a VM with the name \"kept\"\n    hint: ", capsa.pid());
    assert!(stderr.contains(&words), "{stderr}");
    for command in ["stop", "console"] {
        let (code, _, stderr) = capsa.ask(&[command, "ketp"]);
        assert_eq!(code, 118);
        assert!(
            stderr.contains("no running VM has the name or ID \"ketp\"; did you mean kept?"),
            "{stderr}"
        );
    }
    assert_eq!(capsa.ask(&["stop", "--all", "--kill"]).0, 0);
    assert_eq!(capsa.wait_for_end().0, 137);
}

#[test]
fn several_look_on_and_one_types() {
    let Some(mut capsa) = start(Nano::default(), &[]) else { return };
    capsa.wait_for(nano::READY);
    // This run's own input types until it ends.
    let machines = run_dir(capsa.dir());
    let viewer = |more: &[&str]| {
        let arguments = [&["console", "kept"], more].concat();
        let arguments: Vec<_> = arguments.into_iter().map(Into::into).collect();
        Capsa::with(tempfile::tempdir().unwrap(), &arguments, &machines)
    };
    let mut looker = viewer(&[]);
    looker.wait_for(nano::READY);
    looker.write(b"nobody hears this");
    capsa.write(b"from the run");
    looker.wait_for(b"from the run");
    capsa.close_input();
    // The run sees the end of its input, then has its hands free.
    let mut typist = loop {
        let mut candidate = viewer(&["--quiet"]);
        candidate.wait_for(nano::READY);
        candidate.write(b"from outside");
        if candidate.comes_soon(b"from outside") {
            break candidate;
        }
    };
    looker.wait_for(b"from outside");
    assert!(!String::from_utf8_lossy(&looker.seen).contains("nobody hears this"));
    typist.write(&[nano::POWER_OFF]);
    assert_eq!((typist.wait_for_end().0, looker.wait_for_end().0), (0, 0));
    assert_eq!(capsa.wait_for_end().0, 0);
}

#[test]
fn console_on_a_terminal_is_left_with_an_escape() {
    let Some(mut capsa) = start(Nano::default(), &["--quiet"]) else { return };
    capsa.wait_for(nano::READY);
    capsa.close_input();
    // Another directory that goes with the terminal; the machines are those of the first.
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(run_dir(capsa.dir()), run_dir(dir.path())).unwrap();
    let arguments = ["console", "kept"].map(Into::into);
    // A link is not a directory that is this user's alone.
    assert_eq!(common::ask(dir.path(), &["ps"]).0, 111);
    fs::remove_file(run_dir(dir.path())).unwrap();
    let Some(mut terminal) = Terminal::in_run_dir(dir, &run_dir(capsa.dir()), &arguments) else {
        return;
    };
    terminal.wait_for(nano::READY);
    if terminal.seen().contains("Ctrl-] q detaches") {
        terminal.wait_until_raw();
        terminal.write(b"a\x03b");
        terminal.wait_for(b"a\x03b");
        terminal.write(b"\x1dq");
        assert_eq!(terminal.wait_for_end(), 0);
    } else {
        // The end of the run's input had not come yet: Ctrl-C leaves.
        terminal.write(b"\x03");
        terminal.signal(Signal::SIGINT);
        assert_eq!(terminal.wait_for_end(), 130);
    }
    assert_eq!(terminal.modes(), terminal.before);
    assert_eq!(capsa.ask(&["stop", "kept"]).0, 0);
    assert_eq!(capsa.wait_for_end().0, 0);
}

#[test]
fn door_takes_no_nonsense() {
    let Some(mut capsa) = start(Nano::default(), &[]) else { return };
    capsa.wait_for(nano::READY);
    let (_, json, _) = capsa.ask(&["ps", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let door = format!("{}/control", json["machines"][0]["run_dir"].as_str().unwrap());
    for nonsense in [
        &b"\n"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"{\"do\": \"reboot\"}\n",
        b"{\"do\": \"stop\", \"grace\": -1e400}\n",
        &[b'x'; 5000],
        &[0xff; 64],
    ] {
        let mut stream = UnixStream::connect(&door).unwrap();
        let _ = stream.write_all(nonsense);
    }
    // Gone before it has its answer, and one that never says what it wants.
    UnixStream::connect(&door)
        .unwrap()
        .write_all(b"{\"do\": \"console\", \"type\": true}\n")
        .unwrap();
    let _silent = UnixStream::connect(&door).unwrap();
    capsa.write(b"still here");
    capsa.wait_for(b"still here");
    assert_eq!(capsa.ask(&["stop", "kept"]).0, 0);
    assert_eq!(capsa.wait_for_end().0, 0);
}

#[test]
fn gc_removes_what_a_killed_run_left() {
    let Some(mut capsa) = start(Nano::default(), &[]) else { return };
    capsa.wait_for(nano::READY);
    assert!(capsa.ask(&["gc"]).1.starts_with("nothing to remove in "));
    capsa.signal(Signal::SIGKILL);
    capsa.wait_until_killed();
    assert_eq!(capsa.ask(&["ps"]).1.lines().count(), 1);
    assert!(capsa.ask(&["gc", "--dry-run"]).1.starts_with("would remove "));
    let (code, stdout, _) = capsa.ask(&["gc", "--json"]);
    assert_eq!(code, 0);
    let told: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(told["removed"].as_array().unwrap().len(), 1, "{stdout}");
    assert_eq!(fs::read_dir(run_dir(capsa.dir())).unwrap().count(), 1); // its lock
}

#[test]
fn log_and_recording_have_all_that_was_said_and_typed() {
    let dir = tempfile::tempdir().unwrap();
    let (log, cast) = (dir.path().join("log"), dir.path().join("cast"));
    let more = ["--log", log.to_str().unwrap(), "--record", cast.to_str().unwrap()];
    let Some(mut capsa) = Capsa::start(Nano::default(), &more) else { return };
    capsa.wait_for(nano::READY);
    capsa.write(b"typed\xff");
    capsa.wait_for(b"typed\xff");
    capsa.write(&[nano::POWER_OFF]);
    assert_eq!(capsa.wait_for_end().0, 0);
    assert_eq!(fs::read(log).unwrap(), capsa.seen);
    let mut decoder = Decoder::new();
    decoder.handle_bytes(&fs::read(cast).unwrap()).unwrap();
    decoder.handle_eof().unwrap();
    let (mut said, mut typed) = (Vec::new(), Vec::new());
    let mut ended = false;
    while let Some(event) = decoder.poll_event().unwrap() {
        match event.kind {
            CastEventKind::Output(bytes) => said.extend(bytes),
            CastEventKind::Input(bytes) => typed.extend(bytes),
            CastEventKind::End(_) => ended = true,
            _ => {}
        }
    }
    assert_eq!((said, typed), (capsa.seen.clone(), b"typed\xff\x04".to_vec()));
    assert!(ended);
}

#[test]
fn progress_is_json_lines_and_nothing_else() {
    let Some(mut capsa) = Capsa::start(Nano::default(), &["--progress", "json"]) else {
        return;
    };
    capsa.wait_for(nano::READY);
    capsa.write(&[nano::POWER_OFF]);
    let (code, stderr) = capsa.wait_for_end();
    assert_eq!(code, 0);
    let lines: Vec<serde_json::Value> =
        stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().all(|line| line["schema"] == 1 && line["kind"] == "progress"));
    let seconds: Vec<f64> = lines.iter().map(|line| line["seconds"].as_f64().unwrap()).collect();
    assert!(seconds.is_sorted(), "{seconds:?}");
    let events: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    let mut events: Vec<&str> = events.into_iter().filter(|event| *event != "warning").collect();
    // The guest may speak before its hypervisor has answered that it runs.
    events.retain(|event| *event != "first-output");
    assert_eq!(events[..4], ["planned", "spawned", "control-ready", "running"]);
    assert_eq!(events.last(), Some(&"stopped"));
    assert!(stderr.contains("first-output"), "{stderr}");
}

#[test]
fn quiet_says_nothing_and_verbose_says_more() {
    for (flag, says) in [("-q", None), ("-v", Some("capsa: qemu runs it, in "))] {
        let Some(mut capsa) = Capsa::start(Nano::default(), &[flag]) else { return };
        capsa.wait_for(nano::READY);
        capsa.write(&[nano::POWER_OFF]);
        let (code, stderr) = capsa.wait_for_end();
        assert_eq!(code, 0);
        match says {
            None => assert_eq!(stderr, ""),
            Some(says) => assert!(stderr.starts_with(says), "{stderr}"),
        }
    }
}

#[test]
fn command_in_a_guest_without_a_shell_runs_into_the_time_limit() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let kernel = Nano::default().write_to(dir.path()).unwrap();
    let mut command = capsa();
    command.args(["run", "linux", "--network", "none", "--backend", "qemu"]);
    command.args(["--accel", "emulation", "--timeout", "1s", "--kernel"]).arg(kernel);
    command.args(["--", "true"]).env("CAPSA_RUN_DIR", run_dir(dir.path()));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(114), "{stderr}");
    assert!(stderr.contains("capsa: cannot log in: "), "{stderr}");
    assert_eq!(output.stdout, b"");
}
