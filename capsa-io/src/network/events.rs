//! [`EventOutput`]: the events of the network, for the owner of the VM and for a log of JSON lines.
//!
//! Both are bounded, and neither waits: of too many events the owner gets the newest, and a log whose file
//! takes no bytes loses whole lines, which are counted.

use std::collections::VecDeque;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use capsa_proto::path::HostPath;
use capsa_proto::policy::NetworkEvent;
use capsa_proto::spec::NetworkOptions;
use capsa_proto::time::Instant;
use humantime::format_rfc3339_millis;
use nix::libc;

/// Events that the owner has not taken, at most.
const EVENTS: usize = 1024;
/// Bytes of lines that the file has not taken, at most.
const BUFFER: usize = 64 << 10;
/// Bytes of lines in a run of the VM, at most: a guest causes lines, and must not fill the disk.
const LOG: usize = 256 << 20;

/// Where events go.
#[derive(Debug)]
pub(super) struct EventOutput {
    events: VecDeque<NetworkEvent>,
    log: Option<NetworkLog>,
}

impl EventOutput {
    /// # Errors
    ///
    /// When the log cannot be opened.
    pub(super) fn new(options: &NetworkOptions, run_dir: &HostPath) -> io::Result<Self> {
        let id = Path::new(run_dir.as_str()).file_name().unwrap_or_default().to_string_lossy();
        let vm = options.log_name.clone().unwrap_or_else(|| id.into_owned());
        let log = options.log.as_ref().map(|path| NetworkLog::open(Path::new(path.as_str()), vm));
        Ok(Self { events: VecDeque::new(), log: log.transpose()? })
    }

    pub(super) fn add(&mut self, event: NetworkEvent, now: Instant) {
        if let Some(log) = &mut self.log {
            log.add(&event, now);
        }
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Writes what the log's file takes.
    pub(super) fn flush(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    pub(super) fn take(&mut self) -> Vec<NetworkEvent> {
        std::mem::take(&mut self.events).into()
    }

    pub(super) fn dropped_lines(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.dropped)
    }
}

/// A file to which lines are appended.
#[derive(Debug)]
struct NetworkLog {
    file: File,
    vm: String,
    /// Bytes that the file has not taken. The first line may be written in part.
    buffer: Vec<u8>,
    /// How many further bytes of lines are taken.
    room: usize,
    /// Lines that were left out because the buffer was full, or [`LOG`] was reached.
    dropped: u64,
    /// An error of the file was logged, and no write succeeded since.
    has_failed: bool,
}

impl NetworkLog {
    /// Opens the file, or creates it so that only this user can read it.
    fn open(path: &Path, vm: String) -> io::Result<Self> {
        let mut options = File::options();
        options.append(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK);
        // With a reader of its own, a pipe without another one can be opened, and takes bytes until it is
        // full.
        let is_pipe = fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
        let file = options.read(is_pipe).open(path)?;
        if file.metadata()?.is_file() {
            file.set_permissions(Permissions::from_mode(0o600))?;
        }
        Ok(Self { file, vm, buffer: Vec::new(), room: LOG, dropped: 0, has_failed: false })
    }

    fn add(&mut self, event: &NetworkEvent, now: Instant) {
        let age = Duration::from_micros(now.as_micros().saturating_sub(event.at.as_micros()));
        let time = SystemTime::now().checked_sub(age).unwrap_or(UNIX_EPOCH).max(UNIX_EPOCH);
        let line = event.to_json(&format_rfc3339_millis(time).to_string(), &self.vm);
        if self.buffer.len() + line.len() >= BUFFER {
            self.flush();
        }
        if self.buffer.len() + line.len() >= BUFFER || line.len() >= self.room {
            self.dropped += 1;
            return;
        }
        self.room -= line.len() + 1;
        self.buffer.extend_from_slice(line.as_bytes());
        self.buffer.push(b'\n');
    }

    fn flush(&mut self) {
        let mut written = 0;
        while written < self.buffer.len() {
            match self.file.write(&self.buffer[written..]) {
                Ok(n @ 1..) => {
                    written += n;
                    self.has_failed = false;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock && !self.has_failed => {
                    tracing::warn!("the network's log takes no lines: {error}");
                    self.has_failed = true;
                    break;
                }
                Ok(_) | Err(_) => break,
            }
        }
        self.buffer.drain(..written);
    }
}

impl Drop for NetworkLog {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa_proto::policy::{NetworkEventKind, PolicyVerdict, VerdictReason};
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    fn event(seq: u64) -> NetworkEvent {
        let verdict = PolicyVerdict::without_rule(true, VerdictReason::PolicyChanged);
        let mut event = NetworkEvent::new(Instant::ZERO, NetworkEventKind::PolicyChanged, verdict);
        event.seq = seq;
        event
    }

    fn output(log: &Path) -> EventOutput {
        let options = NetworkOptions {
            log: Some(HostPath::new(log.to_str().unwrap()).unwrap()),
            ..NetworkOptions::default()
        };
        EventOutput::new(&options, &HostPath::new("/run/capsa/id").unwrap()).unwrap()
    }

    #[test]
    fn event_queue_full_keeps_the_newest() {
        let mut output =
            EventOutput::new(&NetworkOptions::default(), &HostPath::new("/r").unwrap()).unwrap();
        (0..EVENTS as u64 + 5).for_each(|seq| output.add(event(seq), Instant::ZERO));
        let taken = output.take();
        assert_eq!((taken.len(), taken[0].seq), (EVENTS, 5));
        assert!(output.take().is_empty());
    }

    #[test]
    fn event_log_is_appended_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "before\n").unwrap();
        let mut output = output(&path);
        output.add(event(3), Instant::from_micros(1_000_000));
        output.flush();
        let text = fs::read_to_string(&path).unwrap();
        let line: serde_json::Value =
            serde_json::from_str(text.strip_prefix("before\n").unwrap()).unwrap();
        assert_eq!((&line["vm"], &line["seq"]), (&"id".into(), &3.into()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn event_log_has_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut output = output(&path);
        output.log.as_mut().unwrap().room = 1000;
        for seq in 0..4000 {
            output.add(event(seq), Instant::ZERO);
        }
        output.flush();
        let text = fs::read_to_string(&path).unwrap();
        assert!((800..=1000).contains(&text.len()), "{}", text.len());
        assert_eq!(text.lines().count() as u64 + output.dropped_lines(), 4000);
    }

    #[test]
    fn event_log_pipe_without_reader_drops_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let mut output = output(&path);
        for seq in 0..4000 {
            output.add(event(seq), Instant::ZERO);
            output.flush();
        }
        assert!(output.dropped_lines() > 0);
    }

    #[test]
    fn event_log_full_disk_counts_lines() {
        if !Path::new("/dev/full").exists() {
            return;
        }
        let mut output = output(Path::new("/dev/full"));
        for seq in 0..4000 {
            output.add(event(seq), Instant::ZERO);
            output.flush();
        }
        assert!(output.dropped_lines() > 3000);
    }
}
