//! `capsa run`: merges flags and the config file, checks the VM, and builds it.
//!
//! [`crate::session`] runs it.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Instant;

use capsa::ConsoleMode;
use capsa::agent::AgentMode;
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
use crate::settings::{CommandRoute, ProgressMode, Settings};
use crate::{config, dry_run, files, running};

/// Size of the scrollback, in bytes. It serves clients that attach; when it is full the guest is
/// paused, so that no output is lost.
const SCROLLBACK: usize = 64 * 1024;

/// Runs a VM, or prints its launch plan. With `logs`, log messages are printed.
pub(crate) fn run(arguments: &Arguments, logs: bool) -> Result<u8, CliError> {
    let begin = Instant::now();
    let command = Some(arguments.command);
    let options = &arguments.settings.options;
    let progress = match options.progress {
        // The status line and log messages would overwrite each other.
        ProgressMode::Auto if logs => ProgressMode::None,
        progress => progress,
    };
    let reporter = Reporter::new(options.quiet, options.verbose, progress);
    let (mut settings, mistaken) = settings(arguments)?;
    let has_job = has_job(arguments, &mut settings)?;
    let json = options.json;
    let password = files::password(&settings).filter(|_| has_job);
    let unreadable = password.as_ref().and_then(|read| read.as_ref().err());
    if let Some((path, mistakes, is_broken)) = mistaken {
        let (_, failure) = check::whole(path, &settings, Some(mistakes), is_broken, unreadable);
        return Err(failure.expect("the file has mistakes"));
    }
    let problems = check::problems(&settings, unreadable);
    let builder = settings.builder().agent(settings.agent_mode(has_job));
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
    let user = settings.user.as_deref();
    let password = password.and_then(Result::ok);
    let words = arguments.guest_command.as_ref().filter(|_| has_job);
    let job = words
        .map(|words| JobPlan::new(words, user, password, options.tty, options.via))
        .transpose()?;
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
        deadline: settings.timeout.and_then(|limit| begin.checked_add(limit)),
        log: settings.log,
        record: settings.record,
        relays: settings.vsock,
        job,
        json,
    };
    session::run(vm, plan, &reporter)
}

/// A config file with mistakes: its path, the mistakes, and whether parts of it are not TOML.
type Mistaken<'a> = (&'a Path, CliError, bool);

/// The settings of the config file, overridden by flags, and the mistakes of that file.
fn settings(arguments: &Arguments) -> Result<(Settings, Option<Mistaken<'_>>), CliError> {
    let command = Some(Subcommand::Run);
    let path = arguments.settings.options.config.as_deref();
    let file = path.map(config::read).transpose()?;
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
    let (mut settings, mistakes, is_broken) = match file {
        Some(file) => (file.settings, file.mistakes, file.is_broken),
        None => (Settings::default(), None, false),
    };
    let mistaken = path.zip(mistakes).map(|(path, mistakes)| (path, mistakes, is_broken));
    if let Err(error) = arguments.apply(&mut settings) {
        // The flags are checked against what the file sets, which its mistakes may have changed.
        return Err(mistaken.map_or(error, |(_, mistakes, _)| mistakes));
    }
    Ok((settings, mistaken))
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
        for flag in ["--user", "--password-file", "--tty", "--via"] {
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
    JobPlan::new(words, None, None, false, None)?;
    if settings.options.tty && !settings.options.dry_run {
        check_terminal(settings.options.json)?;
    }
    if settings.options.via == Some(CommandRoute::Agent) && settings.agent == Some(AgentMode::Off) {
        return Err(usage(
            "--via agent needs the agent; remove --no-agent or --agent off",
            command,
        ));
    }
    settings.console = Some(ConsoleMode::Enabled);
    Ok(true)
}

/// Checks that `--tty` has a terminal.
fn check_terminal(json: bool) -> Result<(), CliError> {
    let reason = match (json, io::stdin().is_terminal(), io::stdout().is_terminal()) {
        (true, ..) => "--json needs standard output; it cannot be used with --tty",
        (_, false, _) => "--tty needs a terminal, and standard input is not one",
        (_, _, false) => "--tty needs a terminal, and standard output is not one",
        _ => return Ok(()),
    };
    Err(usage(reason, Some(Subcommand::Run)))
}
