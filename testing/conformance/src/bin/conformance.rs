//! `conformance --backend NAME [--filter TEXT] [--linux]`: holds one backend to the suite, one
//! scenario after the other, a line each with its time, and a summary at the end. `--list` prints
//! their names. With `--linux` those that could do with the nano guest take Linux too, as they do
//! where there is no other. `--backends` prints a line about each backend of the host first.
//!
//! Exit status 0: all passed, or are not claimed. 1: some failed. 3: none failed, and some could not
//! run on this machine. 2: there is nothing to run.

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use capsa_conformance::subject::{self, SUBJECTS};
use capsa_conformance::{Scenario, Subject, Verdict, scenarios};

/// How long one scenario may take. Each wait in one has a shorter limit of its own.
const LIMIT: Duration = Duration::from_secs(900);

#[derive(Default)]
struct Count {
    passed: usize,
    failed: Vec<&'static str>,
    not_claimed: usize,
    cannot_run: usize,
}

fn main() -> ExitCode {
    let mut arguments = pico_args::Arguments::from_env();
    if arguments.contains("--list") {
        for scenario in scenarios() {
            println!("{} {}", scenario.name, scenario.uses.join(" "));
        }
        return ExitCode::SUCCESS;
    }
    let backend: Option<String> = arguments.opt_value_from_str("--backend").ok().flatten();
    let linux = arguments.contains("--linux");
    let backends = arguments.contains("--backends");
    let filter: Result<Option<String>, _> = arguments.opt_value_from_str("--filter");
    let (Some(backend), Ok(filter), true) = (backend, filter, arguments.finish().is_empty()) else {
        let names: Vec<_> = SUBJECTS.iter().map(|(name, _)| *name).collect();
        eprintln!("usage: conformance --backend NAME [--filter TEXT] [--linux], or --list");
        eprintln!("NAME is one of {}", names.join(", "));
        return ExitCode::from(2);
    };
    if backends {
        print_backends();
    }
    let subject = match Subject::named(&backend) {
        Ok(subject) => subject,
        Err(why) => {
            eprintln!("conformance: {why}");
            return ExitCode::from(2);
        }
    };
    let subject = if linux { subject.with_linux_alone() } else { subject };
    let filter = filter.unwrap_or_default();
    let chosen: Vec<_> = scenarios().filter(|scenario| scenario.name.contains(&filter)).collect();
    if chosen.is_empty() {
        eprintln!("conformance: no scenario has {filter:?} in its name");
        return ExitCode::from(2);
    }
    let begin = Instant::now();
    let mut count = Count::default();
    for scenario in chosen {
        if !hold(&subject, scenario, &mut count) {
            break;
        }
    }
    count.summary(begin.elapsed())
}

/// Prints a line for each backend of this host: whether it can be used, or why not.
fn print_backends() {
    for backend in subject::backends() {
        let version = backend.availability.version.as_ref().map(|version| format!(" {version}"));
        let against: Vec<_> =
            backend.availability.blockers.iter().map(|reason| reason.what.as_str()).collect();
        let usable = if against.is_empty() { "usable".to_owned() } else { against.join("; ") };
        println!("{}{}: {usable}", backend.name, version.unwrap_or_default());
    }
}

/// Runs one, with a line about it. False: it hangs, and nothing can be run beside it.
fn hold(subject: &Subject, scenario: &'static Scenario, count: &mut Count) -> bool {
    let begin = Instant::now();
    let (done, verdict) = channel();
    let its_subject = subject.clone();
    let run = move || {
        let verdict = panic::catch_unwind(AssertUnwindSafe(|| scenario.run(&its_subject)));
        let _ = done.send(verdict.ok());
    };
    std::thread::Builder::new().name(scenario.name.into()).spawn(run).expect("a thread");
    let verdict = verdict.recv_timeout(LIMIT);
    let hangs = verdict == Err(RecvTimeoutError::Timeout);
    let took = begin.elapsed().as_secs_f64();
    let name = scenario.name;
    let line = |word: &str, more: &str| println!("{word:11} {took:7.2} s  {name}{more}");
    match verdict.ok().flatten() {
        Some(Verdict::Passed) => {
            count.passed += 1;
            line("passed", "");
        }
        Some(Verdict::NotClaimed(leaf)) => {
            count.not_claimed += 1;
            line("not claimed", &format!(": {leaf} is refused"));
        }
        Some(Verdict::CannotRun(why)) => {
            count.cannot_run += 1;
            line("cannot run", &format!(": {why}"));
        }
        None => {
            count.failed.push(name);
            line("FAILED", if hangs { ": it hangs" } else { "" });
        }
    }
    !hangs
}

impl Count {
    fn summary(&self, took: Duration) -> ExitCode {
        for name in &self.failed {
            println!("failed: {name}");
        }
        let Self { passed, failed, not_claimed, cannot_run } = self;
        let failed = failed.len();
        let mut line = format!("{passed} passed, {failed} failed, {not_claimed} not claimed");
        if *cannot_run > 0 {
            line += &format!(", {cannot_run} could not run here");
        }
        println!("{line} ({:.1} s)", took.as_secs_f64());
        match (failed, cannot_run) {
            (0, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::from(3),
            _ => ExitCode::from(1),
        }
    }
}
