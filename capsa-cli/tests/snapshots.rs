//! Snapshots of the output of all commands: help, errors, plans, JSON. `CAPSA_BLESS=1` writes the
//! current output; the diff shows what changes for users.
//!
//! `tests/snapshots/cli.txt` has, for each command line: `$ capsa …`, standard output, standard error
//! with each line after `! `, and `[exit N]`. All output in it is the same on every host.

mod common;

use std::fs;
use std::path::Path;

use capsa_testkit::{nano, skip};
use serde_json::Value;

const MANUAL: &str = include_str!("../../capsa/src/manual/cli.md");

/// The output of a command line. The test's directory is replaced by `DIR`, generated names by `ID`.
fn output(dir: &Path, command: &str) -> String {
    let line = command.replace("DIR", dir.to_str().unwrap());
    let words = shell_words::split(&line).unwrap();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (code, stdout, stderr) = common::ask(dir, &words);
    let mut text = format!("$ capsa {command}\n");
    for line in stdout.lines() {
        text.push_str(&format!("{line}\n"));
    }
    for line in stderr.lines() {
        text.push_str(&format!("! {line}\n"));
    }
    text.push_str(&format!("[exit {code}]\n"));
    let text = text.replace(dir.to_str().unwrap(), "DIR");
    let mut out = String::new();
    let mut parts = text.split("DIR/run/");
    out.push_str(parts.next().unwrap());
    for part in parts {
        let id = part.chars().take_while(char::is_ascii_alphanumeric).count();
        out.push_str(&format!("DIR/run/ID{}", &part[id..]));
    }
    out
}

fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    nano::write_to(dir.path()).unwrap();
    fs::write(dir.path().join("disk.raw"), [0; 512]).unwrap();
    let good = "[boot]\nkernel = \"nano.elf\"\ninitrd = \"nano.elf\"\n[guest]\non-reboot = \"restart\"\n[backend]\n\
                name = \"vfkit\"\n[network]\nmode = \"none\"\n";
    fs::write(dir.path().join("good.toml"), good).unwrap();
    fs::write(dir.path().join("bad.toml"), "[boot]\nkernal = 7\n\n[nets]\n").unwrap();
    fs::write(dir.path().join("latin1.toml"), b"[guest]\nname = \"\xfcber\"\n").unwrap();
    dir
}

#[test]
fn command_output_matches_the_snapshot() {
    // On other systems other backends are preferred; without any, the VM is not checked.
    if !cfg!(target_os = "linux") {
        return skip("the snapshot was made on Linux");
    }
    if !common::has_qemu() {
        return;
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/cli.txt");
    let before = fs::read_to_string(path).unwrap();
    let dir = directory();
    let commands = before.lines().filter_map(|line| line.strip_prefix("$ capsa "));
    let now: Vec<String> = commands.map(|command| output(dir.path(), command)).collect();
    assert!(now.len() >= 60, "{} commands", now.len());
    if std::env::var_os("CAPSA_BLESS").is_some() {
        fs::write(path, now.join("\n")).unwrap();
        return;
    }
    for (now, before) in now.iter().zip(before.split("\n$ capsa ")) {
        let now = now.strip_prefix("$ capsa ").unwrap().trim_end();
        let before = before.strip_prefix("$ capsa ").unwrap_or(before).trim_end();
        assert!(now == before, "{path} differs; see CAPSA_BLESS\n{now}\n--- was\n{before}");
    }
}

#[test]
fn messages_have_no_debug_formatting() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/cli.txt"));
    for line in text.unwrap().lines().filter(|line| line.starts_with("! ")) {
        for syntax in ["Some(", "None", "Err(", "Ok(", "{ ", "panicked", "unwrap", "Os {", "::"] {
            assert!(!line.contains(syntax), "{line}");
        }
    }
}

