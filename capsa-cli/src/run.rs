//! `capsa run`: merges flags and the config file, checks the VM, and builds it.
//!
//! [`crate::session`] runs it.

use capsa::ConsoleMode;
use capsa::backend::NoteLevel;
use capsa::console::Overflow;

use crate::check::{self, Problem};
use crate::commands::Subcommand;
use crate::failure::CliError;
use crate::flags::{Arguments, GUEST_COMMAND_HINT, usage};
use crate::print::print;
use crate::reporter::Reporter;
use crate::session::job::JobPlan;
use crate::session::{self, SessionPlan};
use crate::settings::{ProgressMode, Settings};
use crate::{config, dry_run, running};

/// Size of the scrollback, in bytes. It serves clients that attach; when it is full the guest is
/// paused, so that no output is lost.
const SCROLLBACK: usize = 64 * 1024;

/// Runs a VM, or prints its launch plan. With `logs`, log messages are printed.
pub(crate) fn run(arguments: &Arguments, logs: bool) -> Result<u8, CliError> {
    let command = Some(arguments.command);
    let options = &arguments.settings.options;
    let progress = match options.progress {
        // The status line and log messages would overwrite each other.
        ProgressMode::Auto if logs => ProgressMode::None,
        progress => progress,
    };
    let reporter = Reporter::new(options.quiet, options.verbose, progress);
    let mut settings = settings(arguments)?;
    let has_job = has_job(arguments, &mut settings)?;
    let json = options.json;
    let problems = check::problems(&settings, has_job);
    let builder = settings.builder();
    if options.dry_run {
        let plan = checked(&settings, problems, builder.plan())?;
        return print(&if json {
            dry_run::json(&plan)
        } else {
            dry_run::text(&plan, &builder.rejected_backends().unwrap_or_default())
        });
    }
    let stdio = settings.console() == ConsoleMode::Stdio;
    if stdio && json {
        return Err(usage(
            "--json and --console stdio both use standard output; use --progress json",
            command,
        ));
    }
    // The session writes the console's output to standard output; the guest is paused while it cannot.
    let builder = if stdio { builder.console_enabled() } else { builder };
    let builder = match stdio || has_job {
        true => builder.scrollback(SCROLLBACK, Overflow::Pause),
        false => builder,
    };
    let vm = checked(&settings, problems, builder.build_embedded())?;
    let (user, password_file) = (settings.user.as_deref(), settings.password_file.as_ref());
    let words = arguments.guest_command.as_ref().filter(|_| has_job);
    let job = words.map(|words| JobPlan::new(words, user, password_file)).transpose()?;
    // Before any file is created: a running VM with this name may write the same log.
    let name_lock = settings.name.as_deref().map(running::reserve_name).transpose()?;
    let plan = vm.launch_plan();
    reporter.detail(&format!(
        "backend: {}, run directory: {}",
        plan.backend(),
        plan.run_dir().display()
    ));
    for rejection in vm.rejected_backends() {
        reporter.detail(&format!("rejected backend: {rejection}"));
    }
    for note in plan.notes() {
        match note.level {
            NoteLevel::Warning => reporter.warn(&note.text),
            NoteLevel::Info => reporter.detail(&note.text),
        }
    }
    let plan = SessionPlan {
        stdio,
        name: settings.name,
        name_lock,
        grace: settings.grace,
        log: settings.log,
        record: settings.record,
        relays: settings.vsock,
        job,
        json,
    };
    session::run(vm, plan, &reporter)
}

/// The settings of the config file, overridden by flags.
fn settings(arguments: &Arguments) -> Result<Settings, CliError> {
    let command = Some(Subcommand::Run);
    let path = arguments.settings.options.config.as_deref();
    let file = path.map(config::read_whole).transpose()?;
    match arguments.operands.first().map(String::as_str) {
        Some("linux") => {}
        Some(other) => {
            let hint = match other.ends_with(".toml") {
                true => format!("; use --config {other} for a config file"),
                false => GUEST_COMMAND_HINT.into(),
            };
            return Err(usage(format!("unknown guest {other:?}, expected linux{hint}"), command));
        }
        None if file.is_none() => {
            let problem = "nothing to run: use `capsa run linux --kernel FILE` or --config FILE";
            return Err(usage(problem, command));
        }
        None => {}
    }
    let mut settings = file.unwrap_or_default();
    arguments.apply(&mut settings)?;
    Ok(settings)
}

/// What was built, or everything that is wrong with the VM.
fn checked<T>(
    settings: &Settings,
    problems: Vec<Problem>,
    built: capsa::Result<T>,
) -> Result<T, CliError> {
    match (check::failure(settings, built.as_ref().err(), problems), built) {
        (None, Ok(built)) => Ok(built),
        (Some(failure), _) => Err(failure),
        (None, Err(error)) => unreachable!("an error is a failure: {error}"),
    }
}

/// Whether there is a command for the guest. It uses the console, which is then enabled.
fn has_job(arguments: &Arguments, settings: &mut Settings) -> Result<bool, CliError> {
    let command = Some(Subcommand::Run);
    let Some(words) = &arguments.guest_command else {
        for flag in ["--user", "--password-file"] {
            if arguments.has(flag) {
                return Err(usage(format!("{flag} requires -- COMMAND"), command));
            }
        }
        return Ok(false);
    };
    if arguments.has("--console") && settings.console != Some(ConsoleMode::Enabled) {
        return Err(usage("-- COMMAND needs --console enabled, its default", command));
    }
    // Its words are checked first: a mistake in them is one of the command line.
    JobPlan::new(words, None, None)?;
    settings.console = Some(ConsoleMode::Enabled);
    Ok(true)
}
