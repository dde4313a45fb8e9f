//! Machines on a hypervisor that misbehaves on order (`src/bin/fake-qemu.rs`), each test in a
//! program of its own: what it breaks is its own, and a hang has an end.

use std::env;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use capsa::{Accelerator, Capsa, LinuxBootConfig, LinuxVmBuilder};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Set in the program of a single test.
const ALONE: &str = "CAPSA_TEST_ALONE";

/// How long a test may take in its own program.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs `test` of this test program again, alone, in a program of its own with `fake` for QEMU and
/// a run directory of its own. `true` in that program; elsewhere `false`, when it is over.
///
/// # Panics
///
/// When the test fails there, or takes too long.
pub fn alone(fake: &str, test: &str) -> bool {
    alone_under(&[], fake, test)
}

/// As [`alone`], where these words, such as those of a shell, start the program.
///
/// # Panics
///
/// As [`alone`].
pub fn alone_under(words: &[&str], fake: &str, test: &str) -> bool {
    if env::var_os(ALONE).is_some_and(|alone| alone == test) {
        // Two hundred machines are more than the 1024 descriptors of an ordinary login.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
        setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("up to there it is ours");
        return true;
    }
    let run_dir = tempfile::tempdir_in("/tmp").expect("a temporary directory");
    let this = env::current_exe().expect("a test has a program");
    let mut command = match words {
        [] => Command::new(this),
        [program, words @ ..] => {
            let mut command = Command::new(program);
            command.args(words).arg(this);
            command
        }
    };
    command.args([test, "--exact", "--nocapture"]).process_group(0);
    command.env(ALONE, test).env("CAPSA_QEMU", fake).env("CAPSA_RUN_DIR", run_dir.path());
    let mut program = command.spawn().expect("a test can run itself");
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = program.try_wait().expect("it is our child") {
            break status;
        }
        if Instant::now() > deadline {
            end(&mut program);
            panic!("{test} hangs");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(status.success(), "{test}: {status}");
    false
}

fn end(program: &mut Child) {
    let _ = killpg(Pid::from_raw(program.id().cast_signed()), Signal::SIGKILL);
    let _ = program.wait();
}

/// A machine whose hypervisor does what `orders` say.
///
/// # Panics
///
/// When the kernel, which nobody reads, cannot be written.
pub fn machine(orders: &str) -> LinuxVmBuilder {
    Capsa::vm(LinuxBootConfig::new(kernel()))
        .backend("qemu")
        .accelerator(Accelerator::Emulation)
        .memory_mb(32)
        .no_network()
        .console_enabled()
        .cmdline_override(orders)
}

/// A line of those that the fake's floods are made of: they differ, and each has its number.
pub fn line(n: usize) -> String {
    format!("line {n:010} of a flood that nobody can hold back\n")
}

/// Says what time it is: `tick`, and the nanoseconds of the system's clock, so that who hears it can
/// tell how late.
pub fn ticks(mut to: impl Write, number: usize) {
    for _ in 0..number {
        std::thread::sleep(Duration::from_millis(20));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let told = writeln!(to, "tick {};", now.as_nanos()).and_then(|()| to.flush());
        if told.is_err() {
            return;
        }
    }
}

/// The first bytes of a flood.
pub fn flood(bytes: usize) -> Vec<u8> {
    let mut flood: Vec<u8> = (0..).flat_map(|n| line(n).into_bytes()).take(bytes).collect();
    flood.shrink_to_fit();
    flood
}

/// A kernel in the directory that [`alone`] takes away.
fn kernel() -> PathBuf {
    let base = PathBuf::from(env::var_os("CAPSA_RUN_DIR").expect("the test runs alone"));
    let file = base.join("kernel.elf");
    std::fs::write(&file, crate::nano::elf()).expect("the kernel can be written");
    file
}
