//! `capsa run` and the commands that need no VM. VMs boot the nano guest under QEMU in emulation.

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use capsa_testkit::nano::{self, Nano};
use common::{CapsaProcess, Terminal, capsa, nano_arguments, wait_for_size};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::LocalFlags;
use nix::unistd::Pid;

/// When a log has this many bytes and standard output is not read, writes to it block.
const MORE_THAN_A_PIPE: u64 = 100_000;

/// Runs it until it exits, without a VM: exit code, standard output, standard error.
fn ask(arguments: &[&str]) -> (i32, String, String) {
    common::ask(&std::env::temp_dir().join("capsa-no-vms"), arguments)
}

#[test]
fn console_on_pipes_passes_all_bytes() {
    let Some(mut capsa) = CapsaProcess::start(Nano::default(), &["--cmdline", "one"]) else {
        return;
    };
    capsa.wait_for(nano::READY);
    // On a pipe no byte is special: Ctrl-], q and all.
    capsa.write(b"hello\x03\x1dq\xff\0");
    capsa.wait_for(b"hello\x03\x1dq\xff\0");
    capsa.write(&[nano::POWER_OFF]);
    let (code, stderr) = capsa.wait_for_end();
    assert_eq!((code, stderr.lines().last()), (0, Some("capsa: stopped: guest powered off")));
    assert!(capsa.seen.starts_with(b"CMDLINE "), "{:?}", capsa.seen);
}

#[test]
fn end_of_input_keeps_vm_running() {
    let Some(mut capsa) = CapsaProcess::start(Nano::default(), &[]) else { return };
    capsa.wait_for(nano::READY);
    capsa.write(b"bye");
    capsa.close_input();
    capsa.wait_for(b"bye");
    capsa.signal(Signal::SIGINT);
    assert_eq!(capsa.wait_for_end().0, 130);
}

#[test]
fn sigterm_powers_off_guest() {
    let Some(mut capsa) = CapsaProcess::start(Nano::default(), &[]) else { return };
    capsa.wait_for(nano::READY);
    capsa.signal(Signal::SIGTERM);
    let (code, stderr) = capsa.wait_for_end();
    assert_eq!(code, 143);
    assert_eq!(stderr.lines().last(), Some("capsa: stopped: guest powered off, as asked"));
}

#[test]
fn second_sigterm_kills_vm() {
    let ignores_button = Nano { power_button: false };
    let Some(mut capsa) = CapsaProcess::start(ignores_button, &["--grace", "1h"]) else { return };
    capsa.wait_for(nano::READY);
    capsa.signal(Signal::SIGTERM);
    // timeout(1) sends two at once, which count as one.
    capsa.signal(Signal::SIGTERM);
    capsa.write(b"still here");
    capsa.wait_for(b"still here");
    // A signal counts when a second has passed since the first one was handled.
    let end = Instant::now() + Duration::from_secs(60);
    while !capsa.has_exited() {
        assert!(Instant::now() < end, "the VM is not killed");
        std::thread::sleep(Duration::from_millis(100));
        capsa.signal(Signal::SIGTERM);
    }
    let (code, stderr) = capsa.wait_for_end();
    assert_eq!(code, 143, "{stderr}");
    assert!(stderr.contains("killed"), "{stderr}");
}

#[test]
fn time_limit_exits_114() {
    let Some(mut capsa) = CapsaProcess::start(Nano::default(), &["--timeout", "1s"]) else {
        return;
    };
    let (code, stderr) = capsa.wait_for_end();
    assert_eq!(code, 114, "{stderr}");
    assert!(stderr.contains("time limit reached"), "{stderr}");
}

