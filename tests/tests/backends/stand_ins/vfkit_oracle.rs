//! The stand-in parses command lines as vfkit does: `fixtures/vfkit_argv.jsonl` has the results and
//! error texts of the parser of vfkit v0.6.4, compiled for Linux.

use std::path::Path;
use std::{env, fs};

use capsa_stand_ins::vfkit::parse_command_line;
use capsa_testkit::{run_isolated, workspace};
use serde_json::{Value, json};

/// Creates the files that the command lines name.
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

/// The result of vfkit's parser, in the shape of [`parse_command_line`].
fn output(result: &Value) -> Value {
    let mut output = match result["ok"].as_bool() {
        Some(true) => {
            // The descriptor of the device is private to the parser.
            json!({ "vm": result["vm"], "path": null })
        }
        _ => json!({ "stage": result["stage"], "error": result["error"] }),
    };
    if result["rest"]["Scheme"] == 1 {
        output["path"] = result["rest"]["Path"].clone();
    }
    if !result["options"].is_null() {
        output["options"] = result["options"].clone();
    }
    output
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
        let (ours, theirs) = (parse_command_line(&argv), output(&line["result"]));
        if ours != theirs {
            different.push(format!("{argv:?}\n  stand-in {ours}\n  vfkit    {theirs}"));
        }
        lines += 1;
    }
    assert_eq!(lines, 81);
    assert!(different.is_empty(), "{} of {lines}:\n{}", different.len(), different.join("\n"));
}
