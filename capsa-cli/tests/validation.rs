//! Invalid configurations are rejected before anything is started, with hints, and `capsa config check`
//! reports the same errors as `capsa run`.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use capsa_testkit::nano::{self, Nano};
use common::{CapsaProcess, ask, capsa};

/// A directory with a kernel.
fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    nano::write_to(dir.path()).unwrap();
    dir
}

/// A valid config file.
const GOOD: &str = "[boot]\nkernel = \"nano.elf\"\n[network]\nmode = \"none\"\n\
                    [backend]\nname = \"qemu\"\naccel = \"emulation\"\n";

/// The exit code and standard error of `config check` for this file, which must be those of
/// `run --dry-run` apart from the first line and the order.
fn check_and_run(dir: &Path, text: &str) -> (i32, String) {
    let file = dir.join("vm.toml");
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let (checked, _, by_check) = ask(dir, &["config", "check", file]);
    let (ran, _, by_run) = ask(dir, &["run", "--config", file, "--dry-run"]);
    let sorted = |text: &str| {
        let mut lines: Vec<&str> = text.lines().skip(1).collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    assert_eq!((checked, sorted(&by_check)), (ran, sorted(&by_run)), "{text}");
    (checked, by_check)
}

#[test]
fn config_check_reports_same_errors_as_run() {
    if !common::has_qemu() {
        return;
    }
    let dir = directory();
    assert_eq!(check_and_run(dir.path(), GOOD).0, 0);
    for (more, place, words) in [
        ("[cmdline]\nextra = [\"quiet\", \"a b\"]\n", ":9:19: ", "cmdline: \"a b\": byte 0x20"),
        ("[cmdline]\noverride = \"a\\u0000\"\n", ":9:12: ", "not allowed"),
        ("[resources]\ncpus = 0\n", ":9:8: ", "cpus: invalid number 0: expected 1 or more"),
        ("[resources]\ntimeout = \"0s\"\n", ":9:11: ", "timeout: invalid time 0: "),
        ("[resources]\nmemory = \"1M\"\n", ":9:10: ", "memory: 1 MiB of memory is too little"),
        ("[resources]\nmemory = \"0M\"\n", ":9:10: ", "memory: invalid size 0: "),
        ("[disk]\npath = \"none.raw\"\n", ":9:8: ", "none.raw does not exist"),
        ("[[disks]]\npath = \"none.raw\"\n", ":9:8: ", "disks[0].path: "),
        ("[shares.w]\nhost = \"none\"\nguest = \"/w\"\n", ":9:8: ", "shares.w.host: "),
        ("[console]\nlog = \"nano.elf\"\n", ":9:7: ", "log: "),
        ("[console]\nlog = \"a\"\nrecord = \"a\"\n", ":10:10: ", "same file as the log"),
        ("[console]\nrecord = \"vm.toml\"\n", ":9:10: ", "same file as the config file"),
        ("[login]\nuser = \"root\\u000Ax\"\n", ":9:8: ", "a control character"),
        ("[[vsock]]\nport = 4294967295\nlisten = \"s\"\n", ":8:1: ", "VMADDR_PORT_ANY"),
        ("[[vsock]]\nport = 1\nlisten = \"nano.elf\"\n", ":8:1: ", "is not a socket"),
    ] {
        let (code, stderr) = check_and_run(dir.path(), &format!("{GOOD}{more}"));
        assert_eq!(code, 111, "{more}{stderr}");
        assert!(
            stderr.starts_with("capsa: invalid config file ")
                && stderr.contains(".toml: 1 error\n"),
            "{stderr}"
        );
        for part in [place, words, "\n    hint: "] {
            assert!(stderr.contains(part), "no {part:?} in {stderr}");
        }
    }
}

/// The mistakes of the file and the violations of the library in one go.
#[test]
fn run_reports_mistakes_and_violations_of_file() {
    if !common::has_qemu() {
        return;
    }
    let dir = directory();
    let text =
        format!("{GOOD}[resources]\ncpus = 0\nmemory = \"x\"\n[disk]\npath = \"none.raw\"\n");
    let (code, stderr) = check_and_run(dir.path(), &text);
    assert_eq!(code, 111);
    for part in [": 3 errors\n", ":9:8: cpus: ", ":10:10: memory: ", ":12:8: disk.path: "] {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
}

#[test]
fn config_errors_are_all_reported_in_file_order() {
    if !common::has_qemu() {
        return;
    }
    let dir = directory();
    let file = dir.path().join("vm.toml");
    let text = "[boot]\nkernel = \"none\"\ninitrd = \"nune\"\n[resources]\ncpus = 0\nmemry = \"1G\"\n\
                [disk]\npath = \"/no\"\n[backend]\nname = \"qemu\"\n[cmdline]\nextra = [\"a b\"]\n";
    fs::write(&file, text).unwrap();
    let (code, _, stderr) = ask(dir.path(), &["config", "check", file.to_str().unwrap()]);
    assert_eq!(code, 111);
    assert!(stderr.contains(": 6 errors\n"), "{stderr}");
    let lines = stderr.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(".toml:"));
    let lines: Vec<&str> = lines.map(|(_, rest)| rest.split_once(':').unwrap().0).collect();
    assert_eq!(lines, ["2", "3", "5", "6", "8", "12"], "{stderr}");
}

#[test]
fn flag_overrides_invalid_config_value() {
    if !common::has_qemu() {
        return;
    }
    let dir = directory();
    let file = dir.path().join("vm.toml");
    fs::write(&file, format!("{GOOD}[resources]\ncpus = 0\n")).unwrap();
    let run = ["run", "--dry-run", "--config", file.to_str().unwrap()];
    assert_eq!(ask(dir.path(), &[&run[..], &["--cpus", "1"]].concat()).0, 0);
    fs::write(&file, format!("{GOOD}[resources]\ncpus = 1\n")).unwrap();
    let (code, _, stderr) = ask(dir.path(), &[&run[..], &["--cpus", "0"]].concat());
    assert_eq!(code, 111);
    assert!(stderr.contains("\n  cpus: ") && !stderr.contains("vm.toml:"), "{stderr}");
}

#[test]
fn empty_config_file_lacks_kernel() {
    if !common::has_qemu() {
        return;
    }
    let dir = directory();
    let (code, stderr) = check_and_run(dir.path(), "");
    assert_eq!(code, 111);
    assert!(
        stderr.contains("kernel: required, but not set\n    hint: add --kernel FILE, or "),
        "{stderr}"
    );
}

#[test]
fn unreadable_config_files_are_rejected() {
    let dir = directory();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let huge = dir.path().join("huge");
    fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    let deep = dir.path().join("deep");
    fs::write(&deep, format!("a = {}{}\n", "[".repeat(5000), "]".repeat(5000))).unwrap();
    for (file, words) in [
        (fifo.as_path(), "it is a named pipe"),
        (dir.path(), "it is a directory"),
        (Path::new("/dev/zero"), "it is a device"),
        (&huge, "more than 1048576 bytes"),
        (&deep, "hint: no setting is nested deeper than a list of strings"),
    ] {
        let (code, _, stderr) = ask(dir.path(), &["config", "check", file.to_str().unwrap()]);
        assert_eq!(code, 111, "{stderr}");
        assert!(stderr.contains(words) && stderr.contains("\n    hint: "), "{stderr}");
    }
    // A hint quotes the value, shortened.
    fs::write(&deep, format!("a = {}\n", "b".repeat(5000))).unwrap();
    let (_, _, stderr) = ask(dir.path(), &["config", "check", deep.to_str().unwrap()]);
    assert!(
        stderr.len() < 1000 && stderr.contains("hint: write strings in quotes: a = \"bbb"),
        "{stderr}"
    );
}

#[test]
fn invalid_flags_are_rejected_before_any_write() {
    if !common::has_qemu() {
        return;
    }
    let dir = directory();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("disk"), [0; 4096]).unwrap();
    fs::write(at("empty"), "").unwrap();
    std::os::unix::fs::symlink("new", at("link")).unwrap();
    let before = fs::read(at("nano.elf")).unwrap();
    for (flags, want, words) in [
        (
            vec!["--log".into(), at("new"), "--record".into(), at("link")],
            111,
            "same file as the log",
        ),
        (vec!["--log".into(), at("nano.elf")], 111, "same file as the kernel"),
        (
            ["--log", &at("new"), "--network-pcap", &at("link")].map(String::from).to_vec(),
            111,
            "same file as the log",
        ),
        (
            vec!["--disk".into(), at("disk"), "--record".into(), at("disk")],
            111,
            "same file as disk 1",
        ),
        (vec!["--log".into(), String::new()], 2, "--log: the path is empty"),
        (vec!["--user".into(), "root\nx".into(), "--".into(), "id".into()], 2, "control character"),
        (vec!["--memory".into(), "1M".into()], 111, "hint: set memory to 128 MiB or more"),
        (vec!["--disk".into(), format!("{}:ro:rw", at("disk"))], 2, "repeats or conflicts"),
        (
            ["--password-file", &at("empty"), "--", "id"].map(String::from).to_vec(),
            111,
            "its first line is empty",
        ),
        (
            ["--password-file", &at(""), "--", "id"].map(String::from).to_vec(),
            111,
            "it is a directory",
        ),
    ] {
        for more in [&["--dry-run"][..], &[]] {
            let vm = ["run", "linux", "--network", "none", "--backend", "qemu"];
            let output = capsa()
                .args(vm)
                .args(["--accel", "emulation", "--kernel", &at("nano.elf")])
                .args(more)
                .args(&flags)
                .env("CAPSA_RUN_DIR", common::run_dir(dir.path()))
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(want), "{flags:?}: {stderr}");
            assert!(stderr.contains(words) && stderr.contains("hint: "), "{flags:?}: {stderr}");
        }
    }
    assert_eq!(fs::read(at("nano.elf")).unwrap(), before, "the kernel is unchanged");
    assert!(!dir.path().join("new").exists());
}

