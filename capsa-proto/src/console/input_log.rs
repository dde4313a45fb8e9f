//! The input log: what was written to the console, kept for recordings.
//!
//! Each record has the offset in the output at which it was written, so that a recorder that reads
//! the output later puts both in order. Records that are not taken are bounded: beyond
//! [`INPUT_LOG_MAX`] bytes they are dropped, and a record counts the dropped bytes.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::mem;

use super::{InputKind, ReaderId};
use crate::time::Instant;

/// Bytes of input that are kept for a recorder: 4 MiB.
pub(crate) const INPUT_LOG_MAX: usize = 4 << 20;

/// One write to the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRecord {
    /// When it was written.
    pub at: Instant,
    /// How many bytes of output the guest had printed by then.
    pub after: u64,
    /// What was written.
    pub what: RecordedInput,
}

/// What was written to the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordedInput {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A line with a password; the bytes are not kept.
    Secret,
    /// The power button was pressed.
    PowerButton,
    /// This many bytes that were dropped because the recorder was too slow.
    Lost(usize),
}

/// The input logs of a console, one for each recorder.
#[derive(Debug, Default)]
pub(super) struct InputLogs {
    logs: BTreeMap<ReaderId, InputLog>,
}

#[derive(Debug, Default)]
struct InputLog {
    records: VecDeque<InputRecord>,
    bytes: usize,
}

impl InputLogs {
    pub(super) fn add(&mut self, reader: ReaderId) {
        self.logs.entry(reader).or_default();
    }

    pub(super) fn remove(&mut self, reader: ReaderId) {
        self.logs.remove(&reader);
    }

    pub(super) fn take(&mut self, reader: ReaderId) -> VecDeque<InputRecord> {
        self.logs.get_mut(&reader).map(|log| mem::take(log).records).unwrap_or_default()
    }

    /// Records bytes that go to the guest after it printed `after` bytes.
    pub(super) fn written(&mut self, now: Instant, after: u64, kind: InputKind, bytes: &[u8]) {
        if bytes.is_empty() || self.logs.is_empty() {
            return;
        }
        let what = match kind {
            InputKind::Plain => RecordedInput::Bytes(bytes.to_vec()),
            InputKind::Secret => RecordedInput::Secret,
            InputKind::Nudge => return,
        };
        self.record(now, after, &what, bytes.len());
    }

    pub(super) fn power_button(&mut self, now: Instant, after: u64) {
        self.record(now, after, &RecordedInput::PowerButton, 0);
    }

    fn record(&mut self, at: Instant, after: u64, what: &RecordedInput, len: usize) {
        for log in self.logs.values_mut() {
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
    use alloc::vec;

    const READER: ReaderId = ReaderId(1);
    const NOW: Instant = Instant::ZERO;

    fn whats(logs: &mut InputLogs) -> Vec<RecordedInput> {
        logs.take(READER).into_iter().map(|record| record.what).collect()
    }

    #[test]
    fn input_log_full_counts_dropped_bytes() {
        let mut logs = InputLogs::default();
        logs.add(READER);
        logs.written(NOW, 7, InputKind::Plain, &vec![b'x'; INPUT_LOG_MAX]);
        logs.written(NOW, 7, InputKind::Plain, b"yy");
        logs.written(NOW, 7, InputKind::Plain, b"z");
        assert_eq!(whats(&mut logs)[1..], [RecordedInput::Lost(3)]);
        logs.written(NOW, 8, InputKind::Plain, b"again");
        assert_eq!(whats(&mut logs), [RecordedInput::Bytes(b"again".to_vec())]);
    }

    #[test]
    fn input_log_keeps_no_secret_and_no_nudge() {
        let mut logs = InputLogs::default();
        logs.add(READER);
        logs.written(NOW, 0, InputKind::Secret, b"hunter2\r");
        logs.written(NOW, 0, InputKind::Nudge, b"\r");
        assert_eq!(whats(&mut logs), [RecordedInput::Secret]);
    }
}
