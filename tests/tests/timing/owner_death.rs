//! SIGKILL ends the owner at any moment; its hypervisor and helpers end too.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use capsa_testkit::processes::{self, Process, runs};
use capsa_testkit::programs::TestProgram;
use capsa_testkit::vm::{NanoGuest, eventually};
use capsa_testkit::{host, skip};

use super::assert_within;

/// When the owner is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// This long after the owner has printed this word.
    After(&'static str, Duration),
}

const fn after(word: &'static str, millis: u64) -> Moment {
    Moment::After(word, Duration::from_millis(millis))
}

/// Ten moments: during the probe, the spawn of the helper and of the hypervisor, boot, run and stop.
const MOMENTS: [Moment; 10] = [
    after("begin", 0),
    after("begin", 60),
    after("built", 0),
    after("built", 3),
    after("built", 8),
    after("built", 20),
    after("built", 60),
    after("running", 0),
    after("ready", 0),
    after("ready", 50),
];

struct Owner {
    process: Child,
    words: BufReader<ChildStdout>,
}

impl Owner {
    fn start(backend: &str, guest: &NanoGuest, base: &Path) -> Self {
        Self::start_with(backend, guest, base, &[])
    }

    fn start_with(backend: &str, guest: &NanoGuest, base: &Path, more: &[&Path]) -> Self {
        let mut process = Command::new(TestProgram::new("owner"))
            .args([guest.kernel(), guest.dir()])
            .arg(backend)
            .args(more)
            .env("CAPSA_RUN_DIR", base)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let words = BufReader::new(process.stdout.take().unwrap());
        Self { process, words }
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while line.trim_end() != word {
            line.clear();
            assert_ne!(
                self.words.read_line(&mut line).unwrap(),
                0,
                "the owner ended before {word}"
            );
        }
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Processes that have `mark` in an argument, and the watchdog of this owner.
fn relatives(mark: &Path, owner: u32) -> Vec<(u32, String)> {
    let mark = mark.display().to_string();
    let is_relative = |process: &Process| {
        let is_watchdog = process.arguments.contains("capsa-watchdog") && process.parent == owner;
        process.pid != owner
            && !process.is_zombie
            && (is_watchdog || process.arguments.contains(&mark))
    };
    let found = processes::all().into_iter().filter(is_relative);
    found.map(|process| (process.pid, process.arguments)).collect()
}

#[test]
fn owner_killed_leaves_no_process_after_a_second() {
    killed_at_every_moment("qemu");
}

/// Without the children of the stand-in, which Capsa does not start.
#[test]
fn owner_killed_leaves_no_vfkit_after_a_second() {
    killed_at_every_moment("vfkit");
}

fn killed_at_every_moment(backend: &str) {
    let Some(guest) = NanoGuest::without_power_button() else { return };
    if host::find_program("virtiofsd").is_none() {
        skip("virtiofsd is not installed");
        return;
    }
    let base = tempfile::tempdir_in("/tmp").unwrap();
    // QEMU has the kernel in its arguments, virtiofsd the share, and vfkit a socket.
    let mark = if backend == "qemu" { guest.dir() } else { base.path() };
    let mut seen_most = 0;
    for moment in MOMENTS {
        assert_within(Duration::from_secs(1), || {
            let Moment::After(word, pause) = moment;
            let mut owner = Owner::start(backend, &guest, base.path());
            owner.wait_for(word);
            std::thread::sleep(pause);
            let before = relatives(mark, owner.process.id());
            seen_most = seen_most.max(before.len());
            owner.kill();
            let killed = Instant::now();
            eventually("the processes of the owner have exited", || {
                relatives(mark, 0).is_empty() && !before.iter().any(|(pid, _)| runs(*pid))
            });
            let took = killed.elapsed();
            println!("{moment:?}: {} processes, gone after {took:?}", before.len());
            took
        });
    }
    assert!(seen_most >= 4, "watchdog, virtiofsd (two) and {backend} were never seen: {seen_most}");

    // A directory without an owner is left, and the next start removes it.
    let run_dirs =
        || fs::read_dir(base.path()).unwrap().flatten().filter(|e| e.path().is_dir()).count();
    assert!(run_dirs() > 0, "a killed owner removes no directory");
    let mut last = Owner::start(backend, &guest, base.path());
    last.wait_for("stopped");
    last.process.wait().unwrap();
    assert_eq!(run_dirs(), 0);
}

/// No process keeps the listener of a forward, and the next start removes its socket.
#[test]
fn owner_killed_leaves_no_forward_after_sweep() {
    let Some(guest) = NanoGuest::without_power_button() else { return };
    if host::find_program("virtiofsd").is_none() {
        skip("virtiofsd is not installed");
        return;
    }
    let base = tempfile::tempdir_in("/tmp").unwrap();
    let socket = base.path().join("ssh.sock");
    let mut owner = Owner::start_with("qemu", &guest, base.path(), &[&socket]);
    owner.wait_for("ready");
    drop(UnixStream::connect(&socket).unwrap());
    owner.kill();
    assert!(UnixStream::connect(&socket).is_err(), "a process still listens");
    assert!(socket.exists(), "a killed owner removes no socket");
    let mut last = Owner::start("qemu", &guest, base.path());
    last.wait_for("built");
    assert!(!socket.exists(), "the sweep of a start removes the socket");
    last.kill();
}
