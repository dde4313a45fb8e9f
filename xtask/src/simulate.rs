//! `cargo xtask simulate`: builds the simulation with optimizations and checks, and runs it.

use pico_args::Arguments;

use crate::Outcome;
use crate::cargo::{cargo, run as run_command};

pub(crate) fn run(arguments: Arguments) -> Outcome {
    let mut simulation = cargo();
    simulation.args([
        "run",
        "--quiet",
        "--profile",
        "simulate",
        "--package",
        "capsa-simulate",
        "--",
    ]);
    run_command(simulation.args(arguments.finish()))
}
