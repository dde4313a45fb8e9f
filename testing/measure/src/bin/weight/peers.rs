//! What other crates that run VMs add to a program: the number of packages of a program that depends on
//! one of them, and the build time.
//!
//! Two of them download a runtime during the build. The measurement skips the download, because its time
//! depends on the network. boxlite needs `protoc` (`protobuf-compiler`).
//!
//! The cost of idle VMs is not measured: each crate needs its own images, hypervisor or KVM. If a crate
//! does not build, the table has the reason.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use capsa_fixtures::command;
use capsa_fixtures::task::Outcome;

use super::Begin;

/// A crate from the registry, in the newest version that this compiler supports.
struct Peer {
    name: &'static str,
    /// The dependency in Cargo.toml (default: any version with default features).
    wanted: &'static str,
    /// An environment variable that disables the downloads of its build.
    env: Option<(&'static str, &'static str)>,
    note: &'static str,
}

const PEERS: &[Peer] = &[
    Peer::plain("vm-ch"),
    Peer::plain("cloud-hypervisor-client"),
    Peer::plain("vm-rs"),
    Peer {
        env: Some(("BOXLITE_DEPS_STUB", "1")),
        note: ", without its prebuilt runtime",
        ..Peer::plain("boxlite")
    },
    Peer {
        wanted: r#"{ version = "*", default-features = false, features = [
            "cloud", "keyring", "local", "net"] }"#,
        note: ", without its prebuilt runtime",
        ..Peer::plain("microsandbox")
    },
];

impl Peer {
    const fn plain(name: &'static str) -> Self {
        Self { name, wanted: "\"*\"", env: None, note: "" }
    }
}

/// The time limit of a build.
const LIMIT: Duration = Duration::from_secs(1200);

/// Prints the rows of the crates.
pub(crate) fn run() -> Outcome {
    for peer in PEERS {
        let program = tempfile::tempdir()?;
        let row = weigh(program.path(), peer)
            .unwrap_or_else(|why| format!("| {} | – | {why} |", peer.name));
        println!("{row} – | – | – |");
    }
    Ok(())
}

fn weigh(program: &Path, peer: &Peer) -> Result<String, Box<dyn std::error::Error>> {
    let manifest = format!(
        "[package]\nname = \"weighed\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
         [dependencies]\n{} = {}\n",
        peer.name, peer.wanted
    );
    fs::write(program.join("Cargo.toml"), manifest)?;
    fs::create_dir(program.join("src"))?;
    fs::write(program.join("src/lib.rs"), "")?;
    let cargo = || {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(program).env_remove("CARGO_TARGET_DIR").envs(peer.env);
        cargo
    };
    let tree = ["tree", "--edges", "normal", "--prefix", "none", "--format", "{p}"];
    let listing = command::text(cargo().args(tree))?;
    let packages: std::collections::BTreeSet<_> =
        listing.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    let version =
        packages.iter().find_map(|package| package.strip_prefix(&format!("{} ", peer.name)));
    let name = format!("| {} {}{}", peer.name, version.unwrap_or_default(), peer.note);
    // Without the program itself.
    let count = packages.len() - 1;
    command::output(cargo().arg("fetch"))?;
    let built = build(cargo().args(["build", "--quiet"]), &program.join("errors"))?;
    Ok(format!("{name} | {count} | {built} |"))
}

/// The build time, or the first error.
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
            return Ok(format!("no end after {} s", LIMIT.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    if status.success() {
        return Ok(begin.took().to_string());
    }
    Ok(format!("does not build: {}", reason(&fs::read_to_string(errors)?).replace('|', "/")))
}

/// Why a build failed: the first line of a build script, or else the first error.
fn reason(output: &str) -> &str {
    let of_script = output.lines().skip_while(|line| line.trim() != "--- stderr").skip(1);
    let mut of_script = of_script.map(str::trim).filter(|line| !line.is_empty());
    of_script
        .find(|line| !line.starts_with("thread "))
        .or_else(|| output.lines().find(|line| line.starts_with("error")))
        .unwrap_or("no reason printed")
}

#[cfg(test)]
mod tests {
    use super::reason;

    #[test]
    fn reason_is_first_line_of_script_or_error() {
        let of_script = "error: failed to run custom build command for `a v1`\n\nCaused by:\n  \
             process didn't exit successfully\n  --- stdout\n  x=y\n\n  --- stderr\n\n  \
             thread 'main' panicked at build.rs:1:2:\n  no protoc\n  stack backtrace:\n";
        assert_eq!(reason(of_script), "no protoc");
        assert_eq!(reason("warning: x\nerror[E0425]: no y\nerror: z\n"), "error[E0425]: no y");
        assert_eq!(reason(""), "no reason printed");
    }
}
