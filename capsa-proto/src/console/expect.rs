//! [`Expect`]: one wait for one of several patterns.
//!
//! A match consumes through its end and leaves the rest; a timeout or a closed console consumes
//! nothing, so the next wait sees the same bytes. When the bytes are there, they win over a
//! deadline that has passed and over a console that has closed.

use super::{Cursor, Matcher, Scrollback, Search};
use crate::time::{Deadline, Instant};
use alloc::vec::Vec;
use core::time::Duration;

/// How many of the last bytes an unhappy outcome carries.
pub(super) const TAIL: u64 = 2048;

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A pattern was found.
    Matched {
        /// Its index in the matcher.
        pattern: usize,
        /// What was unread through the end of the match, as far as the log still had it.
        output: Vec<u8>,
        /// Whether bytes were dropped from the front of `output`.
        truncated: bool,
    },
    /// The time was over. Nothing was consumed.
    TimedOut {
        /// The last 2 KiB or fewer that were unread.
        tail: Vec<u8>,
        /// How long it was waited.
        waited: Duration,
    },
    /// The console closed, and what it said before does not match. Nothing was consumed.
    Closed {
        /// The last 2 KiB or fewer that were unread.
        tail: Vec<u8>,
    },
}

/// One wait: make it, poll it until it has an outcome, drop it.
///
/// ```
/// use capsa_proto::console::{Cursor, Expect, Matcher, Outcome, Scrollback};
/// use capsa_proto::time::Instant;
///
/// let mut log = Scrollback::default();
/// let mut cursor = Cursor::at(0);
/// let mut wait = Expect::new(Matcher::new(["ready"]), Instant::ZERO, None);
///
/// log.push(b"not rea");
/// assert_eq!(wait.poll(Instant::ZERO, &log, &mut cursor, false), None);
/// log.push(b"dy, go");
/// let outcome = wait.poll(Instant::ZERO, &log, &mut cursor, false).unwrap();
/// assert!(matches!(outcome, Outcome::Matched { pattern: 0, ref output, .. } if output == b"not ready"));
/// assert_eq!(cursor.peek(&log), b", go");
/// ```
#[derive(Debug, Clone)]
pub struct Expect {
    matcher: Matcher,
    search: Option<Search>,
    clock: Clock,
    done: bool,
}

/// When something began and how long it may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    started: Instant,
    timeout: Option<Duration>,
}

impl Expect {
    /// A wait that begins `now`. Without a timeout it ends by a match or a closed console.
    pub fn new(matcher: Matcher, now: Instant, timeout: Option<Duration>) -> Self {
        Self { matcher, search: None, clock: Clock::new(now, timeout), done: false }
    }

    /// Looks at what is new, and says how the wait ended if it did.
    ///
    /// `closed` means that no more bytes will be pushed. All polls take the same log and cursor. A
    /// wait has one outcome; after it, this gives `None`.
    pub fn poll(
        &mut self,
        now: Instant,
        log: &Scrollback,
        cursor: &mut Cursor,
        closed: bool,
    ) -> Option<Outcome> {
        if self.done {
            return None;
        }
        let outcome = self.matched(log, cursor).or_else(|| {
            let tail = || tail_since(log, cursor.offset());
            if closed {
                Some(Outcome::Closed { tail: tail() })
            } else if self.clock.is_over(now) {
                Some(Outcome::TimedOut { tail: tail(), waited: self.clock.waited(now) })
            } else {
                None
            }
        });
        self.done = outcome.is_some();
        outcome
    }

    /// When to poll again even if nothing arrives.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        if self.done { None } else { self.clock.deadline("console wait timed out") }
    }

    fn matched(&mut self, log: &Scrollback, cursor: &mut Cursor) -> Option<Outcome> {
        let origin = cursor.offset();
        // Somebody else read on with this cursor: what was found before is no longer unread.
        if self.search.as_ref().is_none_or(|s| s.origin() != origin) {
            self.search = Some(Search::from(origin));
        }
        let hit = self.matcher.find(self.search.as_mut()?, log)?;
        let lost = cursor.lost();
        let output = cursor.take_to(log, hit.end);
        Some(Outcome::Matched { pattern: hit.pattern, output, truncated: cursor.lost() > lost })
    }
}

impl Clock {
    pub(super) fn new(started: Instant, timeout: Option<Duration>) -> Self {
        Self { started, timeout }
    }

    pub(super) fn deadline(&self, why: &'static str) -> Option<Deadline> {
        self.timeout.map(|t| Deadline { at: self.started + t, why })
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.timeout.is_some_and(|t| now >= self.started + t)
    }

