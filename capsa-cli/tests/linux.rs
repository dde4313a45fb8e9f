//! The command with a real Linux guest, in emulation.

mod common;

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use capsa_testkit::guest::LinuxGuest;
use capsa_testkit::programs::TestProgram;
use capsa_testkit::vm::{self, PATIENCE};
use capsa_testkit::{host, skip};
use common::{Terminal, capsa, run_dir};

/// The guest, and a directory with a config file for it; `None` (skipped) if there is no guest.
fn guest() -> Option<(LinuxGuest, tempfile::TempDir)> {
    let guest = vm::linux_guest()?;
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "[boot]\nkernel = {:?}\ninitrd = {:?}\n[disk]\npath = {:?}\nephemeral = true\n\
         [network]\nmode = \"none\"\n[resources]\ntimeout = \"3m\"\n[backend]\nname = \"qemu\"\n\
         accel = \"emulation\"\n[cmdline]\n\
         extra = [\"quiet\", \"mitigations=off\", \"no_timer_check\"]\n",
        guest.kernel, guest.initrd, guest.disk_qcow2
    );
    fs::write(dir.path().join("linux-vm.toml"), text).unwrap();
    Some((guest, dir))
}

/// `capsa run --config linux-vm.toml` with more behind it. A command runs on the console.
fn run(dir: &Path, more: &[&str]) -> Command {
    let mut command = capsa();
    let has_command = more.contains(&"--");
    let more = [if has_command { &["--via", "console"][..] } else { &[] }, more].concat();
    command.args(["run", "--config"]).arg(dir.join("linux-vm.toml")).args(more);
    command.env("CAPSA_RUN_DIR", run_dir(dir)).stdin(Stdio::null());
    command
}

#[test]
fn exit_code_is_command_status() {
    let Some((_guest, dir)) = guest() else { return };
    for (command, code, stdout) in [
        (&["sh", "-c", "exit 7"][..], 7, ""),
        (&["no-such-program"], 127, "/bin/sh: no-such-program: not found\n"),
        (&["printf", "%s|", "a b", "$HOME", "'\"", ""], 0, "a b|$HOME|'\"||"),
        // A shell builtin: it ends the process of the command, not the login shell.
        (&["exit", "3"], 3, ""),
    ] {
        let output = run(dir.path(), &[&["-q", "--"], command].concat()).output().unwrap();
        let stdout_text = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), stdout_text.as_str()), (Some(code), stdout), "{stderr}");
        // A kernel panic would have an exit code and a message of its own.
        assert_eq!(stderr, "");
    }
}

/// A guest under a policy: an allowed port of the host, refusals without a wait, and the log.
#[test]
fn command_quoting_panic_is_not_exit_115() {
    let Some((_guest, dir)) = guest() else { return };
    let quote = "printf '[    5.000000] Kernel panic - not syncing: x\\n\
                 ---[ end Kernel panic - not syncing: x ]---\\n'";
    for (end, code, line) in [
        ("sleep 1; exit 4", 4, ""),
        ("poweroff -f; sleep 60", 117, "guest powered off"),
        ("reboot -f; sleep 60", 117, "guest rebooted"),
    ] {
        let script = format!("{quote}; {end}");
        let output = run(dir.path(), &["--", "sh", "-c", &script]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(line) && !stderr.contains("panicked"), "{stderr}");
    }
}

#[test]
fn policy_allows_host_port_and_refuses_the_rest() {
    let Some((_guest, dir)) = guest() else { return };
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in server.incoming() {
            let _ = client.unwrap().write_all(b"from the host\n");
        }
    });
    let (target, log) = (format!("host:{port}"), dir.path().join("net.jsonl"));
    let script = format!(
        "for i in $(seq 300); do ip -4 route | grep -q default && break; sleep 0.1; done
         nc host.capsa.internal {port} </dev/null
         for target in 'host.capsa.internal 1' '203.0.113.1 80' '169.254.169.254 80'; do
             timeout 60 nc $target </dev/null 2>&1
         done
         nslookup example.com 2>&1
         nslookup host.capsa.internal"
    );
    let flags = ["-q", "--network", "policy", "--allow", &target, "--network-log"];
    let command = ["--", "sh", "-c", &script];
    let arguments = [&flags[..], &[log.to_str().unwrap()], &command].concat();
    let output = run(dir.path(), &arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("from the host"), "{text}");
    assert_eq!(text.matches("Connection refused").count(), 3, "{text}");
    assert!(text.contains("example.com: NXDOMAIN") && text.contains(": 10.0.2.2"), "{text}");
    let log = fs::read_to_string(log).unwrap();
    for (event, reason, destination) in [
        ("flow-opened", "allowed", target.as_str()),
        ("flow-closed", "allowed", target.as_str()),
        ("flow-refused", "port", "host:1"),
        ("flow-refused", "special-address", "203.0.113.1:80"),
        ("flow-refused", "special-address", "169.254.169.254:80"),
        ("dns-refused", "no-rule", "dns:example.com"),
    ] {
        let has = |line: &str| {
            let part = |key: &str, value: &str| line.contains(&format!("\"{key}\":\"{value}\""));
            part("event", event) && part("reason", reason) && part("destination", destination)
        };
        assert!(log.lines().any(has), "{event} {reason} {destination}: {log}");
    }
}

