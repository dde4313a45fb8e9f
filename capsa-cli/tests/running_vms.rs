//! Running VMs and other commands: `ps`, `stop`, `console`, `gc`, the control socket, log, recording
//! and messages.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use capsa_proto::codec::asciicast::{CastEventKind, Decoder};
use capsa_testkit::nano::{self, Nano};
use capsa_testkit::skip;
use common::{CapsaProcess, Terminal, capsa, run_dir};
use nix::sys::signal::Signal;

/// A VM with the name `kept`, which `capsa ps` lists.
fn start(how: Nano, more: &[&str]) -> Option<CapsaProcess> {
    let capsa = CapsaProcess::start(how, &[&["--name", "kept"], more].concat())?;
    capsa.wait_until_listed("kept");
    Some(capsa)
}

#[test]
fn ps_lists_vm_and_stop_powers_off() {
    let Some(mut capsa) = start(Nano::default(), &[]) else { return };
    capsa.wait_for(nano::READY);
    let (code, stdout, _) = capsa.ask(&["ps"]);
    assert_eq!(code, 0);
    let rows: Vec<Vec<&str>> = stdout.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(
        rows[0],
        ["NAME", "ID", "BACKEND", "OWNER", "SINCE", "CONSOLE", "FORWARDS", "STATUS"]
    );
    assert_eq!(rows[1].last(), Some(&"running"));
    let owner = capsa.pid().to_string();
    assert_eq!((rows[1][0], rows[1][2], rows[1][3]), ("kept", "qemu", owner.as_str()));
    let (_, json, _) = capsa.ask(&["ps", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["kind"], &json["vms"][0]["name"]), (&"ps".into(), &"kept".into()));
    assert!(json["vms"][0]["network"].is_null() && json["vms"][0]["link"].is_null(), "{json}");

    let (code, stdout, stderr) = capsa.ask(&["stop", "kept"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(stdout, "kept: guest powered off, as asked\n");
    assert_eq!(capsa.wait_for_end().0, 0);
    assert_eq!(capsa.ask(&["ps"]).1.lines().count(), 1);
}

#[test]
fn ps_shows_forwards_and_counters_of_network() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut arguments = common::nano_arguments(dir.path(), Nano::default());
    let network = arguments.iter().position(|word| word == "none").unwrap();
    arguments[network] = "nat".into();
    arguments.extend(["--name", "kept", "--forward", "0:80"].map(Into::into));
    arguments.extend(["--service", "a.b:80=unix:/s"].map(Into::into));
    let run_dir = common::run_dir(dir.path());
    let mut capsa = CapsaProcess::with(dir, &arguments, &run_dir);
    capsa.wait_until_listed("kept");
    capsa.wait_for(nano::READY);
    let (_, json, _) = capsa.ask(&["ps", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let vm = &json["vms"][0];
    assert_eq!(vm["network"]["refused_host"], 0, "{vm}");
    assert_eq!((&vm["link"], &vm["services"][0]), (&"up".into(), &"a.b:80=unix:/s".into()));
    let forward = vm["forwards"][0].to_string();
    assert!(forward.contains("80") && !forward.contains("\"0\""), "{vm}");
    for state in ["down", "up"] {
        let (code, stdout, stderr) = capsa.ask(&["network", state, "kept"]);
        assert_eq!((code, stdout, stderr), (0, format!("kept: network {state}\n"), String::new()));
        let (_, json, _) = capsa.ask(&["ps", "--json"]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["vms"][0]["link"], state);
        let shows_down = capsa.ask(&["ps"]).1.contains("running; network down");
        assert_eq!(shows_down, state == "down");
    }
    capsa.write(&[nano::POWER_OFF]);
    assert_eq!(capsa.wait_for_end().0, 0);
}

#[test]
fn pause_and_resume_change_status() {
    let Some(mut capsa) = start(Nano::default(), &[]) else { return };
    capsa.wait_for(nano::READY);
    let status = |capsa: &CapsaProcess| {
        let (_, json, _) = capsa.ask(&["ps", "--json"]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        json["vms"][0]["status"].as_str().unwrap().to_owned()
    };
    for (command, after) in
        [("pause", "paused"), ("pause", "paused"), ("resume", "running"), ("pause", "paused")]
    {
        let (code, stdout, stderr) = capsa.ask(&[command, "kept"]);
        assert_eq!((code, stdout), (0, format!("kept: {after}\n")), "{stderr}");
        assert_eq!(status(&capsa), after);
    }
    let (code, stdout, _) = capsa.ask(&["stop", "kept"]);
    assert_eq!((code, stdout.as_str()), (0, "kept: guest powered off, as asked\n"));
    assert_eq!(capsa.wait_for_end().0, 0);
    let (code, _, stderr) = capsa.ask(&["pause", "kept"]);
    assert_eq!(code, 118, "{stderr}");
}

#[test]
fn bash_completes_vm_names() {
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
fn stop_kills_vm_after_grace_period() {
    let ignores_button = Nano { power_button: false };
    let Some(mut capsa) = start(ignores_button, &[]) else { return };
    capsa.wait_for(nano::READY);
    let (code, stdout, _) = capsa.ask(&["stop", "--grace", "100ms", "--json", "kept"]);
    assert_eq!(code, 0);
    let output: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(output["vms"][0]["end"]["ended_by"], "owner");
    assert_eq!(capsa.wait_for_end().0, 137);
}

#[test]
fn json_report_into_full_pipe_ends_with_stop() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut words = common::nano_arguments(dir.path(), Nano::default());
    let console = words.iter().position(|word| word == "stdio").unwrap();
    words[console] = "enabled".into();
    words.extend(["--json", "--timeout", "1s", "--grace", "1s"].map(Into::into));
    let (_reader, mut full) = std::io::pipe().unwrap();
    full.write_all(&[b'x'; 64 << 10]).unwrap();
    let mut command = capsa();
    command.args(words).env("CAPSA_RUN_DIR", run_dir(dir.path()));
    let child = command.stdin(Stdio::null()).stdout(full).stderr(Stdio::piped()).spawn();
    let output = child.unwrap().wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("the JSON report is not written"), "{stderr}");
    assert_eq!(output.status.code(), Some(114), "{stderr}");
}

#[test]
fn names_are_unique_and_unknown_ones_rejected() {
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
fn one_console_client_owns_the_input() {
    let Some(mut capsa) = start(Nano::default(), &[]) else { return };
    capsa.wait_for(nano::READY);
    // The run owns the input until its standard input ends.
    let run_dirs = run_dir(capsa.dir());
    let client = |more: &[&str]| {
        let arguments = [&["console", "kept"], more].concat();
        let arguments: Vec<_> = arguments.into_iter().map(Into::into).collect();
        CapsaProcess::with(tempfile::tempdir().unwrap(), &arguments, &run_dirs)
    };
    let mut observer = client(&[]);
    observer.wait_for(nano::READY);
    observer.write(b"discarded input");
    capsa.write(b"from the run");
    observer.wait_for(b"from the run");
    capsa.close_input();
    // A client can own the input once the run has read the end of its own.
    let mut owner_client = loop {
        let mut candidate = client(&["--quiet"]);
        candidate.wait_for(nano::READY);
        candidate.write(b"from outside");
        if candidate.comes_soon(b"from outside") {
            break candidate;
        }
    };
    observer.wait_for(b"from outside");
    assert!(!String::from_utf8_lossy(&observer.seen).contains("discarded input"));
    owner_client.write(&[nano::POWER_OFF]);
    assert_eq!((owner_client.wait_for_end().0, observer.wait_for_end().0), (0, 0));
    assert_eq!(capsa.wait_for_end().0, 0);
}

#[test]
fn console_detaches_with_escape_keys() {
    let Some(mut capsa) = start(Nano::default(), &["--quiet"]) else { return };
    capsa.wait_for(nano::READY);
    capsa.close_input();
    // Another temporary directory for the terminal, with the run directories of the first.
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(run_dir(capsa.dir()), run_dir(dir.path())).unwrap();
    let arguments = ["console", "kept"].map(Into::into);
    // A symbolic link is rejected, because other users could replace it.
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
        // The run has not read the end of its input yet, so this client is read-only.
        terminal.write(b"\x03");
        terminal.signal(Signal::SIGINT);
        assert_eq!(terminal.wait_for_end(), 130);
    }
    assert_eq!(terminal.modes(), terminal.before);
    assert_eq!(capsa.ask(&["stop", "kept"]).0, 0);
    assert_eq!(capsa.wait_for_end().0, 0);
}

#[test]
fn control_socket_survives_invalid_requests() {
    let Some(mut capsa) = start(Nano::default(), &[]) else { return };
    capsa.wait_for(nano::READY);
    let (_, json, _) = capsa.ask(&["ps", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let socket = format!("{}/control", json["vms"][0]["run_dir"].as_str().unwrap());
    for request in [
        &b"\n"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"{\"do\": \"reboot\"}\n",
        b"{\"do\": \"stop\", \"grace\": -1e400}\n",
        &[b'x'; 5000],
        &[0xff; 64],
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let _ = stream.write_all(request);
    }
    // A client that disconnects before its reply, and an idle client.
    UnixStream::connect(&socket)
        .unwrap()
        .write_all(b"{\"do\": \"console\", \"input\": true}\n")
        .unwrap();
    let _idle = UnixStream::connect(&socket).unwrap();
    capsa.write(b"still here");
    capsa.wait_for(b"still here");
    assert_eq!(capsa.ask(&["stop", "kept"]).0, 0);
    assert_eq!(capsa.wait_for_end().0, 0);
}

#[test]
fn gc_removes_run_dir_of_killed_run() {
    let Some(mut capsa) = start(Nano::default(), &[]) else { return };
    capsa.wait_for(nano::READY);
    assert!(capsa.ask(&["gc"]).1.starts_with("nothing to remove in "));
    capsa.signal(Signal::SIGKILL);
    capsa.wait_until_killed();
    assert_eq!(capsa.ask(&["ps"]).1.lines().count(), 1);
    assert!(capsa.ask(&["gc", "--dry-run"]).1.starts_with("would remove "));
    let (code, stdout, _) = capsa.ask(&["gc", "--json"]);
    assert_eq!(code, 0);
    let output: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(output["removed"].as_array().unwrap().len(), 1, "{stdout}");
    assert_eq!(fs::read_dir(run_dir(capsa.dir())).unwrap().count(), 1); // its lock
}

/// A misspelt variable is an error, not an empty list.
#[test]
fn ps_and_gc_name_variable_of_missing_parent() {
    for words in [&["ps"][..], &["ps", "--json"], &["gc"], &["gc", "--dry-run"], &["stop", "--all"]]
    {
        let mut command = capsa();
        let output = command.args(words).env("CAPSA_RUN_DIR", "/nope/run").output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), output.stdout),
            (Some(111), vec![]),
            "{words:?}: {stderr}"
        );
        let text = "cannot make the directory /nope/run (CAPSA_RUN_DIR): /nope does not exist";
        assert!(stderr.contains(text), "{stderr}");
    }
}

#[test]
fn ps_works_on_read_only_base() {
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs tmpfs \"$1\" && mkdir -m 700 \"$1/run\" && \
        mount -o remount,ro \"$1\" && CAPSA_RUN_DIR=$1/run exec \"$2\" ps || echo skip";
    let mut command = Command::new("unshare");
    command
        .args(["-rm", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(env!("CARGO_BIN_EXE_capsa"));
    let Ok(output) = command.output() else { return skip("unshare is not installed") };
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    if stdout == "skip\n" || stderr.contains("unshare:") {
        return skip("there are no user namespaces");
    }
    assert_eq!((output.status.code(), &*stderr), (Some(0), ""));
    assert!(stdout.starts_with("NAME  ID  "), "{stdout}");
}

#[test]
fn log_and_recording_have_all_console_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (log, cast) = (dir.path().join("log"), dir.path().join("cast"));
    let more = ["--log", log.to_str().unwrap(), "--record", cast.to_str().unwrap()];
    let Some(mut capsa) = CapsaProcess::start(Nano::default(), &more) else { return };
    capsa.wait_for(nano::READY);
    capsa.write(b"typed\xff");
    capsa.wait_for(b"typed\xff");
    capsa.write(&[nano::POWER_OFF]);
    assert_eq!(capsa.wait_for_end().0, 0);
    assert_eq!(fs::read(log).unwrap(), capsa.seen);
    let mut decoder = Decoder::new();
    decoder.handle_bytes(&fs::read(cast).unwrap()).unwrap();
    decoder.handle_eof().unwrap();
    let (mut output, mut input) = (Vec::new(), Vec::new());
    let mut ended = false;
    while let Some(event) = decoder.poll_event().unwrap() {
        match event.kind {
            CastEventKind::Output(bytes) => output.extend(bytes),
            CastEventKind::Input(bytes) => input.extend(bytes),
            CastEventKind::End(_) => ended = true,
            _ => {}
        }
    }
    assert_eq!((output, input), (capsa.seen.clone(), b"typed\xff\x04".to_vec()));
    assert!(ended);
}

#[test]
fn progress_json_writes_json_lines_only() {
    let Some(mut capsa) = CapsaProcess::start(Nano::default(), &["--progress", "json"]) else {
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
    // Console output may come before the hypervisor reports that the VM runs.
    events.retain(|event| *event != "first-output");
    assert_eq!(events[..4], ["planned", "spawned", "control-ready", "running"]);
    assert_eq!(events.last(), Some(&"stopped"));
    assert!(stderr.contains("first-output"), "{stderr}");
}

#[test]
fn quiet_and_verbose_control_messages() {
    for (flag, first) in [("-q", None), ("-v", Some("capsa: backend: qemu, run directory: "))] {
        let Some(mut capsa) = CapsaProcess::start(Nano::default(), &[flag]) else { return };
        capsa.wait_for(nano::READY);
        capsa.write(&[nano::POWER_OFF]);
        let (code, stderr) = capsa.wait_for_end();
        assert_eq!(code, 0);
        match first {
            None => assert_eq!(stderr, ""),
            Some(first) => assert!(stderr.starts_with(first), "{stderr}"),
        }
    }
}

#[test]
fn command_without_guest_shell_reaches_time_limit() {
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