    pub(super) fn waited(&self, now: Instant) -> Duration {
        now.since(self.started)
    }
}

/// The last bytes since `offset`, for an error message.
pub(super) fn tail_since(log: &Scrollback, offset: u64) -> Vec<u8> {
    log.since(offset.max(log.end().saturating_sub(TAIL))).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(secs: u64) -> Instant {
        Instant::ZERO + SECOND * secs as u32
    }

    fn wait(patterns: &[&str]) -> Expect {
        Expect::new(Matcher::new(patterns), at(0), Some(SECOND))
    }

    fn log(text: &str) -> Scrollback {
        let mut log = Scrollback::new(1 << 16);
        log.push(text.as_bytes());
        log
    }

    fn matched(pattern: usize, output: &str) -> Option<Outcome> {
        Some(Outcome::Matched { pattern, output: output.into(), truncated: false })
    }

    #[test]
    fn a_match_consumes_through_its_end_only() {
        let log = log("one two three");
        let mut cursor = Cursor::at(0);
        assert_eq!(wait(&["two"]).poll(at(0), &log, &mut cursor, false), matched(0, "one two"));
        assert_eq!(wait(&["x", "ee"]).poll(at(0), &log, &mut cursor, false), matched(1, " three"));
    }

    #[test]
    fn a_timeout_loses_nothing() {
        let mut log = log("almost rea");
        let mut cursor = Cursor::at(0);
        let mut first = wait(&["ready"]);
        assert_eq!(first.poll(at(0), &log, &mut cursor, false), None);
        assert_eq!(first.poll_timeout().map(|d| d.at), Some(at(1)));
        let outcome = first.poll(at(3), &log, &mut cursor, false);
        let waited = SECOND * 3;
        assert_eq!(outcome, Some(Outcome::TimedOut { tail: "almost rea".into(), waited }));
        assert_eq!(first.poll(at(3), &log, &mut cursor, false), None, "one outcome per wait");
        assert_eq!(first.poll_timeout(), None);
        log.push(b"dy");
        assert_eq!(
            wait(&["ready"]).poll(at(0), &log, &mut cursor, false),
            matched(0, "almost ready")
        );
    }

    #[test]
    fn bytes_beat_timeout_and_close_and_close_beats_timeout() {
        let log = log("ready");
        let mut cursor = Cursor::at(0);
        assert_eq!(wait(&["ready"]).poll(at(9), &log, &mut cursor, true), matched(0, "ready"));
        let mut cursor = Cursor::at(0);
        assert_eq!(
            wait(&["never"]).poll(at(9), &log, &mut cursor, true),
            Some(Outcome::Closed { tail: "ready".into() })
        );
        assert_eq!(cursor, Cursor::at(0));
    }

    #[test]
    fn an_empty_pattern_matches_an_empty_log_at_once() {
        let mut cursor = Cursor::at(0);
        assert_eq!(wait(&[""]).poll(at(0), &log(""), &mut cursor, false), matched(0, ""));
    }

    #[test]
    fn bytes_dropped_during_the_wait_are_admitted() {
        let mut log = Scrollback::new(8);
        let mut cursor = Cursor::at(0);
        let mut wait = wait(&["end"]);
        log.push(b"begin ");
        assert_eq!(wait.poll(at(0), &log, &mut cursor, false), None);
        log.push(b"middle end");
        let outcome = wait.poll(at(0), &log, &mut cursor, false);
        let output = b"ddle end".to_vec();
        assert_eq!(outcome, Some(Outcome::Matched { pattern: 0, output, truncated: true }));
    }

    #[test]
    fn the_tail_is_bounded() {
        let mut log = Scrollback::new(1 << 16);
        log.push(&[b'x'; 10_000]);
        let Some(Outcome::Closed { tail }) =
            wait(&["y"]).poll(at(0), &log, &mut Cursor::at(0), true)
        else {
            panic!("closed")
        };
        assert_eq!(tail.len() as u64, TAIL);
    }

    #[test]
    fn a_cursor_moved_by_someone_else_starts_the_search_again() {
        let mut log = log("ab");
        let mut cursor = Cursor::at(0);
        let mut wait = wait(&["abc", "bcd"]);
        assert_eq!(wait.poll(at(0), &log, &mut cursor, false), None);
        cursor.before(&log, 1);
        log.push(b"cd");
        assert_eq!(wait.poll(at(0), &log, &mut cursor, false), matched(1, "bcd"));
    }
}
