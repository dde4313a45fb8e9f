//! Measures the latency from an output to the run of its waiter.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use capsa::{Accelerator, Capsa, LinuxBootConfig, Pattern};
use expectrl::Expect as _;

use crate::Result;

const TICKS: usize = 100;
const TICK: &str = r"tick (\d+);";
const PATIENCE: Duration = Duration::from_secs(30);

/// Prints the median and the 99th percentile in microseconds, and the CPU time in milliseconds.
pub(crate) fn measure(who: &str, fake: &str) -> Result<()> {
    let mut late = match who {
        "capsa" => capsa(fake),
        "expectrl" => expectrl(fake),
        _ => rexpect(fake),
    }?;
    late.sort_by(f64::total_cmp);
    println!("{} {} {}", late[late.len() / 2], late[late.len() * 99 / 100], cpu()?);
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
    let late = (0..TICKS).map(|_| {
        let found = console.wait_for_pattern(&tick, Some(PATIENCE))?;
        late(found.group(1).unwrap_or_default())
    });
    let late = late.collect();
    vm.kill()?;
    late
}

fn expectrl(fake: &str) -> Result<Vec<f64>> {
    let mut session = expectrl::spawn(format!("{fake} --ticks {TICKS}"))?;
    let late = (0..TICKS).map(|_| {
        let found = session.expect(expectrl::Regex(TICK))?;
        late(&String::from_utf8_lossy(found.get(1).unwrap_or_default()))
    });
    late.collect()
}

fn rexpect(fake: &str) -> Result<Vec<f64>> {
    let patience = PATIENCE.as_millis() as u64;
    let mut session = rexpect::spawn(&format!("{fake} --ticks {TICKS}"), Some(patience))?;
    let late = (0..TICKS).map(|_| {
        let (_, found) = session.exp_regex(TICK)?;
        late(found.trim_matches(|c: char| !c.is_ascii_digit()))
    });
    late.collect()
}

/// The age of a time stamp in microseconds.
fn late(nanos: &str) -> Result<f64> {
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
