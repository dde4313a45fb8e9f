//! Marks and prompts that the kernel has printed into, once nothing else comes.
//!
//! ```text
//! capsa:end:000000000000[    4.812345] random: crng init done\r\n00beef:0;\r\n
//! ```
//!
//! What was taken for output up to then, and is of the mark, is taken back.

use super::{RunCommand, RunState, StatusParse, status};
use crate::console::kernel_log::{KernelLogFilter, find_then_parse};
use crate::console::{Cursor, Scrollback};
use alloc::vec::Vec;

/// How far back is looked: many messages.
const WINDOW: u64 = 4 << 10;

impl RunCommand {
    /// Finds what is waited for where the kernel has printed into it, and goes on after it.
    pub(super) fn read_through(&mut self, log: &Scrollback, cursor: &mut Cursor) -> bool {
        self.read_through = Some(log.end());
        let text = log.since(self.since.max(log.end().saturating_sub(WINDOW)));
        let at = log.end() - text.len() as u64;
        let mark = match &self.stage {
            RunState::More(_) => &self.more,
            RunState::Begin => &self.begin,
            RunState::Output => &self.end,
            RunState::Prompt => match &self.prompt {
                Some(prompt) => prompt,
                None => return false,
            },
            _ => return false,
        };
        let words = mark.patterns()[0].as_literal().unwrap_or_default();
        let is_end = matches!(self.stage, RunState::Output);
        let read =
            |rest: &mut KernelLogFilter<'_>| if is_end { status_through(rest) } else { Some(0) };
        let Some((place, status)) = find_then_parse(text, words, read) else { return false };
        let (start, end) = (at + place.start as u64, at + place.end as u64);
        if is_end {
            let taken = cursor.offset().saturating_sub(start);
            self.collected.take_back(&log.since(start)[..taken as usize]);
            self.collected.push(cursor.before(log, start));
            self.status = Some(status);
        }
        cursor.put_back(end);
        cursor.before(log, end);
        self.search = None;
        self.stage = match core::mem::replace(&mut self.stage, RunState::Fresh) {
            RunState::More(lines) => RunState::Type(lines),
            RunState::Begin => RunState::BeginLine,
            RunState::Output => RunState::EndLine,
            // The prompt was the last.
            _ => {
                self.prompt = None;
                RunState::Prompt
            }
        };
        true
    }
}

/// The exit status behind an end mark.
fn status_through(rest: &mut KernelLogFilter<'_>) -> Option<i32> {
    let mut bytes = Vec::new();
    while bytes.len() < 4 && bytes.last() != Some(&b';') {
        bytes.push(rest.next()?);
    }
    match status(&bytes) {
        StatusParse::Known { status, .. } => Some(status),
        StatusParse::Incomplete | StatusParse::No => None,
    }
}
