//! [`Expect`]: one wait for one of several patterns.
//!
//! A match consumes through its end and leaves the rest; a timeout or a closed console consumes
//! nothing, so the next wait sees the same bytes. When the bytes are there, they win over a
//! deadline that has passed and over a console that has closed.

use super::fault::{FaultDetector, last_fault};
use super::near_match::near_match;
use super::{Cursor, FaultReport, Matcher, NearMatch, Scrollback, Search};
use crate::time::{Deadline, Instant};
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
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
        /// Where in `output` the pattern's groups are, the whole match first. Of a literal there is
        /// but that; a group that took no part, and any in a match longer than 64 KiB, is `None`.
        groups: Vec<Option<Range<usize>>>,
    },
    /// The time was over. Nothing was consumed.
    TimedOut {
        /// The last 2 KiB or fewer that were unread.
        tail: Vec<u8>,
        /// How long it was waited.
        waited: Duration,
        /// What trouble the guest was in, as far as what was unread tells.
        fault: Option<FaultReport>,
        /// What came closest to a pattern.
        near_match: Option<NearMatch>,
    },
    /// The console closed, and what it said before does not match. Nothing was consumed.
    Closed {
        /// The last 2 KiB or fewer that were unread.
        tail: Vec<u8>,
        /// How long it was waited.
        waited: Duration,
        /// What trouble the guest was in, as far as what was unread tells.
        fault: Option<FaultReport>,
        /// What came closest to a pattern.
        near_match: Option<NearMatch>,
    },
    /// The guest's kernel panicked and said nothing more for half a second: nothing will come. A
    /// pattern that is in what the panic said is found, as any. Nothing was consumed.
    Panicked {
        /// The last 2 KiB or fewer that were unread.
        tail: Vec<u8>,
        /// How long it was waited.
        waited: Duration,
        /// The panic's first line.
        line: String,
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
    search: Option<(Search, FaultDetector)>,
    clock: TimeLimit,
    done: bool,
}

/// When something began and how long it may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeLimit {
    started: Instant,
    timeout: Option<Duration>,
}

impl Expect {
    /// A wait that begins `now`. Without a timeout it ends by a match or a closed console.
    pub fn new(matcher: Matcher, now: Instant, timeout: Option<Duration>) -> Self {
        Self { matcher, search: None, clock: TimeLimit::new(now, timeout), done: false }
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
        let outcome =
            self.matched(now, log, cursor).or_else(|| self.unmatched(now, log, cursor, closed));
        self.done = outcome.is_some();
        outcome
    }

