//! `cargo xtask simulate`: runs schedules of the whole VM in a simulated world, and counts what they
//! covered; `cargo xtask simulate network`: those of the network stack.
//!
//! The schedules and their laws are in `capsa_proto::vm::simulate` and `capsa_net::simulate`. This program
//! takes seeds in order, on all cores, and stops at the first law that is broken.

mod coverage;
mod network;

use std::any::Any;
use std::error::Error;
use std::fmt::Display;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use capsa_proto::vm::simulate::{Trace, compare_cuts, run_seed};
use pico_args::Arguments;

use coverage::Coverage;
use network::NetworkCoverage;

/// One schedule of this many is run again: twice the same, and with other cuts.
const COMPARED: u64 = 32;

/// A schedule that broke a law.
struct BrokenSchedule {
    seed: u64,
    message: String,
}

/// Counts over the schedules of one kind.
trait ScheduleCoverage: Default + Display + Send {
    /// Runs the schedule of a seed, the `n`th of this run, and counts it.
    ///
    /// # Errors
    ///
    /// The message of a broken law.
    fn run(&mut self, seed: u64, n: u64) -> Result<(), String>;

    /// Adds the counts of another thread.
    fn add_all(&mut self, other: &Self);

    /// The number of steps.
    fn steps(&self) -> u64;
}

/// What the threads share.
#[derive(Default)]
struct Progress {
    next: AtomicU64,
    done: AtomicU64,
    failures: Mutex<Vec<BrokenSchedule>>,
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_env();
    let run = match arguments.subcommand() {
        Ok(None) => simulate::<Coverage>(arguments),
        Ok(Some(kind)) if kind == "network" => simulate::<NetworkCoverage>(arguments),
        Ok(Some(kind)) => {
            Err(format!("unknown simulation {kind:?}: expected network, or none").into())
        }
        Err(error) => Err(error.into()),
    };
    match run {
        Ok(code) => code,
        Err(error) => {
            eprintln!("simulate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn simulate<C: ScheduleCoverage>(mut arguments: Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let schedules = number(&mut arguments, "--schedules", 1_000_000)?;
    let seed = number(&mut arguments, "--seed", 0)?;
    if let Some(extra) = arguments.finish().first() {
        return Err(format!("unknown argument {}", extra.display()).into());
    }
    // The message of a broken law is printed once, by this program.
    panic::set_hook(Box::new(|_| {}));
    let progress = Progress::default();
    let begin = Instant::now();
    let threads = std::thread::available_parallelism()?.get();
    let coverage = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| run_schedules::<C>(&progress, seed, schedules)))
            .collect();
        let mut all = C::default();
        for thread in threads {
            match thread.join() {
                Ok(coverage) => all.add_all(&coverage),
                Err(panic) => panic::resume_unwind(panic),
            }
        }
        all
    });
    let seconds = begin.elapsed().as_secs_f64();
    let done = progress.done.load(Ordering::Relaxed);
    println!("{coverage}");
    println!(
        "{done} schedules from seed {seed}, {} steps in {seconds:.1} s on {threads} cores: \
         {:.0} schedules a second",
        coverage.steps(),
        done as f64 / seconds
    );
    let mut failures = progress.failures.into_inner()?;
    failures.sort_by_key(|failure| failure.seed);
    let Some(first) = failures.first() else {
        println!("no law broken");
        return Ok(ExitCode::SUCCESS);
    };
    println!("\nseed {}: {}", first.seed, first.message);
    println!("\na law is broken after {} schedules", first.seed - seed + 1);
    Ok(ExitCode::FAILURE)
}

fn number(arguments: &mut Arguments, flag: &'static str, default: u64) -> Result<u64, String> {
    let text: Option<String> =
        arguments.opt_value_from_str(flag).map_err(|error| error.to_string())?;
    let Some(text) = text else { return Ok(default) };
    let invalid = |_| format!("{flag}: invalid number {text:?}: expected e.g. 1000");
    text.parse().map_err(invalid)
}

/// Runs schedules until there are enough, or until one has failed.
fn run_schedules<C: ScheduleCoverage>(progress: &Progress, seed: u64, schedules: u64) -> C {
    let mut coverage = C::default();
    loop {
        let n = progress.next.fetch_add(1, Ordering::Relaxed);
        let has_failed = progress.failures.lock().is_ok_and(|failures| !failures.is_empty());
        if n >= schedules || has_failed {
            return coverage;
        }
        let seed = seed.wrapping_add(n);
        let held = coverage.run(seed, n);
        progress.done.fetch_add(1, Ordering::Relaxed);
        if let Err(message) = held
            && let Ok(mut failures) = progress.failures.lock()
        {
            failures.push(BrokenSchedule { seed, message });
        }
    }
}

impl ScheduleCoverage for Coverage {
    fn run(&mut self, seed: u64, n: u64) -> Result<(), String> {
        let mut trace = Trace::of_seed(seed);
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
            let outcome = run_seed(seed, &mut trace);
            let compared =
                n.is_multiple_of(COMPARED) && compare_cuts(seed, &mut Trace::of_seed(seed));
            (outcome, compared)
        }));
        let (outcome, compared) = outcome.map_err(|panic| message(&*panic, &trace))?;
        self.add(&outcome, trace.steps(), compared);
        Ok(())
    }

    fn add_all(&mut self, other: &Self) {
        self.add_all(other);
    }

    fn steps(&self) -> u64 {
        self.steps()
    }
}

/// The message of a broken law has the last steps; that of another panic does not.
fn message(panic: &(dyn Any + Send), trace: &dyn Display) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panic without a text");
    if text.starts_with("law broken") { text.into() } else { format!("panic: {text}\n{trace}") }
}
