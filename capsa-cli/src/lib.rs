//! The command `capsa`: runs a virtual machine on a terminal, a pipe or a file.
//!
//! It is a thin face of the library, and the only place of the project that handles signals or
//! touches a terminal's modes. Reading order:
//!
//! | module | what it is |
//! | --- | --- |
//! | `flags`, `help` | the one table of commands and flags, and its prints |
//! | `settings`, `values`, `config` | what flags and the config file say, on its way to a builder |
//! | `check`, `naming`, `spans` | what is wrong with a machine, and where that was said |
//! | `run`, `dry_run` | `capsa run`, up to the machine |
//! | `session` | the loop that runs a machine; its modules are what else it drives |
//! | `stdio` | a console on standard input and output: terminals, keys, slow readers |
//! | `machines` | `ps`, `stop`, `gc` and `console`: machines that other runs hold |
//! | `list`, `doctor` | what this host can do |
//! | `failure`, `reporter`, `json_output`, `print` | what is said, to people and to programs, and exit codes |

mod backends;
mod check;
mod config;
mod doctor;
mod dry_run;
mod failure;
mod files;
mod flags;
pub mod fuzz;
mod help;
mod json_output;
mod naming;
mod print;
mod reporter;
mod run;
mod running;
mod session;
mod settings;
mod spans;
mod stdio;
mod suggest;
mod values;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use failure::Failure;
use flags::{Command, Given, usage};
use print::print;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The command, with the arguments behind the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let asks_json = wants_json(&args);
    let code = Given::parse(args).and_then(|given| run(&given)).unwrap_or_else(|failure| {
        let text = if asks_json { failure.json() } else { failure.to_string() };
        let _ = writeln!(io::stderr(), "{text}");
        failure.code
    });
    ExitCode::from(code)
}

/// Whether errors are for programs, even one about these very arguments.
fn wants_json(args: &[OsString]) -> bool {
    let flags: Vec<_> = args.iter().take_while(|arg| *arg != "--").collect();
    let progress = |pair: &[&OsString]| pair[0] == "--progress" && pair[1] == "json";
    flags.iter().any(|arg| **arg == "--json" || **arg == "--progress=json")
        || flags.windows(2).any(progress)
}

fn run(given: &Given) -> Result<u8, Failure> {
    if given.wants_help {
        return print(&match given.command {
            Command::Help => help::overview(),
            command => help::of(command),
        });
    }
    let json = given.command != Command::Help
        && given.command != Command::Console
        && given.command != Command::Completions
        && given.has("--json");
    match given.command {
        Command::Run => run::run(given),
        Command::Ps => running::ps(json),
        Command::Stop => running::stop(given),
        Command::Gc => running::gc(given),
        Command::Console => running::console(given),
        Command::Backends => {
            let reports = capsa::backends();
            print(&if json { backends::json(&reports) } else { backends::text(&reports) })
        }
        Command::Doctor => doctor::doctor(json),
        Command::Config => configure(given, json),
        Command::Completions => match given.operands.first().map(String::as_str) {
            Some(shell) => match help::completions::of(shell) {
                Some(script) => print(&script),
                None => {
                    Err(usage(format!("there is no shell {shell:?} here"), Some(given.command)))
                }
            },
            None => Err(usage("no shell is named", Some(given.command))),
        },
        Command::Version if json => {
            print(&json_output::document("version", json!({"version": VERSION})))
        }
        Command::Version => print(&format!("capsa {VERSION}\n")),
        Command::Help if given.has("--man") => print(&help::man::page()),
        Command::Help => match given.operands.first() {
            None => print(&help::overview()),
            Some(name) => match flags::row_named(name) {
                Some(row) => print(&help::of(row.command)),
                None => Err(flags::no_command(name)),
            },
        },
    }
}

/// `capsa config check FILE`, `capsa config schema`.
fn configure(given: &Given, json: bool) -> Result<u8, Failure> {
    let wrong = |what: String| Err(usage(what, Some(given.command)));
    match given.operands.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["schema"] => print(&format!("{:#}\n", config::schema())),
        ["check", file] => {
            let backend = check::file(Path::new(file))?;
            let content = json!({"file": file, "problems": [], "backend": backend});
            match (json, backend) {
                (true, _) => print(&json_output::document("config", content)),
                (false, Some(_)) => print(&format!("{file}: no errors\n")),
                (false, None) => print(&format!(
                    "{file}: no errors, but no backend is available on this host; see `capsa doctor`\n"
                )),
            }
        }
        ["check"] => wrong("no file is named".into()),
        [] => wrong("nothing says what to do: check FILE, or schema".into()),
        [other, ..] => wrong(format!("{other:?} is neither check FILE nor schema")),
    }
}
