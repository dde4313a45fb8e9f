//! Names of VMs: unique from the start on, listed while the VM starts, and lost with the run directory.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use capsa_testkit::nano::{self, Nano};
use common::{CapsaProcess, ask, capsa, nano_arguments, run_dir};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn concurrent_runs_share_no_name() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let arguments = nano_arguments(dir.path(), Nano::default());
    let log = dir.path().join("log");
    let start = |n: usize| {
        let mut command = capsa();
        command.args(&arguments).args(["--name", "one", "--quiet", "--log"]);
        command.arg(dir.path().join(format!("log{n}"))).env("CAPSA_RUN_DIR", run_dir(dir.path()));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let mut children: Vec<Child> = (0..6).map(start).collect();
    // All but one exit with an error.
    let end = Instant::now() + Duration::from_secs(60);
    let mut left: Vec<usize> = (0..children.len()).collect();
    while left.len() > 1 {
        assert!(Instant::now() < end, "{} runs have the name", left.len());
        left.retain(|n| children[*n].try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(5));
    }
    let winner = left[0];
    let owner = children[winner].id();
    for (n, child) in children.drain(..).enumerate() {
        if n == winner {
            let (_, listed, _) = ask(dir.path(), &["ps"]);
            assert_eq!(listed.matches("one ").count(), 1, "{listed}");
            kill(Pid::from_raw(owner.cast_signed()), Signal::SIGTERM).unwrap();
            assert_eq!(child.wait_with_output().unwrap().status.code(), Some(143));
            continue;
        }
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(111), "{stderr}");
        let words = format!("process {owner} runs a VM with the name \"one\"\n    hint: ");
        assert!(stderr.contains(&words), "{stderr}");
        assert!(stderr.contains("capsa stop one") && stderr.contains("capsa ps"), "{stderr}");
        let log = log.with_file_name(format!("log{n}"));
        assert!(!log.exists(), "a rejected run truncates no log");
    }
}

#[test]
fn starting_vm_is_listed_and_can_be_stopped() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // It answers probes, and never starts a VM.
    let slow = dir.path().join("slow-qemu");
    let script = "#!/bin/sh\ncase \"$*\" in *help*|*-version*) exec qemu-system-x86_64 \"$@\";; esac\n\
                  exec sleep 60\n";
    fs::write(&slow, script).unwrap();
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = capsa()
        .args(nano_arguments(dir.path(), Nano::default()))
        .args(["--name", "slow", "--quiet"])
        .env("CAPSA_RUN_DIR", run_dir(dir.path()))
        .env("CAPSA_QEMU", &slow)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let row = loop {
        let (_, listed, _) = ask(dir.path(), &["ps"]);
        if let Some(row) = listed.lines().find(|row| row.starts_with("slow ")) {
            break row.to_owned();
        }
        assert!(Instant::now() < end, "{listed}");
    };
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!((words[2], words[3]), ("qemu", child.id().to_string().as_str()));
    let (code, stdout, _) = ask(dir.path(), &["stop", "slow"]);
    assert_eq!(code, 0, "{stdout}");
    assert_eq!(child.wait().unwrap().code(), Some(137));
}

#[test]
fn removed_run_dir_warns_and_vm_continues() {
    let Some(mut capsa) = CapsaProcess::start(Nano::default(), &["--name", "lost"]) else { return };
    capsa.wait_for(nano::READY);
    capsa.wait_until_listed("lost");
    fs::remove_dir_all(run_dir(capsa.dir())).unwrap();
    // The run checks at most once a second, and only when something happens.
    let end = Instant::now() + Duration::from_secs(60);
    while !capsa.stderr().contains("was removed") {
        assert!(Instant::now() < end, "no warning");
        capsa.write(b".");
        thread::sleep(Duration::from_millis(50));
    }
    capsa.write(b"still here");
    capsa.wait_for(b"still here");
    capsa.signal(Signal::SIGTERM);
    let pid = capsa.pid();
    let (code, stderr) = capsa.wait_for_end();
    assert!(
        stderr.contains("was removed: `capsa ps`, `stop` and `console` cannot find"),
        "{stderr}"
    );
    assert!(stderr.contains(&format!("stop it with `kill {pid}`")), "{stderr}");
    assert_eq!(stderr.matches("was removed").count(), 1, "{stderr}");
    assert_eq!(code, 143, "{stderr}");
}
