//! Finds marks and prompts that kernel messages interrupt, once the guest is silent.
//!
//! ```text
//! capsa:end:000000000000[    4.812345] random: crng init done\r\n00beef:0;\r\n
//! ```
//!
//! The part of the mark that was collected as output is removed from the output.

use super::{RunCommand, RunState, StatusParse, parse_status};
use crate::console::kernel_log::{KernelLogFilter, find_then_parse};
use crate::console::{Cursor, Scrollback};
use alloc::vec::Vec;

/// The last bytes that are searched. They have room for many messages.
const WINDOW: u64 = 4 << 10;

impl RunCommand {
    /// Finds the expected mark or prompt across kernel messages, and continues after it.
    pub(super) fn read_through(&mut self, log: &Scrollback, cursor: &mut Cursor) -> bool {
        self.read_through = Some(log.end());
        let text = log.since(self.since.max(log.end().saturating_sub(WINDOW)));
        let at = log.end() - text.len() as u64;
        let mark = match &self.state {
            RunState::ExpectMore(_) => &self.more,
            RunState::Begin => &self.begin,
            RunState::Output => &self.end,
            RunState::Prompt => match &self.prompt {
                Some(prompt) => prompt,
                None => return false,
            },
            _ => return false,
        };
        let words = mark.patterns()[0].as_literal().unwrap_or_default();
        let is_end = matches!(self.state, RunState::Output);
        let read = |rest: &mut KernelLogFilter<'_>| {
            if is_end { status_across_kernel_log(rest) } else { Some(0) }
        };
        let Some((place, status)) = find_then_parse(text, words, read) else { return false };
        let (start, end) = (at + place.start as u64, at + place.end as u64);
        if is_end {
            let taken = cursor.offset().saturating_sub(start);
            self.collected.remove_last(&log.since(start)[..taken as usize]);
            self.collected.push(cursor.before(log, start));
            self.status = Some(status);
        }
        cursor.put_back(end);
        cursor.before(log, end);
        self.search = None;
        self.state = match core::mem::replace(&mut self.state, RunState::Start) {
            RunState::ExpectMore(lines) => RunState::WriteLine(lines),
            RunState::Begin => RunState::BeginLine,
            RunState::Output => RunState::EndLine,
            // The prompt is the last expected text.
            _ => {
                self.prompt = None;
                RunState::Prompt
            }
        };
        true
    }
}

/// The exit status after an end mark.
fn status_across_kernel_log(rest: &mut KernelLogFilter<'_>) -> Option<i32> {
    let mut bytes = Vec::new();
    while bytes.len() < 4 && bytes.last() != Some(&b';') {
        bytes.push(rest.next()?);
    }
    match parse_status(&bytes) {
        StatusParse::Known { status, .. } => Some(status),
        StatusParse::Incomplete | StatusParse::No => None,
    }
}
