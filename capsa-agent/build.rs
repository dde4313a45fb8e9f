//! Compiles the program in `guest/` to `$OUT_DIR/agent`, and writes `$OUT_DIR/built.rs`: the program, or why there
//! is none.
//!
//! If the compiler lacks the target, the build goes on without the program, and the library returns the reason
//! where the program is needed. A program that does not compile is an error.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The variable that names a ready program.
const READY: &str = "CAPSA_AGENT";

fn main() {
    println!("cargo::rerun-if-env-changed={READY}");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=guest");
    println!("cargo::rerun-if-changed=guest/protocol");
    let program = PathBuf::from(variable("OUT_DIR")).join("agent");
    let made = match env::var_os(READY).filter(|path| !path.is_empty()) {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", path.display());
            fs::copy(&path, &program)
                .unwrap_or_else(|error| panic!("{READY}={}: {error}", path.display()));
            Ok(())
        }
        None => compile(&program),
    };
    let built = match made {
        Ok(()) => format!("Ok(include_bytes!({program:?}))"),
        Err(reason) => format!("Err({reason:?})"),
    };
    let file = program.with_file_name("built.rs");
    fs::write(&file, built).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// Compiles the program, or returns why it cannot be compiled here.
fn compile(program: &Path) -> Result<(), String> {
    let architecture = variable("CARGO_CFG_TARGET_ARCH");
    if !["x86_64", "aarch64"].contains(&architecture.as_str()) {
        return Err(format!("no agent exists for {architecture}; set {READY} to a program"));
    }
    let host = variable("HOST");
    let is_native = host.starts_with(&format!("{architecture}-")) && host.contains("-linux-");
    let mut rustc = Command::new(variable("RUSTC"));
    if !is_native {
        let target = installed_target(&architecture)?;
        // The linker of the host makes no programs for that target.
        rustc.args(["--target", &target, "-C", "linker=rust-lld", "-C", "linker-flavor=ld.lld"]);
    } else {
        rustc.args(["--target", &host]);
        rustc.args(["-C", "link-arg=-nostdlib", "-C", "link-arg=-nostartfiles"]);
    }
    rustc.args(["--edition", "2024", "--crate-name", "capsa_agent_guest", "--crate-type", "bin"]);
    // Static, at a fixed address: nothing relocates it.
    for option in [
        "panic=abort",
        "opt-level=s",
        "lto",
        "codegen-units=1",
        "strip=symbols",
        "relocation-model=static",
        "target-feature=+crt-static",
        "link-arg=-static",
    ] {
        rustc.args(["-C", option]);
    }
    rustc.arg("-o").arg(program).arg("guest/main.rs");
    let output = rustc.output().unwrap_or_else(|error| panic!("cannot run {rustc:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the agent does not compile: {rustc:?}\n{errors}");
    Ok(())
}

/// A target of Linux on this architecture whose `core` is installed.
fn installed_target(architecture: &str) -> Result<String, String> {
    let mut rustc = Command::new(variable("RUSTC"));
    let output = rustc.args(["--print", "sysroot"]).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {rustc:?}: {error}"));
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let targets = ["musl", "gnu"].map(|library| format!("{architecture}-unknown-linux-{library}"));
    let is_installed =
        |target: &&String| sysroot.join("lib/rustlib").join(target).join("lib").exists();
    let reason = || {
        let [target, _] = &targets;
        format!(
            "the compiler that built Capsa has no target {target}; build Capsa again after \
             `rustup target add {target}`, or with {READY} set to the agent's program"
        )
    };
    targets.iter().find(is_installed).cloned().ok_or_else(reason)
}