#[test]
fn disk_in_use_is_rejected_before_start() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.raw");
    fs::write(&disk, [0; 4096]).unwrap();
    let disk = disk.to_str().unwrap();
    let Some(mut first) = CapsaProcess::start(Nano::default(), &["--disk", disk]) else { return };
    first.wait_for(nano::READY);
    for (mode, how) in [("", ""), (":ro", " for writing"), (":ephemeral", " for writing")] {
        let disk = format!("{disk}{mode}");
        let mut second = CapsaProcess::start(Nano::default(), &["--disk", &disk]).unwrap();
        let (code, stderr) = second.wait_for_end();
        assert_eq!(code, 111, "{stderr}");
        let words = format!("has it open{how}\n    hint: stop the other VM");
        assert!(stderr.contains(&words) && !stderr.contains("qemu-system"), "{stderr}");
    }
    first.write(&[nano::POWER_OFF]);
    assert_eq!(first.wait_for_end().0, 0);
}

#[test]
fn start_failure_has_hint() {
    if !common::has_qemu() {
        return;
    }
    let dir = directory();
    let late = dir.path().join("late-qemu");
    let script = "#!/bin/sh\ncase \"$*\" in *help*|*-version*) exec qemu-system-x86_64 \"$@\";; esac\n\
                  echo 'Failed to get \"write\" lock' >&2; exit 1\n";
    fs::write(&late, script).unwrap();
    fs::set_permissions(&late, fs::Permissions::from_mode(0o755)).unwrap();
    let kernel = dir.path().join("nano.elf");
    let mut command = capsa();
    command.args([
        "run",
        "linux",
        "--backend",
        "qemu",
        "--accel",
        "emulation",
        "--network",
        "none",
    ]);
    command.arg("--kernel").arg(kernel).env("CAPSA_QEMU", &late).stdin(Stdio::null());
    let output = command.env("CAPSA_RUN_DIR", common::run_dir(dir.path())).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(113), "{stderr}");
    let (what, hint) = stderr.trim_end().rsplit_once('\n').unwrap();
    assert!(what.contains("capsa: start failed: "), "{stderr}");
    assert!(hint.starts_with("    hint: another VM uses the disk: "), "{stderr}");
}