/// The log waits for a reader, not the start.
#[test]
fn log_to_fifo_without_reader_does_not_block() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = fifo.to_str().unwrap();
    let limits = ["--timeout", "2s", "--log", fifo];
    let mut vm = CapsaProcess::start(Nano::default(), &limits).unwrap();
    vm.wait_for(nano::READY);
    // A reader that comes later has all bytes.
    let mut reader = fs::File::open(fifo).unwrap();
    let log = std::thread::spawn(move || {
        let mut log = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut log).map(|_| log)
    });
    let (code, stderr) = vm.wait_for_end();
    assert_eq!(code, 114, "{stderr}");
    assert_eq!(log.join().unwrap().unwrap(), vm.seen);
    // More than the FIFO holds, and no reader.
    let mut vm = CapsaProcess::start(Nano::default(), &limits).unwrap();
    vm.write(&[nano::FLOOD; 2]);
    let (code, stderr) = vm.wait_for_end();
    assert_eq!(code, 114, "{stderr}");
    assert!(stderr.contains("the console log lacks "), "{stderr}");
}

/// Before the words of the library or the hypervisor, which differ.
#[test]
fn failed_start_names_limit_of_open_files_first() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 16; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_capsa")])
        .args(nano_arguments(dir.path(), Nano::default()))
        .env("CAPSA_RUN_DIR", common::run_dir(dir.path()))
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(113), "{stderr}");
    assert!(stderr.starts_with("capsa: the limit of open files is 16, "), "{stderr}");
}

#[test]
fn time_limit_respects_grace_period() {
    if !common::has_qemu() {
        return;
    }
    // The default grace period is 30 s.
    common::assert_within(Duration::from_secs(25), || {
        let begin = Instant::now();
        let limits = ["--timeout", "1s", "--grace", "100ms"];
        let mut capsa = CapsaProcess::start(Nano { power_button: false }, &limits).unwrap();
        let (code, stderr) = capsa.wait_for_end();
        assert_eq!(code, 114, "{stderr}");
        begin.elapsed()
    });
}

#[test]
fn fallback_to_emulation_warns_once() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let arguments = nano_arguments(dir.path(), Nano::default());
    let at = arguments.iter().position(|word| word == "--accel").unwrap();
    let vm = [&arguments[..at], &arguments[at + 2..]].concat();
    for (quiet, lines) in [(&["-q"][..], 0), (&[], 1)] {
        let mut command = capsa();
        command.args(&vm).args(quiet).args(["--timeout", "1s"]);
        let end = command.env("CAPSA_RUN_DIR", common::run_dir(dir.path())).output().unwrap();
        let stderr = String::from_utf8(end.stderr).unwrap();
        let warnings: Vec<&str> =
            stderr.lines().filter(|line| line.contains("emulation")).collect();
        if lines == 1 && warnings.is_empty() {
            return capsa_testkit::skip("KVM is usable here");
        }
        assert_eq!(warnings.len(), lines, "{stderr}");
        assert!(warnings.iter().all(|line| line.len() < 160), "{stderr}");
    }
}

#[test]
fn quiet_still_reports_lost_output() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let arguments = nano_arguments(dir.path(), Nano::default());
    let vm =
        arguments.iter().filter(|word| !["--console", "stdio"].contains(&word.to_str().unwrap()));
    let limited = ["--quiet", "--timeout", "1s", "--log", "/dev/full", "--", "true"];
    let end = capsa().args(vm).args(limited).output().unwrap();
    let stderr = String::from_utf8_lossy(&end.stderr);
    assert_eq!(end.status.code(), Some(114), "{stderr}");
    for words in [
        "the console log is incomplete, cannot write it: ",
        "the time limit was reached before the command finished",
    ] {
        assert!(stderr.contains(words), "no {words:?} in {stderr}");
    }
    assert!(end.stdout.is_empty());
}

