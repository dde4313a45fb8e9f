//! The table of tasks, and their help texts.

use std::ffi::OsStr;

use pico_args::Arguments;

use crate::{Outcome, attacks, bench, check_command, checks, conformance, fuzz, simulate, test};
use TaskAction::{Here, Program};

/// The code that runs a task.
#[derive(Clone, Copy)]
pub(crate) enum TaskAction {
    /// A function of this package.
    Here(fn(Arguments) -> Outcome),
    /// A program of another package, by the names of both. It gets the arguments as they are.
    Program(&'static str, &'static str),
}

const TASKS: &[(&str, TaskAction)] = &[
    ("attacks", Here(attacks::run)),
    ("bench", Here(bench::run)),
    ("check-command", Here(check_command::run)),
    ("check-macos", Program("capsa-fixtures", "check-macos")),
    ("clippy", Here(checks::clippy)),
    ("conformance", Here(conformance::run)),
    ("demo", Program("capsa-testkit", "demo")),
    ("fmt", Here(checks::fmt)),
    ("fuzz", Here(fuzz::run)),
    ("guest", Program("capsa-fixtures", "guest")),
    ("lab", Program("capsa-testkit", "lab")),
    ("setup", Program("capsa-fixtures", "setup")),
    ("simulate", Here(simulate::run)),
    ("soak", Program("capsa-testkit", "soak")),
    ("test", Here(test::run)),
    ("weight", Program("capsa-measure", "weight")),
];

/// A paragraph for each task, in lines: the usage, what the task does, and its flags and environment
/// variables.
const HELP: &str = include_str!("help.txt");

pub(crate) fn action(name: &OsStr) -> Option<TaskAction> {
    TASKS.iter().find(|(task, _)| name == *task).map(|(_, action)| *action)
}

/// The help of a task.
pub(crate) fn help(name: &OsStr) -> Option<String> {
    let paragraph = HELP.split("\n\n").find(|text| name == first_word(text))?;
    let (usage, rest) = paragraph.trim_end().split_once('\n')?;
    Some(format!("usage: cargo xtask {usage}\n\n{}\n", rest.replacen('\n', "\n\n", 1)))
}

/// A line for each task.
pub(crate) fn list() -> String {
    let line = |text| format!("  {:14} {}\n", first_word(text), text.lines().nth(1).unwrap_or(""));
    HELP.split("\n\n").map(line).collect()
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{HELP, TASKS, first_word};

    #[test]
    fn help_describes_each_task() {
        let described = HELP.split("\n\n").map(first_word);
        assert!(described.eq(TASKS.iter().map(|(name, _)| *name)));
    }
}
