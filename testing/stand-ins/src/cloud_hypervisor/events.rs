//! The event monitor: pretty-printed JSON objects with an empty line between them.
//!
//! As in the real one, the descriptor does not block: a slow reader loses events.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::Serialize;

use super::super::inherited;
use super::ChvFault;
use super::command_line::FileOption;

/// The event monitor. Without the flag `--event-monitor` events are discarded.
#[derive(Debug)]
pub(super) struct Events {
    to: Mutex<Option<File>>,
    start: Instant,
}

// The fields are in the order of the real one.
#[derive(Serialize)]
struct Event<'a> {
    timestamp: Duration,
    source: &'a str,
    event: &'a str,
    properties: Option<serde_json::Value>,
}

impl Events {
    /// Opens the file. Opening a named pipe blocks until it has a reader.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub(super) fn open(file: Option<&FileOption>) -> io::Result<Self> {
        let open = |file: &FileOption| match file {
            FileOption::Path(path) => {
                OpenOptions::new().write(true).create(true).truncate(true).open(path)
            }
            FileOption::Descriptor(number) => inherited::take(*number).map(File::from),
        };
        let to = file.map(open).transpose()?;
        if let Some(to) = &to {
            fcntl(to, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self { to: Mutex::new(to), start: Instant::now() })
    }

    pub(super) fn send(&self, source: &str, event: &str) {
        self.send_with(source, event, None);
    }

    pub(super) fn send_with(
        &self,
        source: &str,
        event: &str,
        properties: Option<serde_json::Value>,
    ) {
        let timestamp = self.start.elapsed();
        let event = Event { timestamp, source, event, properties };
        let text = serde_json::to_string_pretty(&event).expect("an event is plain data");
        self.write(&format!("{text}\n\n"));
    }

    /// Writes the broken events that `faults` request.
    pub(super) fn apply_faults(&self, faults: &[ChvFault]) {
        for fault in faults {
            match fault {
                ChvFault::EventGarbage => self.write("}}} this is not JSON\n\n"),
                ChvFault::EventHalf => {
                    self.write("{\n  \"timestamp\": {\n    \"secs\": 0,\n    \"na");
                    *self.lock() = None;
                }
                ChvFault::EventEndless => {
                    self.write("{\n  \"source\": \"");
                    // 16 MiB: many times what a reader may buffer. Writing fails when the reader has closed.
                    for _ in 0..4096 {
                        self.write(&"x".repeat(4096));
                        std::thread::sleep(Duration::from_micros(100));
                    }
                }
                _ => {}
            }
        }
    }

    fn write(&self, text: &str) {
        if let Some(to) = &mut *self.lock() {
            let _ = to.write_all(text.as_bytes());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<File>> {
        self.to.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
