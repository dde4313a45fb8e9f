//! VMs on the fake QEMU ([`capsa_stand_ins::fake_qemu`]), and isolated tests, which run in a process of
//! their own: what such a test changes or breaks affects no other test, and a hang ends.
//!
//! A test becomes isolated by the first line of its body, [`run_isolated!`](crate::run_isolated). The
//! test's name comes from the test harness, never from a string in the test.

use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use capsa::{Accelerator, Capsa, LinuxBootConfig, LinuxVmBuilder};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::processes::raise_descriptor_limit;
use capsa_fixtures::programs::TestProgram;
use capsa_fixtures::{nano, test_name};
pub use capsa_stand_ins::fake_qemu::{flood, line, ticks};

/// The environment variable that holds the name of the isolated test, in its own process.
const ISOLATED: &str = "CAPSA_TEST_ISOLATED";

/// The environment variable that names the file to which an isolated test appends its name.
const RAN: &str = "CAPSA_TEST_RAN";

/// How long an isolated test may run. This only ends a hang.
const LIMIT: Duration = Duration::from_secs(600);

/// Makes the calling test an isolated test, when it is the first statement of the test.
///
/// The macro runs the test again in a process of its own, where QEMU is the fake QEMU and the base of
/// the run directories is a fresh directory. In the first process it then returns from the test; in
/// the second one the test goes on. An argument is a command, such as a shell, that starts the second
/// process.
///
/// # Panics
///
/// When the test fails in its own process, does not end, or did not run there exactly once.
#[macro_export]
macro_rules! run_isolated {
    () => {
        $crate::run_isolated!([])
    };
    ($starter:expr) => {
        if !$crate::fake::isolated(&$starter) {
            return;
        }
    };
}

/// Whether this is the own process of the calling test. If not, runs the test there first, started by
/// the command `starter`. See [`run_isolated!`](crate::run_isolated).
///
/// # Panics
///
/// As [`run_isolated!`](crate::run_isolated).
pub fn isolated(starter: &[&str]) -> bool {
    let test = test_name();
    if env::var_os(ISOLATED).is_none_or(|isolated| isolated != *test) {
        rerun(&test, starter);
        return false;
    }
    let ran = PathBuf::from(env::var_os(RAN).expect("the first process sets it"));
    let ran = fs::File::options().append(true).open(ran);
    ran.and_then(|mut ran| writeln!(ran, "{test}")).expect("the file can be written");
    raise_descriptor_limit();
    true
}

fn rerun(test: &str, starter: &[&str]) {
    let run_dir = tempfile::tempdir_in("/tmp").expect("a temporary directory");
    let ran = tempfile::NamedTempFile::new().expect("a temporary file");
    let this = env::current_exe().expect("a test has a program");
    let mut command = match starter {
        [] => Command::new(this),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(this);
            command
        }
    };
    command.args([test, "--exact", "--nocapture"]).process_group(0);
    command.env(ISOLATED, test).env(RAN, ran.path());
    // The harness of the isolated process prints a summary of its own, which must not be counted.
    let output = tempfile::NamedTempFile::new().expect("a temporary file");
    command.stdout(output.reopen().expect("a file that was just created"));
    command.env("CAPSA_QEMU", qemu()).env("CAPSA_RUN_DIR", run_dir.path());
    let mut program = command.spawn().expect("a test can run itself");
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = program.try_wait().expect("it is our child") {
            break status;
        }
        if Instant::now() > deadline {
            end(&mut program);
            panic!("{test} did not end within {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let output =
        || String::from_utf8_lossy(&fs::read(output.path()).unwrap_or_default()).into_owned();
    assert!(status.success(), "{test}: {status}\n{}", output());
    let ran = fs::read_to_string(ran.path()).expect("the file of the names is text");
    assert_eq!(ran, format!("{test}\n"), "{test} did not run exactly once in its own process");
}

fn end(program: &mut Child) {
    let _ = killpg(Pid::from_raw(program.id().cast_signed()), Signal::SIGKILL);
    let _ = program.wait();
}

/// The program of the fake QEMU.
///
/// # Panics
///
/// When Cargo cannot build it.
pub fn qemu() -> PathBuf {
    TestProgram::new("fake-qemu").into()
}

/// A VM on the fake QEMU, which carries out `commands`. Only for isolated tests.
///
/// # Panics
///
/// When the kernel file, which is never read, cannot be written.
pub fn vm(commands: &str) -> LinuxVmBuilder {
    Capsa::vm(LinuxBootConfig::new(kernel()))
        .backend("qemu")
        .accelerator(Accelerator::Emulation)
        .memory_mb(32)
        .no_network()
        .console_enabled()
        .cmdline_override(commands)
}

/// A kernel file in the base of the run directories, which is removed after the test.
fn kernel() -> PathBuf {
    let base = PathBuf::from(env::var_os("CAPSA_RUN_DIR").expect("the test is isolated"));
    let file = base.join("kernel.elf");
    fs::write(&file, nano::elf()).expect("the kernel can be written");
    file
}

#[cfg(test)]
mod tests {
    #[test]
    fn isolated_test_runs_once_in_own_process() {
        let first = std::env::var_os(super::ISOLATED).is_none();
        run_isolated!();
        assert!(!first);
    }

    #[test]
    #[should_panic(expected = "fake::tests::misspelled did not run exactly once")]
    fn isolated_name_unknown_panics() {
        super::rerun("fake::tests::misspelled", &[]);
    }

    #[test]
    #[should_panic(expected = "did not run exactly once")]
    fn isolated_name_of_other_test_panics() {
        super::rerun("fake::tests::not_isolated", &[]);
    }

    #[test]
    fn not_isolated() {}
}
