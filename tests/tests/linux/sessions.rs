//! The guarantees of the console, with real guests: the Linux guest with getty and shell of busybox, and
//! an unmodified Debian with systemd, PAM and bash.
//!
//! One session each: a login, 200 commands in a row, 10 MB of arbitrary bytes as output, a command that
//! is interrupted, and a panic. `--nocapture` shows how long each took. The guest takes nearly all of the
//! time: through an emulated serial port 10 MB take a minute or more.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use capsa::blocking::{VmConsole, VmHandle};
use capsa::testing::{self, TestResult};
use capsa::{EndedBy, Error, LinuxVmBuilder, StopStep};
use capsa_testkit::guest::{self, Unavailable, Variant};
use capsa_testkit::{host, skip, vm};

/// For emulation on a loaded host.
const PATIENCE: Duration = Duration::from_secs(900);

const COMMANDS: u32 = 200;
const MEGABYTES: usize = 10;

#[test]
fn session_busybox_all_console_guarantees() -> TestResult {
    let guest_or_skip = guest_or_skip(|| guest::linux(Variant::Cloud));
    let Some(guest) = guest_or_skip else { return Ok(()) };
    session(vm::linux(&guest), None)
}

#[test]
fn session_debian_all_console_guarantees() -> TestResult {
    let Some(guest) = guest_or_skip(guest::debian) else { return Ok(()) };
    session(vm::debian(&guest), Some("capsa"))
}

/// The text of a whole panic in a command's output, and then an end that the guest wants.
#[test]
fn busybox_quoting_panic_ends_without_panic() -> TestResult {
    let guest_or_skip = guest_or_skip(|| guest::linux(Variant::Cloud));
    let Some(guest) = guest_or_skip else { return Ok(()) };
    let quote = "printf '[    5.000000] Kernel panic - not syncing: x\\n\
                 ---[ end Kernel panic - not syncing: x ]---\\n'; sleep 1";
    for (end, ended_by) in
        [("poweroff -f", EndedBy::GuestPowerOff), ("reboot -f", EndedBy::GuestReboot)]
    {
        let vm = vm::linux(&guest).build_blocking()?;
        let _shown = testing::show_on_failure(&vm);
        vm.start()?;
        let mut console = vm.console()?;
        console.login_timeout("root", None, PATIENCE)?;
        let reply = console.run(&format!("{quote}; echo alive"), Some(PATIENCE))?;
        assert!(reply.text().ends_with("alive\n"), "{reply:?}");
        let error = console.run(&format!("{quote}; {end}"), Some(PATIENCE)).unwrap_err();
        let Error::GuestEnded { how, .. } = &error else { Err(error)? };
        assert_eq!(how.ended_by, ended_by);
    }
    Ok(())
}

/// A guest; `None`, and the test counts as skipped, where it cannot be built or booted.
fn guest_or_skip<G>(make: impl FnOnce() -> Result<G, Unavailable>) -> Option<G> {
    if host::find_program("qemu-system-x86_64").is_none() {
        skip("qemu-system-x86_64 is not installed");
        return None;
    }
    make().map_err(skip).ok()
}

fn session(builder: LinuxVmBuilder, password: Option<&str>) -> TestResult {
    let vm = builder.build_blocking()?;
    let _shown = testing::show_on_failure(&vm);
    let mut watch = Stopwatch(Instant::now());
    vm.start()?;
    let mut console = vm.console()?;
    console.login_timeout("root", password, PATIENCE)?;
    watch.lap("start to shell");
    commands_in_a_row(&mut console)?;
    watch.lap("200 commands");
    much_output(&mut console)?;
    watch.lap("10 MB and their hash");
    interrupted(&mut console)?;
    watch.lap("interrupted sleep");
    panics(&vm, &mut console)
}