#[test]
fn slow_stdout_loses_no_bytes() {
    // More than all buffers on the way hold together.
    const FLOODS: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let arguments = ["--log", log.to_str().unwrap()];
    let Some(mut capsa) = CapsaProcess::start(Nano::default(), &arguments) else { return };
    capsa.wait_for(nano::READY);
    let before = capsa.seen.len();
    capsa.pause_reading();
    capsa.write(&[nano::FLOOD; FLOODS]);
    capsa.write(&[nano::POWER_OFF]);
    wait_for_size(&log, MORE_THAN_A_PIPE);
    capsa.resume_reading();
    let (code, stderr) = capsa.wait_for_end();
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(capsa.seen.len() - before, FLOODS * nano::flood().len());
    assert!(capsa.seen[before..].chunks(nano::flood().len()).all(|flood| flood == nano::flood()));
}

#[test]
fn stuck_stdout_does_not_delay_kill() {
    let Some(mut capsa) = CapsaProcess::start(Nano { power_button: false }, &[]) else { return };
    capsa.wait_for(nano::READY);
    capsa.write(&[nano::FLOOD; 4]);
    capsa.signal(Signal::SIGQUIT);
    let code = capsa.wait_for_end_unread();
    assert_eq!(code, 131);
}

/// A signal ends the run, not only its VM, even while a write to standard output blocks.
#[test]
fn stuck_stdout_does_not_delay_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let arguments = ["--grace", "1s", "--log", log.to_str().unwrap()];
    let Some(mut capsa) = CapsaProcess::start(Nano::default(), &arguments) else { return };
    capsa.wait_for(nano::READY);
    capsa.pause_reading();
    capsa.write(&[nano::FLOOD; 8]);
    wait_for_size(&log, MORE_THAN_A_PIPE);
    capsa.signal(Signal::SIGTERM);
    assert_eq!(capsa.wait_for_end_unread(), 143);
}

/// A stalled reader delays neither a stop nor the time limit, and every byte is either in the
/// pipe or counted.
#[test]
fn stuck_stdout_does_not_delay_stop_or_limit() {
    if !common::has_qemu() {
        return;
    }
    for (power_button, flags, stop, wanted) in [
        (true, &["--grace", "1h"][..], &["stop", "kept", "--grace", "8s"][..], [0, 0]),
        (false, &["--grace", "1h"], &["stop", "kept", "--grace", "500ms"], [137, 137]),
        (false, &["--grace", "500ms", "--timeout", "2s"], &[], [114, 114]),
    ] {
        common::assert_within(Duration::from_secs(8), || {
            let dir = tempfile::tempdir().unwrap();
            let log = dir.path().join("log");
            let flags = [&["--name", "kept", "--log", log.to_str().unwrap()], flags].concat();
            let mut capsa = CapsaProcess::start(Nano { power_button }, &flags).unwrap();
            capsa.wait_for(nano::READY);
            capsa.pause_reading();
            capsa.write(&[nano::FLOOD; 8]);
            wait_for_size(&log, MORE_THAN_A_PIPE);
            let begin = Instant::now();
            if !stop.is_empty() {
                assert_eq!(capsa.ask(stop).0, 0);
            }
            let code = capsa.wait_for_end_unread();
            let took = begin.elapsed();
            assert!(wanted.contains(&code), "{code}");
            let (_, stderr) = capsa.wait_for_end();
            let lost = stderr.lines().find_map(|line| {
                line.strip_prefix("capsa: warning: ")?
                    .split_once(" bytes of output are not written")
            });
            let lost: usize = lost.unwrap_or_else(|| panic!("{stderr}")).0.parse().unwrap();
            let logged = fs::read(&log).unwrap();
            assert!(lost > 0 && logged.len() == capsa.seen.len() + lost, "{lost} of {stderr}");
            assert!(logged.starts_with(&capsa.seen));
            took
        });
    }
}

