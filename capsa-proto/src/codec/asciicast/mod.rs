//! Asciicast v2, asciinema's recording format: a console session as text, one JSON value per line.
//!
//! ```text
//! {"version": 2, "width": 80, "height": 24, "timestamp": 1700000000}
//! [0.25, "o", "guest login: "]            output of the guest
//! [1.5, "i", "root\r"]                    input
//! ```
//!
//! The format is text, while a console carries bytes. No byte is lost:
//!
//! - a character that is split between two reads is joined, and written with the second;
//! - bytes that are not UTF-8 become U+FFFD, and the event before contains the bytes, so that a
//!   [`Decoder`] restores them. Players ignore unknown events.
//!
//! | code | data |
//! | --- | --- |
//! | `o` | output |
//! | `i` | input |
//! | `m` | a marker: a comment of the program that recorded |
//! | `bytes` | Capsa only: the bytes of the next event in hexadecimal, if they are not UTF-8 |
//! | `secret` | Capsa only: a line of input that is not recorded, e.g. a password; the data is empty |
//! | `button` | Capsa only: the power button was pressed; the data is empty |
//! | `end` | Capsa only: the VM ended; the data is the name of a [`RecordedEnd`] |
//!
//! This module uses no clock and no file: the caller passes times to an [`Encoder`], which returns lines,
//! and chunks of a file to a [`Decoder`]. `MAX_LINE` and `MAX_BACKLOG` bound the
//! memory of a decoder, and its first error is final.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

pub use decode::{AsciicastError, Decoder};
pub use encode::{Encoder, MAX_TEXT};

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// Maximum bytes of one line of a recording.
pub(crate) const MAX_LINE: usize = 1024 * 1024;

/// The first line of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CastHeader {
    /// Columns of the terminal.
    pub width: u16,
    /// Rows of the terminal.
    pub height: u16,
    /// The start of the recording, in seconds since 1970.
    pub timestamp: Option<u64>,
    /// The title.
    pub title: Option<String>,
}

impl Default for CastHeader {
    /// 80 by 24, the usual size of a serial console.
    fn default() -> Self {
        Self { width: 80, height: 24, timestamp: None, title: None }
    }
}

/// One event, at a time since the recording began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CastEvent {
    /// The time of the event. Times never decrease.
    pub at: Duration,
    /// The event.
    pub kind: CastEventKind,
}

/// The event without its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CastEventKind {
    /// Output of the guest.
    Output(Vec<u8>),
    /// Input.
    Input(Vec<u8>),
    /// A line of input that is not recorded.
    Secret,
    /// The power button was pressed.
    PowerButton,
    /// The VM ended.
    End(RecordedEnd),
    /// A comment.
    Marker(String),
}

/// How a recorded VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordedEnd {
    /// The guest powered off.
    PoweredOff,
    /// The guest reset.
    Reset,
    /// The guest panicked.
    Panicked,
    /// The VM was killed, or its hypervisor failed.
    Cut,
}

impl RecordedEnd {
    const ALL: [Self; 4] = [Self::PoweredOff, Self::Reset, Self::Panicked, Self::Cut];

    /// The name in the file.
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
