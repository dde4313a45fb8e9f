//! `cargo xtask soak`: random commands in real guests, and commands that are given up in their first
//! moments. Prints each failure with its seed, and the figures.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use capsa_fixtures::guest::LOGIN_SHELLS;
use capsa_fixtures::task::{self, Arguments, Outcome};
use capsa_testkit::soak::{self, SoakGuest};

fn main() -> ExitCode {
    task::main("soak", run)
}

fn run(mut arguments: Arguments) -> Outcome {
    let seed = arguments.opt_value_from_str("--seed")?.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let commands: Option<u64> = arguments.opt_value_from_str("--commands")?;
    let give_ups: Option<u32> = arguments.opt_value_from_str("--give-ups")?;
    let guest: Option<String> = arguments.opt_value_from_str("--guest")?;
    task::finish(arguments)?;
    let is_given = |name: &str| guest.as_deref().is_none_or(|guest| guest == name);
    if let Some(name) = &guest {
        SoakGuest::parse(name).ok_or_else(|| format!("unknown guest {name}"))?;
    }
    let mut failures = 0;
    // A flag that names one kind turns the other off.
    let give_ups = give_ups.unwrap_or(if commands.is_some() { 0 } else { 200 });
    let commands = commands.unwrap_or(if give_ups == 200 { 2000 } else { 0 });
    for shell in LOGIN_SHELLS.into_iter().filter(|shell| give_ups > 0 && is_given(shell)) {
        let began = Instant::now();
        let mut session = SoakGuest::Shell(shell).boot()?;
        let limit = Duration::from_secs(2);
        let report = soak::give_up(&mut session.console, seed, give_ups, limit);
        report.failures.iter().for_each(|failure| println!("{shell}: {failure}"));
        let time = began.elapsed();
        println!("{shell}: {give_ups} give-ups, seed {seed}, {time:.0?}: {}", report.summary());
        failures += report.failures.len();
    }
    let guests = ["busybox", "debian"].into_iter().chain(LOGIN_SHELLS);
    // Without a name, the guests of both distributions.
    let guests = guests.filter(|name| match &guest {
        Some(guest) => guest == name,
        None => !LOGIN_SHELLS.contains(name),
    });
    for name in guests.filter(|_| commands > 0) {
        let began = Instant::now();
        let guest = SoakGuest::parse(name).expect("a known guest");
        let report =
            soak::soak(guest, guest.boot()?, seed, commands, |line| println!("{name}: {line}"))?;
        let time = began.elapsed();
        println!("{name}: {commands} commands, seed {seed}, {time:.0?}: {}", report.summary());
        failures += report.failures.len();
    }
    if failures == 0 { Ok(()) } else { Err(format!("{failures} failures").into()) }
}
