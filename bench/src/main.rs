//! Compares Capsa's console with rexpect and expectrl: same bytes, same patterns, one run.
//!
//! `cargo xtask bench console` builds and runs it. Each figure is measured in a process of its own
//! (this program again), so that the memory figures are independent:
//!
//! - **Throughput**: boot messages come from memory in chunks and end with the expected text. The wait is
//!   polled after each chunk, as on a slow console. Capsa is measured with its scrollback and wait, fed as
//!   its console feeds them. A library that is too slow for the full input gets less of it, which favours
//!   that library: its time per byte grows with the amount of buffered output.
//! - **Latency**: another process prints the time on a console, and the waiter compares it with the
//!   clock. Capsa is measured as a whole, with a fake hypervisor.

mod latency;
mod throughput;

use std::error::Error;
use std::process::{Command, ExitCode};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The libraries that are measured.
const SUBJECTS: [&str; 3] = ["capsa", "expectrl", "rexpect"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["throughput", who, what, chunk] => throughput::measure(who, what, chunk),
        ["latency", who, fake] => latency::measure(who, fake),
        [fake] => everything(fake),
        _ => Err("usage: capsa-bench PROGRAM, where PROGRAM prints the time with --ticks".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("capsa-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn everything(fake: &str) -> Result<()> {
    let mut goals = Goals::default();
    println!("throughput in MiB/s, memory at the end in MiB (of how many MiB were looked at)");
    println!(
        "{:10} {:>7}  {:>26} {:>26} {:>26}",
        "for", "chunk", SUBJECTS[0], SUBJECTS[1], SUBJECTS[2]
    );
    for what in throughput::WHATS {
        for chunk in [64, 4096, 65536] {
            let mut cells = Vec::new();
            for who in SUBJECTS {
                cells.push(again(&["throughput", who, what, &chunk.to_string()])?);
            }
            let cell = |n: &Vec<f64>| format!("{:.1}, {:.1} (of {})", n[0], n[1], n[2]);
            let cells_shown: Vec<String> = cells.iter().map(cell).collect();
            println!(
                "{what:10} {chunk:7}  {:>26} {:>26} {:>26}",
                cells_shown[0], cells_shown[1], cells_shown[2]
            );
            let [ours, expectrl, rexpect] = [0, 1, 2].map(|n: usize| cells[n][0]);
            goals.at_least(format!("{what} at {chunk}: 5 times expectrl"), ours / expectrl, 5.0);
            goals.at_least(format!("{what} at {chunk}: 100 times rexpect"), ours / rexpect, 100.0);
            if what == "literal" && chunk >= 4096 {
                goals.at_least(format!("{what} at {chunk}: 1024 MiB/s"), ours, 1024.0);
            }
            // The log, twice its capacity at most, and what a search keeps.
            goals.at_least(
                format!("{what} at {chunk}: at most 4 MiB kept"),
                4.0 / cells[0][1].max(0.01),
                1.0,
            );
        }
    }
    println!("\nlatency in µs from the byte being written to the waiter running; CPU time in ms");
    println!("{:10} {:>10} {:>10} {:>10}", "", "median", "99 of 100", "CPU");
    for who in SUBJECTS {
        match again(&["latency", who, fake]) {
            Ok(n) => println!("{who:10} {:10.0} {:10.0} {:10.0}", n[0], n[1], n[2]),
            // On a busy machine another may fail at this, and the goals are to be seen all the same.
            Err(error) if who != SUBJECTS[0] => println!("{who:10} failed: {error}"),
            Err(error) => return Err(error),
        }
    }
    goals.print();
    Ok(())
}

/// Runs one measurement in a new process, which prints numbers.
fn again(words: &[&str]) -> Result<Vec<f64>> {
    let output = Command::new(std::env::current_exe()?).args(words).output()?;
    let text = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{words:?}: {}: {said}", output.status).into());
    }
    Ok(text.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?)
}

/// The goals, and the measured values.
#[derive(Default)]
struct Goals(Vec<(String, f64, f64)>);

impl Goals {
    fn at_least(&mut self, what: String, reached: f64, goal: f64) {
        self.0.push((what, reached, goal));
    }

    fn print(&self) {
        println!("\ngoals, as a multiple of what was to be reached");
        for (what, reached, goal) in &self.0 {
            let by = reached / goal;
            let verdict = if by >= 1.0 { "met" } else { "MISSED" };
            println!("{verdict:7} {what:45} {by:10.2}");
        }
    }
}