/// The messages of the end go to the same full pipe.
#[test]
fn stuck_stderr_does_not_delay_stop() {
    if !common::has_qemu() {
        return;
    }
    common::assert_within(Duration::from_secs(8), || {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let (_unread, pipe) = std::io::pipe().unwrap();
        let mut child = capsa()
            .args(nano_arguments(dir.path(), Nano { power_button: false }))
            .args(["--grace", "500ms", "--timeout", "2s", "--log-level", "trace", "--log"])
            .arg(&log)
            .env("CAPSA_RUN_DIR", common::run_dir(dir.path()))
            .stdin(Stdio::piped())
            .stdout(pipe.try_clone().unwrap())
            .stderr(pipe)
            .spawn()
            .unwrap();
        let floods = [nano::FLOOD; 8];
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), &floods).unwrap();
        wait_for_size(&log, 1);
        let begin = Instant::now();
        while child.try_wait().unwrap().is_none() && begin.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let took = begin.elapsed();
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(114));
        took
    });
}

#[test]
fn closed_stdout_is_no_error() {
    let Some(mut capsa) = CapsaProcess::start(Nano::default(), &[]) else { return };
    capsa.wait_for(nano::READY);
    capsa.close_output();
    capsa.write(&[nano::FLOOD, nano::POWER_OFF]);
    let (code, stderr) = capsa.wait_for_end();
    assert_eq!((code, stderr.as_str()), (0, "capsa: stopped: guest powered off\n"));
}

#[test]
fn console_on_regular_files_works() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    fs::write(&input, "input before the guest is ready").unwrap();
    let mut child = capsa()
        .args(nano_arguments(dir.path(), Nano::default()))
        .args(["--timeout", "1s"])
        .stdin(fs::File::open(&input).unwrap())
        .stdout(fs::File::create(&output).unwrap())
        .spawn()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(114));
    let written = fs::read(&output).unwrap();
    assert!(written.windows(nano::READY.len()).any(|w| w == nano::READY), "{written:?}");
}

#[test]
fn terminal_is_raw_then_restored_after_sigterm() {
    let Some(mut terminal) = Terminal::start(Nano::default()) else { return };
    let before = terminal.before.clone();
    assert!(before.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO));
    terminal.wait_for(b"Ctrl-] q");
    terminal.wait_for(nano::READY);
    terminal.wait_until_raw();
    // Ctrl-C is a byte for the guest, which echoes it.
    terminal.write(b"a\x03b");
    terminal.wait_for(b"a\x03b");
    terminal.signal(Signal::SIGTERM);
    assert_eq!(terminal.wait_for_end(), 143);
    assert_eq!(terminal.modes(), before);
}

#[test]
fn terminal_is_restored_while_suspended() {
    let Some(mut terminal) = Terminal::start(Nano::default()) else { return };
    let before = terminal.before.clone();
    terminal.wait_for(nano::READY);
    terminal.signal(Signal::SIGTSTP);
    terminal.wait_until_stopped();
    assert_eq!(terminal.modes(), before);
    terminal.signal(Signal::SIGCONT);
    terminal.wait_until_raw();
    terminal.write(b"back");
    terminal.wait_for(b"back");
    terminal.signal(Signal::SIGHUP);
    assert_eq!(terminal.wait_for_end(), 129);
    assert_eq!(terminal.modes(), before);
}

