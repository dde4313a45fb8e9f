//! One cloud-hypervisor process and its API socket. Responses are reduced to what
//! does not depend on the host: no paths of the test's directory, times or process ids.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use capsa_testkit::vm::{PATIENCE, eventually, poll_fd};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// A running program. Killed when dropped.
pub(crate) struct TranscriptSession {
    process: Child,
    terminal: fs::File,
    dir: TempDir,
    exchanges: Vec<Value>,
}

impl TranscriptSession {
    pub(crate) fn start(program: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        let mut raw = tcgetattr(&slave).unwrap();
        cfmakeraw(&mut raw);
        tcsetattr(&slave, SetArg::TCSANOW, &raw).unwrap();
        let path = |name| format!("path={}", dir.path().join(name).display());
        let process = Command::new(program)
            .args(["--api-socket", &path("api.sock"), "--event-monitor", &path("events")])
            .args(["--seccomp", "true"])
            .stdin(slave.try_clone().unwrap())
            .stdout(slave)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let session = Self { process, terminal: master.into(), dir, exchanges: Vec::new() };
        eventually("the VMM listens", || UnixStream::connect(session.socket()).is_ok());
        session
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    /// A path in the directory of this session.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// One exchange on a connection of its own, as Capsa does it.
    pub(crate) fn ask(&mut self, method: &str, path: &str, body: Option<&str>) {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
        if let Some(body) = body {
            let length = body.len();
            request += &format!(
                "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            );
        } else {
            request += "\r\n";
        }
        let shown = body.map_or_else(String::new, |body| format!(" {body}"));
        self.send_bytes(&format!("{method} {path}{shown}"), &request);
    }

    /// Sends bytes, which need not be a valid request.
    pub(crate) fn send_bytes(&mut self, name: &str, bytes: &str) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes.as_bytes()).unwrap();
        let (head, body) = read_response(&mut stream);
        let mut lines = head.lines();
        let status = lines.next().unwrap_or_default().to_owned();
        // The length follows from the body, which is recorded.
        let headers = lines.map(|line| match line.split_once(": ") {
            Some((key @ "Content-Length", _)) => key.to_owned(),
            _ => line.to_owned(),
        });
        self.exchanges.push(json!({
            "request": self.without_paths(name),
            "status": status.trim_end(),
            "headers": headers.collect::<Vec<_>>(),
            "body": self.reduced(&body),
        }));
    }

    /// Waits until the guest has printed `text`.
    pub(crate) fn wait_for(&mut self, text: &str) {
        let mut seen = Vec::new();
        let mut chunk = [0; 4096];
        let deadline = Instant::now() + PATIENCE;
        while !String::from_utf8_lossy(&seen).contains(text) {
            poll_fd(&self.terminal.as_fd(), Some(Duration::from_secs(1)));
            assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&seen));
            let n = self.terminal.read(&mut chunk).unwrap();
            seen.extend_from_slice(&chunk[..n]);
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.terminal.write_all(bytes).unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).unwrap();
    }

    /// Waits until the VMM has reported an event of this name.
    pub(crate) fn wait_for_event(&self, event: &str) {
        let event_names = || fs::read_to_string(self.path("events")).unwrap_or_default();
        eventually(event, || event_names().contains(&format!("\"event\": \"{event}\"")));
    }

    /// Waits until the process exits, and returns what is recorded.
    pub(crate) fn end(mut self, name: &str) -> Value {
        eventually("the VMM exits", || self.process.try_wait().unwrap().is_some());
        let status = self.process.wait().unwrap().code();
        let events = fs::read_to_string(self.path("events")).unwrap();
        let left = fs::read_dir(self.dir.path()).unwrap().flatten();
        let mut left: Vec<_> = left.map(|it| it.file_name().into_string().unwrap()).collect();
        left.sort();
        json!({
            "name": name,
            "exchanges": std::mem::take(&mut self.exchanges),
            "events": event_names(&events),
            "exit": status,
            "left": left,
        })
    }

    fn without_paths(&self, text: &str) -> String {
        text.replace(&self.dir.path().display().to_string(), "DIR")
    }

    /// A body without the parts that depend on the host.
    fn reduced(&self, body: &str) -> Value {
        let body = self.without_paths(body);
        let Ok(body) = serde_json::from_str::<Value>(&body) else { return Value::String(body) };
        reduced(body, "")
    }
}

impl Drop for TranscriptSession {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Head and body of a response. The connection stays open.
fn read_response(stream: &mut UnixStream) -> (String, String) {
    let mut seen = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return (head.to_owned(), body.to_owned());
            }
        }
        let n = stream.read(&mut chunk).unwrap();
        assert_ne!(n, 0, "closed after {text:?}");
        seen.extend_from_slice(&chunk[..n]);
    }
}

/// The configuration, the state and errors are unchanged. Of other values only the type is kept:
/// ids and versions differ, and Capsa does not read the hardware.
fn reduced(value: Value, key: &str) -> Value {
    match value {
        Value::Object(map) if key.is_empty() => {
            let reduced = map.into_iter().map(|(key, value)| {
                let value = reduced(value, &key);
                (key, value)
            });
            Value::Object(reduced.collect::<Map<_, _>>())
        }
        Value::Array(_) if key.is_empty() => value,
        value if key == "config" || key == "state" => value,
        Value::Object(_) => json!("an object"),
        Value::Array(_) => json!("an array"),
        Value::String(_) => json!("a string"),
        Value::Number(_) => json!("a number"),
        Value::Bool(_) => json!("a boolean"),
        Value::Null => Value::Null,
    }
}

/// The events, as `vm booting` where the text equals byte for byte what cloud-hypervisor writes.
fn event_names(events: &str) -> Vec<String> {
    let texts = events.split_inclusive("\n\n");
    texts.map(|text| as_written(text).unwrap_or_else(|| text.to_owned())).collect()
}

fn as_written(text: &str) -> Option<String> {
    let event: Value = serde_json::from_str(text).ok()?;
    let (time, source, name) = (&event["timestamp"], &event["source"], &event["event"]);
    let (seconds, nanoseconds) = (time["secs"].as_u64()?, time["nanos"].as_u64()?);
    let written = format!(
        "{{\n  \"timestamp\": {{\n    \"secs\": {seconds},\n    \"nanos\": {nanoseconds}\n  }},\n  \
         \"source\": {source},\n  \"event\": {name},\n  \"properties\": null\n}}\n\n"
    );
    (text == written).then(|| Some(format!("{} {}", source.as_str()?, name.as_str()?)))?
}