#[test]
fn doctor_and_run_report_same_run_dir_errors() {
    if !common::has_qemu() {
        return;
    }
    let dir = directory();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (open, file, good) = (at("open"), at("nano.elf"), at("good"));
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let long = at(&"l".repeat(110));
    for (variable, value, why) in [
        ("XDG_RUNTIME_DIR", "/proc/nope", "/proc/nope"),
        ("CAPSA_RUN_DIR", &file, "is not a directory"),
        ("CAPSA_RUN_DIR", &open, "can be written by other users"),
    ] {
        let mut results = Vec::new();
        for words in [&["doctor"][..], &["run", "linux", "--kernel", &file, "--network", "none"]] {
            let mut command = capsa();
            command.args(words).env_remove("CAPSA_RUN_DIR").env(variable, value);
            let output = command.stdin(Stdio::null()).output().unwrap();
            results.push((output.status.code().unwrap(), output.stdout, output.stderr));
        }
        let [(doctor, findings, _), (run, _, refusal)] = &results[..] else { unreachable!() };
        let findings = String::from_utf8_lossy(findings);
        assert_eq!(*doctor, 112, "{findings}");
        let about = findings.lines().find(|line| line.starts_with("problem  run directories: "));
        assert!(about.is_some_and(|about| about.contains(why)), "{findings}");
        assert!(findings.contains("hint: set CAPSA_RUN_DIR to "), "{findings}");
        let refusal = String::from_utf8_lossy(refusal);
        assert_eq!(*run, 111, "{refusal}");
        assert!(refusal.contains(why) && refusal.contains("hint: set CAPSA_RUN_DIR"), "{refusal}");
    }
    // `run` rejects a long path only for a VM that needs a socket there.
    let output = capsa().arg("doctor").env("CAPSA_RUN_DIR", &long).output().unwrap();
    let findings = String::from_utf8(output.stdout).unwrap();
    assert!(findings.contains("cannot make a socket in "), "{findings}");
    let (code, found, _) = {
        let output = capsa().arg("doctor").env("CAPSA_RUN_DIR", &good).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), output.stderr)
    };
    assert_eq!(code, Some(0), "{found}");
    assert_eq!(fs::read_dir(&good).unwrap().count(), 1, "doctor leaves only a lock");
}

