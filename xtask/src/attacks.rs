//! `cargo xtask attacks`: runs the tests that `docs/network-attacks.md` names, and prints its table with their
//! results.
//!
//! The results are read from the output of the test harness. A test that the harness does not have counts as
//! missing, and a test program that does not build counts as failed tests.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs;
use std::io;
use std::process::Stdio;

use pico_args::Arguments;

use crate::cargo::{cargo, root, target_directory};
use crate::test::{SKIP_LOG, limit_threads};
use crate::{Outcome, finish};

const PAGE: &str = "docs/network-attacks.md";

/// The attacks have the numbers from 1 to this one.
const ATTACKS: usize = 52;

pub(crate) fn run(arguments: Arguments) -> Outcome {
    finish(arguments)?;
    let rows = rows(&fs::read_to_string(root().join(PAGE))?)?;
    let mut programs: BTreeMap<HarnessProgram, Vec<&NamedTest>> = BTreeMap::new();
    for test in rows.values().flat_map(|row| &row.tests) {
        programs.entry(test.program()?.0).or_default().push(test);
    }
    let mut results = BTreeMap::new();
    for (program, tests) in programs {
        println!("=== {program}: {} tests", tests.len());
        let output = program.run(&tests)?;
        results.extend(tests.into_iter().map(|test| (test, output.result(test))));
    }
    println!();
    let (table, summary) = report(&rows, &results);
    print!("{table}");
    println!("{summary}");
    let fails = |result: &TestResult| matches!(result, TestResult::Failed | TestResult::Missing);
    if results.values().any(fails) {
        // Not an error value: its text would come after the summary, which is the last line.
        std::process::exit(1)
    }
    Ok(())
}

/// A row of the page's table.
#[derive(Debug, PartialEq, Eq)]
struct AttackRow {
    attack: String,
    tests: Vec<NamedTest>,
}

/// A test function and its file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct NamedTest {
    file: String,
    name: String,
}

/// The rows of the page's table, by number. Inline code in the third cell names tests: `FILE.rs: NAME`, or
/// `NAME` for a further test of the same file.
fn rows(page: &str) -> Result<BTreeMap<usize, AttackRow>, String> {
    let mut rows = BTreeMap::new();
    for line in page.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, number, attack, tests, _] = cells[..] else { continue };
        let Ok(number) = number.parse() else { continue };
        let mut file = None;
        let mut named = Vec::new();
        for text in tests.split('`').skip(1).step_by(2) {
            let name = match text.split_once(": ") {
                Some((path, name)) => {
                    file = Some(path);
                    name
                }
                None => text,
            };
            let file =
                file.ok_or_else(|| format!("{PAGE}: attack {number}: {name} has no file"))?;
            named.push(NamedTest { file: file.to_owned(), name: name.to_owned() });
        }
        let row = AttackRow { attack: attack.to_owned(), tests: named };
        if !(1..=ATTACKS).contains(&number) || rows.insert(number, row).is_some() {
            return Err(format!("{PAGE}: attack {number}: expected each of 1 to {ATTACKS} once"));
        }
    }
    Ok(rows)
}

impl NamedTest {
    /// The test program that has the test, and the module of its file in there.
    fn program(&self) -> Result<(HarnessProgram, String), String> {
        let stem = self.file.strip_suffix(".rs").unwrap_or(&self.file);
        let (directory, program, module) =
            match (stem.split_once("/src/"), stem.split_once("/tests/")) {
                (Some((directory, module)), _) => (directory, None, module),
                (None, Some((directory, path))) => {
                    let (program, module) = path.split_once('/').unwrap_or((path, "main"));
                    (directory, Some(program.to_owned()), module)
                }
                (None, None) => return Err(format!("{PAGE}: {} is in no test program", self.file)),
            };
        let parts = module.split('/').filter(|part| !["lib", "main", "mod"].contains(part));
        let module = parts.map(|part| format!("{part}::")).collect();
        Ok((HarnessProgram { directory: directory.to_owned(), program }, module))
    }

    /// The names that the harness can have for the test: in its file, or in the file's module `tests`.
    fn paths(&self) -> [String; 2] {
        let module = self.program().map(|(_, module)| module).unwrap_or_default();
        let name = &self.name;
        [format!("{module}{name}"), format!("{module}tests::{name}")]
    }
}

