//! `capsa run`, from flags and a config file up to a machine that is ready to start.

use std::path::Path;

use capsa::{ConsoleMode, NoteLevel, Overflow};

use crate::check::{self, Problem};
use crate::failure::Failure;
use crate::flags::{BEHIND_DASHES, Command, Given, usage};
use crate::print::print;
use crate::reporter::Reporter;
use crate::session::job::JobPlan;
use crate::session::{self, SessionPlan};
use crate::settings::Settings;
use crate::values;
use crate::{config, dry_run, running};

/// Bytes of a console on standard output that are kept for who attaches. The guest waits rather than
/// have one dropped.
const KEPT: usize = 64 * 1024;

/// Runs a machine, or says what would be run.
pub(crate) fn run(given: &Given) -> Result<u8, Failure> {
    let command = Some(given.command);
    let progress = given.one("--progress", values::progress)?.unwrap_or_default();
    let reporter = Reporter::new(given.has("--quiet"), given.has("--verbose"), progress);
    let mut settings = settings(given)?;
    let has_job = has_job(given, &mut settings)?;
    let json = given.has("--json");
    let problems = check::problems(&settings, has_job);
    let builder = settings.builder();
    if given.has("--dry-run") {
        let plan = sound(&settings, problems, builder.plan())?;
        return print(&if json {
            dry_run::json(&plan)
        } else {
            dry_run::text(&plan, &builder.rejected_backends().unwrap_or_default())
        });
    }
    let stdio = settings.console() == ConsoleMode::Stdio;
    if stdio && json {
        return Err(usage(
            "the console and --json both want standard output; use --progress json",
            command,
        ));
    }
    // The loop is ours, so the bytes are: the guest waits where they cannot be written yet.
    let builder = if stdio { builder.console_enabled() } else { builder };
    let builder = match stdio || has_job {
        true => builder.scrollback(KEPT, Overflow::Pause),
        false => builder,
    };
    let vm = sound(&settings, problems, builder.build_embedded())?;
    let (user, password_file) = (settings.user.as_deref(), settings.password_file.as_ref());
    let words = given.behind.as_ref().filter(|_| has_job);
    let job = words.map(|words| JobPlan::new(words, user, password_file)).transpose()?;
    // Before any file is created: a running VM with this name may write the same log.
    let name_lock = settings.name.as_deref().map(running::reserve_name).transpose()?;
    let plan = vm.launch_plan();
    reporter.detail(&format!("{} runs it, in {}", plan.backend, plan.run_dir));
    for rejection in vm.rejected_backends() {
        reporter.detail(&format!("passed over: {rejection}"));
    }
    for note in &plan.notes {
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

/// What flags and the config file say, the flags on top.
fn settings(given: &Given) -> Result<Settings, Failure> {
    let command = Some(Command::Run);
    let flags = Settings::from_flags(given)?;
    let file =
        given.one_os("--config").map(|path| config::read_whole(Path::new(path))).transpose()?;
    match given.operands.first().map(String::as_str) {
        Some("linux") => {}
        Some(other) => {
            let meant = match other.ends_with(".toml") {
                true => format!("; a config file is given as --config {other}"),
                false => BEHIND_DASHES.into(),
            };
            return Err(usage(format!("there is no guest {other:?}, only linux{meant}"), command));
        }
        None if file.is_none() => {
            let problem =
                "nothing says what to run: `capsa run linux --kernel FILE`, or --config FILE";
            return Err(usage(problem, command));
        }
        None => {}
    }
    Ok(file.unwrap_or_default().overridden_by(flags))
}

/// What was built, unless anything is wrong with the machine.
fn sound<T>(
    settings: &Settings,
    problems: Vec<Problem>,
    built: capsa::Result<T>,
) -> Result<T, Failure> {
    match (check::failure(settings, built.as_ref().err(), problems), built) {
        (None, Ok(built)) => Ok(built),
        (Some(failure), _) => Err(failure),
        (None, Err(error)) => unreachable!("an error is a failure: {error}"),
    }
}

/// Whether a command stands behind `--`. It has the console for itself, so the machine has one that is
/// not on standard input and output.
fn has_job(given: &Given, settings: &mut Settings) -> Result<bool, Failure> {
    let command = Some(Command::Run);
    let Some(words) = &given.behind else {
        for flag in ["--user", "--password-file"] {
            if given.has(flag) {
                return Err(usage(format!("{flag} goes with -- COMMAND"), command));
            }
        }
        return Ok(false);
    };
    if given.has("--console") && settings.console != Some(ConsoleMode::Enabled) {
        return Err(usage("-- COMMAND needs the console: leave --console away", command));
    }
    // Its words are looked at before anything else is: they are the command line's affair.
    JobPlan::new(words, None, None)?;
    settings.console = Some(ConsoleMode::Enabled);
    Ok(true)
}
