//! `--log-level` and `CAPSA_LOG`: events of the library on standard error.

mod common;

use std::process::Stdio;

use capsa_testkit::nano::{self, Nano};
use common::{CapsaProcess, ask, capsa, run_dir};
use serde_json::Value;

/// The standard error of `capsa doctor`, with this value of `CAPSA_LOG`.
fn doctor(variable: Option<&str>, flags: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut command = capsa();
    command.arg("doctor").args(flags).env("CAPSA_RUN_DIR", run_dir(dir.path()));
    command.env_remove("CAPSA_LOG").envs(variable.map(|value| ("CAPSA_LOG", value)));
    let output = command.stdin(Stdio::null()).output().unwrap();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn log_level_debug_prints_probes() {
    for stderr in [doctor(None, &["--log-level", "debug"]), doctor(Some("debug"), &[])] {
        assert!(stderr.lines().count() > 1, "{stderr}");
        assert!(stderr.lines().all(|line| line.contains(" DEBUG capsa_io::probe: ")), "{stderr}");
    }
}

#[test]
fn log_level_default_prints_nothing() {
    assert_eq!(doctor(None, &[]), "");
    assert_eq!(doctor(None, &["--log-level", "off"]), "");
    assert_eq!(doctor(Some(""), &[]), "");
    // The flag overrides the variable.
    assert_eq!(doctor(Some("trace"), &["--log-level", "error"]), "");
}

#[test]
fn log_variable_with_unknown_level_is_an_error() {
    let stderr = doctor(Some("loud"), &[]);
    let want = "capsa: CAPSA_LOG: invalid value \"loud\": expected off, error, ";
    assert!(stderr.starts_with(want), "{stderr}");
    assert!(stderr.contains("hint: unset CAPSA_LOG, or set it to e.g. debug\n"), "{stderr}");
    // Commands that print no log ignore it.
    let (code, ..) = ask(std::path::Path::new("/nonexistent"), &["version"]);
    assert_eq!(code, 0);
}

#[test]
fn log_of_a_run_has_one_line_per_event() {
    let Some(mut run) = CapsaProcess::start(Nano::default(), &["--log-level", "trace"]) else {
        return;
    };
    run.wait_for(nano::READY);
    run.write(&[nano::POWER_OFF]);
    let (code, stderr) = run.wait_for_end();
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains(" INFO vm{id="), "{stderr}");
    assert!(stderr.contains("capsa_io::vm_io"), "{stderr}");
    assert!(!stderr.chars().any(|c| c.is_control() && c != '\n'), "{stderr:?}");
    for line in stderr.lines() {
        let is_event = ["ERROR", " WARN", " INFO", "DEBUG", "TRACE"].iter().any(|level| {
            line.split_once('Z')
                .is_some_and(|(_, rest)| rest.trim_start().starts_with(level.trim()))
        });
        assert!(is_event || line.starts_with("capsa: "), "{line}");
    }
}

#[test]
fn log_with_json_progress_is_json() {
    let flags = ["--log-level", "debug", "--progress", "json"];
    let Some(mut run) = CapsaProcess::start(Nano::default(), &flags) else { return };
    run.wait_for(nano::READY);
    run.write(&[nano::POWER_OFF]);
    let (code, stderr) = run.wait_for_end();
    assert_eq!(code, 0, "{stderr}");
    let lines: Vec<Value> =
        stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let logs: Vec<&Value> = lines.iter().filter(|line| line["event"] == "log").collect();
    assert!(logs.len() > 2 && logs.len() < lines.len(), "{stderr}");
    for line in logs {
        assert_eq!((&line["kind"], &line["schema"]), (&"progress".into(), &1.into()), "{line}");
        assert!(line["level"].is_string() && line["seconds"].is_f64(), "{line}");
        assert!(line["target"].as_str().unwrap().starts_with("capsa"), "{line}");
        assert!(line["text"].is_string(), "{line}");
    }
}
