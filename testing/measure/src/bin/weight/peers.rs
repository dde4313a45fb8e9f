//! What other crates that run VMs add to a program: the number of packages of a program that depends on
//! one of them, and the build time.
//!
//! Two of them download a runtime during the build. The measurement skips the download, because its time
//! depends on the network. boxlite needs `protoc` (`protobuf-compiler`).
//!
//! The cost of idle VMs is not measured: each crate needs its own images, hypervisor or KVM. If a crate
//! does not build, the table has the reason.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use capsa_fixtures::command;
use capsa_fixtures::task::Outcome;

use super::timed;

/// Crates from the registry, in the newest version that this compiler supports: the name, the dependency
/// in Cargo.toml, and a note.
const PEERS: &[(&str, &str, &str)] = &[
    ("vm-ch", ANY, ""),
    ("cloud-hypervisor-client", ANY, ""),
    ("vm-rs", ANY, ""),
    ("boxlite", ANY, ", without its prebuilt runtime"),
    ("microsandbox", MICROSANDBOX, ", without its prebuilt runtime"),
];
const ANY: &str = "\"*\"";
const MICROSANDBOX: &str = "{ version = \"*\", default-features = false, features = [
    \"cloud\", \"keyring\", \"local\", \"net\"] }";

/// The time limit of a build in seconds.
const LIMIT: &str = "1200";

/// Prints the rows of the crates.
pub(crate) fn run() -> Outcome {
    for (name, dependency, note) in PEERS {
        let program = tempfile::tempdir()?;
        let row = measure(program.path(), name, dependency, note).unwrap_or_else(|why| {
            format!("| {name} | – | {} |", why.to_string().replace('|', "/"))
        });
        println!("{row} – | – | – |");
    }
    Ok(())
}

fn measure(
    program: &Path,
    name: &str,
    dependency: &str,
    note: &str,
) -> Result<String, Box<dyn std::error::Error>> {
    let manifest = format!(
        "[package]\nname = \"weighed\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
         [dependencies]\n{name} = {dependency}\n"
    );
    fs::write(program.join("Cargo.toml"), manifest)?;
    fs::create_dir(program.join("src"))?;
    fs::write(program.join("src/lib.rs"), "")?;
    let cargo = |arguments: &[&str]| {
        let mut cargo = Command::new("timeout");
        cargo.arg(LIMIT).arg(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(arguments).current_dir(program).env_remove("CARGO_TARGET_DIR");
        // Disables the downloads of boxlite's build.
        cargo.env("BOXLITE_DEPS_STUB", "1");
        cargo
    };
    let tree = ["tree", "--edges", "normal", "--prefix", "none", "--format", "{p}"];
    let listing = command::text(&mut cargo(&tree))?;
    let packages: BTreeSet<_> = listing.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    let version = packages.iter().find_map(|it| it.strip_prefix(name)?.strip_prefix(' '));
    command::output(&mut cargo(&["fetch"]))?;
    let built = match timed(&mut cargo(&["build", "--quiet"])) {
        Ok(took) => took,
        Err(error) => format!("does not build: {error}").replace('|', "/"),
    };
    // Without the program itself.
    let count = packages.len() - 1;
    Ok(format!("| {name} {}{note} | {count} | {built} |", version.unwrap_or_default()))
}
