//! [`Expect`]: one wait for one of several patterns.
//!
//! A match consumes the output through its end and leaves the rest. A timeout or a closed console
//! consumes nothing, so the next wait sees the same bytes. A match takes precedence over a deadline
//! that has passed and over a console that has closed.

use super::fault_check::{FaultCheck, last_fault};
use super::near_match::near_match;
use super::script::{ECHO_WINDOW, without_wrappers};
use super::{Cursor, FaultReport, Matcher, NearMatch, Scrollback, Search};
use crate::time::{Deadline, Instant};
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use core::time::Duration;

/// How many of the last unread bytes an unsuccessful outcome contains.
pub(super) const TAIL: u64 = 2048;

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// A pattern matched.
    Matched {
        /// The index of the pattern in the matcher.
        pattern: usize,
        /// The unread bytes through the end of the match that the scrollback still had.
        output: Vec<u8>,
        /// Whether bytes were dropped from the front of `output`.
        truncated: bool,
        /// The ranges of the pattern's groups in `output`. The first is the whole match, the only one
        /// of a literal. A group that did not take part is `None`, like all groups in a match longer
        /// than 64 KiB.
        groups: Vec<Option<Range<usize>>>,
    },
    /// The timeout expired. Nothing was consumed.
    TimedOut {
        /// The last unread bytes, at most 2 KiB.
        tail: Vec<u8>,
        /// How long the wait took.
        waited: Duration,
        /// The last guest fault in the unread output.
        fault: Option<FaultReport>,
        /// The output that came closest to a pattern.
        near_match: Option<NearMatch>,
    },
    /// The console closed without a match. Nothing was consumed.
    Closed {
        /// The last unread bytes, at most 2 KiB.
        tail: Vec<u8>,
        /// How long the wait took.
        waited: Duration,
        /// The last guest fault in the unread output.
        fault: Option<FaultReport>,
        /// The output that came closest to a pattern.
        near_match: Option<NearMatch>,
    },
    /// The guest kernel panicked and printed nothing more for half a second, so no further output is
    /// expected. A pattern in the panic message matches as usual. Nothing was consumed.
    Panicked {
        /// The last unread bytes, at most 2 KiB.
        tail: Vec<u8>,
        /// How long the wait took.
        waited: Duration,
        /// The first line of the panic message.
        line: String,
    },
}

/// One wait: create it, poll it until it has an outcome, drop it.
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
    search: Option<(Search, FaultCheck)>,
    clock: TimeLimit,
    done: bool,
}

/// The start and the timeout of a wait or script.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeLimit {
    started: Instant,
    timeout: Option<Duration>,
}

impl Expect {
    /// A wait that starts `now`. Without a timeout it ends with a match or when the console closes.
    pub fn new(matcher: Matcher, now: Instant, timeout: Option<Duration>) -> Self {
        Self { matcher, search: None, clock: TimeLimit::new(now, timeout), done: false }
    }

