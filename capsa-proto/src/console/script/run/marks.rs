//! Finds marks in the output, and consumes them.

use crate::console::kernel_log::KernelLogFilter;
use crate::console::{Cursor, Matcher, PatternMatch, Scrollback, Search};

/// Searches for a mark. Consumes the output before it, and then the mark.
pub(super) fn seek(
    matcher: &Matcher,
    search: &mut Option<Search>,
    log: &Scrollback,
    cursor: &mut Cursor,
) -> Option<PatternMatch> {
    let state = search.get_or_insert_with(|| Search::from(cursor.offset()));
    let found = matcher.find(state, log);
    match found {
        Some(found) => {
            cursor.before(log, found.end);
            *search = None;
        }
        None => _ = cursor.before(log, state.earliest_start(matcher)),
    }
    found
}

/// The length of the incomplete mark at the end of `text`.
pub(super) fn partial_mark_len(text: &[u8], mark: &Matcher) -> usize {
    let mark = mark.patterns()[0].as_literal().unwrap_or_default();
    (1..mark.len()).rev().find(|n| text.ends_with(&mark[..*n])).unwrap_or(0)
}

/// Consumes the end of a mark's line, and kernel messages in it. Returns `false` if it may still
/// arrive. Other text is not consumed.
pub(super) fn line_end(log: &Scrollback, cursor: &mut Cursor) -> bool {
    let unread = cursor.peek(log);
    let mut through = KernelLogFilter::new(unread);
    let (end, is_whole) = loop {
        match through.next() {
            Some(b'\r') => {}
            Some(b'\n') => break (through.at(), true),
            Some(_) => break (through.at() - 1, !through.is_in_message()),
            None => break (through.at(), false),
        }
    };
    // Skipped messages are not read again.
    cursor.before(log, log.end() - (unread.len() - end) as u64);
    is_whole
}
