//! Asciicast v2: a console session as text, one JSON value a line, which the usual players play.
//!
//! ```text
//! {"version": 2, "width": 80, "height": 24, "timestamp": 1700000000}
//! [0.25, "o", "guest login: "]            the guest said this
//! [1.5, "i", "root\r"]                    this was typed
//! ```
//!
//! The format is text, and a console is bytes. Nothing is lost all the same:
//!
//! - a character that was cut between two reads is put together again, and comes with the second;
//! - bytes that are no UTF-8 become U+FFFD, and the event before says what they were, so that a
//!   [`Decoder`] gives back the very bytes. Players pass over events they do not know.
//!
//! | code | data |
//! | --- | --- |
//! | `o` | output |
//! | `i` | input |
//! | `m` | a marker: a remark of whoever recorded |
//! | `bytes` | ours: the bytes of the next event, in hexadecimal, where those are no UTF-8 |
//! | `secret` | ours: a line was typed here that is not told; the data is empty |
//! | `button` | ours: the power button was pressed; the data is empty |
//! | `end` | ours: the machine is over; the data is the name of an [`RecordedEnd`] |
//!
//! Here is neither a clock nor a file: an [`Encoder`] is given times and gives lines, a [`Decoder`]
//! takes any pieces of a file. What it keeps is bounded by [`MAX_LINE`] and
//! [`MAX_BACKLOG`](super::MAX_BACKLOG), and its first error is final.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

pub use decode::{AsciicastError, Decoder};
pub use encode::{Encoder, MAX_TEXT};

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// Bytes of one line of a recording.
pub const MAX_LINE: usize = 1024 * 1024;

/// The first line of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CastHeader {
    /// Columns of the terminal.
    pub width: u16,
    /// Its rows.
    pub height: u16,
    /// When it began, in seconds since 1970.
    pub timestamp: Option<u64>,
    /// What it shows.
    pub title: Option<String>,
}

impl Default for CastHeader {
    /// 80 by 24, as a serial console is taken to be.
    fn default() -> Self {
        Self { width: 80, height: 24, timestamp: None, title: None }
    }
}

/// One event, at a time since the recording began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CastEvent {
    /// When. Never before the event before it.
    pub at: Duration,
    /// What.
    pub kind: CastEventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CastEventKind {
    /// The guest said this.
    Output(Vec<u8>),
    /// This was typed.
    Input(Vec<u8>),
    /// A line was typed that is not told.
    Secret,
    /// The power button was pressed.
    PowerButton,
    /// The machine is over.
    End(RecordedEnd),
    /// A remark.
    Marker(String),
}

/// How a recorded machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordedEnd {
    /// The guest powered off.
    PoweredOff,
    /// The guest reset.
    Reset,
    /// The guest panicked.
    Panicked,
    /// It was ended from outside: killed, or its hypervisor failed.
    Cut,
}

impl RecordedEnd {
    const ALL: [Self; 4] = [Self::PoweredOff, Self::Reset, Self::Panicked, Self::Cut];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PoweredOff => "powered off",
            Self::Reset => "reset",
            Self::Panicked => "panicked",
            Self::Cut => "cut",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|end| end.name() == name)
    }
}
