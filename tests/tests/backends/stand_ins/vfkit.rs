//! The stand-in for vfkit without Capsa, apart from its command line parser: its replies, logs, error
//! texts and exits are those of vfkit. The conformance suite tests VMs on it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use super::vfkit_program::{VfkitProcess, nano_guest};
use capsa_stand_ins as stand_in;
use capsa_stand_ins::vfkit::{VfkitCall, VfkitFault};
use capsa_stand_ins::{BrokenReply, FaultyStandIn};
use capsa_testkit::nano::{self, Nano};
use capsa_testkit::programs::TestProgram;
use capsa_testkit::vm::{self, PATIENCE, eventually};
use capsa_testkit::{host, skip};
use nix::sys::signal::Signal;
use nix::sys::termios::{InputFlags, LocalFlags, OutputFlags};
use serde_json::{Value, json};

/// Whether a guest can run; if not, the test counts as skipped.
fn can_run() -> bool {
    let can = host::find_program("qemu-system-x86_64").is_some();
    if !can {
        skip("qemu-system-x86_64 is not installed");
    }
    can
}

#[test]
fn version_output_has_a_colon() {
    let output = Command::new(stand_in::VFKIT).arg("--version").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "vfkit version: v0.6.4\n");
    assert!(output.status.success());
}

#[test]
fn rejection_prints_error_twice_around_usage() {
    let dir = tempfile::tempdir().unwrap();
    let guest = nano_guest(dir.path(), Nano::default());
    let missing = dir.path().join("missing").display().to_string();
    let dir_of = format!("virtio-fs,sharedDir={missing},mountTag=t");
    let blk = |path: &str| format!("virtio-blk,path={path}");
    let directory = blk(&dir.path().display().to_string());
    for (more, want) in [
        (&["--bogus"][..], "unknown flag: --bogus"),
        (&["--device", "virtio-net"], "one of 'nat' or 'fd' or 'unixSocketPath' must be set"),
        (&["--device", &blk(&missing)], "no such file or directory"),
        (&["--device", &directory], "is a directory"),
        (&["--device", &dir_of], "Invalid virtual machine configuration"),
        (&["--cpus", "0"], "Invalid virtual machine configuration"),
        (&["--kernel", &missing], "invalid linux kernel path"),
        (&["--initrd", &missing], "invalid initial RAM disk path"),
        (&["--kernel", "/proc/self/exe"], "The virtual machine failed to start"),
        // Standard input is not a terminal.
        (&["--device", "virtio-serial,stdio"], "inappropriate ioctl for device"),
    ] {
        let output = Command::new(stand_in::VFKIT)
            .args(&guest)
            .args(more)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{more:?}: {error}");
        let parts = error.strip_prefix("Error: ").and_then(|it| it.split_once("\nUsage:\n"));
        let (first, rest) = parts.unwrap_or_else(|| panic!("{more:?}: {error}"));
        let (usage, second) =
            rest.split_once("\n\n").and_then(|(_, rest)| rest.split_once("\n\n")).unwrap();
        assert!(first.contains(want) && usage.starts_with("Flags:"), "{more:?}: {error}");
        assert_eq!(second.trim_end(), first.trim_end(), "{more:?}");
        assert_eq!(output.stdout, b"", "{more:?}");
    }
}

#[test]
fn unsupported_device_exits_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let guest = nano_guest(dir.path(), Nano::default());
    for (more, named) in [
        (&["--device", "virtio-serial,pty"][..], "the device {\"kind\":\"virtioserial\""),
        (&["--device", "virtio-gpu"], "the device {\"height\""),
        (&["--nested"], "--nested"),
        (&["--restful-uri", "tcp://localhost:1"], "a REST service over TCP"),
    ] {
        let output = Command::new(stand_in::VFKIT).args(&guest).args(more).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(i32::from(stand_in::UNKNOWN_CONFIG)), "{error}");
        assert!(error.contains(&format!("the stand-in does not support {named}")), "{error}");
    }
}

