//! The tasks of the workspace: `cargo xtask` lists them. Each is a file of its own.

#[path = "../xtask/bench.rs"]
mod bench;
#[path = "../xtask/bench_console.rs"]
mod bench_console;
#[path = "../xtask/bench_idle.rs"]
mod bench_idle;
#[path = "../xtask/bench_start.rs"]
mod bench_start;
#[path = "../xtask/check_command.rs"]
mod check_command;
#[path = "../xtask/check_macos.rs"]
mod check_macos;
#[path = "../xtask/conformance.rs"]
mod conformance;
#[path = "../xtask/demo.rs"]
mod demo;
#[path = "../xtask/fuzz.rs"]
mod fuzz;
#[path = "../xtask/guest.rs"]
mod guest;
#[path = "../xtask/lab.rs"]
mod lab;
#[path = "../xtask/setup.rs"]
mod setup;
#[path = "../xtask/test.rs"]
mod test;
#[path = "../xtask/weight.rs"]
mod weight;
#[path = "../xtask/weight_peers.rs"]
mod weight_peers;

use std::error::Error;
use std::process::ExitCode;

type Outcome = Result<(), Box<dyn Error>>;

/// Name, flags, what it does, and the code.
type Task = (&'static str, &'static str, &'static str, fn(pico_args::Arguments) -> Outcome);

const TASKS: &[Task] = &[
    (
        "bench",
        "[console | idle | --pairs N]",
        "spawn to prompt: QEMU by hand against Capsa, in turn; the console beside others; idle VMs",
        bench::run,
    ),
    (
        "bench-start",
        "[--pairs N]",
        "start to running: cloud-hypervisor by hand against Capsa, in turn",
        bench_start::run,
    ),
    (
        "check-command",
        "",
        "build the release of `capsa` and check its size against the limit",
        check_command::run,
    ),
    ("check-macos", "", "clippy over everything as macOS sees it, on Linux", check_macos::run),
    (
        "conformance",
        "--backend NAME [--filter TEXT]",
        "hold a backend of this machine to the suite, and print a report",
        conformance::run,
    ),
    ("demo", "", "boot a real Linux guest, run a command in it, stop it", demo::run),
    ("fuzz", "[--seconds N] [--target NAME]", "run the fuzz targets, a minute each", fuzz::run),
    (
        "guest",
        "[--generic] [--debian]",
        "make the Linux guests and print where they are",
        guest::run,
    ),
    (
        "lab",
        "[--filter TEXT | PROGRAM ARGUMENT…]",
        "run the conformance suite, or a program, on real cloud-hypervisor in an emulated machine",
        lab::run,
    ),
    ("setup", "", "install everything that the tests need", setup::run),
    ("test", "", "check and test everything, and count", test::run),
    (
        "weight",
        "[--peers]",
        "what Capsa adds to a program, as Markdown, and what others would",
        weight::run,
    ),
];

fn main() -> ExitCode {
    let mut arguments = pico_args::Arguments::from_env();
    let name = arguments.subcommand().ok().flatten();
    let Some((.., run)) = TASKS.iter().find(|(task, ..)| name.as_deref() == Some(task)) else {
        eprintln!("usage: cargo xtask TASK");
        for (task, flags, what, _) in TASKS {
            eprintln!("  {:36} {what}", format!("{task} {flags}"));
        }
        return ExitCode::from(2);
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("xtask: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprint!(": {error}");
                cause = error.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

/// Refuses what a task did not ask for.
fn finish(arguments: pico_args::Arguments) -> Outcome {
    match arguments.finish().first() {
        None => Ok(()),
        Some(extra) => Err(format!("unknown argument {}", extra.display()).into()),
    }
}
