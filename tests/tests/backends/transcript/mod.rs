//! Responses recorded from the real cloud-hypervisor. The stand-in is compared with the recording
//! everywhere, and the real cloud-hypervisor where it is installed.
//!
//! With `CAPSA_BLESS=1` and a real one (`CAPSA_CLOUD_HYPERVISOR` or `PATH`) the test replaces the recording
//! `tests/fixtures/cloud_hypervisor.json`.

mod driver;
mod script;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use capsa_stand_ins::FaultyStandIn;
use capsa_stand_ins::cloud_hypervisor::{ChvFault, VERSION};
use capsa_testkit::{command, host, skip, workspace};
use serde_json::{Value, json};

fn fixture() -> PathBuf {
    workspace::root().join("tests/fixtures/cloud_hypervisor.json")
}

fn recorded() -> Value {
    let text = fs::read_to_string(fixture()).expect("the recording is committed");
    serde_json::from_str(&text).expect("the recording is JSON")
}

fn version(program: &Path) -> String {
    let output = command::text(Command::new(program).arg("--version")).unwrap();
    output.lines().next().unwrap_or_default().to_owned()
}

/// Runs the whole script against a program.
fn record(program: &Path) -> Value {
    json!({
        "version": version(program),
        "command_lines": script::command_lines(program),
        "sessions": script::sessions(program),
    })
}

/// The real program; `None`, and the test counts as skipped, where it or KVM is missing.
fn real() -> Option<PathBuf> {
    let named = std::env::var_os("CAPSA_CLOUD_HYPERVISOR").map(PathBuf::from);
    let Some(program) = named.or_else(|| host::find_program("cloud-hypervisor")) else {
        skip("no cloud-hypervisor in PATH or CAPSA_CLOUD_HYPERVISOR");
        return None;
    };
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        skip("/dev/kvm cannot be opened");
        return None;
    }
    Some(program)
}

/// Fails with a list of the exchanges that differ.
fn assert_same(theirs: &Value, recording: &Value) {
    let mut different = Vec::new();
    compare(theirs, recording, "", &mut different);
    assert!(different.is_empty(), "not as recorded:\n{}", different.join("\n"));
}

fn compare(theirs: &Value, recording: &Value, at: &str, out: &mut Vec<String>) {
    match (theirs, recording) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            for (key, a) in a {
                compare(a, &b[key], &format!("{at}.{key}"), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (n, (a, b)) in a.iter().zip(b).enumerate() {
                let name = b["request"].as_str().or(b["name"].as_str()).unwrap_or_default();
                compare(a, b, &format!("{at}[{n} {name}]"), out);
            }
        }
        (a, b) if a == b => {}
        (a, b) => out.push(format!("{at}\n  found    {a}\n  recorded {b}")),
    }
}

/// What is the same in every version: the requests, their status codes, the exit statuses, the files
/// that are left, and the events. Texts and the fields of `vm.info` change with versions.
fn essence(recording: &Value) -> Value {
    let all = |key: &str, of: &Value, essence: fn(&Value) -> Value| -> Value {
        of[key].as_array().into_iter().flatten().map(essence).collect()
    };
    let exchange = |it: &Value| json!({ "request": it["request"], "status": it["status"] });
    let mut sessions = recording["sessions"].clone();
    for session in sessions.as_array_mut().into_iter().flatten() {
        session["exchanges"] = all("exchanges", session, exchange);
    }
    json!({ "command_lines": recording["command_lines"], "sessions": sessions })
}

#[test]
fn transcript_stand_in_matches_recording() {
    if host::find_program("qemu-system-x86_64").is_none() {
        return skip("qemu-system-x86_64 is not installed");
    }
    // The recording shows that the real one accepts unknown fields.
    let lenient = FaultyStandIn::cloud_hypervisor(&[ChvFault::Lenient]);
    let mut theirs = record(&lenient.program());
    assert_eq!(theirs["version"], format!("cloud-hypervisor {}", VERSION));
    let recording = recorded();
    theirs["version"] = recording["version"].clone();
    assert_same(&theirs, &recording);
}

#[test]
fn transcript_real_one_matches_recording() {
    let Some(program) = real() else { return };
    let theirs = record(&program);
    if std::env::var_os("CAPSA_BLESS").as_deref() == Some(OsStr::new("1")) {
        let text = serde_json::to_string_pretty(&theirs).unwrap();
        fs::write(fixture(), format!("{text}\n")).unwrap();
    }
    let recording = recorded();
    if theirs["version"] == recording["version"] {
        assert_same(&theirs, &recording);
    } else {
        assert_same(&essence(&theirs), &essence(&recording));
    }
}

#[test]
fn transcript_difference_names_path() {
    let recording = json!({ "sessions": [{ "name": "life", "exit": 0 }] });
    let theirs = json!({ "sessions": [{ "name": "life", "exit": 1 }] });
    let mut different = Vec::new();
    compare(&theirs, &recording, "", &mut different);
    assert_eq!(different, [".sessions[0 life].exit\n  found    1\n  recorded 0"]);
    compare(&recording, &recording, "", &mut different);
    assert_eq!(different.len(), 1);
}
