//! A process of the stand-in for vfkit with a terminal of its own, killed when dropped.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use capsa_stand_ins as stand_in;
use capsa_testkit::nano::Nano;
use capsa_testkit::processes;
use capsa_testkit::vm::{PATIENCE, eventually};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// The arguments that boot the nano guest, which is written to `dir`.
pub(crate) fn nano_guest(dir: &Path, nano: Nano) -> Vec<String> {
    let kernel = nano.write_to(dir).unwrap().display().to_string();
    let initrd = dir.join("initrd");
    fs::write(&initrd, "nothing").unwrap();
    let initrd = initrd.display().to_string();
    ["--memory", "64", "--kernel", &kernel, "--initrd", &initrd, "--kernel-cmdline", "x"]
        .map(str::to_owned)
        .into()
}

/// A running stand-in.
pub(crate) struct VfkitProcess {
    process: Child,
    terminal: OwnedFd,
    output: Arc<Mutex<Vec<u8>>>,
    /// How many bytes of the output earlier waits have consumed.
    consumed: usize,
    error: ChildStderr,
    dir: TempDir,
}

impl VfkitProcess {
    /// Starts it with the nano guest on its console, and `more` arguments.
    pub(crate) fn nano(nano: Nano, more: &[&str]) -> Self {
        Self::with(|dir| {
            let mut words = nano_guest(dir, nano);
            words.extend(["--device", "virtio-serial,stdio"].map(str::to_owned));
            words.extend(more.iter().map(ToString::to_string));
            words
        })
    }

    /// Starts it with these arguments and a REST service in the directory.
    pub(crate) fn with(words: impl FnOnce(&Path) -> Vec<String>) -> Self {
        Self::start(stand_in::VFKIT.path(), words)
    }

    /// Starts another program, such as one with faults, in the same way.
    pub(crate) fn start(program: &Path, words: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let words = words(dir.path());
        let pty = openpty(None, None).unwrap();
        let mut process = Command::new(program)
            .args(words)
            .args(["--restful-uri", &format!("unix://{}/rest.sock", dir.path().display())])
            .stdin(pty.slave.try_clone().unwrap())
            .stdout(pty.slave)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let error = process.stderr.take().unwrap();
        let output = Arc::new(Mutex::new(Vec::new()));
        let mut reading = fs::File::from(pty.master.try_clone().unwrap());
        let to = output.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = reading.read(&mut chunk) {
                to.lock().unwrap().extend_from_slice(&chunk[..n]);
            }
        });
        Self { process, terminal: pty.master, output, consumed: 0, error, dir }
    }

    /// Waits until its nano guest is ready.
    pub(crate) fn listens(&mut self) {
        self.wait_for("NANO READY");
    }

    /// Waits until the terminal shows `text` after the output of earlier waits.
    pub(crate) fn wait_for(&mut self, text: &str) {
        let mut end = None;
        eventually(&format!("the terminal shows {text:?}"), || {
            let output = self.output.lock().unwrap();
            let rest = &output[self.consumed..];
            let at = rest.windows(text.len()).position(|part| part == text.as_bytes());
            end = at.map(|at| self.consumed + at + text.len());
            end.is_some()
        });
        self.consumed = end.unwrap();
    }

    /// Writes `text` to the terminal.
    pub(crate) fn write(&self, text: &str) {
        fs::File::from(self.terminal.try_clone().unwrap()).write_all(text.as_bytes()).unwrap();
    }

    /// The terminal's output so far.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap()).replace("\r\n", "\n")
    }

    /// The settings of its terminal.
    pub(crate) fn terminal(&self) -> Termios {
        tcgetattr(&self.terminal).unwrap()
    }

    /// The path of its REST socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("rest.sock")
    }

    /// Status and body of a response.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, body) = self.try_ask(method, path, body);
        assert_ne!(status, 0, "{method} {path} has no response");
        (status, body)
    }

    /// Status and body of a response; 0 and an empty body if there is none.
    pub(crate) fn try_ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: vfkit\r\nContent-Length: {length}");
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&answer).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
                if body.len() >= length.unwrap().parse().unwrap() {
                    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                    return (status, serde_json::from_str(body).unwrap_or_default());
                }
            }
            match stream.read(&mut chunk) {
                Ok(n @ 1..) => answer.extend_from_slice(&chunk[..n]),
                _ => return (0, Value::Null),
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// The process that runs its guest.
    pub(crate) fn child(&self) -> u32 {
        processes::children(self.id()).first().expect("its guest runs").pid
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id().cast_signed()), signal).unwrap();
    }

    /// Waits until it exits, and returns its status; `None` if a signal ended it.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the stand-in exits", || {
            status = self.process.try_wait().unwrap();
            std::thread::sleep(Duration::from_millis(5));
            status.is_some()
        });
        status.unwrap().code()
    }

    /// Its standard error, read to the end.
    pub(crate) fn error(&mut self) -> String {
        let mut output = String::new();
        self.error.read_to_string(&mut output).unwrap();
        output
    }
}

impl Drop for VfkitProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
