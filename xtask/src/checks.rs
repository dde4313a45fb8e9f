//! What `cargo xtask test` checks without running anything, and the tasks `fmt` and `clippy`.

use std::process::Command;

use pico_args::Arguments;

use crate::cargo::{self, cargo};
use crate::{Outcome, finish};

/// A call of Cargo: its name in the output, its arguments, and an environment variable.
pub(crate) struct Check(
    pub(crate) &'static str,
    &'static [&'static str],
    Option<(&'static str, &'static str)>,
);

impl Check {
    pub(crate) fn command(&self) -> Command {
        let Self(_, arguments, variable) = self;
        let mut cargo = cargo();
        cargo.args(*arguments).envs(*variable);
        cargo
    }
}

/// The workspace, and the packages outside of it.
pub(crate) const FORMAT: &[Check] = &[
    Check("format", &["fmt", "--all", "--check"], None),
    Check("format of fuzz/", &["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"], None),
];

/// Everything, then the library with the features that its users choose.
pub(crate) const CLIPPY: &[Check] = &[
    Check(
        "clippy",
        &["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"],
        None,
    ),
    Check(
        "capsa: embed alone",
        &["clippy", "-p", "capsa-vm", "--no-default-features", "--", "-D", "warnings"],
        None,
    ),
    Check("capsa: default features", &["clippy", "-p", "capsa-vm", "--", "-D", "warnings"], None),
    Check(
        "capsa: blocking",
        &["clippy", "-p", "capsa-vm", "--features", "blocking", "--", "-D", "warnings"],
        None,
    ),
];

pub(crate) const DOCUMENTATION: Check = Check(
    "documentation",
    &["doc", "--no-deps", "--workspace", "--all-features"],
    Some(("RUSTDOCFLAGS", "-D warnings")),
);

/// Packages all that is published; a dependency without a version, for example, is an error. Uploads nothing.
/// `cargo publish` skips packages with `publish = false`; `cargo package --workspace` (1.95) does not, and
/// fails at one of the tests' packages that depends on another. Without `--no-verify` it also builds each
/// package from its archive, which takes minutes.
pub(crate) const PACKAGES: Check = Check(
    "packages for crates.io",
    &["publish", "--workspace", "--dry-run", "--no-verify", "--allow-dirty", "--quiet"],
    None,
);

/// `cargo xtask fmt [--check]`.
pub(crate) fn fmt(mut arguments: Arguments) -> Outcome {
    let only_check = arguments.contains("--check");
    finish(arguments)?;
    for Check(_, arguments, _) in FORMAT {
        let arguments = arguments.iter().filter(|word| only_check || **word != "--check");
        cargo::run(cargo().args(arguments))?;
    }
    Ok(())
}

/// `cargo xtask clippy`.
pub(crate) fn clippy(arguments: Arguments) -> Outcome {
    finish(arguments)?;
    for check in CLIPPY {
        println!("=== {}", check.0);
        cargo::run(&mut check.command())?;
    }
    Ok(())
}
