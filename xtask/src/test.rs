//! `cargo xtask test`: runs every check and every test, then prints a summary.
//!
//! A step that fails does not stop the next one. The last line of the output counts the tests. The
//! test harness counts a skipped test as passed; here it counts only as skipped.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pico_args::Arguments;

use crate::cargo::{cargo, target_directory};
use crate::{Outcome, check_command, checks, finish};

/// The environment variable that names the file to which each skipped test appends a line.
pub(crate) const SKIP_LOG: &str = "CAPSA_SKIP_LOG";

/// The environment variable that names the directory of the programs that tests start.
const PROGRAMS: &str = "CAPSA_TEST_PROGRAMS";

/// Builds the programs that tests start, with the features of the tests.
const BUILD: &[&str] = &["build", "--workspace", "--all-features", "--bins", "--examples"];

/// Without `--test-threads`, which Cargo would not pass to documentation tests: the environment
/// variable also reaches those.
const TESTS: &[&str] = &["test", "--workspace", "--all-features", "--no-fail-fast"];

/// The number of tests at a time. Of these, tests with emulated Linux guests wait for each other: see
/// `testing/fixtures/src/guest/lock.rs`.
fn threads(cores: usize) -> usize {
    (cores / 2).clamp(2, 4)
}

/// Sets the number of [`threads`], unless the environment has one.
pub(crate) fn limit_threads(cargo: &mut Command) -> io::Result<()> {
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        let cores = std::thread::available_parallelism()?.get();
        cargo.env("RUST_TEST_THREADS", threads(cores).to_string());
    }
    Ok(())
}

pub(crate) fn run(arguments: Arguments) -> Outcome {
    finish(arguments)?;
    let mut steps = Steps::default();
    let checks = checks::FORMAT
        .iter()
        .chain(checks::CLIPPY)
        .chain([&checks::PACKAGES, &checks::DOCUMENTATION]);
    for check in checks {
        steps.run(check.0, || Ok(check.command().status()?.success()))?;
    }
    let log = target_directory().join(format!("skipped-{}", std::process::id()));
    let mut count = TestCount::default();
    // At the same time: the size check links with one thread, and both have a directory of their own.
    let xtask = std::env::current_exe()?;
    let tasks = ["check-macos", check_command::NAME].map(|name| {
        // In a process of its own, so that a skip is counted like that of a test.
        (name, Command::new(&xtask).arg(name).env(SKIP_LOG, &log).spawn())
    });
    for (name, task) in tasks {
        let mut task = task?;
        let ok = steps.run(name, || Ok(task.wait()?.success()))?;
        *(if ok { &mut count.passed } else { &mut count.failed }) += 1;
    }
    steps.run("build of test programs", || Ok(cargo().args(BUILD).status()?.success()))?;
    steps.run("build of tests", || Ok(cargo().args(TESTS).arg("--no-run").status()?.success()))?;
    steps.run("tests", || {
        let mut cargo = cargo();
        cargo.args(TESTS).env(SKIP_LOG, &log).env(PROGRAMS, target_directory().join("debug"));
        limit_threads(&mut cargo)?;
        count_tests(&mut cargo, &mut count)
    })?;
    count.skip(&fs::read_to_string(&log).unwrap_or_default());
    let _ = fs::remove_file(&log);

    println!();
    for (test, why) in &count.skipped {
        println!("skipped {test}: {why}");
    }
    for (name, time) in &steps.times {
        println!("{:8.1} s  {name}", time.as_secs_f64());
    }
    for step in &steps.failed {
        println!("failed step: {step}");
    }
    println!("{}", count.summary());
    if steps.failed.is_empty() {
        return Ok(());
    }
    // Not an error value: its text would come after the summary, which is the last line.
    std::process::exit(1)
}

/// The steps of a run: how long each took, and which failed.
#[derive(Debug, Default)]
struct Steps {
    times: Vec<(&'static str, Duration)>,
    failed: Vec<&'static str>,
}

impl Steps {
    /// Runs a step and prints its name, result and time. Returns true if it succeeded.
    fn run(
        &mut self,
        name: &'static str,
        step: impl FnOnce() -> io::Result<bool>,
    ) -> io::Result<bool> {
        println!("=== {name}");
        let begin = Instant::now();
        let ok = step()?;
        let time = begin.elapsed();
        let result = if ok { "ok" } else { "FAILED" };
        println!("=== {name}: {result} after {:.1} s", time.as_secs_f64());
        self.times.push((name, time));
        self.failed.extend((!ok).then_some(name));
        Ok(ok)
    }
}

/// Runs tests and passes on their standard output. Returns true if all succeeded.
fn count_tests(cargo: &mut Command, count: &mut TestCount) -> io::Result<bool> {
    let mut process = cargo.stdout(Stdio::piped()).spawn()?;
    let mut output = BufReader::new(process.stdout.take().expect("piped"));
    let mut stdout = io::stdout().lock();
    let mut line = Vec::new();
    loop {
        // Not by lines: the harness prints the name of a test first, and its result later.
        let bytes = output.fill_buf()?;
        stdout.write_all(bytes)?;
        stdout.flush()?;
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
        count.failed = 1; // A test program did not compile or was killed.
    }
    Ok(ok)
}

/// How many tests passed, failed and were skipped, over all test programs.
#[derive(Debug, Default)]
struct TestCount {
    passed: usize,
    failed: usize,
    ignored: usize,
    /// By test program and test: the first reason.
    skipped: BTreeMap<String, String>,
}

impl TestCount {
    /// Reads a line of the harness. Only its summary counts.
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

    /// Reads the log of skipped tests. A test that is there more than once counts once.
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
    use super::TestCount;

    #[test]
    fn skipped_test_does_not_count_as_passed() {
        let mut count = TestCount::default();
        count.read("test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.31s");
        count.read("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s");
        count.read("test result_of_mine ... ok");
        count.skip("nano::a: no QEMU: at all\nnano::a: no QEMU\nnano::b: no KVM\n");
        assert_eq!(count.summary(), "6 passed, 2 failed, 3 skipped");
        assert_eq!(count.skipped["nano::a"], "no QEMU: at all");
    }
}
