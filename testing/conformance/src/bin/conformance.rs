//! `conformance --backend NAME [--filter TEXT] [--linux]`: runs the suite on one backend, one scenario
//! after the other, and prints a line with the time of each, then a summary. `--list` prints the names
//! of the scenarios. With `--linux` all scenarios boot Linux, also those that could boot the nano guest.
//! With `--backends` the first lines list the backends of the host.
//!
//! Exit code 0: all scenarios passed or are unsupported. 1: some failed. 2: usage, or no scenario to
//! run. 3: none failed, and some were skipped.

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use capsa_conformance::subject::{self, SUBJECTS};
use capsa_conformance::{Scenario, ScenarioResult, Subject, scenarios};

/// The time limit of a scenario. Each wait in it has a shorter limit.
const LIMIT: Duration = Duration::from_secs(900);

#[derive(Default)]
struct Counts {
    passed: usize,
    failed: Vec<&'static str>,
    unsupported: usize,
    skipped: usize,
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
        eprintln!("NAME: one of {}", names.join(", "));
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
    let subject = if linux { subject.with_linux_only() } else { subject };
    let filter = filter.unwrap_or_default();
    let chosen: Vec<_> = scenarios().filter(|scenario| scenario.name.contains(&filter)).collect();
    if chosen.is_empty() {
        eprintln!("conformance: no scenario name contains {filter:?}");
        return ExitCode::from(2);
    }
    let begin = Instant::now();
    let mut count = Counts::default();
    for scenario in chosen {
        if !run(&subject, scenario, &mut count) {
            break;
        }
    }
    count.summary(begin.elapsed())
}

/// Prints a line for each backend: whether this host can use it, or why not.
fn print_backends() {
    for backend in subject::backends() {
        let version = backend.availability.version.as_ref().map(|version| format!(" {version}"));
        let against: Vec<_> =
            backend.availability.blockers.iter().map(|reason| reason.what.as_str()).collect();
        let usable = if against.is_empty() { "usable".to_owned() } else { against.join("; ") };
        println!("{}{}: {usable}", backend.name, version.unwrap_or_default());
    }
}

/// Runs a scenario and prints a line. Returns false if it hangs: no other can run beside it.
fn run(subject: &Subject, scenario: &'static Scenario, count: &mut Counts) -> bool {
    let begin = Instant::now();
    let (done, verdict) = channel();
    let scenario_subject = subject.clone();
    let run = move || {
        let verdict = panic::catch_unwind(AssertUnwindSafe(|| scenario.run(&scenario_subject)));
        let _ = done.send(verdict.ok());
    };
    std::thread::Builder::new().name(scenario.name.into()).spawn(run).expect("a thread");
    let verdict = verdict.recv_timeout(LIMIT);
    let hangs = verdict == Err(RecvTimeoutError::Timeout);
    let took = begin.elapsed().as_secs_f64();
    let name = scenario.name;
    let line = |word: &str, more: &str| println!("{word:11} {took:7.2} s  {name}{more}");
    match verdict.ok().flatten() {
        Some(ScenarioResult::Passed) => {
            count.passed += 1;
            line("passed", "");
        }
        Some(ScenarioResult::Unsupported(leaf)) => {
            count.unsupported += 1;
            line("unsupported", &format!(": {leaf} is rejected"));
        }
        Some(ScenarioResult::Skipped(why)) => {
            count.skipped += 1;
            line("skipped", &format!(": {why}"));
        }
        None => {
            count.failed.push(name);
            line("FAILED", if hangs { ": no end within the time limit" } else { "" });
        }
    }
    !hangs
}

impl Counts {
    fn summary(&self, took: Duration) -> ExitCode {
        for name in &self.failed {
            println!("failed: {name}");
        }
        let Self { passed, failed, unsupported, skipped } = self;
        let failed = failed.len();
        let mut line = format!("{passed} passed, {failed} failed, {unsupported} unsupported");
        if *skipped > 0 {
            line += &format!(", {skipped} skipped");
        }
        println!("{line} ({:.1} s)", took.as_secs_f64());
        match (failed, skipped) {
            (0, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::from(3),
            _ => ExitCode::from(1),
        }
    }
}
