//! What others cost that run machines for programs: the packages of a program that depends on nothing
//! but one of them, and the seconds until it is built.
//!
//! Two of them download a ready-made runtime while they build. That is left away: it is no work of the
//! compiler, and weighs what the network does. boxlite wants `protoc` (`protobuf-compiler`) here.
//!
//! What they cost while a machine is idle is not measured: each wants images, a hypervisor or a KVM of
//! its own. Where one does not build, the table says why.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use capsa_fixtures::command;
use capsa_fixtures::task::Outcome;

use super::Begin;

/// A crate from the registry, in its newest version that this compiler takes.
struct Peer {
    name: &'static str,
    /// What Cargo.toml asks for: with default features unless said.
    wanted: &'static str,
    /// A variable for its build, without its downloads.
    env: Option<(&'static str, &'static str)>,
    note: &'static str,
}

const PEERS: &[Peer] = &[
    Peer::plain("vm-ch"),
    Peer::plain("cloud-hypervisor-client"),
    Peer::plain("vm-rs"),
    Peer {
        env: Some(("BOXLITE_DEPS_STUB", "1")),
        note: ", without its ready-made runtime",
        ..Peer::plain("boxlite")
    },
    Peer {
        wanted: r#"{ version = "*", default-features = false, features = [
            "cloud", "keyring", "local", "net"] }"#,
        note: ", without its ready-made runtime",
        ..Peer::plain("microsandbox")
    },
];

impl Peer {
    const fn plain(name: &'static str) -> Self {
        Self { name, wanted: "\"*\"", env: None, note: "" }
    }
}

/// A build that takes longer has told enough.
const LIMIT: Duration = Duration::from_secs(1200);

/// The rows of their table.
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
    Ok(format!("does not build here: {}", reason(&fs::read_to_string(errors)?).replace('|', "/")))
}

/// What a build failed of: the first words of a build script's own, or else the first error.
fn reason(said: &str) -> &str {
    let of_script = said.lines().skip_while(|line| line.trim() != "--- stderr").skip(1);
    let mut of_script = of_script.map(str::trim).filter(|line| !line.is_empty());
    of_script
        .find(|line| !line.starts_with("thread "))
        .or_else(|| said.lines().find(|line| line.starts_with("error")))
        .unwrap_or("it did not say why")
}

#[cfg(test)]
mod tests {
    use super::reason;

    #[test]
    fn a_build_that_fails_has_a_reason() {
        let of_script = "error: failed to run custom build command for `a v1`\n\nCaused by:\n  \
             process didn't exit successfully\n  --- stdout\n  x=y\n\n  --- stderr\n\n  \
             thread 'main' panicked at build.rs:1:2:\n  no protoc\n  stack backtrace:\n";
        assert_eq!(reason(of_script), "no protoc");
        assert_eq!(reason("warning: x\nerror[E0425]: no y\nerror: z\n"), "error[E0425]: no y");
        assert_eq!(reason(""), "it did not say why");
    }
}