    /// When to poll again even if nothing arrives.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        if self.done {
            return None;
        }
        let panic = self.search.as_ref().and_then(|(_, watch)| watch.due());
        Deadline::earliest(self.clock.deadline("console wait timed out"), panic)
    }

    fn unmatched(
        &self,
        now: Instant,
        log: &Scrollback,
        cursor: &Cursor,
        closed: bool,
    ) -> Option<Outcome> {
        let (_, watch) = self.search.as_ref()?;
        let tail = || tail_since(log, cursor.offset());
        let waited = self.clock.waited(now);
        let panic = if closed { watch.sighting(log) } else { watch.certain(now, log) };
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

    /// What may explain that nothing was found. Linear in what is unread.
    fn hints(&self, log: &Scrollback, cursor: &Cursor) -> (Option<FaultReport>, Option<NearMatch>) {
        (last_fault(log, cursor), near_match(self.matcher.patterns(), cursor.peek(log)))
    }

    fn matched(&mut self, now: Instant, log: &Scrollback, cursor: &mut Cursor) -> Option<Outcome> {
        let origin = cursor.offset();
        // Somebody else read on with this cursor: what was found before is no longer unread.
        if self.search.as_ref().is_none_or(|(search, _)| search.origin() != origin) {
            self.search = Some((Search::from(origin), FaultDetector::for_panic(origin)));
        }
        let (search, watch) = self.search.as_mut()?;
        watch.look(now, log);
        let hit = self.matcher.find(search, log)?;
        let groups = self.matcher.groups(&hit, log);
        let lost = cursor.lost();
        let output = cursor.take_to(log, hit.end);
        let origin = hit.end - output.len() as u64;
        let place = |at: u64| at.saturating_sub(origin) as usize;
        let groups = groups.into_iter().map(|g| g.map(|g| place(g.start)..place(g.end))).collect();
        let truncated = cursor.lost() > lost;
        Some(Outcome::Matched { pattern: hit.pattern, output, truncated, groups })
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

/// The last bytes since `offset`, for an error message.
pub(super) fn tail_since(log: &Scrollback, offset: u64) -> Vec<u8> {
    log.since(offset.max(log.end().saturating_sub(TAIL))).to_vec()
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

    /// A match of a pattern of this length at the end of this output.
    fn matched(pattern: usize, len: usize, output: &str) -> Option<Outcome> {
        let groups = vec![Some(output.len() - len..output.len())];
        Some(Outcome::Matched { pattern, output: output.into(), truncated: false, groups })
    }

    #[test]
    fn a_match_consumes_through_its_end_only() {
        let log = log("one two three");
        let mut cursor = Cursor::at(0);
        assert_eq!(wait(&["two"]).poll(at(0), &log, &mut cursor, false), matched(0, 3, "one two"));
        assert_eq!(
            wait(&["x", "ee"]).poll(at(0), &log, &mut cursor, false),
            matched(1, 2, " three")
        );
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
        let near_match = NearMatch::Prefix {
            pattern: "\"ready\"".into(),
            said: "rea".into(),
            instead: String::new(),
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
    fn bytes_beat_timeout_and_close_and_close_beats_timeout() {
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
    fn an_empty_pattern_matches_an_empty_log_at_once() {
        let mut cursor = Cursor::at(0);
        assert_eq!(wait(&[""]).poll(at(0), &log(""), &mut cursor, false), matched(0, 0, ""));
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
        let (output, groups) = (b"ddle end".to_vec(), vec![Some(5..8)]);
        assert_eq!(outcome, Some(Outcome::Matched { pattern: 0, output, truncated: true, groups }));
    }

    #[test]
    fn the_tail_is_bounded() {
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
    fn a_panic_ends_a_wait_that_is_not_for_its_words() {
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
        // Whoever has read it knows: the next wait is for what comes after.
        let mut after = Expect::new(Matcher::new(["login:"]), at(0), None);
        assert_eq!(after.poll(at(9), &log, &mut cursor, false), None);
        assert_eq!(after.poll_timeout(), None);
    }

    #[test]
    fn a_console_that_closes_after_a_panic_tells_of_the_panic() {
        let log = log("Kernel panic - not syncing: x\n");
        let outcome = wait(&["login:"]).poll(at(0), &log, &mut Cursor::at(0), true);
        assert!(matches!(outcome, Some(Outcome::Panicked { .. })), "{outcome:?}");
    }

    #[test]
    fn a_timeout_names_the_trouble_that_was_seen() {
        let log = log("\r\nYou are in emergency mode. x\r\n# ");
        let outcome = wait(&["login:"]).poll(at(1), &log, &mut Cursor::at(0), false);
        let Some(Outcome::TimedOut { fault: Some(fault), .. }) = outcome else { panic!() };
        let expected = "the guest is in an emergency shell: You are in emergency mode. x";
        assert_eq!(alloc::format!("{fault}"), expected);
    }

    #[test]
    fn a_cursor_moved_by_someone_else_starts_the_search_again() {
        let mut log = log("ab");
        let mut cursor = Cursor::at(0);
        let mut wait = wait(&["abc", "bcd"]);
        assert_eq!(wait.poll(at(0), &log, &mut cursor, false), None);
        cursor.before(&log, 1);
        log.push(b"cd");
        assert_eq!(wait.poll(at(0), &log, &mut cursor, false), matched(1, 3, "bcd"));
    }
}
