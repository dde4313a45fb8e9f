//! `cargo xtask test`: everything that has to hold before a change goes in, then the sum of it.
//!
//! Steps run one after the other and a failed one does not stop the next: one run tells all. The
//! last line of the output counts tests. A skipped one, which the harness takes for passed, is
//! counted as skipped and as nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use pico_args::Arguments;

use crate::cargo::{cargo, target_directory};
use crate::{Outcome, check_command, checks, finish};

/// The environment variable that names the file where a skipped test adds a line.
const SKIP_LOG: &str = "CAPSA_SKIP_LOG";

/// The environment variable that names the directory of the programs that tests start.
const PROGRAMS: &str = "CAPSA_TEST_PROGRAMS";

/// The programs that tests start, built once for all tests.
const BUILD: &[&str] = &["build", "--workspace", "--all-features", "--bins", "--examples"];

/// Without a `--test-threads` of our own: the variable below also reaches documentation tests.
const TESTS: &[&str] = &["test", "--workspace", "--all-features", "--no-fail-fast"];

/// Tests at a time. An emulated guest keeps a core busy and the hypervisor beside it another, and a
/// Linux that boots on a starved core may fail to measure its clock and hang. The tests that boot
/// none are done in seconds either way.
fn threads(cores: usize) -> usize {
    (cores / 2).clamp(1, 4)
}

pub(crate) fn run(arguments: Arguments) -> Outcome {
    finish(arguments)?;
    let mut failed_steps = Vec::new();
    let checks = checks::FORMAT.iter().chain(checks::CLIPPY).chain([&checks::DOCUMENTATION]);
    for check in checks {
        let ok = timed(check.0, || Ok(check.command().status()?.success()))?;
        failed_steps.extend((!ok).then_some(check.0));
    }
    let log = target_directory().join(format!("skipped-{}", std::process::id()));
    let mut count = Count::default();
    for name in ["check-macos", check_command::NAME] {
        // In a process of its own, so that a skip of it is counted like that of a test.
        let mut task = Command::new(std::env::current_exe()?);
        task.arg(name).env(SKIP_LOG, &log);
        let ok = timed(name, || Ok(task.status()?.success()))?;
        *(if ok { &mut count.passed } else { &mut count.failed }) += 1;
        failed_steps.extend((!ok).then_some(name));
    }
    let ok = timed("test programs", || Ok(cargo().args(BUILD).status()?.success()))?;
    failed_steps.extend((!ok).then_some("test programs"));
    let ok = timed("tests", || {
        let mut cargo = cargo();
        cargo.args(TESTS).env(SKIP_LOG, &log).env(PROGRAMS, target_directory().join("debug"));
        if std::env::var_os("RUST_TEST_THREADS").is_none() {
            let cores = std::thread::available_parallelism()?.get();
            cargo.env("RUST_TEST_THREADS", threads(cores).to_string());
        }
        count_tests(&mut cargo, &mut count)
    })?;
    failed_steps.extend((!ok).then_some("tests"));
    count.skip(&fs::read_to_string(&log).unwrap_or_default());
    let _ = fs::remove_file(&log);

    println!();
    for (test, why) in &count.skipped {
        println!("skipped {test}: {why}");
    }
    for step in &failed_steps {
        println!("failed step: {step}");
    }
    println!("{}", count.summary());
    if failed_steps.is_empty() {
        return Ok(());
    }
    // Not an error value: its text would come after the summary, which is to be the last line.
    std::process::exit(1)
}

/// Announces a step, runs it and says how long that took. True when it succeeded.
fn timed(name: &str, step: impl FnOnce() -> io::Result<bool>) -> io::Result<bool> {
    println!("=== {name}");
    let begin = Instant::now();
    let ok = step()?;
    let outcome = if ok { "ok" } else { "FAILED" };
    println!("=== {name}: {outcome} after {:.1} s", begin.elapsed().as_secs_f64());
    Ok(ok)
}

/// Runs tests, passing on what they say as it comes. True when all succeeded.
fn count_tests(cargo: &mut Command, count: &mut Count) -> io::Result<bool> {
    let mut process = cargo.stdout(Stdio::piped()).spawn()?;
    let mut output = BufReader::new(process.stdout.take().expect("piped"));
    let mut here = io::stdout().lock();
    let mut line = Vec::new();
    loop {
        // Not by lines: the name of a test comes before the wait for how it ends.
        let bytes = output.fill_buf()?;
        here.write_all(bytes)?;
        here.flush()?;
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            line.extend_from_slice(piece);
            if line.ends_with(b"\n") {
                count.read(&String::from_utf8_lossy(&line));
                line.clear();
            }
        }
        match bytes.len() {
            0 => break,
            read => output.consume(read),
        }
    }
    let ok = process.wait()?.success();
    if !ok && count.failed == 0 {
        count.failed = 1; // One that did not compile, or took its whole program down.
    }
    Ok(ok)
}

/// How many tests did what, over all test programs.
#[derive(Debug, Default)]
struct Count {
    passed: usize,
    failed: usize,
    ignored: usize,
    /// By test program and name: the first reason.
    skipped: BTreeMap<String, String>,
}

impl Count {
    /// Takes a line of a harness' output; all but its last are nothing to us.
    fn read(&mut self, line: &str) {
        let Some((_, counts)) =
            line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in counts.split("; ") {
            match part.split_once(' ') {
                Some((n, "passed")) => self.passed += n.parse().unwrap_or(0),
                Some((n, "failed")) => self.failed += n.parse().unwrap_or(0),
                Some((n, "ignored")) => self.ignored += n.parse().unwrap_or(0),
                _ => {}
            }
        }
    }

    /// Takes the log of skipped tests. A test that skipped more than once is one.
    fn skip(&mut self, log: &str) {
        for (test, why) in log.lines().filter_map(|line| line.split_once(": ")) {
            self.skipped.entry(test.to_owned()).or_insert_with(|| why.to_owned());
        }
    }

    fn summary(&self) -> String {
        let skipped = self.skipped.len();
        let passed = self.passed.saturating_sub(skipped);
        format!("{passed} passed, {} failed, {} skipped", self.failed, skipped + self.ignored)
    }
}

#[cfg(test)]
mod tests {
    use super::Count;

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let mut count = Count::default();
        count.read("test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.31s");
        count.read("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s");
        count.read("test result_of_mine ... ok");
        count.skip("nano::a: no QEMU: at all\nnano::a: no QEMU\nnano::b: no KVM\n");
        assert_eq!(count.summary(), "6 passed, 2 failed, 3 skipped");
        assert_eq!(count.skipped["nano::a"], "no QEMU: at all");
    }
}
