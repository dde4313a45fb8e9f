//! What is typed into a console, kept for those who record it.
//!
//! Each piece is noted with the place in the output at which it was typed, so that a recorder, which
//! comes by later, puts both in their order. What nobody takes is bounded: beyond [`INPUT_LOG_MAX`] it is
//! dropped, and that is noted too.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use capsa_proto::console::InputKind;

use crate::console::ReaderId;

/// Bytes of input that wait for a recorder, at most: 4 MiB.
pub const INPUT_LOG_MAX: usize = 4 << 20;

/// Something that was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRecord {
    /// When.
    pub at: Instant,
    /// How many bytes the guest had said by then.
    pub after: u64,
    /// What.
    pub what: RecordedInput,
}

/// What was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordedInput {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A line that is not told.
    Secret,
    /// The power button was pressed.
    PowerButton,
    /// This many bytes, which nobody took in time.
    Lost(usize),
}

/// Who records what is typed, and what they have not taken yet.
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

    /// These bytes are on their way to the guest, which had said `after` bytes.
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
    fn what_nobody_takes_is_bounded_and_owned_up_to() {
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
    fn a_secret_is_noted_without_its_bytes_and_a_nudge_not_at_all() {
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
