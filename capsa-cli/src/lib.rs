//! The command `capsa`: runs VMs from a terminal, a script or a config file.
//!
//! It is a front end of the library, and the only crate of the project that handles signals and
//! terminal modes. Reading order:
//!
//! | module | what it does |
//! | --- | --- |
//! | `commands`, `settings` | the tables: commands, and every flag and config key with its setter |
//! | `flags`, `config`, `values` | parse the command line, the config file, and single values |
//! | `help` | help, the manual page and completions, made from the tables |
//! | `check`, `spans` | problems of a VM's description, and where in the config file they are |
//! | `run`, `dry_run` | `capsa run` up to the start of the VM |
//! | `session` | the event loop of a running VM |
//! | `stdio` | the console on standard input and output: raw mode, escape keys, slow readers |
//! | `running` | `ps`, `stop`, `gc` and `console`, and the control socket that they use |
//! | `backends`, `doctor` | what this host supports |
//! | `policy` | `network check`, `explain` and `suggest` |
//! | `failure`, `reporter`, `log`, `json_output`, `print` | errors, exit codes, progress, log, JSON |

mod backends;
mod check;
mod commands;
mod config;
mod doctor;
mod dry_run;
mod failure;
mod files;
mod flags;
pub mod fuzz;
mod help;
mod json_output;
mod log;
mod policy;
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
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use commands::Subcommand;
use failure::CliError;
use flags::{Arguments, usage};
use print::{print, print_message};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs the command with these arguments, without the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let asks_json = wants_json(&args);
    let code =
        Arguments::parse(args).and_then(|arguments| run(&arguments)).unwrap_or_else(|failure| {
            let text = if asks_json { failure.json() } else { failure.to_string() };
            print_message(&format!("{text}\n"));
            failure.code
        });
    ExitCode::from(code)
}

/// Whether errors are printed as JSON, even if these arguments cannot be parsed.
fn wants_json(args: &[OsString]) -> bool {
    let flags: Vec<_> = args.iter().take_while(|arg| *arg != "--").collect();
    let progress = |pair: &[&OsString]| pair[0] == "--progress" && pair[1] == "json";
    flags.iter().any(|arg| **arg == "--json" || **arg == "--progress=json")
        || flags.windows(2).any(progress)
}

fn run(arguments: &Arguments) -> Result<u8, CliError> {
    let command = arguments.command;
    if arguments.wants_help {
        return print(&match command {
            Subcommand::Help => help::overview(),
            command => help::of(command),
        });
    }
    let logs = log::init(arguments)?;
    let options = &arguments.settings.options;
    let json = options.json;
    match command {
        Subcommand::Run => run::run(arguments, logs),
        Subcommand::Ps => running::ps(json),
        Subcommand::Stop => running::stop(arguments),
        Subcommand::Pause | Subcommand::Resume => running::pause(arguments),
        Subcommand::Network => network_command(arguments),
        Subcommand::Gc => running::gc(arguments),
        Subcommand::Console => running::console(arguments),
        Subcommand::Backends => {
            let reports = capsa::backend::backends();
            print(&if json { backends::json(&reports) } else { backends::text(&reports) })
        }
        Subcommand::Doctor => doctor::doctor(json),
        Subcommand::Config => config_command(arguments),
        Subcommand::Completions => match arguments.operands.first() {
            Some(shell) => match help::completions::of(shell) {
                Some(script) => print(&script),
                None => {
                    let reason = format!("unsupported shell {shell:?}: expected {}", shells());
                    Err(usage(reason, Some(command)))
                }
            },
            None => Err(usage(format!("expected a shell: {}", shells()), Some(command))),
        },
        Subcommand::Version if json => {
            print(&json_output::document("version", json!({"version": VERSION})))
        }
        Subcommand::Version => print(&format!("capsa {VERSION}\n")),
        Subcommand::Help if options.man => print(&help::man::page()),
        Subcommand::Help => match arguments.operands.first() {
            None => print(&help::overview()),
            Some(name) => match Subcommand::named(name) {
                Some(command) => print(&help::of(command)),
                None => Err(flags::unknown_command(name)),
            },
        },
    }
}

/// The shells that have completions: `bash, zsh or fish`.
fn shells() -> String {
    values::alternatives(Subcommand::Completions.row().words)
}

/// `capsa network`: the link and the policy of a VM that runs, and policies in files.
fn network_command(arguments: &Arguments) -> Result<u8, CliError> {
    let operands: Vec<&str> = arguments.operands.iter().map(String::as_str).collect();
    match operands[..] {
        [state @ ("up" | "down"), name] => running::set_link(name, state),
        ["set", name, file] => running::set_policy(name, file),
        ["check", file] => policy::check(arguments, file),
        ["explain", file, ..] => policy::explain(arguments, file, &arguments.operands[2..]),
        ["suggest", log] => policy::suggestion(log),
        _ => {
            let forms: Vec<_> = help::NETWORK_FORMS.iter().map(|(form, _)| *form).collect();
            let what = format!("expected one of: {}", forms.join(", "));
            Err(usage(what, Some(arguments.command)))
        }
    }
}

/// `capsa config check FILE`, `capsa config schema`.
fn config_command(arguments: &Arguments) -> Result<u8, CliError> {
    let mistake = |what: String| Err(usage(what, Some(arguments.command)));
    match arguments.operands.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["schema"] => print(&format!("{:#}\n", config::schema())),
        ["check", file] => {
            let backend = check::file(Path::new(file))?;
            let content = json!({"file": file, "problems": [], "backend": backend});
            match (arguments.settings.options.json, backend) {
                (true, _) => print(&json_output::document("config", content)),
                (false, Some(_)) => print(&format!("{file}: no errors\n")),
                (false, None) => print(&format!(
                    "{file}: no errors, but no backend is available on this host; see `capsa doctor`\n"
                )),
            }
        }
        ["schema", extra, ..] => mistake(format!("unexpected argument {extra:?}")),
        ["check"] => mistake("expected a file to check".into()),
        [] => mistake("expected check FILE or schema".into()),
        [other, ..] => mistake(format!("unexpected argument {other:?}: use check FILE or schema")),
    }
}