#[test]
fn missing_tmpdir_rejects_ephemeral_disk() {
    if !common::has_qemu() {
        return;
    }
    let dir = directory();
    let disk = dir.path().join("disk.raw");
    fs::write(&disk, [0; 4096]).unwrap();
    let kernel = dir.path().join("nano.elf");
    let with = |words: &[&str]| {
        let mut command = capsa();
        command.args(words).env("TMPDIR", "/no/such/place");
        command.env("CAPSA_RUN_DIR", common::run_dir(dir.path())).stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let disk = format!("{}:ephemeral", disk.display());
    let vm = ["run", "linux", "--backend", "qemu", "--accel", "emulation", "--network", "none"];
    let files = ["--kernel", kernel.to_str().unwrap(), "--disk", &disk];
    let (code, _, stderr) = with(&[&vm[..], &files].concat());
    assert_eq!(code, 111, "{stderr}");
    assert!(
        stderr.contains("--disk 1: cannot make an overlay in /no/such/place (TMPDIR): "),
        "{stderr}"
    );
    assert!(stderr.contains("hint: set TMPDIR to "), "{stderr}");
    // VMs without an ephemeral disk do not need it.
    let (code, stdout, _) = with(&["doctor"]);
    assert_eq!(code, 0, "{stdout}");
    assert!(
        stdout.contains("warning  ephemeral disks: cannot make an overlay in /no/such"),
        "{stdout}"
    );
}
