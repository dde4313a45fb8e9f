//! The nano guest under the real QEMU, in software emulation, on both of its machines.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use capsa_test::nano::{self, Nano};
use capsa_test::skip;
use tempfile::TempDir;

const MACHINES: [&str; 2] = ["q35", "microvm,rtc=on"];
/// An emulated start takes 0.1 s; a loaded CI machine may take far longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A nano guest under QEMU. Killed when dropped.
struct Guest {
    qemu: Child,
    output: Receiver<Vec<u8>>,
    seen: Vec<u8>,
    dir: TempDir,
}

impl Guest {
    /// Boots and waits until the guest listens; `None` where there is no QEMU.
    fn boot(test: &str, machine: &str, how: Nano, cmdline: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let kernel = how.write_to(dir.path()).unwrap();
        let spawned = Command::new("qemu-system-x86_64")
            .args(["-M", machine, "-accel", "tcg", "-m", "64", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-no-reboot", "-serial", "stdio", "-append", cmdline])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", dir.path().join("qmp").display()))
            .arg("-kernel")
            .arg(kernel)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut qemu = match spawned {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                skip(test, "qemu-system-x86_64 is not installed");
                return None;
            }
            spawned => spawned.unwrap(),
        };
        let mut stdout = qemu.stdout.take().unwrap();
        let (send, output) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut buffer) {
                if send.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut guest = Self { qemu, output, seen: Vec::new(), dir };
        guest.wait_for(nano::READY);
        Some(guest)
    }

    fn write(&mut self, bytes: &[u8]) {
        self.qemu.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    fn press_power_button(&self) {
        let mut qmp = UnixStream::connect(self.dir.path().join("qmp")).unwrap();
        qmp.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"system_powerdown\"}")
            .unwrap();
        // QEMU drops what a client that has left had asked: stay for the second answer.
        let mut answers = String::new();
        let mut buffer = [0; 4096];
        while answers.matches("\"return\"").count() < 2 {
            let n = qmp.read(&mut buffer).unwrap();
            assert_ne!(n, 0, "QMP closed after {answers}");
            answers.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
    }

    #[track_caller]
    fn wait_for(&mut self, what: &[u8]) {
        let end = Instant::now() + PATIENCE;
        while !self.seen.windows(what.len()).any(|w| w == what) {
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(more) => self.seen.extend(more),
                Err(error) => {
                    panic!("{error}, saw {:?}", String::from_utf8_lossy(&self.seen))
                }
            }
        }
    }

    /// Waits for QEMU to end by itself: its output ends first.
    #[track_caller]
    fn wait_for_end(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(more) => self.seen.extend(more),
                Err(RecvTimeoutError::Disconnected) => return self.qemu.wait().unwrap(),
                Err(RecvTimeoutError::Timeout) => panic!("the guest is still up"),
            }
        }
    }

    /// Whether the guest stays up, and silent, for a moment in which a live one would react.
    fn is_deaf(&mut self) -> bool {
        let quiet = self.output.recv_timeout(Duration::from_millis(200));
        matches!(quiet, Err(RecvTimeoutError::Timeout)) && self.qemu.try_wait().unwrap().is_none()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Runs `body` against a fresh guest on each machine.
fn on_each_machine(test: &str, body: impl Fn(&mut Guest)) {
    for machine in MACHINES {
        let booted = Guest::boot(test, machine, Nano::default(), "one two=3");
        let Some(mut guest) = booted else { return };
        body(&mut guest);
    }
}

#[test]
fn echoes_what_it_gets_and_powers_off() {
    on_each_machine("echoes_what_it_gets_and_powers_off", |guest| {
        guest.write(b"hello\x03\xff\0");
        guest.wait_for(b"hello\x03\xff\0");
        guest.write(&[nano::POWER_OFF]);
        assert!(guest.wait_for_end().success());
        assert!(guest.seen.starts_with(b"CMDLINE one two=3"), "{:?}", guest.seen);
    });
}

#[test]
fn flood_arrives_whole() {
    on_each_machine("flood_arrives_whole", |guest| {
        guest.write(&[nano::FLOOD, nano::POWER_OFF]);
        assert!(guest.wait_for_end().success());
        assert!(guest.seen.ends_with(&nano::flood()));
    });
}

#[test]
fn reset_and_triple_fault_end_a_guest_that_may_not_reboot() {
    for order in [nano::RESET, nano::TRIPLE_FAULT] {
        on_each_machine("reset_and_triple_fault_end_a_guest_that_may_not_reboot", |guest| {
            guest.write(&[order]);
            assert!(guest.wait_for_end().success());
        });
    }
}

#[test]
fn power_button_powers_off() {
    on_each_machine("power_button_powers_off", |guest| {
        guest.press_power_button();
        assert!(guest.wait_for_end().success());
    });
}

#[test]
fn hung_guest_is_deaf_to_bytes_and_to_the_button() {
    on_each_machine("hung_guest_is_deaf_to_bytes_and_to_the_button", |guest| {
        guest.write(&[nano::HANG, nano::POWER_OFF]);
        guest.press_power_button();
        assert!(guest.is_deaf());
    });
}

#[test]
fn stubborn_guest_echoes_but_ignores_the_button() {
    let test = "stubborn_guest_echoes_but_ignores_the_button";
    for machine in MACHINES {
        let how = Nano { power_button: false };
        let Some(mut guest) = Guest::boot(test, machine, how, "") else { return };
        guest.press_power_button();
        assert!(guest.is_deaf());
        guest.write(b"still here");
        guest.wait_for(b"still here");
    }
}

#[test]
fn image_is_written_where_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = nano::write_to(dir.path()).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), nano::elf());
    assert!(nano::write_to(Path::new("/nowhere/at/all")).is_err());
}
