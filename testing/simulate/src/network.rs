//! [`NetworkCoverage`]: what the schedules of the network covered, as Markdown.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};

use capsa_net::simulate::{NetScheduleOutcome, NetTrace, run_seed};

use crate::{ScheduleCoverage, message};

/// One schedule of this many is run twice: it takes the same steps.
const COMPARED: u64 = 32;

/// Counts over all schedules of the network.
#[derive(Debug, Default)]
pub(crate) struct NetworkCoverage {
    sum: NetScheduleOutcome,
    steps: u64,
    compared: u64,
}

impl ScheduleCoverage for NetworkCoverage {
    fn run(&mut self, seed: u64, n: u64) -> Result<(), String> {
        let mut trace = NetTrace::of_seed(seed);
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| run_seed(seed, &mut trace)));
        let outcome = outcome.map_err(|panic| message(&*panic, &trace))?;
        self.steps += trace.steps();
        self.sum.add(&outcome);
        if n.is_multiple_of(COMPARED) {
            let mut again = NetTrace::of_seed(seed);
            run_seed(seed, &mut again);
            if again.digest() != trace.digest() {
                return Err(format!("the same schedule takes other steps\n{trace}\n{again}"));
            }
            self.compared += 1;
        }
        Ok(())
    }

    fn add_all(&mut self, other: &Self) {
        self.sum.add(&other.sum);
        self.steps += other.steps;
        self.compared += other.compared;
    }

    fn steps(&self) -> u64 {
        self.steps
    }
}

impl fmt::Display for NetworkCoverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = &self.sum;
        writeln!(f, "| schedules | |\n| --- | ---: |")?;
        for (name, n) in [
            ("TCP connections", sum.connections),
            ("connections with both streams whole", sum.complete),
            ("connections that found the table full", sum.refused),
            ("connections that a defect of the guest ended", sum.lost_by_guest),
            ("bytes that arrived in both directions", sum.bytes),
            ("datagrams that arrived at the host", sum.datagrams),
            ("sockets and queries that a policy allowed", sum.allowed),
            ("refusals of a policy", sum.denied),
            ("most memory reserved, in bytes", sum.memory),
            ("run twice with the same steps", self.compared),
        ] {
            writeln!(f, "| {name} | {n} |")?;
        }
        Ok(())
    }
}
