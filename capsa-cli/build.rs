//! Links the unwinder into the release build of the command, where this is Linux with glibc.
//!
//! A program in Rust otherwise loads libgcc_s.so at every start, for panics alone: a fifth of the time
//! that `true` takes from beginning to end, and the most there is to save of a command's start. Where
//! the compiler has no libgcc_eh.a, or builds for another machine, nothing is changed.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|is| is == value);
    let is_native = env::var("HOST").ok() == env::var("TARGET").ok();
    if !is_native
        || !is("PROFILE", "release")
        || !is("CARGO_CFG_TARGET_OS", "linux")
        || !is("CARGO_CFG_TARGET_ENV", "gnu")
    {
        return;
    }
    let Ok(said) = Command::new("cc").arg("-print-file-name=libgcc_eh.a").output() else { return };
    let library = String::from_utf8_lossy(&said.stdout);
    // A bare name is one that it did not find.
    if let Some(folder) = Path::new(library.trim()).parent().filter(|folder| folder.is_absolute()) {
        println!("cargo::rustc-link-search=native={}", folder.display());
        println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
    }
}
