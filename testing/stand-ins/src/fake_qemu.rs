//! What the fake QEMU writes, for tests that compare it with what they read.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Line `n` of the output that the fake QEMU writes in bulk. The lines differ.
pub fn line(n: usize) -> String {
    format!("line {n:010} of a flood of console output\n")
}

/// Writes `tick` and the nanoseconds since 1970, `number` times, so that a reader sees the delay.
pub fn ticks(mut to: impl Write, number: usize) {
    for _ in 0..number {
        std::thread::sleep(Duration::from_millis(20));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let written = writeln!(to, "tick {};", now.as_nanos()).and_then(|()| to.flush());
        if written.is_err() {
            return;
        }
    }
}

/// The first bytes of the bulk output.
pub fn flood(bytes: usize) -> Vec<u8> {
    let mut flood: Vec<u8> = (0..).flat_map(|n| line(n).into_bytes()).take(bytes).collect();
    flood.shrink_to_fit();
    flood
}