#[test]
fn shares_are_mounted_before_the_command() {
    let Some((_guest, dir)) = guest() else { return };
    if host::find_program("virtiofsd").is_none() {
        return skip("virtiofsd is not installed");
    }
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "from host").unwrap();
    let share = |at: &str| format!("{}:{at}", shared.display());
    let config = dir.path().join("linux-vm.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.split("[cmdline]").next().unwrap()).unwrap();
    // The guest mounts what is on its command line, as systemd 254 does. This one has nothing.
    let words = "console=ttyS0 quiet panic=-1";
    for (at, status, stdout, message) in [
        ("/it's/a-dir", 0, "from host", ""),
        ("/proc/none", 117, "", "the guest cannot mount its shares: mkdir: "),
    ] {
        let script = format!("cat \"{at}/file\"");
        let share = share(at);
        let more =
            ["-q", "--share", &share, "--cmdline-override", words, "--", "sh", "-c", &script];
        let output = run(dir.path(), &more).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), &*output.stdout),
            (Some(status), stdout.as_bytes()),
            "{stderr}"
        );
        assert!(stderr.contains(message), "{stderr}");
    }
}

/// `capsa run … --tty -- sh -c SCRIPT` on a terminal of 40 rows and 100 columns.
fn on_terminal(dir: tempfile::TempDir, script: &str) -> Option<Terminal> {
    let config = dir.path().join("linux-vm.toml");
    let words = ["-q", "-t", "--via", "console", "--name", "tty", "--", "sh", "-c", script]
        .map(OsString::from);
    let arguments = [&["run".into(), "--config".into(), config.into()], &words[..]].concat();
    let run_dir = run_dir(dir.path());
    Terminal::in_run_dir(dir, &run_dir, &arguments)
}

#[test]
fn tty_command_reads_keys_and_knows_size() {
    let Some((_guest, dir)) = guest() else { return };
    let script = "stty size; seq 1 100 | less; echo \"$TERM\"; [ -t 1 ] && exit 7";
    let Some(mut terminal) = on_terminal(dir, script) else { return };
    let before = terminal.before.clone();
    terminal.wait_for(b"40 100\r\n");
    terminal.wait_until_raw();
    // A screen of the pager; then single keys, without Enter.
    terminal.wait_for(b"39");
    terminal.forget();
    terminal.write(b"G");
    terminal.wait_for(b"100");
    terminal.write(b"q");
    terminal.wait_for(b"vt220\r\n");
    assert_eq!(terminal.wait_for_end(), 7);
    assert_eq!(terminal.modes(), before);
}

#[test]
fn tty_interrupt_ends_command_only() {
    let Some((_guest, dir)) = guest() else { return };
    let Some(mut terminal) = on_terminal(dir, "echo begin; sleep 100") else { return };
    let before = terminal.before.clone();
    terminal.wait_for(b"begin\r\n");
    std::thread::sleep(Duration::from_millis(500));
    terminal.write(b"\x03");
    assert_eq!(terminal.wait_for_end(), 130);
    assert_eq!(terminal.modes(), before);
}

#[test]
fn tty_is_restored_after_sigterm() {
    let Some((_guest, dir)) = guest() else { return };
    let Some(mut terminal) = on_terminal(dir, "echo begin; sleep 100") else { return };
    let before = terminal.before.clone();
    terminal.wait_for(b"begin\r\n");
    terminal.wait_until_raw();
    terminal.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(terminal.wait_for_end(), 143);
    assert_eq!(terminal.modes(), before);
}

