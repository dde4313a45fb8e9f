//! `cargo xtask lab`: runs the conformance suite on the real cloud-hypervisor with Linux guests, on a
//! host without KVM: in the [lab](capsa_testkit::lab), an emulated host.
//!
//! Flags are those of the suite, for example `--filter TEXT`. A program in the arguments runs instead of
//! the suite.

use std::ffi::OsString;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use capsa_fixtures::guest::{self, Variant};
use capsa_fixtures::host;
use capsa_fixtures::host::setup::{self, Requirement};
use capsa_fixtures::programs;
use capsa_fixtures::{SKIP_LOG, skip_task};
use capsa_testkit::lab::Lab;

use capsa_fixtures::task::{Arguments, Outcome};

/// How long a program may print nothing. Longer than the time limit of a scenario, so that the suite
/// itself reports which one hangs.
const PATIENCE: Duration = Duration::from_secs(1200);

/// The environment variables that programs in the lab get, besides those that begin with `CAPSA_`.
const KEPT: [&str; 5] = ["PATH", "HOME", "CARGO_HOME", "CARGO_TARGET_DIR", "RUST_BACKTRACE"];

const NOT_KEPT: [&str; 4] =
    ["CAPSA_CLOUD_HYPERVISOR", "CAPSA_BACKEND", SKIP_LOG, programs::DIRECTORY];

fn main() -> std::process::ExitCode {
    capsa_fixtures::task::main("lab", run)
}

fn run(arguments: Arguments) -> Outcome {
    let words = arguments.finish();
    if !cfg!(target_arch = "x86_64") {
        skip_task("xtask lab", "the lab runs only on x86-64");
        return Ok(());
    }
    let Some(hypervisor) = cloud_hypervisor() else {
        skip_task("xtask lab", "no cloud-hypervisor in PATH or CAPSA_CLOUD_HYPERVISOR");
        return Ok(());
    };
    use Requirement::{GuestTools, Qemu, Virtiofsd};
    setup::ensure(&[Qemu, GuestTools, Virtiofsd])?;

    let mut last = Instant::now();
    // Prints the time of a phase when it ends.
    let mut end_phase = |name: &str| {
        println!("lab: {name:<24} {:>7.2} s", last.elapsed().as_secs_f64());
        last = Instant::now();
    };
    let of_the_suite = words.first().is_none_or(|word| word.as_encoded_bytes().starts_with(b"-"));
    let programs = programs::build_all()?;
    let program = if of_the_suite { conformance(&programs, words) } else { words };
    end_phase("built the programs");
    // The lab has no network to download their packages.
    guest::linux(Variant::Cloud)?;
    guest::linux(Variant::Lab)?;
    end_phase("built the guests");

    let mut lab = Lab::boot()?;
    end_phase("booted to the prompt");
    lab.enter()?;
    end_phase("mounted the host's root");
    let status = lab.run(&program, &environment(&hypervisor, &programs), PATIENCE, |line| {
        let mut stdout = stdout().lock();
        // If standard output is closed, the exit status still counts.
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    })?;
    end_phase("ran the program");
    let report = lab.shut_down()?;
    end_phase("shut down");
    if let Some(report) = report {
        println!("lab: {report}");
    }
    match status {
        0 => Ok(()),
        status => Err(format!("{} ended with status {status}", program[0].display()).into()),
    }
}

fn cloud_hypervisor() -> Option<PathBuf> {
    let named = std::env::var_os("CAPSA_CLOUD_HYPERVISOR").map(PathBuf::from);
    let found = named.or_else(|| host::find_program("cloud-hypervisor"))?;
    std::path::absolute(found).ok()
}

/// The command that runs the suite, with these flags.
fn conformance(programs: &Path, flags: Vec<OsString>) -> Vec<OsString> {
    let program = programs.join("conformance");
    let command = [program.into(), "--backend".into(), "cloud-hypervisor".into()];
    command.into_iter().chain(flags).collect()
}

/// The environment of the program in the lab.
fn environment(hypervisor: &Path, programs: &Path) -> Vec<(OsString, OsString)> {
    let is_kept =
        |key: &str| KEPT.contains(&key) || key.starts_with("CAPSA_") && !NOT_KEPT.contains(&key);
    let kept = std::env::vars_os().filter(|(key, _)| key.to_str().is_some_and(is_kept));
    let ours = [
        ("CAPSA_CLOUD_HYPERVISOR".into(), hypervisor.into()),
        (programs::DIRECTORY.into(), programs.into()),
        ("TMPDIR".into(), "/run/tmp".into()),
    ];
    kept.chain(ours).collect()
}