    /// Searches the new output and returns the outcome, if the wait has ended.
    ///
    /// `closed` means that no more bytes will be pushed. All polls must use the same scrollback and
    /// cursor. A wait has one outcome; after that, this returns `None`.
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
        let outcome =
            self.matched(now, log, cursor).or_else(|| self.unmatched(now, log, cursor, closed));
        self.done = outcome.is_some();
        outcome
    }

    /// When to poll again if no output arrives.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        if self.done {
            return None;
        }
        let panic = self.search.as_ref().and_then(|(_, faults)| faults.confirmed_at());
        Deadline::earliest(self.clock.deadline("console wait timed out"), panic)
    }

    fn unmatched(
        &self,
        now: Instant,
        log: &Scrollback,
        cursor: &Cursor,
        closed: bool,
    ) -> Option<Outcome> {
        let (_, faults) = self.search.as_ref()?;
        let tail = || tail_since(log, cursor.offset());
        let waited = self.clock.waited(now);
        let panic = if closed { faults.at_end(log) } else { faults.confirmed(now, log) };
        if let Some(FaultReport { line, .. }) = panic {
            Some(Outcome::Panicked { tail: tail(), waited, line })
        } else if closed {
            let (fault, near_match) = self.hints(log, cursor);
            Some(Outcome::Closed { tail: tail(), waited, fault, near_match })
        } else if self.clock.is_over(now) {
            let (fault, near_match) = self.hints(log, cursor);
            Some(Outcome::TimedOut { tail: tail(), waited, fault, near_match })
        } else {
            None
        }
    }

    /// What may explain that nothing matched. Linear in the unread output.
    fn hints(&self, log: &Scrollback, cursor: &Cursor) -> (Option<FaultReport>, Option<NearMatch>) {
        (last_fault(log, cursor), near_match(self.matcher.patterns(), cursor.peek(log)))
    }

    fn matched(&mut self, now: Instant, log: &Scrollback, cursor: &mut Cursor) -> Option<Outcome> {
        let origin = cursor.offset();
        // Another caller moved this cursor: the progress of the search is no longer valid.
        if self.search.as_ref().is_none_or(|(search, _)| search.origin() != origin) {
            self.search = Some((Search::from(origin), FaultCheck::for_panic(log, origin)));
        }
        let (search, faults) = self.search.as_mut()?;
        faults.observe(now, log);
        let found = self.matcher.find(search, log)?;
        let groups = self.matcher.groups(&found, log);
        let lost = cursor.lost();
        let output = cursor.take_to(log, found.end);
        let origin = found.end - output.len() as u64;
        let place = |at: u64| at.saturating_sub(origin) as usize;
        let groups = groups.into_iter().map(|g| g.map(|g| place(g.start)..place(g.end))).collect();
        let truncated = cursor.lost() > lost;
        Some(Outcome::Matched { pattern: found.pattern, output, truncated, groups })
    }
}