#[test]
fn command_output_is_streamed() {
    let Some((_guest, dir)) = guest() else { return };
    let script = "echo first; sleep 60";
    let mut child = run(dir.path(), &["-q", "--name", "streams", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "first\n");
    assert!(child.try_wait().unwrap().is_none(), "the command has not ended");
    // The output before the stop is kept.
    assert_eq!(common::ask(dir.path(), &["stop", "streams"]).0, 0);
    assert_eq!(child.wait().unwrap().code(), Some(117));
}

#[test]
fn closed_stdout_ends_command_and_vm() {
    let Some((_guest, dir)) = guest() else { return };
    let mut child = run(dir.path(), &["--", "yes"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = [0; 4];
    child.stdout.take().unwrap().read_exact(&mut lines).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((&lines, output.status.code(), &*stderr), (b"y\ny\n", Some(0), ""));
}

#[test]
fn slow_stdout_gets_all_command_output() {
    let Some((_guest, dir)) = guest() else { return };
    let log = dir.path().join("log");
    let arguments =
        ["-q", "--log", log.to_str().unwrap(), "--", "sh", "-c", "seq 1 200000; exit 3"];
    let mut child = run(dir.path(), &arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut received = vec![0; 100];
    stdout.read_exact(&mut received).unwrap();
    // More than the pipe holds: writes to standard output block.
    common::wait_for_size(&log, fs::metadata(&log).unwrap().len() + 100_000);
    stdout.read_to_end(&mut received).unwrap();
    let wanted: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert!(received == wanted.as_bytes(), "{} of {} bytes", received.len(), wanted.len());
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[test]
fn interrupted_command_shows_partial_output() {
    let Some((_guest, dir)) = guest() else { return };
    let limits = ["--timeout", "20s", "--grace", "2s"];
    let job = ["--", "sh", "-c", "echo before; sleep 100; echo after"];
    for json in [false, true] {
        let flags = if json { &["--json"][..] } else { &[] };
        let output = run(dir.path(), &[&limits, flags, &job].concat()).output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(114), "{stderr}");
        assert!(stderr.contains("the time limit was reached before the command finished"));
        if json {
            let outcome: serde_json::Value = serde_json::from_str(&stdout).unwrap();
            let text = outcome["command"]["output"].as_str().unwrap();
            assert!(text.starts_with("before\n") && !text.contains("after"), "{text}");
            assert!(outcome["command"]["status"].is_null(), "{outcome}");
        } else {
            assert!(stdout.starts_with("before\n") && !stdout.contains("after"), "{stdout}");
        }
    }
}

/// The shell shuts the guest down, not only the power button.
#[test]
fn guest_that_ignores_button_ends_after_command() {
    let Some((_guest, dir)) = guest() else { return };
    const NO_EFFECT: &str = "rm /bin/poweroff; cat >/bin/poweroff <<'E'
#!/bin/sh
[ \"$1\" != -f ] || exec /bin/busybox poweroff -f
E
chmod +x /bin/poweroff; ";
    for (what, prepare) in [
        ("whose init powers off", ""),
        ("whose init ignores poweroff", NO_EFFECT),
        ("without poweroff", "rm /bin/poweroff; "),
    ] {
        // The grace period is 30 s.
        common::assert_within(Duration::from_secs(25), || {
            let command = format!("{prepare}killall acpid; exit 7");
            let begin = Instant::now();
            let output = run(dir.path(), &["-q", "--", "sh", "-c", &command]).output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), &*stderr), (Some(7), ""), "a guest {what}");
            begin.elapsed()
        });
    }
}

#[test]
fn login_by_password_file_works_or_exits_117() {
    let Some((_guest, dir)) = guest() else { return };
    let password = dir.path().join("password");
    fs::write(&password, "wrong\n").unwrap();
    let more = ["--user", "user", "--password-file", password.to_str().unwrap(), "--", "id"];
    let output = run(dir.path(), &more).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(117), "{stderr}");
    assert!(stderr.contains("capsa: cannot log in: login as \"user\" refused"), "{stderr}");
    assert!(!stderr.contains("wrong"), "{stderr}");

    // A pipe is read once.
    let more = ["--user", "user", "--password-file", "/dev/stdin", "--", "id"];
    let mut child = run(dir.path(), &more);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"secret\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("uid="));
}

#[test]
fn ctrl_c_reaches_guest_program() {
    let Some((_guest, dir)) = guest() else { return };
    let arguments: Vec<OsString> = vec![
        "run".into(),
        "--config".into(),
        dir.path().join("linux-vm.toml").into(),
        "--console".into(),
        "stdio".into(),
    ];
    let run_dirs = run_dir(dir.path());
    let Some(mut terminal) = Terminal::in_run_dir(dir, &run_dirs, &arguments) else { return };
    terminal.wait_for(b"login: ");
    terminal.wait_until_raw();
    terminal.write(b"root\r");
    terminal.wait_for(b"# ");
    terminal.write(b"trap 'echo caught' INT; while :; do echo going; sleep 1; done\r");
    terminal.wait_for(b"\ngoing");
    terminal.write(b"\x03");
    terminal.wait_for(b"caught\r\n");
    terminal.write(b"\x1dk");
    assert_eq!(terminal.wait_for_end(), 137);
    assert_eq!(terminal.modes(), terminal.before);
}

/// The vsock test program, which the guest runs from a share of the host's file system.
fn vsock_peer() -> Option<PathBuf> {
    let peer = TestProgram::new("vsock-peer").into();
    for (found, why) in [
        (host::find_program("virtiofsd").is_some(), "virtiofsd is not installed"),
        (host::find_program("vhost-device-vsock").is_some(), "vhost-device-vsock is not installed"),
    ] {
        if !found {
            skip(why);
            return None;
        }
    }
    Some(peer)
}

#[test]
fn vsock_ports_are_relayed_to_unix_sockets() {
    let Some((_guest, dir)) = guest() else { return };
    let Some(peer) = vsock_peer() else { return };
    let (to_guest, to_host) = (dir.path().join("to-guest"), dir.path().join("to-host"));
    let listener = UnixListener::bind(&to_host).unwrap();
    let listen = format!("listen:5000:{}", to_guest.display());
    let connect = format!("connect:77:{}", to_host.display());
    let script = format!(
        "chroot /host {peer} connect 77 hello && exec chroot /host {peer} listen 5000",
        peer = peer.display()
    );
    let more = ["--share", "/:/host", "--vsock", &listen, "--vsock", &connect, "--name", "sockets"];
    let mut child = run(dir.path(), &[&more[..], &["--", "sh", "-c", &script]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The guest connects to the host.
    let (from_guest, _) = listener.accept().unwrap();
    let mut line = String::new();
    BufReader::new(&from_guest).read_line(&mut line).unwrap();
    assert_eq!(line, "hello\n");
    (&from_guest).write_all(b"reply\n").unwrap();
    drop(from_guest);
    // The host connects to the guest, once it listens.
    let end = Instant::now() + PATIENCE;
    let mut echo = [0; 4];
    while !UnixStream::connect(&to_guest).is_ok_and(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(b"echo").is_ok() && stream.read_exact(&mut echo).is_ok()
    }) {
        assert!(Instant::now() < end, "the guest does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(&echo, b"echo");
    assert_eq!(common::ask(dir.path(), &["stop", "sockets"]).0, 0);
    assert_eq!(child.wait().unwrap().code(), Some(117));
    assert!(!to_guest.exists(), "the socket was not removed");
}

/// The command runs in a mount namespace with a file system of 24 MB. One image is on it; the other is
/// ephemeral, and its overlay is on it.
#[test]
fn full_host_disk_is_reported_with_disk_and_cause() {
    let Some((_guest, dir)) = guest() else { return };
    let unshare = ["--map-root-user", "--mount"];
    let may = Command::new("unshare").args(unshare).arg("true").status();
    if !may.is_ok_and(|status| status.success()) {
        return skip("this user may not make a mount namespace");
    }
    let small = dir.path().join("small");
    fs::create_dir(&small).unwrap();
    let (full, other) = (small.join("full.raw"), dir.path().join("other.raw"));
    fs::File::create(&other).and_then(|file| file.set_len(64 << 20)).unwrap();
    let write = |disk| format!("dd if=/dev/zero of=/dev/{disk} bs=1M count=40 conv=fsync");
    let script = format!("{}; {}; echo survived; sleep 600", write("vdb"), write("vdc"));
    let more = [
        "--name",
        "full",
        "--disk",
        &format!("{}:rw", full.display()),
        "--disk",
        &format!("{}:ephemeral", other.display()),
        "--",
        "sh",
        "-c",
        &script,
    ];
    let run = run(dir.path(), &more);
    let mount =
        "mount -t tmpfs -o size=24m none \"$0\" && truncate -s 64M \"$0/full.raw\" && exec \"$@\"";
    let mut child = Command::new("unshare")
        .args(unshare)
        .args(["sh", "-c", mount])
        .arg(&small)
        .arg(run.get_program())
        .args(run.get_args())
        .envs(run.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .env("TMPDIR", &small)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(stdout.any(|line| line == "survived"));
    let cause = "write failed: No space left on device";
    let errors = [
        format!("disk {}: {cause}", full.display()),
        format!("disk {} (ephemeral: writes go to a temporary file): {cause}", other.display()),
    ];
    let (_, listed, _) = common::ask(dir.path(), &["ps"]);
    assert_eq!(common::ask(dir.path(), &["stop", "full"]).0, 0);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    for error in errors {
        assert!(listed.contains(&format!("; {error}")), "{listed}");
        assert!(stderr.contains(&format!("warning: {error}\n")), "{stderr}");
    }
}