/// A shell sends no signal to a running job that it puts into the foreground.
#[test]
fn terminal_is_raw_in_foreground_of_shell_only() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let arguments = nano_arguments(dir.path(), Nano::default());
    let arguments = shell_words::join(arguments.iter().map(|word| word.to_str().unwrap()));
    let Some(mut shell) = Terminal::shell(dir) else { return };
    let program = env!("CARGO_BIN_EXE_capsa");
    shell.write(format!("{program} {arguments} --timeout 2m & echo pid=$!,\r").as_bytes());
    shell.wait_for(b"NANO READY");
    let text = shell.seen();
    let pid = text.rsplit_once("pid=").unwrap().1.split(',').next().unwrap();
    let pid = Pid::from_raw(pid.parse().unwrap_or_else(|_| panic!("{text}")));
    shell.write(b"fg\r");
    shell.wait_until_raw();
    for signal in [Signal::SIGTSTP, Signal::SIGSTOP] {
        shell.forget();
        shell.write(b"before");
        shell.wait_for(b"before");
        kill(pid, signal).unwrap();
        shell.wait_for(b"Stopped");
        shell.write(b"bg; echo in-$((1 + 1))\r");
        shell.wait_for(b"in-2");
        shell.write(b"fg\r");
        shell.wait_until_raw();
        shell.write(b"after");
        shell.wait_for(b"after");
    }
    shell.write(&[nano::POWER_OFF]);
    shell.wait_for(b"guest powered off");
    // Not the modes of the shell's line editor, which the terminal had at the start.
    shell.write(b"echo line-mode=$(stty -a | grep -c ' icanon')\r");
    shell.wait_for(b"line-mode=1");
    shell.write(b"exit\r");
    assert_eq!(shell.wait_for_end(), 0);
}

#[test]
fn terminal_is_restored_after_hypervisor_crash() {
    let Some(mut terminal) = Terminal::start(Nano::default()) else { return };
    let before = terminal.before.clone();
    terminal.wait_for(nano::READY);
    terminal.wait_until_raw();
    common::kill_hypervisor(terminal.pid());
    terminal.wait_for(b"capsa: failed: ");
    assert_eq!(terminal.wait_for_end(), 116);
    assert_eq!(terminal.modes(), before);
}

#[test]
fn escape_keys_stop_and_kill_vm() {
    for (keys, power_button, code) in [(b"\x1dq", true, 0), (b"\x1dk", false, 137)] {
        let Some(mut terminal) = Terminal::start(Nano { power_button }) else { return };
        terminal.wait_for(nano::READY);
        terminal.write(keys);
        assert_eq!(terminal.wait_for_end(), code);
        assert_eq!(terminal.modes(), terminal.before);
    }
}

#[test]
fn config_paths_are_relative_and_flags_override() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    nano::write_to(dir.path()).unwrap();
    let file = dir.path().join("vm.toml");
    let text = "[boot]\nkernel = \"./nano.elf\"\n[network]\nmode = \"none\"\n\
                [backend]\nname = \"qemu\"\naccel = \"emulation\"\n[resources]\nmemory = \"1G\"\n";
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let (code, stdout, stderr) = ask(&["run", "--config", file, "--dry-run", "--memory", "64M"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("\n  -m 64M \\\n"), "{stdout}");
    assert!(stdout.contains("/nano.elf \\\n"), "{stdout}");

    fs::write(file, text.replace("memory = \"1G\"", "memory = \"1Q\"")).unwrap();
    let (code, stdout, stderr) = ask(&["run", "--config", file, "--dry-run"]);
    assert_eq!((code, stdout.as_str()), (111, ""));
    assert!(stderr.contains("vm.toml:9:10: memory: invalid size \"1Q\": "), "{stderr}");
    assert!(stderr.contains("\n    9 | memory = \"1Q\"\n      |          ^^^^\n"), "{stderr}");
}

#[test]
fn missing_files_are_all_reported_with_hints() {
    let arguments =
        ["run", "linux", "--kernel", "/no/kernel", "--initrd", "/no/initrd", "--backend", "qemu"];
    if !common::has_qemu() {
        return;
    }
    let (code, stdout, stderr) = ask(&arguments);
    assert_eq!((code, stdout.as_str()), (111, ""));
    assert_eq!(
        stderr,
        "capsa: cannot run this VM: invalid configuration\n  \
         kernel: /no/kernel does not exist\n    hint: check the path\n  \
         initrd: /no/initrd does not exist\n    hint: check the path\n"
    );
}