/// Commands of many kinds, each with its own output and status.
fn commands_in_a_row(console: &mut VmConsole) -> TestResult {
    for n in 0..COMMANDS {
        let status = n % 126;
        let (command, output) = match n % 8 {
            0 => (format!("echo {n}; (exit {status})"), format!("{n}\n")),
            1 => (format!("printf 'no newline {n}'; (exit {status})"), format!("no newline {n}")),
            // Output that looks like a prompt.
            2 => (format!("printf '# \\n$ '; (exit {status})"), "# \n$ ".into()),
            3 => (format!("echo 'größer {n} \t ↦'\n(exit {status})"), format!("größer {n} \t ↦\n")),
            // An imitation of a mark.
            4 => (
                format!("echo capsa:end:0123456789abcdef:0\\;; (exit {status})"),
                "capsa:end:0123456789abcdef:0;\n".into(),
            ),
            5 => (
                format!("for i in 1 2 3\ndo echo \"$i\"\ndone\n(exit {status})"),
                "1\n2\n3\n".into(),
            ),
            // Quotes, history expansion, and longer than a line.
            6 => {
                let long = format!("it's !! \"{n}\" !x {}", "long ".repeat(400));
                (format!("echo '{}'; (exit {status})", long.replace('\'', r"'\''")), long + "\n")
            }
            _ => (format!("(exit {status})"), String::new()),
        };
        let reply = console.run(&command, Some(PATIENCE))?;
        assert_eq!(String::from_utf8_lossy(&reply.output), output, "command {n}");
        assert_eq!((reply.status, reply.truncated), (Some(status as i32), false), "command {n}");
    }
    Ok(())
}

/// Arbitrary bytes arrive unchanged: control characters, incomplete characters, single carriage
/// returns. Both sides compute the hash.
fn much_output(console: &mut VmConsole) -> TestResult {
    let make = format!(
        "head -c {} /dev/urandom >/tmp/much && sha256sum </tmp/much",
        MEGABYTES * 1_000_000
    );
    let output = console.run(&make, Some(PATIENCE))?.output;
    let theirs = String::from_utf8_lossy(&output).into_owned();
    let began = Instant::now();
    let much = console.run("cat /tmp/much", Some(PATIENCE))?;
    eprintln!("{MEGABYTES} MB alone: {:.1} s", began.elapsed().as_secs_f64());
    assert_eq!((much.status, much.truncated), (Some(0), false));
    assert_eq!(much.output.len(), MEGABYTES * 1_000_000);
    assert_eq!(sha256(&much.output), theirs);
    Ok(())
}

/// In the format of the guest's program.
fn sha256(bytes: &[u8]) -> String {
    let mut program = Command::new("sha256sum");
    let mut program = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    program.stdin.take().unwrap().write_all(bytes).unwrap();
    String::from_utf8(program.wait_with_output().unwrap().stdout).unwrap()
}

fn interrupted(console: &mut VmConsole) -> TestResult {
    let second = Duration::from_secs(1);
    let error = console.run("sleep 1000", Some(second)).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    let reply = console.run("echo usable", Some(PATIENCE))?;
    assert_eq!((&reply.output[..], reply.status), (&b"usable\n"[..], Some(0)));
    let reply = console.run("cat /proc/[0-9]*/comm | grep -c '^sleep$'", Some(PATIENCE))?;
    assert_eq!(reply.output, b"0\n", "the command is still asleep");
    Ok(())
}

/// The guest's kernel panics during a command. The call returns within a second after the
/// panic is in the output.
fn panics(vm: &VmHandle, console: &mut VmConsole) -> TestResult {
    let (sender, seen) = mpsc::channel();
    let lines = console.reader().lines();
    std::thread::spawn(move || {
        for line in lines {
            if line.contains("Kernel panic - not syncing") {
                return sender.send(Instant::now());
            }
        }
        Ok(())
    });
    let error = console.run("echo c >/proc/sysrq-trigger", Some(PATIENCE)).unwrap_err();
    let returned = Instant::now();
    let after = returned.duration_since(seen.recv()?);
    eprintln!("the call returned {after:?} after the panic");
    let Error::KernelPanic { line, .. } = &error else { Err(error)? };
    assert_eq!(line, "Kernel panic - not syncing: sysrq triggered crash");
    assert!(after < PATIENCE, "{after:?}");
    vm.wait_timeout(PATIENCE)?;
    let report = vm.stop_report().ok_or("it runs on")?;
    assert_eq!((report.ended_by, report.steps), (EndedBy::GuestPanic, Vec::<StopStep>::new()));
    Ok(())
}

/// Prints how long each part took.
struct Stopwatch(Instant);

impl Stopwatch {
    fn lap(&mut self, what: &str) {
        eprintln!("{what}: {:.1} s", self.0.elapsed().as_secs_f64());
        self.0 = Instant::now();
    }
}
