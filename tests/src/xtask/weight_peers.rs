//! What others cost that run machines for programs: the packages of a program that depends on nothing
//! but one of them, and the seconds until it is built.
//!
//! What they cost while a machine is idle is not measured: each wants images, a hypervisor or a KVM of
//! its own. Where one does not build, the table says what Cargo said.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use capsa_test::command;

use super::weight::Begin;

/// From the registry, in their newest version that this compiler takes, with their default features.
const PEERS: &[&str] = &["vm-ch", "cloud-hypervisor-client", "vm-rs", "boxlite", "microsandbox"];

/// A build that takes longer has told enough.
const LIMIT: Duration = Duration::from_secs(1200);

/// The rows of their table.
pub(super) fn run() -> super::Outcome {
    for peer in PEERS {
        let program = tempfile::tempdir()?;
        let row =
            weigh(program.path(), peer).unwrap_or_else(|why| format!("| {peer} | – | {why} |"));
        println!("{row} – | – | – |");
    }
    Ok(())
}

fn weigh(program: &Path, peer: &str) -> Result<String, Box<dyn std::error::Error>> {
    let manifest = format!(
        "[package]\nname = \"weighed\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
         [dependencies]\n{peer} = \"*\"\n"
    );
    fs::write(program.join("Cargo.toml"), manifest)?;
    fs::create_dir(program.join("src"))?;
    fs::write(program.join("src/lib.rs"), "")?;
    let cargo = || {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(program).env_remove("CARGO_TARGET_DIR");
        cargo
    };
    let tree = ["tree", "--edges", "normal", "--prefix", "none", "--format", "{p}"];
    let listing = command::text(cargo().args(tree))?;
    let packages: std::collections::BTreeSet<_> =
        listing.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    let version = packages.iter().find_map(|package| package.strip_prefix(&format!("{peer} ")));
    let name = format!("| {peer} {}", version.unwrap_or_default());
    // The program itself is none of theirs.
    let count = packages.len() - 1;
    command::output(cargo().arg("fetch"))?;
    let built = build(cargo().args(["build", "--quiet"]), &program.join("errors"))?;
    Ok(format!("{name} | {count} | {built} |"))
}

/// Seconds, or the first error.
fn build(build: &mut Command, errors: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let (begin, deadline) = (Begin::now(), Instant::now() + LIMIT);
    let mut cargo = build.stdout(Stdio::null()).stderr(fs::File::create(errors)?).spawn()?;
    let status = loop {
        if let Some(status) = cargo.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            cargo.kill()?;
            cargo.wait()?;
            return Ok(format!("not through after {} s", LIMIT.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    if status.success() {
        return Ok(begin.took().to_string());
    }
    let said = fs::read_to_string(errors)?;
    let error = said.lines().find(|line| line.starts_with("error")).unwrap_or("error");
    Ok(format!("does not build here: {}", error.replace('|', "/")))
}