/// The unit tests of a package, or one program of its `tests` directory.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct HarnessProgram {
    directory: String,
    program: Option<String>,
}

impl HarnessProgram {
    /// The name of Cargo's package in the directory.
    fn package(&self) -> io::Result<String> {
        let manifest = fs::read_to_string(root().join(&self.directory).join("Cargo.toml"))?;
        let name = manifest.lines().find_map(|line| line.strip_prefix("name = \""));
        Ok(name.unwrap_or(&self.directory).trim_end_matches('"').to_owned())
    }

    /// Builds the program and runs these tests of it.
    fn run(&self, tests: &[&NamedTest]) -> io::Result<HarnessOutput> {
        let log = target_directory().join(format!("skipped-{}", std::process::id()));
        let mut cargo = cargo();
        cargo.args(["test", "--all-features", "--package", &self.package()?]);
        match &self.program {
            Some(program) => cargo.args(["--test", program]),
            None => cargo.arg("--lib"),
        };
        cargo.args(["--", "--exact"]);
        cargo.args(tests.iter().flat_map(|test| test.paths())).env(SKIP_LOG, &log);
        limit_threads(&mut cargo)?;
        let output = cargo.stdout(Stdio::piped()).spawn()?.wait_with_output()?;
        let output = String::from_utf8_lossy(&output.stdout);
        print!("{output}");
        let skipped = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(&log);
        Ok(HarnessOutput::read(&output, &skipped))
    }
}

impl Display for HarnessProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = self.program.as_deref().unwrap_or("unit tests");
        write!(f, "{}, {program}", self.directory)
    }
}

/// The result of a test. The order is that of a row with several tests: the last one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum TestResult {
    Passed,
    Skipped,
    Missing,
    Failed,
}

impl Display for TestResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Skipped => "skipped",
            Self::Missing => "missing",
            Self::Failed => "failed",
        })
    }
}

/// The results of one test program, by the harness's name of the test.
#[derive(Debug, Default)]
struct HarnessOutput {
    results: BTreeMap<String, TestResult>,
    /// The program ran to its end.
    is_complete: bool,
}

impl HarnessOutput {
    /// Reads the output of the harness, and the log of skipped tests.
    fn read(output: &str, skipped: &str) -> Self {
        let mut read = Self::default();
        for line in output.lines() {
            read.is_complete |= line.starts_with("test result: ");
            let Some((name, result)) =
                line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
            else {
                continue;
            };
            // Any other result, and the end of the program, is a failure.
            let result = if result == "ok" { TestResult::Passed } else { TestResult::Failed };
            read.results.insert(name.to_owned(), result);
        }
        // A skipped test passes in the harness. Each line begins with `PROGRAM::TEST: `.
        for (test, _) in skipped.lines().filter_map(|line| line.split_once(": ")) {
            let name = test.split_once("::").map_or(test, |(_, name)| name);
            if let Some(result @ TestResult::Passed) = read.results.get_mut(name) {
                *result = TestResult::Skipped;
            }
        }
        read
    }

    fn result(&self, test: &NamedTest) -> TestResult {
        let found = test.paths().iter().find_map(|path| self.results.get(path).copied());
        let absent = if self.is_complete { TestResult::Missing } else { TestResult::Failed };
        found.unwrap_or(absent)
    }
}

