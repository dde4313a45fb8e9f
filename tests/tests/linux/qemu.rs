//! QEMU in software emulation with its serial port on pipes of the test. Killed when dropped.

use std::ffi::OsStr;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use capsa_testkit::skip;
use tempfile::TempDir;

/// An emulated start takes 0.1 s with the nano guest and 4 s with Linux; a loaded CI host
/// may take far longer.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct QemuGuest {
    process: Child,
    output: Receiver<Vec<u8>>,
    pub(crate) seen: Vec<u8>,
    dir: TempDir,
}

impl QemuGuest {
    /// Starts it; `None` where it is not installed.
    pub(crate) fn start<A: AsRef<OsStr>>(
        machine: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let spawned = Command::new("qemu-system-x86_64")
            .args(["-M", machine, "-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-serial", "stdio", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", dir.path().join("qmp").display()))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut process = match spawned {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                skip("qemu-system-x86_64 is not installed");
                return None;
            }
            spawned => spawned.unwrap(),
        };
        let mut stdout = process.stdout.take().unwrap();
        let (send, output) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut buffer) {
                if send.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Some(Self { process, output, seen: Vec::new(), dir })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.process.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    pub(crate) fn press_power_button(&self) {
        let mut qmp = UnixStream::connect(self.dir.path().join("qmp")).unwrap();
        qmp.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"system_powerdown\"}")
            .unwrap();
        // QEMU drops requests of a client that has disconnected: wait for the second reply.
        let mut answers = String::new();
        let mut buffer = [0; 4096];
        while answers.matches("\"return\"").count() < 2 {
            let n = qmp.read(&mut buffer).unwrap();
            assert_ne!(n, 0, "QMP closed after {answers}");
            answers.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
    }

    #[track_caller]
    pub(crate) fn wait_for(&mut self, what: &[u8]) {
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

    /// Waits until QEMU exits by itself. Its output ends first.
    #[track_caller]
    pub(crate) fn wait_for_end(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(more) => self.seen.extend(more),
                Err(RecvTimeoutError::Disconnected) => return self.process.wait().unwrap(),
                Err(RecvTimeoutError::Timeout) => panic!("the guest is still up"),
            }
        }
    }

    /// Whether the guest keeps running without output for longer than a working one takes to react.
    pub(crate) fn is_deaf(&mut self) -> bool {
        let quiet = self.output.recv_timeout(Duration::from_millis(200));
        matches!(quiet, Err(RecvTimeoutError::Timeout))
            && self.process.try_wait().unwrap().is_none()
    }
}

impl Drop for QemuGuest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
