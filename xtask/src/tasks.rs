//! The table of tasks: names, help texts, and what runs them.

use std::ffi::OsStr;
use std::fmt;

use pico_args::Arguments;

use crate::{Outcome, bench, check_command, checks, conformance, fuzz, test};

/// A task of `cargo xtask`.
pub(crate) struct Task {
    pub(crate) name: &'static str,
    /// The flags, as a usage line shows them.
    flags: &'static str,
    /// What it does, in a line.
    pub(crate) about: &'static str,
    /// The rest of its help, from an empty line on: flags and environment variables, a line each.
    details: &'static str,
    pub(crate) action: TaskAction,
}

/// The code that runs a task.
pub(crate) enum TaskAction {
    /// A function of this package.
    Here(fn(Arguments) -> Outcome),
    /// A program of another package, by the names of both. It gets the arguments as they are.
    Program(&'static str, &'static str),
}

pub(crate) const TASKS: &[Task] = &[
    Task {
        name: "bench",
        flags: "[console | idle | start] [FLAGS]",
        about: "measure Capsa against a hypervisor without it",
        details: "
Without a word: from the spawn of QEMU to the login prompt of a Linux guest, in turn.
  --pairs N                pairs of boots (default: 8)
console: the console beside rexpect and expectrl.
idle: threads, descriptors, memory and wake-ups of idle VMs.
  --vms N                  VMs (default: 200)
  --seconds N              how long to measure (default: 10)
  --api embed|handle       measure one API in this process (default: both, each in its own)
start: from the start of cloud-hypervisor to a running VM, in turn.
  --pairs N                pairs of starts (default: 30)
",
        action: TaskAction::Here(bench::run),
    },
    Task {
        name: "check-command",
        flags: "",
        about: "build the release of `capsa` and check its size",
        details: "
The limit is 3 MiB.
",
        action: TaskAction::Here(check_command::run),
    },
    Task {
        name: "check-macos",
        flags: "",
        about: "run clippy for macOS over the workspace, on Linux",
        details: "
The compiler comes from Debian packages, which are unpacked in `target/macos/` (900 MB) and not
installed. On a host without them the task is skipped.
",
        action: TaskAction::Program("capsa-fixtures", "check-macos"),
    },
    Task {
        name: "clippy",
        flags: "",
        about: "run clippy with each set of features; a warning is an error",
        details: "",
        action: TaskAction::Here(checks::clippy),
    },
    Task {
        name: "conformance",
        flags: "--backend NAME [--filter TEXT] [--linux]",
        about: "run the conformance suite on a backend of this host and write a report",
        details: "
  --backend NAME           qemu, cloud-hypervisor, cloud-hypervisor-stand-in, vfkit, vfkit-stand-in
  --filter TEXT            only scenarios with TEXT in their name
  --linux                  boot Linux in every scenario, never the nano guest
The report is printed and kept in `target/conformance-NAME.txt`.
Environment: CAPSA_QEMU, CAPSA_CLOUD_HYPERVISOR, CAPSA_VFKIT, CAPSA_VIRTIOFSD, CAPSA_PASST and
CAPSA_VHOST_DEVICE_VSOCK name programs that are not in PATH.
",
        action: TaskAction::Here(conformance::run),
    },
    Task {
        name: "demo",
        flags: "",
        about: "boot a real Linux guest, run a command in it, stop it",
        details: "
Installs QEMU first where it is missing, as `setup` does, and makes the guest.
",
        action: TaskAction::Program("capsa-testkit", "demo"),
    },
    Task {
        name: "fmt",
        flags: "[--check]",
        about: "format the workspace and fuzz/",
        details: "
  --check                  change nothing; fail where something is to be formatted
",
        action: TaskAction::Here(checks::fmt),
    },
    Task {
        name: "fuzz",
        flags: "[--seconds N] [--target NAME]",
        about: "run the fuzz targets",
        details: "
  --seconds N              time for each target (default: 60)
  --target NAME            only this target
Needs rustup with a toolchain named `nightly`; installs cargo-fuzz where it is missing.
",
        action: TaskAction::Here(fuzz::run),
    },
    Task {
        name: "guest",
        flags: "[--generic] [--debian]",
        about: "make the Linux guests of the tests and print their paths",
        details: "
  --generic                also the guest with the distribution's generic kernel
  --debian                 also the guest with Debian and systemd; needs root and mmdebstrap
",
        action: TaskAction::Program("capsa-fixtures", "guest"),
    },
    Task {
        name: "lab",
        flags: "[--filter TEXT | PROGRAM ARGUMENT…]",
        about: "run the conformance suite on cloud-hypervisor in an emulated host with KVM",
        details: "
  --filter TEXT            only scenarios with TEXT in their name
  PROGRAM ARGUMENT…        run this program in the emulated host, instead of the suite
Environment: CAPSA_CLOUD_HYPERVISOR names the program if it is not in PATH. Without one the task is
skipped.
",
        action: TaskAction::Program("capsa-testkit", "lab"),
    },
    Task {
        name: "setup",
        flags: "",
        about: "install the programs that the tests need",
        details: "
As root on Debian it installs packages; elsewhere it prints the commands. It never removes or
downgrades a package.
",
        action: TaskAction::Program("capsa-fixtures", "setup"),
    },
    Task {
        name: "test",
        flags: "",
        about: "run every check and every test, and count them",
        details: "
The last line is `N passed, N failed, N skipped`.
Environment: RUST_TEST_THREADS is the number of tests at a time (default: half the cores, at most 4).
",
        action: TaskAction::Here(test::run),
    },
    Task {
        name: "weight",
        flags: "[--peers]",
        about: "measure what Capsa adds to a program: packages, build time, memory; as Markdown",
        details: "
  --peers                  also the same of other crates, which are downloaded
",
        action: TaskAction::Program("capsa-measure", "weight"),
    },
];

impl Task {
    pub(crate) fn named(name: &OsStr) -> Option<&'static Self> {
        TASKS.iter().find(|task| name == task.name)
    }
}

/// The help of the task.
impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usage = format!("usage: cargo xtask {} {}", self.name, self.flags);
        writeln!(f, "{}\n\n{}\n{}", usage.trim_end(), self.about, self.details.trim_end())
    }
}
