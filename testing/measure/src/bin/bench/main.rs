//! `cargo xtask bench`: compares Capsa with a direct control of QEMU.
//!
//! Both boot the same guest with the same arguments, in turn: directly (spawn, `cont`, read to the
//! prompt) and through Capsa. The bench prints the time from the spawn to the prompt.

mod idle;
mod spawn;
mod start;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use capsa::backend::LaunchPlan;
use capsa::internal;
use capsa_fixtures::guest::{self, LinuxGuest, Variant};
use capsa_fixtures::host::setup::{self, Requirement};
use capsa_fixtures::task::{Arguments, Outcome, finish};
use capsa_testkit::vm;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

const PROMPT: &str = "capsa login: ";
const PATIENCE: Duration = Duration::from_secs(180);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> std::process::ExitCode {
    capsa_fixtures::task::main("bench", run)
}

fn run(mut arguments: Arguments) -> Outcome {
    match arguments.subcommand()?.as_deref() {
        None => prompt(arguments),
        Some("idle") => idle::run(arguments),
        Some("spawn") => spawn::run(arguments),
        Some("start") => start::run(arguments),
        Some(other) => {
            Err(format!("unknown bench {other}: expected console, idle, spawn or start").into())
        }
    }
}

fn prompt(mut arguments: Arguments) -> Outcome {
    let pairs: usize = arguments.opt_value_from_str("--pairs")?.unwrap_or(8);
    finish(arguments)?;
    setup::ensure(&[Requirement::Qemu, Requirement::GuestTools])?;
    let guest = guest::linux(Variant::Cloud)?;

    println!("spawn to prompt, seconds\n{:>8} {:>8} {:>7}", "direct", "capsa", "ratio");
    let mut ratios = Vec::new();
    in_turn(
        pairs,
        || direct(&guest),
        || with_capsa(&guest),
        |direct, capsa| {
            println!("{direct:8.3} {capsa:8.3} {:7.3}", capsa / direct);
            ratios.push(capsa / direct);
        },
    )?;
    println!("median ratio {:.3} over {pairs} pairs", median(&mut ratios));
    Ok(())
}

/// Measures both, after a pair that warms up, and passes on the seconds of each pair. The order
/// alternates, so that a drift of the host affects both.
fn in_turn(
    pairs: usize,
    direct: impl Fn() -> Result<Duration>,
    capsa: impl Fn() -> Result<Duration>,
    mut report: impl FnMut(f64, f64),
) -> Result<()> {
    for pair in 0..pairs + 1 {
        let early = if pair % 2 == 0 { Some(direct()?) } else { None };
        let capsa = capsa()?.as_secs_f64();
        let direct = early.map_or_else(&direct, Ok)?.as_secs_f64();
        if pair > 0 {
            report(direct, capsa);
        }
    }
    Ok(())
}

/// Starts the VMM of a plan, without Capsa. Returns how long `rest` took, from the start on.
///
/// The VMM inherits `descriptors`, which are those of the plan, under the numbers that they have here.
fn spawned(
    plan: &LaunchPlan,
    descriptors: Vec<OwnedFd>,
    rest: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    let vmm = internal::parts(plan).processes.last().ok_or("the plan has no VMM")?;
    let mut args = vmm.args.clone();
    for (planned, descriptor) in vmm.descriptors.iter().zip(&descriptors) {
        let from = format!("fd={}", planned.number);
        let at =
            vmm.args.iter().position(|arg| arg.ends_with(&from)).ok_or("no argument has it")?;
        args[at] = vmm.args[at].replace(&from, &format!("fd={}", descriptor.as_raw_fd()));
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    let mut command = Command::new(&vmm.program);
    command.args(&args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begin = Instant::now();
    let mut process =
        command.spawn().map_err(|error| format!("cannot start {}: {error}", vmm.program))?;
    drop(descriptors);
    let took = rest().map(|()| begin.elapsed());
    process.kill()?;
    process.wait()?;
    took
}

/// The median. Sorts the values.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        _ if values.is_empty() => f64::NAN,
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

fn with_capsa(guest: &LinuxGuest) -> Result<Duration> {
    let vm = vm::linux(guest).build_blocking()?;
    let begin = Instant::now();
    vm.start()?;
    vm.console()?.wait_for_timeout(PROMPT, PATIENCE)?;
    let took = begin.elapsed();
    vm.kill()?;
    Ok(took)
}

fn direct(guest: &LinuxGuest) -> Result<Duration> {
    let plan: LaunchPlan = vm::linux(guest).plan()?;
    let (control, control_end) = UnixStream::pair()?;
    let (mut console, console_end) = UnixStream::pair()?;
    let ends = [control_end, console_end].map(OwnedFd::from).into();
    spawned(&plan, ends, || {
        let mut lines = BufReader::new(control.try_clone()?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        for command in ["qmp_capabilities", "cont"] {
            (&control).write_all(format!("{{\"execute\":\"{command}\"}}\n").as_bytes())?;
            lines.read_line(&mut line)?;
        }
        console.set_read_timeout(Some(PATIENCE))?;
        let (mut output, mut chunk) = (Vec::new(), [0; 4096]);
        while !output.ends_with(PROMPT.as_bytes()) {
            match console.read(&mut chunk)? {
                0 => return Err("the console closed".into()),
                n => output.extend_from_slice(&chunk[..n]),
            }
        }
        Ok(())
    })
}
