//! The command `capsa`: runs a virtual machine on a terminal, a pipe or a file.
//!
//! It is a thin face of the library, and the only place of the project that handles signals or
//! touches a terminal's modes. Reading order: `flags` is the one table of commands and flags;
//! `settings` is what they and the `config_file` say, on its way to a builder; `session` is
//! the loop that runs a machine; `failure` has the error messages and exit codes.

mod config_file;
mod dry_run;
mod escape;
mod failure;
mod flags;
mod help;
mod list;
mod output;
mod session;
mod settings;
mod signals;
mod terminal;
mod values;

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use capsa::{ConsoleMode, NoteLevel, Overflow};

use failure::{CONFIG, Failure, OK};
use flags::{Command, Given, usage};
use settings::Settings;

/// The command, with the arguments behind the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let code = Given::parse(args).and_then(|given| run(&given)).unwrap_or_else(|failure| {
        let _ = writeln!(io::stderr(), "{failure}");
        failure.code
    });
    ExitCode::from(code)
}

fn run(given: &Given) -> Result<u8, Failure> {
    if given.wants_help {
        return print(&match given.command {
            Command::Help => help::overview(),
            command => help::of(command),
        });
    }
    match given.command {
        Command::Run => run_machine(given),
        Command::Backends => {
            let reports = capsa::backends();
            print(&if given.has("--json") { list::json(&reports) } else { list::text(&reports) })
        }
        Command::Version => print(concat!("capsa ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Help => match given.operands.first() {
            None => print(&help::overview()),
            Some(name) => match flags::row_named(name) {
                Some(row) => print(&help::of(row.command)),
                None => Err(usage(format!("there is no command {name:?}"), None)),
            },
        },
    }
}

fn run_machine(given: &Given) -> Result<u8, Failure> {
    let command = Some(given.command);
    if given.has("--json") && !given.has("--dry-run") {
        return Err(usage("--json goes with --dry-run", command));
    }
    let flags = Settings::from_flags(given)?;
    let file =
        given.one_os("--config").map(|path| config_file::read(Path::new(path))).transpose()?;
    match given.operands.first().map(String::as_str) {
        Some("linux") => {}
        Some(other) => {
            return Err(usage(format!("there is no guest {other:?}, only linux"), command));
        }
        None if file.is_none() => {
            return Err(usage("nothing says what to run: `linux`, or --config FILE", command));
        }
        None => {}
    }
    let settings = file.unwrap_or_default().overridden_by(flags);
    if settings.kernel.is_none() {
        return Err(Failure::new(CONFIG, "cannot run this machine: something is missing").problem(
            "kernel: no kernel is named",
            "add --kernel FILE, or [boot] kernel = \"FILE\" to the config file",
        ));
    }
    let builder = settings.builder()?;
    let refused = |error| Failure::from_build(&error, |field| settings.name_of(field));
    if given.has("--dry-run") {
        let plan = builder.plan().map_err(refused)?;
        return print(&if given.has("--json") {
            dry_run::json(&plan)
        } else {
            dry_run::text(&plan, &builder.rejected_backends().unwrap_or_default())
        });
    }
    let stdio = settings.console() == ConsoleMode::Stdio;
    let builder = match stdio {
        // The loop is ours, so the bytes are: the guest waits where they cannot be written yet.
        true => builder.console_enabled().scrollback(64 * 1024, Overflow::Pause),
        false => builder,
    };
    let vm = builder.build_embedded().map_err(refused)?;
    for note in vm.launch_plan().notes.iter().filter(|note| note.level == NoteLevel::Warning) {
        let _ = writeln!(io::stderr(), "capsa: warning: {}", note.text);
    }
    session::run(vm, stdio)
}

/// Prints to standard output. That nobody reads it is no error.
fn print(text: &str) -> Result<u8, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::new(
            failure::HYPERVISOR,
            format!("cannot write to standard output: {error}"),
        )),
        _ => Ok(OK),
    }
}
