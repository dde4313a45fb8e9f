//! The tasks of the workspace: `cargo xtask` lists them, `cargo xtask TASK --help` explains one.
//!
//! This package depends on no other package of the workspace, so that it builds in seconds. A task
//! that needs one is a program there, which is built and run from here.

mod attacks;
mod bench;
mod cargo;
mod check_command;
mod checks;
mod conformance;
mod fuzz;
mod simulate;
mod tasks;
mod test;

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

use pico_args::Arguments;

use tasks::TaskAction;

/// The result of a task.
type Outcome = Result<(), Box<dyn Error>>;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let name = words.next().unwrap_or_else(|| "help".into());
    let arguments: Vec<OsString> = words.collect();
    if ["help", "--help", "-h"].iter().any(|help| name == *help) {
        return help(arguments.first());
    }
    if asks_for_help(&arguments) {
        return help(Some(&name));
    }
    let outcome = match tasks::action(&name) {
        None => return help(Some(&name)),
        Some(TaskAction::Here(run)) => run(Arguments::from_vec(arguments)),
        Some(TaskAction::Program(package, program)) => {
            cargo::run_program(package, program, &arguments)
        }
    };
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    eprintln!("xtask: {error}");
    ExitCode::FAILURE
}

/// Prints the help of a task, or the list of tasks.
fn help(task: Option<&OsString>) -> ExitCode {
    let Some(name) = task else {
        println!("usage: cargo xtask TASK [FLAGS]\n\n{}", tasks::list());
        println!("`cargo xtask TASK --help` prints the flags of a task.");
        return ExitCode::SUCCESS;
    };
    let Some(text) = tasks::help(name) else {
        eprintln!("xtask: unknown task {}; `cargo xtask help` lists the tasks", name.display());
        return ExitCode::from(2);
    };
    print!("{text}");
    ExitCode::SUCCESS
}

/// Whether the arguments ask for the help of the task, and not for that of a program that it runs.
fn asks_for_help(arguments: &[OsString]) -> bool {
    let flags = arguments.iter().take_while(|word| word.as_encoded_bytes().starts_with(b"-"));
    flags.into_iter().any(|flag| flag == "--help" || flag == "-h")
        || arguments.len() == 2 && arguments[1] == "--help"
}

/// Rejects arguments that a task has not taken.
fn finish(arguments: Arguments) -> Outcome {
    match arguments.finish().first() {
        None => Ok(()),
        Some(extra) => Err(format!("unknown argument {}", extra.display()).into()),
    }
}
