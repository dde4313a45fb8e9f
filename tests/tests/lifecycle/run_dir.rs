//! Run directories that are rejected. The owner is a process of its own, because an environment variable
//! names the directory.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use capsa_testkit::programs::TestProgram;
use capsa_testkit::vm::NanoGuest;

#[test]
fn run_dir_too_long_is_rejected() {
    let Some(guest) = NanoGuest::new() else { return };
    let long = guest.dir().join("r".repeat(100));
    let owner = Command::new(TestProgram::new("owner"))
        .args([guest.kernel(), guest.dir(), Path::new("qemu")])
        .env("CAPSA_RUN_DIR", &long)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&owner.stderr);
    assert!(!owner.status.success());
    for part in ["invalid configuration", "run_dir", "bytes long; the limit", "CAPSA_RUN_DIR"] {
        assert!(output.contains(part), "no {part} in {output}");
    }
    assert!(!long.exists(), "the directory was created");
}

#[test]
fn run_dir_parent_missing_names_the_variable() {
    let Some(guest) = NanoGuest::new() else { return };
    let missing = guest.dir().join("missing");
    for (variable, value) in
        [("XDG_RUNTIME_DIR", missing.clone()), ("CAPSA_RUN_DIR", missing.join("run"))]
    {
        let owner = Command::new(TestProgram::new("owner"))
            .args([guest.kernel(), guest.dir(), Path::new("qemu")])
            .env_remove("CAPSA_RUN_DIR")
            .env(variable, value)
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&owner.stderr);
        assert!(!owner.status.success());
        let reason = format!("{} does not exist", missing.display());
        for part in ["invalid configuration", "run_dir", &reason, &format!("({variable})")] {
            assert!(output.contains(part), "no {part} in {output}");
        }
        assert!(!missing.exists(), "the directory was created");
    }
}

#[test]
fn run_dir_not_utf8_is_rejected() {
    let Some(guest) = NanoGuest::new() else { return };
    let owner = Command::new(TestProgram::new("owner"))
        .args([guest.kernel(), guest.dir(), Path::new("qemu")])
        .env("CAPSA_RUN_DIR", OsStr::from_bytes(b"/tmp/capsa-\xff"))
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&owner.stderr);
    assert!(!owner.status.success());
    for part in ["invalid configuration", "run_dir", "not UTF-8", "CAPSA_RUN_DIR"] {
        assert!(output.contains(part), "no {part} in {output}");
    }
}