#[test]
fn rest_replies_match_real_vfkit() {
    if !can_run() {
        return;
    }
    let mut program =
        VfkitProcess::nano(Nano::default(), &["--device", "virtio-rng", "--cpus", "2"]);
    program.listens();
    let (status, state) = program.ask("GET", "/vm/state", "");
    assert_eq!(status, 200);
    assert_eq!(
        state,
        json!({
            "state": "VirtualMachineStateRunning",
            "canStart": false, "canPause": true, "canResume": false, "canStop": true,
            "canHardStop": true,
        })
    );
    let (status, config) = program.ask("GET", "/vm/inspect", "");
    assert_eq!((status, &config["vcpus"]), (200, &json!(2)));
    assert_eq!(config["bootloader"]["kind"], "linuxBootloader");
    assert_eq!(
        config["devices"],
        json!([{ "kind": "virtioserial", "usesStdio": true }, { "kind": "virtiorng" }])
    );
    let error = |(status, body): (u16, Value)| {
        (status, body["error"].as_str().unwrap_or_default().to_owned())
    };
    for (body, status, message) in [
        ("{\"state\":\"Pause\"}", 202, ""),
        ("{\"state\":\"Pause\"}", 500, "transition"),
        ("{\"state\":\"Stop\"}", 500, "transition"),
        ("{\"state\":\"Resume\"}", 202, ""),
        ("{\"state\":\"Nonsense\"}", 500, "invalid new VMState: Nonsense"),
        ("nonsense", 400, "expected"),
        ("", 400, "EOF"),
    ] {
        let (got, error) = error(program.ask("POST", "/vm/state", body));
        assert!(got == status && error.contains(message), "{body}: {got} {error}");
    }
    assert_eq!(program.ask("GET", "/nothing", "").0, 404);
    // Each request is logged on standard output, which is the console, before its reply.
    eventually("all requests are logged", || program.console().matches("[GIN] ").count() == 10);
    let console = program.console();
    assert!(console.contains("\x1b[97;41m 500 \x1b[0m|"), "{console}");
    assert!(console.contains("\x1b[97;46m POST    \x1b[0m \"/vm/state\"\n"), "{console}");
    let (status, _) = program.try_ask("POST", "/vm/state", "{\"state\":\"HardStop\"}");
    assert!([0, 202].contains(&status), "{status}");
    assert_eq!(program.ended(), Some(0));
    assert!(!program.socket().exists(), "the socket is removed");
}

/// The process of the real vfkit also exits before it replies.
#[test]
fn hard_stop_done_although_reply_breaks() {
    if !can_run() {
        return;
    }
    for fault in [
        VfkitFault::BreaksReply(BrokenReply::Half, VfkitCall::HardStop),
        VfkitFault::BreaksReply(BrokenReply::End, VfkitCall::HardStop),
        VfkitFault::BreaksReply(BrokenReply::Silence, VfkitCall::HardStop),
    ] {
        let faulty = FaultyStandIn::vfkit(&[fault]);
        let mut program = VfkitProcess::start(&faulty.program(), |dir| {
            let mut words = nano_guest(dir, Nano::default());
            words.extend(["--device", "virtio-serial,stdio"].map(str::to_owned));
            words
        });
        program.listens();
        let (status, _) = program.try_ask("POST", "/vm/state", "{\"state\":\"HardStop\"}");
        assert_eq!((status, program.ended()), (0, Some(0)), "{fault:?}");
    }
}

#[test]
fn terminal_settings_match_real_vfkit() {
    if !can_run() {
        return;
    }
    let mut program = VfkitProcess::nano(Nano::default(), &[]);
    program.listens();
    let settings = program.terminal();
    assert!(!settings.input_flags.contains(InputFlags::ICRNL));
    assert!(!settings.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO));
    assert!(settings.local_flags.contains(LocalFlags::ISIG), "Ctrl-C would be a byte");
    assert!(settings.input_flags.contains(InputFlags::IXON));
    assert!(settings.output_flags.contains(OutputFlags::OPOST));
}

#[test]
fn socket_stale_ends_vfkit() {
    let mut program = VfkitProcess::with(|dir| {
        drop(UnixListener::bind(dir.join("rest.sock")).unwrap());
        nano_guest(dir, Nano::default())
    });
    assert_eq!(program.ended(), Some(1));
    let error = program.error();
    assert!(error.contains("level=fatal") && error.contains("address already in use"), "{error}");
    assert!(program.socket().exists());
}