#[test]
fn dry_run_prints_options_of_network() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let kernel = nano::write_to(dir.path()).unwrap();
    let vm = ["run", "linux", "--kernel", kernel.to_str().unwrap(), "--backend", "qemu"];
    let network = "--allow-private --allow-host-port 22 --forward 8080:80 --forward 53:53/udp \
                   --service a.b:80=unix:/tmp/s --network-pcap /tmp/p --dry-run";
    let (code, stdout, stderr) =
        ask(&[&vm[..], &network.split_whitespace().collect::<Vec<_>>()].concat());
    assert_eq!((code, stderr.as_str()), (0, ""));
    for line in [
        "# network: private networks are open",
        "# network: port 22 of the host's loopback is open",
        "# forward: 8080 to TCP port 80 of the guest",
        "# forward: 53 to UDP port 53 of the guest",
        "# service: a.b:80, served by unix:/tmp/s",
        "# packet capture: /tmp/p",
    ] {
        assert!(stdout.lines().any(|printed| printed == line), "{line}: {stdout}");
    }
}

#[test]
fn dry_run_prints_plan_of_unavailable_backend() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = nano::write_to(dir.path()).unwrap();
    let kernel = kernel.to_str().unwrap();
    let vm = ["run", "linux", "--kernel", kernel, "--initrd", kernel, "--network", "none"];
    let vfkit = ["--backend", "vfkit"];
    let dry = [&["--console", "stdio", "--dry-run"][..], &vfkit].concat();
    let (code, stdout, _) = ask(&[&vm[..], &dry].concat());
    assert_eq!(code, 0);
    for part in [
        "# backend: vfkit\n",
        "# kernel command line: console=hvc0 ",
        "vfkit \\\n  --cpus 1 \\\n  --memory 512 \\\n",
        "  --device virtio-serial,stdio \\\n",
        "#   power button: POST /vm/state {\"state\":\"Stop\"} (",
        "#   quit: SIGTERM\n",
        "#   quit after a guest crash: POST /vm/state {\"state\":\"HardStop\"} (",
    ] {
        assert!(stdout.contains(part), "{part:?} is not in\n{stdout}");
    }
    let (code, stdout, _) = ask(&[&vm[..], &dry, &["--json"]].concat());
    assert_eq!(code, 0);
    let plan: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(plan["processes"][0]["args"].as_array().unwrap()[..2], ["--cpus", "1"]);
}

#[test]
fn exit_codes_without_vm() {
    for (arguments, want) in [
        (&["help"][..], 0),
        (&["help", "run"], 0),
        (&["run", "--help"], 0),
        (&["--help"], 0),
        (&["version"], 0),
        (&["--version"], 0),
        (&["backends"], 0),
        (&["backends", "--json"], 0),
        (&[], 2),
        (&["fly"], 2),
        (&["help", "fly"], 2),
        (&["run"], 2),
        (&["run", "bsd"], 2),
        (&["run", "linux", "--kernel"], 2),
        (&["run", "linux", "--cpus", "many"], 2),
        (&["run", "linux"], 111),
        (&["run", "--config", "/no/such/file"], 111),
        (&["run", "linux", "--kernel", "/k", "--backend", "xen"], 112),
    ] {
        let (code, stdout, stderr) = ask(arguments);
        assert_eq!(code, want, "{arguments:?}: {stderr}");
        assert_eq!(stdout.is_empty(), want != 0, "{arguments:?}");
        assert_eq!(stderr.is_empty(), want == 0, "{arguments:?}: {stderr}");
        assert!(stderr.is_empty() || stderr.starts_with("capsa: "), "{stderr}");
    }
}

#[test]
fn help_into_closed_pipe_exits_0() {
    let mut child = capsa().arg("help").stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn hypervisor_crash_exits_116() {
    let Some(mut capsa) = CapsaProcess::start(Nano::default(), &[]) else { return };
    capsa.wait_for(nano::READY);
    common::kill_hypervisor(capsa.pid());
    let (code, stderr) = capsa.wait_for_end();
    assert_eq!(code, 116, "{stderr}");
    assert!(stderr.contains("capsa: failed: "), "{stderr}");
}
