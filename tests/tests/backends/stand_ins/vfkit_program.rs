//! A stand-in for vfkit with a terminal of its own, killed when dropped.

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

/// The words that boot the nano guest, which is written to `dir`.
pub(crate) fn nano_guest(dir: &Path, nano: Nano) -> Vec<String> {
    let kernel = nano.write_to(dir).unwrap().display().to_string();
    let initrd = dir.join("initrd");
    fs::write(&initrd, "nothing").unwrap();
    let initrd = initrd.display().to_string();
    ["--memory", "64", "--kernel", &kernel, "--initrd", &initrd, "--kernel-cmdline", "x"]
        .map(str::to_owned)
        .into()
}

/// One that runs.
pub(crate) struct VfkitProcess {
    process: Child,
    terminal: OwnedFd,
    said: Arc<Mutex<Vec<u8>>>,
    /// How much of it was waited for.
    heard: usize,
    error: ChildStderr,
    dir: TempDir,
}

impl VfkitProcess {
    /// With the nano guest on its console, and `more` words.
    pub(crate) fn nano(nano: Nano, more: &[&str]) -> Self {
        Self::with(|dir| {
            let mut words = nano_guest(dir, nano);
            words.extend(["--device", "virtio-serial,stdio"].map(str::to_owned));
            words.extend(more.iter().map(ToString::to_string));
            words
        })
    }

    /// With these words and a REST service in the directory that they are made for.
    pub(crate) fn with(words: impl FnOnce(&Path) -> Vec<String>) -> Self {
        Self::start(stand_in::VFKIT.path(), words)
    }

    /// The same of a program that may be faulty.
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
        let said = Arc::new(Mutex::new(Vec::new()));
        let mut reading = fs::File::from(pty.master.try_clone().unwrap());
        let to = said.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = reading.read(&mut chunk) {
                to.lock().unwrap().extend_from_slice(&chunk[..n]);
            }
        });
        Self { process, terminal: pty.master, said, heard: 0, error, dir }
    }

    /// Waits until its nano guest listens.
    pub(crate) fn listens(&mut self) {
        self.says("NANO READY");
    }

    /// Waits until it says `text` after what was waited for before.
    pub(crate) fn says(&mut self, text: &str) {
        let mut end = None;
        eventually(&format!("it says {text:?}"), || {
            let said = self.said.lock().unwrap();
            let rest = &said[self.heard..];
            let at = rest.windows(text.len()).position(|part| part == text.as_bytes());
            end = at.map(|at| self.heard + at + text.len());
            end.is_some()
        });
        self.heard = end.unwrap();
    }

    /// Types `text`.
    pub(crate) fn write(&self, text: &str) {
        fs::File::from(self.terminal.try_clone().unwrap()).write_all(text.as_bytes()).unwrap();
    }

    /// Everything on its terminal up to now.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().unwrap()).replace("\r\n", "\n")
    }

    /// How its terminal is set.
    pub(crate) fn terminal(&self) -> Termios {
        tcgetattr(&self.terminal).unwrap()
    }

    /// Where its REST service is.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("rest.sock")
    }

    /// Status and body of an answer, which must come.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, body) = self.try_ask(method, path, body);
        assert_ne!(status, 0, "{method} {path} is not answered");
        (status, body)
    }

    /// The same; zero and nothing where no answer comes.
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

    /// Waits for its end; `None` where a signal was that.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("it ends", || {
            status = self.process.try_wait().unwrap();
            std::thread::sleep(Duration::from_millis(5));
            status.is_some()
        });
        status.unwrap().code()
    }

    /// What it said on standard error, once it is over.
    pub(crate) fn error(&mut self) -> String {
        let mut said = String::new();
        self.error.read_to_string(&mut said).unwrap();
        said
    }
}

impl Drop for VfkitProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
