//! The input log: what was written to a console, for recordings.
//!
//! Each record holds the output offset at which it was written, so that a recorder can order input
//! and output later. A log is bounded: beyond [`INPUT_LOG_MAX`] bytes, input is dropped and
//! counted.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use capsa_proto::console::InputKind;

use crate::console::ReaderId;

/// The largest number of bytes in a log that was not taken: 4 MiB.
pub const INPUT_LOG_MAX: usize = 4 << 20;

/// A record of the input log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRecord {
    /// When the input was written.
    pub at: Instant,
    /// The output offset at that time.
    pub after: u64,
    /// The input.
    pub what: RecordedInput,
}

/// The kinds of recorded input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordedInput {
    /// Bytes written to the console.
    Bytes(Vec<u8>),
    /// A line that is not recorded, such as a password.
    Secret,
    /// The power button was pressed.
    PowerButton,
    /// The number of bytes that were dropped because the log was full.
    Lost(usize),
}

/// The logs by reader.
#[derive(Debug, Default)]
pub(crate) struct InputLogs {
    input_logs: BTreeMap<ReaderId, InputLog>,
}

#[derive(Debug, Default)]
struct InputLog {
    records: VecDeque<InputRecord>,
    bytes: usize,
}

impl InputLogs {
    pub(crate) fn add(&mut self, reader: ReaderId) {
        self.input_logs.entry(reader).or_default();
    }

    pub(crate) fn remove(&mut self, reader: ReaderId) {
        self.input_logs.remove(&reader);
    }

    pub(crate) fn take(&mut self, reader: ReaderId) -> VecDeque<InputRecord> {
        let log = self.input_logs.get_mut(&reader);
        log.map(|log| std::mem::take(log).records).unwrap_or_default()
    }

    /// Records that bytes were written at output offset `after`.
    pub(crate) fn written(&mut self, after: u64, written: InputKind, bytes: &[u8]) {
        if bytes.is_empty() || self.input_logs.is_empty() {
            return;
        }
        let what = match written {
            InputKind::Plain => RecordedInput::Bytes(bytes.to_vec()),
            InputKind::Secret => RecordedInput::Secret,
            InputKind::Nudge => return,
        };
        self.note(after, &what, bytes.len());
    }

    pub(crate) fn power_button(&mut self, after: u64) {
        self.note(after, &RecordedInput::PowerButton, 0);
    }

    fn note(&mut self, after: u64, what: &RecordedInput, len: usize) {
        let at = Instant::now();
        for log in self.input_logs.values_mut() {
            if log.bytes + len <= INPUT_LOG_MAX {
                log.bytes += len;
                log.records.push_back(InputRecord { at, after, what: what.clone() });
            } else if let Some(InputRecord { what: RecordedInput::Lost(lost), .. }) =
                log.records.back_mut()
            {
                *lost += len;
            } else {
                log.records.push_back(InputRecord { at, after, what: RecordedInput::Lost(len) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Console;
    use capsa_proto::console::Overflow;

    #[test]
    fn input_log_full_counts_lost_bytes() {
        let mut console = Console::new(1, Overflow::DropOldest);
        let reader = console.add_observer();
        let mut input_logs = InputLogs::default();
        input_logs.add(reader);
        input_logs.written(7, InputKind::Plain, &vec![b'x'; INPUT_LOG_MAX]);
        input_logs.written(7, InputKind::Plain, b"yy");
        input_logs.written(7, InputKind::Plain, b"z");
        let whats: Vec<_> = input_logs.take(reader).into_iter().map(|typed| typed.what).collect();
        assert_eq!(whats[1..], [RecordedInput::Lost(3)]);
        input_logs.written(8, InputKind::Plain, b"again");
        assert_eq!(input_logs.take(reader)[0].what, RecordedInput::Bytes(b"again".to_vec()));
    }

    #[test]
    fn input_log_hides_secrets_and_nudges() {
        let mut console = Console::new(1, Overflow::DropOldest);
        let reader = console.add_observer();
        let mut input_logs = InputLogs::default();
        input_logs.add(reader);
        input_logs.written(0, InputKind::Secret, b"hunter2\r");
        input_logs.written(0, InputKind::Nudge, b"\r");
        let whats: Vec<_> = input_logs.take(reader).into_iter().map(|typed| typed.what).collect();
        assert_eq!(whats, [RecordedInput::Secret]);
    }
}