#[test]
fn emulator_death_has_its_own_status() {
    if !can_run() {
        return;
    }
    let mut program = VfkitProcess::nano(Nano::default(), &[]);
    program.listens();
    let emulator = nix::unistd::Pid::from_raw(program.child().cast_signed());
    nix::sys::signal::kill(emulator, Signal::SIGKILL).unwrap();
    assert_eq!(program.ended(), Some(i32::from(stand_in::EMULATOR_EXITED)));
}

#[test]
fn console_log_file_gets_output() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("console.log");
    let mut program = VfkitProcess::with(|at| {
        let mut words = nano_guest(at, Nano::default());
        words.extend(["--device".into(), format!("virtio-serial,logFilePath={}", log.display())]);
        words
    });
    let log_text = || fs::read(&log).unwrap_or_default();
    eventually("the guest is ready", || log_text().ends_with(nano::READY));
    program.signal(Signal::SIGTERM);
    assert_eq!(program.ended(), Some(0));
}

#[test]
fn vsock_sockets_carry_bytes_unchanged() {
    if host::find_program("vhost-device-vsock").is_none()
        || host::find_program("virtiofsd").is_none()
    {
        return skip("vhost-device-vsock or virtiofsd is not installed");
    }
    let Some(linux) = vm::linux_guest() else { return };
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let (to_guest, to_host) = (dir.path().join("to-guest"), dir.path().join("to-host"));
    let listener = UnixListener::bind(&to_host).unwrap();
    let mut program = VfkitProcess::with(|_| {
        let show = |path: &std::path::Path| path.display().to_string();
        [
            "--kernel".to_owned(),
            show(&linux.kernel),
            "--initrd".to_owned(),
            show(&linux.initrd),
            "--kernel-cmdline".to_owned(),
            "console=hvc0 quiet mitigations=off systemd.mount-extra=host:/host:virtiofs".to_owned(),
        ]
        .into_iter()
        .chain(
            [
                "virtio-serial,stdio".to_owned(),
                "virtio-fs,sharedDir=/,mountTag=host".to_owned(),
                format!("virtio-vsock,port=5000,socketURL={},connect", show(&to_guest)),
                format!("virtio-vsock,port=77,socketURL={},listen", show(&to_host)),
                format!("virtio-vsock,port=78,socketURL={}", show(&dir.path().join("missing"))),
            ]
            .into_iter()
            .flat_map(|device| ["--device".to_owned(), device]),
        )
        .collect()
    });
    program.wait_for("capsa login: ");
    program.write("root\n");
    program.wait_for("# ");
    let peer = format!("chroot /host {}", TestProgram::new("vsock-peer").path().display());
    program.write(&format!("({peer} listen 5000 >/dev/null 2>&1 &)\n"));
    program.write(&format!("{peer} connect 77 word; echo status $?\n"));
    let (mut stream, _) = listener.accept().unwrap();
    let mut word = String::new();
    BufReader::new(&stream).read_line(&mut word).unwrap();
    assert_eq!(word, "word\n");
    stream.write_all(b"host reply\n").unwrap();
    drop(stream);
    program.wait_for("host reply");
    program.wait_for("status 0");
    // No process listens on the host: the guest's connection is accepted and closed.
    program.write(&format!("{peer} connect 78 word 2>&1; echo status $?\n"));
    program.wait_for("status 1");

    let mut stream = UnixStream::connect(&to_guest).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent: Vec<u8> = (0..1u32 << 20).map(|n| (n / 251) as u8).collect();
    let mut back = vec![0; sent.len()];
    let mut writing = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| writing.write_all(&sent).unwrap());
        stream.read_exact(&mut back).unwrap();
    });
    assert!(back == sent, "the echo differs from the input");
    program.write("poweroff\n");
    assert_eq!(program.ended(), Some(0));
    // vfkit does not remove them.
    assert!(to_guest.exists() && to_host.exists());
}
