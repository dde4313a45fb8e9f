//! `capsa backends` and `capsa doctor` on a host without some helper.

mod common;

use std::process::Stdio;

use common::capsa;
use serde_json::Value;

/// Runs it as on a host without these helpers: exit code and standard output.
fn without(helpers: &[&str], words: &[&str]) -> (i32, String) {
    let mut command = capsa();
    command.args(words).stdin(Stdio::null());
    for helper in helpers {
        command.env(helper, "/no/such/helper");
    }
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// The cells of a row of the table.
fn row(table: &str, name: &str) -> Vec<String> {
    let row = table.lines().filter_map(|line| line.strip_prefix(name)).next_back().unwrap();
    row.split_whitespace().map(String::from).collect()
}

#[test]
fn missing_helper_marks_features_missing() {
    if !cfg!(target_os = "linux") {
        return capsa_testkit::skip("other backends come first elsewhere");
    }
    if !common::has_qemu() {
        return;
    }
    let helpers = ["CAPSA_VIRTIOFSD", "CAPSA_VHOST_DEVICE_VSOCK"];
    let (_, table) = without(&helpers, &["backends"]);
    // The columns are those of cloud-hypervisor, qemu and vfkit.
    assert_eq!(row(&table, "virtio-fs shares")[1], "missing", "{table}");
    assert_eq!(row(&table, "vsock")[1], "missing", "{table}");
    assert_eq!(row(&table, "raw disks")[1], "yes", "{table}");
    let lacking = "  no virtio-fs shares: virtiofsd was not found";
    let at = table
        .lines()
        .position(|line| line.starts_with(lacking))
        .expect("the missing feature is listed");
    assert!(table.lines().nth(at + 1).unwrap().starts_with("    hint: install "), "{table}");

    let (_, json) = without(&helpers, &["backends", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let missing = json["backends"][1]["missing_features"].as_array().unwrap();
    let features: Vec<&Value> = missing.iter().map(|it| &it["feature"]).collect();
    assert_eq!(features, ["virtio-fs", "vsock"]);
    assert!(missing.iter().all(|it| it["remedy"].as_str().unwrap().starts_with("install ")));

    let (code, text) = without(&helpers, &["doctor"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(text.matches("warning  qemu: no virtio-fs shares: ").count(), 1, "{text}");
    assert_eq!(text.matches("virtiofsd was not found").count(), 1, "reported once: {text}");
    assert!(text.contains("\n         hint: install virtiofsd"), "{text}");
}