/// The keys of an object and of the objects in its lists, down to `depth`.
fn keys(value: &Value, depth: u32, found: &mut Vec<String>) {
    match value {
        Value::Object(object) if depth > 0 => {
            for (key, value) in object {
                found.push(key.clone());
                keys(value, depth - 1, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| keys(value, depth, found)),
        _ => {}
    }
}

#[test]
fn json_kinds_and_keys_are_in_the_manual() {
    let dir = directory();
    let plan = "run --config DIR/good.toml --dry-run --json";
    for (kind, command, depth) in [
        ("ps", "ps --json", 2),
        ("gc", "gc --json", 2),
        ("backends", "backends --json", 2),
        ("doctor", "doctor --json", 2),
        ("config", "config check DIR/good.toml --json", 2),
        ("version", "version --json", 2),
        ("plan", plan, 1),
        ("error", "config check DIR/bad.toml --json", 2),
        ("error", "run --json", 2),
    ] {
        let command = command.replace("DIR", dir.path().to_str().unwrap());
        let (_, stdout, stderr) = common::ask(dir.path(), &command.split(' ').collect::<Vec<_>>());
        let text = if kind == "error" { stderr } else { stdout };
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{command} {e}"));
        assert_eq!((&value["schema"], &value["kind"]), (&1.into(), &kind.into()), "{command}");
        let row = MANUAL.lines().find(|line| line.starts_with(&format!("| `{kind}` |"))).unwrap();
        let mut found = Vec::new();
        keys(&value, depth, &mut found);
        for key in found {
            let is_known = ["schema", "kind"].contains(&key.as_str())
                || row.contains(&format!("`{key}`"))
                || row.contains('…');
            assert!(is_known, "{key} of {kind} is not in the manual");
        }
    }
}

#[test]
fn bash_completes_commands_flags_and_files() {
    if !common::has_bash() {
        return;
    }
    let dir = directory();
    for (words, want) in [
        (&["capsa", "con"][..], &["console", "config"][..]),
        (&["capsa", "run", "--net"], &["--network", "--network-pcap", "--network-log"]),
        (&["capsa", "run", "--network", "n"], &["none", "nat"]),
        (&["capsa", "run", "--kernel", "na"], &["nano.elf"]),
        (&["capsa", "run", "li"], &["linux"]),
        (&["capsa", "config", "ch"], &["check"]),
        (&["capsa", "config", "check", "go"], &["good.toml"]),
        (&["capsa", "completions", ""], &["--help", "bash", "zsh", "fish"]),
        (&["capsa", "run", "--cpus", ""], &[]),
    ] {
        assert_eq!(common::completed(dir.path(), words), want, "{words:?}");
    }
}

#[test]
fn flag_values_never_panic() {
    use std::os::unix::ffi::OsStrExt;
    let dir = directory();
    let (_, help, _) = common::ask(dir.path(), &["help", "run"]);
    let words = help.split_whitespace().map(|word| word.trim_end_matches(','));
    let flags: std::collections::BTreeSet<&str> =
        words.filter(|word| word.starts_with("--") && word.len() > 2).collect();
    assert!(flags.len() > 20, "{flags:?}");
    let long = "9".repeat(5000);
    for flag in flags {
        for value in [&b""[..], b"\xff\xfe", b":", b"::::", b"--", b"\x1b[2J", long.as_bytes()] {
            let output = common::capsa()
                .args(["run", "linux", "--kernel"])
                .arg(dir.path().join("nano.elf"))
                .args(["--dry-run", "--backend=vfkit", flag])
                .arg(std::ffi::OsStr::from_bytes(value))
                .stdin(std::process::Stdio::null())
                .output()
                .unwrap();
            let code = output.status.code().unwrap_or_else(|| panic!("{flag} {value:?}"));
            assert!([0, 2, 111, 112].contains(&code), "{flag} {value:?}: {code}");
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert!(!stderr.contains("panicked") && !stderr.contains('\x1b'), "{flag}: {stderr}");
            assert_eq!(stderr.is_empty(), code == 0, "{flag} {value:?}: {stderr}");
        }
    }
}
