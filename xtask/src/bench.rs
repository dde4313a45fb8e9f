//! `cargo xtask bench`: what Capsa costs over driving a hypervisor without it.
//!
//! The bench of the console is in the package `bench`, which is outside of the workspace because of
//! the crates that it compares with. The bench of the network is in `capsa-network-rig`. The others are in
//! the package `capsa-measure`.

use std::ffi::OsString;

use pico_args::Arguments;

use crate::Outcome;
use crate::cargo::{self, cargo, target_directory};

pub(crate) fn run(arguments: Arguments) -> Outcome {
    let arguments: Vec<OsString> = arguments.finish();
    match arguments.first() {
        Some(name) if name == "console" => console(&arguments[1..]),
        Some(name) if name == "network" => network(&arguments[1..]),
        _ => cargo::run_program("capsa-measure", "bench", &arguments),
    }
}

fn console(arguments: &[OsString]) -> Outcome {
    if let Some(extra) = arguments.first() {
        return Err(format!("unknown argument {}", extra.display()).into());
    }
    let build = ["build", "--release", "--package", "capsa-stand-ins", "--bin", "fake-qemu"];
    cargo::run(cargo().args(build))?;
    let mut bench = cargo();
    bench.args(["run", "--quiet", "--release", "--manifest-path", "bench/Cargo.toml", "--"]);
    cargo::run(bench.arg(target_directory().join("release/fake-qemu")))
}

fn network(arguments: &[OsString]) -> Outcome {
    let rig =
        ["--release", "--package", "capsa-network-rig", "--bin", "network-rig", "--", "bench"];
    cargo::run(cargo().args(["run", "--quiet"]).args(rig).args(arguments))
}
