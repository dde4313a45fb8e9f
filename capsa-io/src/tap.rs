//! What is typed into a console, kept for those who record it.
//!
//! Each piece is noted with the place in the output at which it was typed, so that a recorder, which
//! comes by later, puts both in their order. What nobody takes is bounded: beyond [`TAP_MAX`] it is
//! dropped, and that is noted too.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use capsa_proto::console::InputKind;

use crate::console::ReaderId;

/// Bytes of input that wait for a recorder, at most: 4 MiB.
pub const TAP_MAX: usize = 4 << 20;

/// Something that was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Typed {
    /// When.
    pub at: Instant,
    /// How many bytes the guest had said by then.
    pub after: u64,
    /// What.
    pub what: TypedWhat,
}

/// What was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TypedWhat {
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
pub(crate) struct Taps {
    taps: BTreeMap<ReaderId, Tap>,
}

#[derive(Debug, Default)]
struct Tap {
    typed: VecDeque<Typed>,
    bytes: usize,
}

impl Taps {
    pub(crate) fn add(&mut self, reader: ReaderId) {
        self.taps.entry(reader).or_default();
    }

    pub(crate) fn remove(&mut self, reader: ReaderId) {
        self.taps.remove(&reader);
    }

    pub(crate) fn take(&mut self, reader: ReaderId) -> VecDeque<Typed> {
        let tap = self.taps.get_mut(&reader);
        tap.map(|tap| std::mem::take(tap).typed).unwrap_or_default()
    }

    /// These bytes are on their way to the guest, which had said `after` bytes.
    pub(crate) fn typed(&mut self, after: u64, written: InputKind, bytes: &[u8]) {
        if bytes.is_empty() || self.taps.is_empty() {
            return;
        }
        let what = match written {
            InputKind::Plain => TypedWhat::Bytes(bytes.to_vec()),
            InputKind::Secret => TypedWhat::Secret,
            InputKind::Nudge => return,
        };
        self.note(after, &what, bytes.len());
    }

    pub(crate) fn power_button(&mut self, after: u64) {
        self.note(after, &TypedWhat::PowerButton, 0);
    }

    fn note(&mut self, after: u64, what: &TypedWhat, len: usize) {
        let at = Instant::now();
        for tap in self.taps.values_mut() {
            if tap.bytes + len <= TAP_MAX {
                tap.bytes += len;
                tap.typed.push_back(Typed { at, after, what: what.clone() });
            } else if let Some(Typed { what: TypedWhat::Lost(lost), .. }) = tap.typed.back_mut() {
                *lost += len;
            } else {
                tap.typed.push_back(Typed { at, after, what: TypedWhat::Lost(len) });
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
        let mut taps = Taps::default();
        taps.add(reader);
        taps.typed(7, InputKind::Plain, &vec![b'x'; TAP_MAX]);
        taps.typed(7, InputKind::Plain, b"yy");
        taps.typed(7, InputKind::Plain, b"z");
        let whats: Vec<_> = taps.take(reader).into_iter().map(|typed| typed.what).collect();
        assert_eq!(whats[1..], [TypedWhat::Lost(3)]);
        taps.typed(8, InputKind::Plain, b"again");
        assert_eq!(taps.take(reader)[0].what, TypedWhat::Bytes(b"again".to_vec()));
    }

    #[test]
    fn a_secret_is_noted_without_its_bytes_and_a_nudge_not_at_all() {
        let mut console = Console::new(1, Overflow::DropOldest);
        let reader = console.add_observer();
        let mut taps = Taps::default();
        taps.add(reader);
        taps.typed(0, InputKind::Secret, b"hunter2\r");
        taps.typed(0, InputKind::Nudge, b"\r");
        let whats: Vec<_> = taps.take(reader).into_iter().map(|typed| typed.what).collect();
        assert_eq!(whats, [TypedWhat::Secret]);
    }
}
