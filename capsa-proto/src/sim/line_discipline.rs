//! [`LineDiscipline`]: splits console input into lines and handles Ctrl-C, like a terminal.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use super::INPUT_MAX;

/// Ctrl-C, as a terminal sends it.
pub(super) const INTERRUPT: u8 = 0x03;
/// Ctrl-D, as a terminal sends it.
pub(super) const EOF: u8 = 0x04;

/// Input that the guest has not read yet.
#[derive(Debug, Default)]
pub(super) struct LineDiscipline {
    bytes: VecDeque<u8>,
    interrupted: bool,
}

impl LineDiscipline {
    /// Adds input. Ctrl-C discards the unread input before it.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == INTERRUPT {
                self.bytes.clear();
                self.interrupted = true;
            } else if self.bytes.len() < INPUT_MAX {
                self.bytes.push_back(byte);
            }
        }
    }

    /// Whether Ctrl-C arrived since the last call.
    pub(super) fn take_interrupt(&mut self) -> bool {
        core::mem::take(&mut self.interrupted)
    }

    /// The next line without its end, or Ctrl-D if that is the next byte.
    pub(super) fn next(&mut self) -> Option<String> {
        let end = match self.bytes.front()? {
            &EOF => 0,
            _ => self.bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'))?,
        };
        let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
        if line != [EOF] {
            line.pop();
        }
        Some(String::from_utf8_lossy(&line).into_owned())
    }
}
