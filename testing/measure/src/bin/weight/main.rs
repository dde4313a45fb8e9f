//! `cargo xtask weight`: what Capsa adds to a program, as Markdown; with `--peers`, also what other
//! crates add.
//!
//! The numbers of packages are exact. The build times are those of this host with its present load,
//! which is printed; on a busy host, compare the CPU times.

mod peers;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use capsa_fixtures::command::{self, CommandError};
use capsa_fixtures::programs::TestProgram;
use capsa_fixtures::task::{Arguments, Outcome, finish};
use capsa_fixtures::{nano, workspace};
use capsa_testkit::idle::Usage;
use capsa_testkit::vm::NanoGuest;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The arguments of Cargo that select the command.
const COMMAND: &[&str] = &["--package", "capsa-cli"];

/// The rows of the table: a name, the package, its features, and the API of the idle VMs.
const MEASURED_APIS: &[(&str, &str, &[&str], &str)] = &[
    ("`embed::Vm` alone", "capsa-vm", &["--no-default-features"], "embed"),
    ("async (default)", "capsa-vm", &[], "handle"),
    ("blocking", "capsa-vm", &["--features", "blocking"], "handle"),
    ("the command with a VM", "capsa-cli", &[], "command"),
];

fn main() -> std::process::ExitCode {
    capsa_fixtures::task::main("weight", run)
}

fn run(mut arguments: Arguments) -> Outcome {
    let peers = arguments.contains("--peers");
    finish(arguments)?;
    let cores = std::thread::available_parallelism()?;
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("unknown");
    println!("Clean builds in the dev profile on {cores} cores, at a load of {load} before.\n");
    println!(
        "| | packages, itself included | clean build | threads | descriptors per VM | \
         memory per VM |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    );
    for (name, package, features, api) in MEASURED_APIS {
        let packages = workspace::tree(package, features)?.len();
        let took = clean_build(package, features)?;
        let idle = if *api == "command" { idle_command()? } else { idle(api)? };
        println!("| {name} | {packages} | {took} | {idle} |");
    }
    if peers {
        peers::run()?;
    }
    println!("\n| program, release profile, stripped | size |\n| --- | ---: |");
    for (name, bytes) in programs()? {
        println!("| {name} | {} KiB |", bytes.div_ceil(1024));
    }
    Ok(())
}

/// A build into an empty directory. Its dependencies have been downloaded before.
fn clean_build(package: &str, features: &[&str]) -> Result<String> {
    let target = tempfile::tempdir()?;
    let mut build = workspace::cargo();
    build.args(["build", "--locked", "--package", package]).args(features);
    Ok(timed(build.arg("--target-dir").arg(target.path()))?)
}

/// Runs a build. Returns how long it took.
pub(crate) fn timed(build: &mut Command) -> std::result::Result<String, CommandError> {
    let (begin, cpu_before) = (Instant::now(), cpu_of_children());
    command::output(build)?;
    let seconds = begin.elapsed().as_secs_f64();
    let cpu = cpu_before.and_then(|before| Some(cpu_of_children()? - before));
    let cpu = cpu.map(|cpu| format!(", {cpu:.0} s of CPU")).unwrap_or_default();
    Ok(format!("{seconds:.0} s{cpu}"))
}

/// Builds a release of the command or an example into `target`. Returns its path.
fn release(target: &Path, what: &[&str], program: &str) -> Result<PathBuf> {
    let mut build = workspace::cargo();
    build.args(["build", "--locked", "--release"]).args(what);
    command::output(build.arg("--target-dir").arg(target))?;
    Ok(target.join("release").join(program))
}

/// The CPU seconds of reaped descendants: fields 16 and 17 of `/proc/self/stat`, in hundredths on every
/// Linux.
fn cpu_of_children() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let field = |n: usize| fields.split_whitespace().nth(n - 3)?.parse::<f64>().ok();
    Some((field(16)? + field(17)?) / 100.0)
}

/// Threads, descriptors and memory of idle VMs, from the bench.
fn idle(api: &str) -> Result<String> {
    let mut bench = Command::new(TestProgram::new("bench"));
    bench.args(["idle", "--api", api, "--vms", "100", "--seconds", "1"]);
    let row = command::text(&mut bench)?;
    let columns: Vec<&str> = row.trim().trim_matches('|').split('|').map(str::trim).collect();
    match columns[..] {
        [_, threads, descriptors, memory, _] => Ok(format!("{threads} | {descriptors} | {memory}")),
        _ => Err(format!("unexpected output of the bench: {row}").into()),
    }
}

/// The same for the command with a VM: the whole process.
fn idle_command() -> Result<String> {
    let guest = NanoGuest::for_any(nano::Nano::default());
    let target = tempfile::tempdir()?;
    let mut capsa = Command::new(release(target.path(), COMMAND, "capsa")?);
    capsa.args(["run", "linux", "--backend", "qemu", "--network", "none", "--console", "stdio"]);
    capsa.args(["--accel", "emulation", "--cmdline-override", "up console=ready serve"]);
    capsa.arg("--kernel");
    capsa.arg(guest.kernel()).env("CAPSA_QEMU", TestProgram::new("fake-qemu"));
    let mut capsa = capsa.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut output = [0; 5];
    let up = capsa.stdout.take().map(|mut stdout| stdout.read_exact(&mut output));
    let usage = Usage::of(&Path::new("/proc").join(capsa.id().to_string()));
    capsa.kill()?;
    capsa.wait()?;
    up.transpose()?;
    let Usage { threads, descriptors, bytes } = usage?;
    Ok(format!("{threads} | {descriptors} | {} KiB, the whole process", bytes / 1024))
}

/// The sizes of the command and of the smallest programs that boot a VM: with a loop of their own, and
/// blocking. The release profile strips them.
fn programs() -> Result<Vec<(String, u64)>> {
    let target = tempfile::tempdir()?;
    let mut sizes = Vec::new();
    for (what, program) in [
        (COMMAND, "capsa"),
        (
            &["--package", "capsa-vm", "--no-default-features", "--example", "loop_poll"],
            "examples/loop_poll",
        ),
        (
            &["--package", "capsa-vm", "--features", "blocking", "--example", "tested_automation"],
            "examples/tested_automation",
        ),
    ] {
        let bytes = fs::metadata(release(target.path(), what, program)?)?.len();
        sizes.push((format!("`{program}`, `{}`", what.join(" ")), bytes));
    }
    sizes.sort_by_key(|(_, bytes)| *bytes);
    Ok(sizes)
}