/// The table with the results, and the line after it.
fn report(
    rows: &BTreeMap<usize, AttackRow>,
    results: &BTreeMap<&NamedTest, TestResult>,
) -> (String, String) {
    let mut table =
        String::from("| number | attack | tests | result |\n| ---: | --- | --- | --- |\n");
    let mut tested = 0;
    for number in 1..=ATTACKS {
        let row = rows.get(&number);
        let tests = row.map_or(&[][..], |row| &row.tests);
        let attack = row.map_or("", |row| &row.attack);
        let names: Vec<&str> = tests.iter().map(|test| &*test.name).collect();
        let result = tests.iter().filter_map(|test| results.get(test)).max();
        tested += usize::from(result.is_some());
        let result = result.map_or("no test".into(), TestResult::to_string);
        table += &format!("| {number} | {attack} | {} | {result} |\n", names.join(", "));
    }
    let mut counts = Vec::new();
    for kind in [TestResult::Failed, TestResult::Missing, TestResult::Skipped] {
        let tests = results.iter().filter(|(_, result)| **result == kind);
        let lines: String = tests
            .clone()
            .map(|(test, _)| format!("{kind}: {}: {}\n", test.file, test.name))
            .collect();
        table += &lines;
        let count = tests.count();
        counts.extend((count > 0).then(|| format!("{count} {kind}")));
    }
    let counts = if counts.is_empty() { "all pass".to_owned() } else { counts.join(", ") };
    (table, format!("{tested} of {ATTACKS} attacks have a test; {counts}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "
| number | attack | tests |
| ---: | --- | --- |
| 7 | DNS | `capsa-net/src/net/dns/tests.rs: one`, `two`: and text |
| 47 | the owner | `tests/tests/timing/owner_death.rs: three`, `capsa-net/src/vhost/mod.rs: four` |
";

    fn results(output: &str, skipped: &str) -> (String, String) {
        let rows = rows(PAGE).unwrap();
        let output = HarnessOutput::read(output, skipped);
        let tests = rows.values().flat_map(|row| &row.tests);
        let results = tests.map(|test| (test, output.result(test))).collect();
        report(&rows, &results)
    }

    #[test]
    fn attack_table_names_programs_and_tests() {
        let rows = rows(PAGE).unwrap();
        let tests = rows.values().flat_map(|row| &row.tests);
        let found: Vec<_> = tests.map(|test| (test.program().unwrap().0, test.paths())).collect();
        let unit = || HarnessProgram { directory: "capsa-net".into(), program: None };
        let timing = HarnessProgram { directory: "tests".into(), program: Some("timing".into()) };
        let paths = |text: &str| {
            let (module, name) = text.rsplit_once("::").unwrap();
            [text.to_owned(), format!("{module}::tests::{name}")]
        };
        let want = [
            (unit(), paths("net::dns::tests::one")),
            (unit(), paths("net::dns::tests::two")),
            (timing, paths("owner_death::three")),
            (unit(), paths("vhost::four")),
        ];
        assert_eq!(found, want);
    }

    #[test]
    fn attack_table_mistake_is_an_error() {
        for (line, want) in [
            ("| 53 | x | `a/src/b.rs: c` |", "attack 53: expected each"),
            ("| 7 | x | `a/src/b.rs: c` |\n| 7 | y | `d` |", "attack 7: d has no file"),
            ("| 7 | x | |\n| 7 | y | |", "attack 7: expected each"),
        ] {
            assert!(rows(line).unwrap_err().contains(want), "{line}");
        }
    }

    #[test]
    fn attack_results_are_those_of_the_harness() {
        let output = "test net::dns::tests::one ... ok
test net::dns::tests::two ... ok
test owner_death::three ... ok
test vhost::tests::four ... ok
test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.31s
";
        let (table, summary) = results(output, "");
        assert!(table.contains("| 1 |  |  | no test |\n"), "{table}");
        assert!(table.contains("| 7 | DNS | one, two | passed |\n"), "{table}");
        assert_eq!(summary, "2 of 52 attacks have a test; all pass");

        let (table, summary) = results(output, "timing::owner_death::three: no KVM\n");
        assert!(table.contains("| three, four | skipped |\n"), "{table}");
        assert_eq!(summary, "2 of 52 attacks have a test; 1 skipped");

        let broken = output.replace("one ... ok", "one ... FAILED").replace("::four", "::fourth");
        let (table, summary) = results(&broken, "");
        assert!(table.contains("| one, two | failed |\n"), "{table}");
        assert!(table.contains("\nmissing: capsa-net/src/vhost/mod.rs: four\n"), "{table}");
        assert_eq!(summary, "2 of 52 attacks have a test; 1 failed, 1 missing");
    }

    #[test]
    fn attack_program_that_ends_early_has_failed() {
        let (_, summary) = results("test net::dns::tests::one ... ok\n", "");
        assert_eq!(summary, "2 of 52 attacks have a test; 3 failed");
    }
}