impl TimeLimit {
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

/// The last bytes since `offset`, at most [`TAIL`], for an error message.
pub(super) fn tail_since(log: &Scrollback, offset: u64) -> Vec<u8> {
    // One wrapper may be longer than what is kept of the rest.
    let since = offset.max(log.end().saturating_sub(ECHO_WINDOW as u64));
    let mut tail = without_wrappers(log.since(since));
    tail.drain(..tail.len().saturating_sub(TAIL as usize));
    tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

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

    /// The outcome of a match of `len` bytes at the end of `output`.
    fn matched(pattern: usize, len: usize, output: &str) -> Option<Outcome> {
        let groups = vec![Some(output.len() - len..output.len())];
        Some(Outcome::Matched { pattern, output: output.into(), truncated: false, groups })
    }

    #[test]
    fn expect_match_consumes_through_its_end() {
        let log = log("one two three");
        let mut cursor = Cursor::at(0);
        assert_eq!(wait(&["two"]).poll(at(0), &log, &mut cursor, false), matched(0, 3, "one two"));
        assert_eq!(
            wait(&["x", "ee"]).poll(at(0), &log, &mut cursor, false),
            matched(1, 2, " three")
        );
    }

    #[test]
    fn expect_timeout_consumes_nothing() {
        let mut log = log("almost rea");
        let mut cursor = Cursor::at(0);
        let mut first = wait(&["ready"]);
        assert_eq!(first.poll(at(0), &log, &mut cursor, false), None);
        assert_eq!(first.poll_timeout().map(|d| d.at), Some(at(1)));
        let outcome = first.poll(at(3), &log, &mut cursor, false);
        let waited = SECOND * 3;
        let near_match = NearMatch::Prefix {
            pattern: "\"ready\"".into(),
            found: "rea".into(),
            followed_by: String::new(),
        };
        let (tail, near_match) = ("almost rea".into(), Some(near_match));
        assert_eq!(outcome, Some(Outcome::TimedOut { tail, waited, fault: None, near_match }));
        assert_eq!(first.poll(at(3), &log, &mut cursor, false), None, "one outcome per wait");
        assert_eq!(first.poll_timeout(), None);
        log.push(b"dy");
        assert_eq!(
            wait(&["ready"]).poll(at(0), &log, &mut cursor, false),
            matched(0, 5, "almost ready")
        );
    }

    #[test]
    fn expect_match_wins_over_close_over_timeout() {
        let log = log("ready");
        let mut cursor = Cursor::at(0);
        assert_eq!(wait(&["ready"]).poll(at(9), &log, &mut cursor, true), matched(0, 5, "ready"));
        let mut cursor = Cursor::at(0);
        assert_eq!(
            wait(&["never"]).poll(at(9), &log, &mut cursor, true),
            Some(Outcome::Closed {
                tail: "ready".into(),
                waited: SECOND * 9,
                fault: None,
                near_match: None
            })
        );
        assert_eq!(cursor, Cursor::at(0));
    }

    #[test]
    fn expect_empty_pattern_matches_immediately() {
        let mut cursor = Cursor::at(0);
        assert_eq!(wait(&[""]).poll(at(0), &log(""), &mut cursor, false), matched(0, 0, ""));
    }

    #[test]
    fn expect_dropped_bytes_set_truncated() {
        let mut log = Scrollback::new(8);
        let mut cursor = Cursor::at(0);
        let mut wait = wait(&["end"]);
        log.push(b"begin ");
        assert_eq!(wait.poll(at(0), &log, &mut cursor, false), None);
        log.push(b"middle end");
        let outcome = wait.poll(at(0), &log, &mut cursor, false);
        let (output, groups) = (b"ddle end".to_vec(), vec![Some(5..8)]);
        assert_eq!(outcome, Some(Outcome::Matched { pattern: 0, output, truncated: true, groups }));
    }

    #[test]
    fn expect_tail_is_bounded() {
        let mut log = Scrollback::new(1 << 16);
        log.push(&[b'x'; 10_000]);
        let Some(Outcome::Closed { tail, .. }) =
            wait(&["y"]).poll(at(0), &log, &mut Cursor::at(0), true)
        else {
            panic!("closed")
        };
        assert_eq!(tail.len() as u64, TAIL);
    }

    #[test]
    fn expect_panic_ends_wait_for_other_pattern() {
        let panic = "[    1.5] Kernel panic - not syncing: no init\r\n[    1.6] CPU: 0\r\n";
        let (log, mut cursor) = (log(panic), Cursor::at(0));
        let mut for_login = Expect::new(Matcher::new(["login:"]), at(0), None);
        assert_eq!(for_login.poll(at(0), &log, &mut cursor, false), None);
        let due = for_login.poll_timeout().unwrap().at;
        assert_eq!(due, at(0) + SECOND / 2, "within a second, without a timeout");
        let outcome = for_login.poll(due, &log, &mut cursor, false);
        let (tail, line) = (panic.into(), "Kernel panic - not syncing: no init".into());
        assert_eq!(outcome, Some(Outcome::Panicked { tail, waited: SECOND / 2, line }));
        assert_eq!(cursor, Cursor::at(0), "nothing was consumed");

        let end = &panic[..panic.len() - 2];
        assert_eq!(wait(&["CPU: 0"]).poll(due, &log, &mut cursor, true), matched(0, 6, end));
        // After the panic message was read, it does not end the next wait.
        let mut after = Expect::new(Matcher::new(["login:"]), at(0), None);
        assert_eq!(after.poll(at(9), &log, &mut cursor, false), None);
        assert_eq!(after.poll_timeout(), None);
    }

    #[test]
    fn expect_close_after_panic_returns_panicked() {
        let log = log("Kernel panic - not syncing: x\n");
        let outcome = wait(&["login:"]).poll(at(0), &log, &mut Cursor::at(0), true);
        assert!(matches!(outcome, Some(Outcome::Panicked { .. })), "{outcome:?}");
    }

    #[test]
    fn expect_timeout_reports_guest_fault() {
        let log = log("\r\nYou are in emergency mode. x\r\n# ");
        let outcome = wait(&["login:"]).poll(at(1), &log, &mut Cursor::at(0), false);
        let Some(Outcome::TimedOut { fault: Some(fault), .. }) = outcome else { panic!() };
        let expected = "the guest is in an emergency shell: You are in emergency mode. x";
        assert_eq!(alloc::format!("{fault}"), expected);
    }

    #[test]
    fn expect_moved_cursor_restarts_search() {
        let mut log = log("ab");
        let mut cursor = Cursor::at(0);
        let mut wait = wait(&["abc", "bcd"]);
        assert_eq!(wait.poll(at(0), &log, &mut cursor, false), None);
        cursor.before(&log, 1);
        log.push(b"cd");
        assert_eq!(wait.poll(at(0), &log, &mut cursor, false), matched(1, 3, "bcd"));
    }
}
