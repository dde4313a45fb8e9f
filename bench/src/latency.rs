//! Measures the latency from an output to the run of its waiter.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use capsa::console::Pattern;
use capsa::{Accelerator, Capsa, LinuxBootConfig};
use expectrl::Expect as _;

use crate::Result;

const TICKS: usize = 100;
const TICK: &str = r"tick (\d+);";
const TIMEOUT: Duration = Duration::from_secs(30);

/// Prints the median and the 99th percentile in microseconds, and the CPU time in milliseconds.
pub(crate) fn measure(library: &str, fake: &str) -> Result<()> {
    let mut latency = match library {
        "capsa" => capsa(fake),
        "expectrl" => expectrl(fake),
        _ => rexpect(fake),
    }?;
    latency.sort_by(f64::total_cmp);
    println!("{} {} {}", latency[latency.len() / 2], latency[latency.len() * 99 / 100], cpu()?);
    Ok(())
}

fn capsa(fake: &str) -> Result<Vec<f64>> {
    let kernel = std::env::current_exe()?;
    let vm = Capsa::vm(LinuxBootConfig::new(kernel))
        .backend("qemu")
        .program("qemu", fake)
        .accelerator(Accelerator::Emulation)
        .no_network()
        .console_enabled()
        .cmdline_override(format!("up ticks*{TICKS} serve"))
        .build_blocking()?;
    let mut console = vm.console()?;
    vm.start()?;
    let tick = Pattern::regex(TICK)?;
    let latency = (0..TICKS).map(|_| {
        let found = console.wait_for_pattern(&tick, Some(TIMEOUT))?;
        latency(found.group(1).unwrap_or_default())
    });
    let latency = latency.collect();
    vm.kill()?;
    latency
}

fn expectrl(fake: &str) -> Result<Vec<f64>> {
    let mut session = expectrl::spawn(format!("{fake} --ticks {TICKS}"))?;
    let latency = (0..TICKS).map(|_| {
        let found = session.expect(expectrl::Regex(TICK))?;
        latency(&String::from_utf8_lossy(found.get(1).unwrap_or_default()))
    });
    latency.collect()
}

fn rexpect(fake: &str) -> Result<Vec<f64>> {
    let timeout = TIMEOUT.as_millis() as u64;
    let mut session = rexpect::spawn(&format!("{fake} --ticks {TICKS}"), Some(timeout))?;
    let latency = (0..TICKS).map(|_| {
        let (_, found) = session.exp_regex(TICK)?;
        latency(found.trim_matches(|c: char| !c.is_ascii_digit()))
    });
    latency.collect()
}

/// The age of a time stamp in microseconds.
fn latency(nanos: &str) -> Result<f64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    Ok((now.saturating_sub(nanos.parse()?)) as f64 / 1000.0)
}

/// The CPU time of this process so far, in milliseconds.
fn cpu() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // After the name, which is in brackets: state is the first, user and system the 12th and 13th.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks * 10.0)
}
