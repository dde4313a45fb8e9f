//! [`Coverage`]: what the schedules covered, as Markdown.

use std::collections::BTreeMap;
use std::fmt;

use capsa_proto::lifecycle::EndedBy;
use capsa_proto::vm::simulate::ScheduleOutcome;

/// Counts over all schedules.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    counts: BTreeMap<(u8, &'static str), u64>,
    steps: u64,
}

impl Coverage {
    /// Adds a schedule, the number of its steps, and whether it was run with other cuts.
    pub(crate) fn add(&mut self, outcome: &ScheduleOutcome, steps: u64, compared: bool) {
        self.steps += steps;
        let ended_by = match outcome.ended_by {
            EndedBy::GuestPowerOff => "ended by: the guest powered off",
            EndedBy::GuestReboot => "ended by: the guest rebooted",
            EndedBy::GuestPanic => "ended by: the guest panicked",
            EndedBy::Owner => "ended by: the owner",
            EndedBy::TimeLimit => "ended by: the time limit",
            EndedBy::StartFailed { .. } => "ended by: the start failed",
            EndedBy::HelperLost { .. } => "ended by: a helper was lost",
            EndedBy::HypervisorLost { .. } => "ended by: the hypervisor was lost",
            _ => "ended by: something else",
        };
        for (row, name, n) in [
            (0, "reached Running", u64::from(outcome.was_running)),
            (0, "was paused", u64::from(outcome.was_paused)),
            (0, "control over HTTP", u64::from(outcome.is_http)),
            (1, ended_by, 1),
            (2, "a process survived SIGKILL", u64::from(outcome.gave_up)),
            (2, "old console output was dropped", u64::from(outcome.has_dropped)),
            (2, "run again with other cuts", u64::from(compared)),
            (3, "waits that ended with a match or output", u64::from(outcome.waits_met)),
            (3, "waits that failed", u64::from(outcome.waits_failed)),
            (3, "waits that were cancelled", u64::from(outcome.waits_cancelled)),
            (4, "bytes of console output", outcome.console_bytes),
        ] {
            *self.counts.entry((row, name)).or_default() += n;
        }
    }

    /// Adds the counts of another thread.
    pub(crate) fn add_all(&mut self, other: &Self) {
        self.steps += other.steps;
        for (key, n) in &other.counts {
            *self.counts.entry(*key).or_default() += n;
        }
    }

    /// The number of steps.
    pub(crate) const fn steps(&self) -> u64 {
        self.steps
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| schedules | |\n| --- | ---: |")?;
        for ((_, name), n) in &self.counts {
            writeln!(f, "| {name} | {n} |")?;
        }
        Ok(())
    }
}
