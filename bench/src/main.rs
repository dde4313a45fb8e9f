//! Capsa's console beside rexpect and expectrl: same bytes, same patterns, one run.
//!
//! `cargo xtask bench console` builds and runs it. Each figure is measured in a process of its own,
//! which is this program again, so that memory is its own too:
//!
//! - **Throughput**: a boot's text comes from memory in chunks and ends with what is waited for.
//!   Whoever waits looks after each chunk, as on a console where it comes slowly. Capsa's side is the
//!   log and the wait that its console has inside, fed as that feeds it. One that is too slow for
//!   all of it gets less, which only flatters it: their time per byte grows with what they keep.
//! - **Latency**: another process says the time on a console, and we see how late it is when the
//!   waiter runs. Capsa's side is the whole library, with a hypervisor that is none.

mod latency;
mod throughput;

use std::error::Error;
use std::process::{Command, ExitCode};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Who is measured.
const SUBJECTS: [&str; 3] = ["capsa", "expectrl", "rexpect"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["throughput", who, what, chunk] => throughput::measure(who, what, chunk),
        ["latency", who, fake] => latency::measure(who, fake),
        [fake] => everything(fake),
        _ => Err("usage: capsa-bench PROGRAM, which says the time when given --ticks".into()),
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

/// Measures in a process of its own. It prints numbers.
fn again(words: &[&str]) -> Result<Vec<f64>> {
    let output = Command::new(std::env::current_exe()?).args(words).output()?;
    let text = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{words:?}: {}: {said}", output.status).into());
    }
    Ok(text.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?)
}

/// What was to be reached, and what was.
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
