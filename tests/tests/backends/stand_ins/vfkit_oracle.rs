//! The stand-in reads command lines as vfkit does: `fixtures/vfkit_argv.jsonl` holds what the
//! parser of vfkit v0.6.4 itself, compiled for Linux, made of some, and what it refused in which
//! words.

use std::path::Path;
use std::{env, fs};

use capsa_stand_ins::vfkit::parse_command_line;
use capsa_testkit::{run_isolated, workspace};
use serde_json::{Value, json};

/// The files that the lines name, where they name them.
fn in_a_directory_with_images() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("t");
    fs::create_dir(&images).unwrap();
    fs::write(images.join("raw.img"), [0; 4096]).unwrap();
    fs::write(images.join("q.img"), b"QFI\xfb\0\0\0\x03").unwrap();
    fs::write(images.join("empty.img"), b"").unwrap();
    env::set_current_dir(dir.path()).unwrap();
    dir
}

/// What the oracle says, in the shape of [`parse_command_line`].
fn said(result: &Value) -> Value {
    let mut said = match result["ok"].as_bool() {
        Some(true) => {
            // The device's descriptor is the parser's own, and nobody sees it.
            json!({ "vm": result["vm"], "path": null })
        }
        _ => json!({ "stage": result["stage"], "error": result["error"] }),
    };
    if result["rest"]["Scheme"] == 1 {
        said["path"] = result["rest"]["Path"].clone();
    }
    if !result["options"].is_null() {
        said["options"] = result["options"].clone();
    }
    said
}

#[test]
fn argv_parsed_as_by_vfkit() {
    run_isolated!();
    let _dir = in_a_directory_with_images();
    let oracle = workspace::root().join(Path::new("tests/fixtures/vfkit_argv.jsonl"));
    let oracle = fs::read_to_string(oracle).expect("the oracle is committed");
    let mut different = Vec::new();
    let mut lines = 0;
    for line in oracle.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let argv: Vec<String> = serde_json::from_value(line["argv"].clone()).unwrap();
        let (ours, theirs) = (parse_command_line(&argv), said(&line["result"]));
        if ours != theirs {
            different.push(format!("{argv:?}\n  stand-in {ours}\n  vfkit    {theirs}"));
        }
        lines += 1;
    }
    assert_eq!(lines, 81);
    assert!(different.is_empty(), "{} of {lines}:\n{}", different.len(), different.join("\n"));
}
