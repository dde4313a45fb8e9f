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
const LIBRARIES: [&str; 3] = ["capsa", "expectrl", "rexpect"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["throughput", library, pattern, chunk] => throughput::measure(library, pattern, chunk),
        ["latency", library, fake] => latency::measure(library, fake),
        [fake] => measure_all(fake),
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

fn measure_all(fake: &str) -> Result<()> {
    let mut goals = Goals::default();
    println!("throughput in MiB/s, memory at the end in MiB (of the MiB of input)");
    println!(
        "{:10} {:>7}  {:>26} {:>26} {:>26}",
        "pattern", "chunk", LIBRARIES[0], LIBRARIES[1], LIBRARIES[2]
    );
    for pattern in throughput::PATTERNS {
        for chunk in [64, 4096, 65536] {
            let mut cells = Vec::new();
            for library in LIBRARIES {
                cells.push(run_self(&["throughput", library, pattern, &chunk.to_string()])?);
            }
            let cell = |n: &Vec<f64>| format!("{:.1}, {:.1} (of {})", n[0], n[1], n[2]);
            let cells_shown: Vec<String> = cells.iter().map(cell).collect();
            println!(
                "{pattern:10} {chunk:7}  {:>26} {:>26} {:>26}",
                cells_shown[0], cells_shown[1], cells_shown[2]
            );
            let [capsa, expectrl, rexpect] = [0, 1, 2].map(|n: usize| cells[n][0]);
            goals.at_least(
                format!("{pattern} at {chunk}: 5 times expectrl"),
                capsa / expectrl,
                5.0,
            );
            goals.at_least(
                format!("{pattern} at {chunk}: 100 times rexpect"),
                capsa / rexpect,
                100.0,
            );
            if pattern == "literal" && chunk >= 4096 {
                goals.at_least(format!("{pattern} at {chunk}: 1024 MiB/s"), capsa, 1024.0);
            }
            // The memory of the scrollback (at most twice its capacity) and of the matcher.
            goals.at_least(
                format!("{pattern} at {chunk}: at most 4 MiB kept"),
                4.0 / cells[0][1].max(0.01),
                1.0,
            );
        }
    }
    println!(
        "\nlatency in µs from the write of the output to the run of the waiter; CPU time in ms"
    );
    println!("{:10} {:>10} {:>10} {:>10}", "", "median", "99 of 100", "CPU");
    for library in LIBRARIES {
        match run_self(&["latency", library, fake]) {
            Ok(n) => println!("{library:10} {:10.0} {:10.0} {:10.0}", n[0], n[1], n[2]),
            // On a busy host another library may time out. The goals are printed anyway.
            Err(error) if library != LIBRARIES[0] => println!("{library:10} failed: {error}"),
            Err(error) => return Err(error),
        }
    }
    goals.print();
    Ok(())
}

/// Runs one measurement in a new process, which prints numbers.
fn run_self(words: &[&str]) -> Result<Vec<f64>> {
    // Otherwise glibc keeps freed buffers of the earlier rounds, which the memory figures would count.
    let mut program = Command::new(std::env::current_exe()?);
    let output = program.args(words).env("MALLOC_MMAP_THRESHOLD_", "65536").output()?;
    let text = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{words:?}: {}: {stderr}", output.status).into());
    }
    Ok(text.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?)
}

/// The goals, and the measured values.
#[derive(Default)]
struct Goals(Vec<(String, f64, f64)>);

impl Goals {
    fn at_least(&mut self, name: String, reached: f64, goal: f64) {
        self.0.push((name, reached, goal));
    }

    fn print(&self) {
        println!("\ngoals: the measured value divided by the goal");
        for (name, reached, goal) in &self.0 {
            let by = reached / goal;
            let result = if by >= 1.0 { "met" } else { "MISSED" };
            println!("{result:7} {name:45} {by:10.2}");
        }
    }
}
