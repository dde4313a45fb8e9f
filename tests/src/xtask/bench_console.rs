//! `cargo xtask bench console`: Capsa's console beside rexpect and expectrl, in the package `bench`,
//! which is outside of the workspace with what it compares with.

use super::{Outcome, finish};
use capsa_test::workspace;

pub(super) fn run(arguments: pico_args::Arguments) -> Outcome {
    finish(arguments)?;
    let build = ["build", "--release", "--package", "capsa-test", "--bin", "fake-qemu"];
    if !workspace::cargo().args(build).status()?.success() {
        return Err("the hypervisor that says the time could not be built".into());
    }
    let fake = workspace::target_directory().join("release/fake-qemu");
    let mut bench = workspace::cargo();
    bench.args(["run", "--quiet", "--release", "--manifest-path", "bench/Cargo.toml", "--"]);
    match bench.arg(fake).status()?.success() {
        true => Ok(()),
        false => Err("the bench failed".into()),
    }
}
