//! [`Matcher`]: which of several patterns comes first in a stream.
//!
//! **The earliest end wins; ties go to the pattern listed first.** No later byte can change that
//! answer, so it does not depend on how the stream was cut into reads. (Earliest *start* would: a
//! long pattern that began first may still be incomplete when a short one is already whole.)
//!
//! Literals and regular expressions go by the same rule, and the work stays linear whatever a guest
//! sends.

use super::pattern::PatternKind;
use super::{Pattern, Scrollback};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use memchr::memmem::Finder;

/// How far all patterns are looked for before going on together. Without it, a wait for something
/// near would search the whole log for a pattern that is not there, each time.
const BLOCK: u64 = 4096;

/// Where a pattern was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatternMatch {
    /// Its index in the order given to [`Matcher::new`].
    pub pattern: usize,
    /// The offset of its first byte.
    pub start: u64,
    /// The offset one past its last byte.
    pub end: u64,
}

/// A set of patterns to look for.
///
/// An empty pattern is found at once, where the search begins. With no patterns at all nothing is
/// ever found, which makes a wait for the end of the stream.
///
/// ```
/// use capsa_proto::console::{Matcher, Scrollback, Search};
///
/// let matcher = Matcher::new(["login:", "Kernel panic"]);
/// let mut log = Scrollback::new(1024);
/// let mut search = Search::from(0);
///
/// log.push(b"guest log");
/// assert_eq!(matcher.find(&mut search, &log), None);
/// log.push(b"in: ");
/// let hit = matcher.find(&mut search, &log).unwrap();
/// assert_eq!((hit.pattern, hit.start, hit.end), (0, 6, 12));
/// ```
#[derive(Debug, Clone)]
pub struct Matcher {
    patterns: Vec<Pattern>,
    /// The longest literal.
    longest: usize,
    /// There is a pattern whose matches may be of any length.
    is_unbounded: bool,
}

/// How far one search has come: the part of a wait that changes.
///
/// It looks at each new byte once per pattern, plus, for a literal, at the `len - 1` bytes before
/// it, where it may have begun. For each regular expression it keeps up to 512 KiB.
#[derive(Debug, Clone)]
pub struct Search {
    from: u64,
    scanned: u64,
    hit: Option<PatternMatch>,
    /// For each pattern that is a regular expression, how far its automaton has come.
    #[cfg(feature = "regex")]
    walks: Vec<Option<RegexProgress>>,
    /// Bytes looked at, summed over the patterns.
    #[cfg(test)]
    work: u64,
}

/// How far a regular expression has been looked for.
#[cfg(feature = "regex")]
#[derive(Debug, Clone)]
struct RegexProgress {
    /// Up to where there is no match.
    at: u64,
    /// Up to where its automaton has gone, where that has come back to its start.
    walked: u64,
    walk: super::regex::Walk,
}

impl Matcher {
    /// A matcher for any of these literals, which are numbered in this order.
    pub fn new(literals: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        Self::of(literals.into_iter().map(Pattern::literal))
    }

    /// A matcher for any of these patterns, which are numbered in this order.
    pub fn of(patterns: impl IntoIterator<Item = Pattern>) -> Self {
        let patterns: Vec<_> = patterns.into_iter().collect();
        let literals = patterns.iter().filter_map(Pattern::as_literal);
        let longest = literals.map(<[u8]>::len).max().unwrap_or(0);
        let is_unbounded = patterns.iter().any(|pattern| pattern.as_literal().is_none());
        Self { patterns, longest, is_unbounded }
    }

    /// The patterns, in their order.
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Where the groups of a hit are in the log, the whole first; a literal has no other. A group
    /// that took no part is `None`, and so are all but the whole in a match longer than 64 KiB.
    pub fn groups(&self, hit: &PatternMatch, log: &Scrollback) -> Vec<Option<Range<u64>>> {
        let start = hit.start.max(log.start()).min(hit.end);
        match &self.patterns[hit.pattern].kind {
            PatternKind::Literal(_) => vec![Some(start..hit.end)],
            #[cfg(feature = "regex")]
            PatternKind::Regex(regex) => {
                let matched = &log.since(start)[..(hit.end - start) as usize];
                let place = |n| start + n as u64;
                let groups = regex.groups(matched).into_iter();
                groups.map(|g| g.map(|g| place(g.start)..place(g.end))).collect()
            }
        }
    }

    /// Looks at what is new in `log` since the last call with this `search`.
    ///
    /// A search that has found something keeps giving the same hit. Bytes that were dropped before
    /// they were looked at are not found, and no hit reaches across them.
    pub fn find(&self, search: &mut Search, log: &Scrollback) -> Option<PatternMatch> {
        if search.hit.is_none() {
            search.hit = self.empty_pattern(search.from).or_else(|| self.advance(search, log));
        }
        search.hit
    }

    fn empty_pattern(&self, at: u64) -> Option<PatternMatch> {
        let pattern = self.patterns.iter().position(Pattern::matches_nothing)?;
        Some(PatternMatch { pattern, start: at, end: at })
    }

    fn advance(&self, search: &mut Search, log: &Scrollback) -> Option<PatternMatch> {
        let from = search.from.max(log.start());
        search.scanned = search.scanned.max(from);
        while search.scanned < log.end() {
            let upto = log.end().min(search.scanned + BLOCK.max(self.longest as u64));
            let hit = self.best_in(search, log, from, upto);
            if hit.is_some() {
                return hit;
            }
            search.scanned = upto;
        }
        None
    }

    /// The hit with the earliest end up to `upto`, given that none ends at or before `scanned`.
    fn best_in(
        &self,
        search: &mut Search,
        log: &Scrollback,
        from: u64,
        upto: u64,
    ) -> Option<PatternMatch> {
        let mut best: Option<PatternMatch> = None;
        for (pattern, Pattern { kind }) in self.patterns.iter().enumerate() {
            // A later pattern has to end strictly earlier, so it need not look at the last byte.
            let stop = best.map_or(upto, |hit| hit.end - 1);
            let found = match kind {
                PatternKind::Literal(finder) => search.literal(finder, log, from, stop),
                #[cfg(feature = "regex")]
                PatternKind::Regex(regex) => search.regex(pattern, regex, log, from, stop),
            };
            if let Some(Range { start, end }) = found {
                best = Some(PatternMatch { pattern, start, end });
            }
        }
        best
    }
}

impl Search {
    /// A search that begins at `offset`.
    pub const fn from(offset: u64) -> Self {
        Self {
            from: offset,
            scanned: offset,
            hit: None,
            #[cfg(feature = "regex")]
            walks: Vec::new(),
            #[cfg(test)]
            work: 0,
        }
    }

    /// Where it began.
    pub const fn origin(&self) -> u64 {
        self.from
    }

    /// The first place of a literal that ends behind `scanned` and not behind `stop`.
    fn literal(
        &mut self,
        finder: &Finder<'_>,
        log: &Scrollback,
        from: u64,
        stop: u64,
    ) -> Option<Range<u64>> {
        let len = finder.needle().len() as u64;
        let start = self.scanned.saturating_sub(len - 1).max(from);
        if start + len > stop {
            return None;
        }
        let bytes = &log.since(start)[..(stop - start) as usize];
        self.looked_at(bytes);
        let start = start + finder.find(bytes)? as u64;
        Some(start..start + len)
    }

    /// As [`literal`](Self::literal), of a regular expression. Where nothing is found, what lies
    /// before `stop` is done with.
    #[cfg(feature = "regex")]
    fn regex(
        &mut self,
        pattern: usize,
        regex: &super::regex::Regex,
        log: &Scrollback,
        from: u64,
        stop: u64,
    ) -> Option<Range<u64>> {
        let scanned = self.scanned;
        if self.walks.len() <= pattern {
            self.walks.resize_with(pattern + 1, || None);
        }
        let way =
            self.walks[pattern].get_or_insert_with(|| RegexProgress::new(scanned, regex.walk()));
        if way.at != scanned {
            // Bytes were dropped before anybody looked at them. No match reaches across.
            way.walked = scanned;
            way.walk.restart();
        }
        let stop = stop.max(scanned);
        way.at = stop;
        let begin = way.begin(regex, log, scanned, from, stop)?;
        let bytes = &log.since(begin)[..(stop - begin) as usize];
        way.walked = stop;
        let end = regex.advance(&mut way.walk, bytes).map(|len| begin + len as u64);
        self.looked_at(bytes);
        let end = end?;
        let before = log.since(from);
        let start = from + regex.begin(&before[..(end - from) as usize]) as u64;
        Some(start..end)
    }

    fn looked_at(&mut self, _bytes: &[u8]) {
        #[cfg(test)]
        {
            self.work += _bytes.len() as u64;
        }
    }

    /// The offset before which no hit of `matcher` can begin any more: what comes earlier need not
    /// be kept for this search.
    pub(super) fn settled(&self, matcher: &Matcher) -> u64 {
        match self.hit {
            Some(hit) => hit.start,
            None if matcher.is_unbounded => self.from,
            None => {
                let overlap = matcher.longest.saturating_sub(1) as u64;
                self.scanned.saturating_sub(overlap).max(self.from)
            }
        }
    }
}

#[cfg(feature = "regex")]
impl RegexProgress {
    fn new(at: u64, walk: super::regex::Walk) -> Self {
        Self { at, walked: at, walk }
    }

    /// Where the automaton has to go on, if it has to before `stop`. No byte is gone over twice.
    fn begin(
        &self,
        regex: &super::regex::Regex,
        log: &Scrollback,
        scanned: u64,
        from: u64,
        stop: u64,
    ) -> Option<u64> {
        let prefilter = regex.prefilter().filter(|_| self.walk.is_at_start());
        let Some(prefilter) = prefilter else { return Some(scanned) };
        // What a match must have may have begun before what is new.
        let look = scanned.saturating_sub(prefilter.len() as u64 - 1).max(from);
        let place = look + prefilter.find(&log.since(look)[..(stop - look) as usize])? as u64;
        let earliest = self.walked.max(from);
        let before = &log.since(earliest)[..place.saturating_sub(earliest) as usize];
        let line = memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
        Some(earliest + line as u64)
    }
}

/// The slow obvious version: at each end, in order, is there a pattern that ends here?
#[cfg(test)]
fn naive(patterns: &[Vec<u8>], stream: &[u8], from: usize) -> Option<PatternMatch> {
    for end in from..=stream.len() {
        for (pattern, needle) in patterns.iter().enumerate() {
            if stream[from..end].ends_with(needle) {
                let start = (end - needle.len()) as u64;
                return Some(PatternMatch { pattern, start, end: end as u64 });
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn find(patterns: &[&str], stream: &str) -> Option<(usize, u64, u64)> {
        let mut log = Scrollback::new(1 << 16);
        log.push(stream.as_bytes());
        let hit = Matcher::new(patterns).find(&mut Search::from(0), &log)?;
        Some((hit.pattern, hit.start, hit.end))
    }

    #[test]
    fn earliest_end_wins_then_the_first_listed() {
        for (patterns, stream, expected) in [
            (&["b", "a"][..], "xab", Some((1, 1, 2))),
            (&["abcd", "bc"], "abcd", Some((1, 1, 3))),
            (&["bc", "abc"], "abc", Some((0, 1, 3))),
            (&["abc", "bc"], "abc", Some((0, 0, 3))),
            (&["a", "a"], "a", Some((0, 0, 1))),
            (&["aa"], "baaa", Some((0, 1, 3))),
            (&["x", ""], "x", Some((1, 0, 0))),
            (&[""], "", Some((0, 0, 0))),
            (&["x"], "", None),
            (&[], "anything", None),
        ] {
            assert_eq!(find(patterns, stream), expected, "{patterns:?} in {stream:?}");
        }
    }

    #[test]
    fn pattern_split_across_reads_matches() {
        let matcher = Matcher::new(["login:"]);
        let mut log = Scrollback::new(64);
        let mut search = Search::from(0);
        for byte in b"x login" {
            log.push(&[*byte]);
            assert_eq!(matcher.find(&mut search, &log), None);
        }
        log.push(b":");
        assert_eq!(
            matcher.find(&mut search, &log),
            Some(PatternMatch { pattern: 0, start: 2, end: 8 })
        );
    }

    #[test]
    fn nothing_before_the_origin_is_part_of_a_hit() {
        let mut log = Scrollback::new(64);
        log.push(b"abab");
        let hit = Matcher::new(["ab"]).find(&mut Search::from(1), &log);
        assert_eq!(hit, Some(PatternMatch { pattern: 0, start: 2, end: 4 }));
    }

    #[test]
    fn a_search_overtaken_by_dropping_goes_on_with_what_is_left() {
        let matcher = Matcher::new(["ab"]);
        let mut log = Scrollback::new(4);
        let mut search = Search::from(0);
        log.push(b"a");
        assert_eq!(matcher.find(&mut search, &log), None);
        log.push(b"123bxab");
        assert_eq!(
            matcher.find(&mut search, &log),
            Some(PatternMatch { pattern: 0, start: 6, end: 8 })
        );
    }

    #[test]
    fn each_byte_is_looked_at_once_plus_the_overlap() {
        let patterns = ["needle", "pin"];
        let matcher = Matcher::new(patterns);
        let mut log = Scrollback::new(1 << 20);
        let mut search = Search::from(0);
        let (polls, chunk) = (1000u64, 100u64);
        for _ in 0..polls {
            log.push(&[b'.'; 100]);
            assert_eq!(matcher.find(&mut search, &log), None);
            // With nothing new there is nothing to do.
            assert_eq!(matcher.find(&mut search, &log), None);
        }
        let fresh = polls * chunk * patterns.len() as u64;
        let overlap = (polls - 1) * ((6 - 1) + (3 - 1));
        assert_eq!(search.work, fresh + overlap);
    }

    #[cfg(feature = "regex")]
    #[test]
    fn a_literal_that_comes_again_and_again_costs_no_byte_twice() {
        for text in ["x login: ", "x login: x\n", "aaaaaaaa", " login: "] {
            let matcher = Matcher::of([Pattern::regex("[a-z]+ login: never").unwrap()]);
            let mut log = Scrollback::new(1 << 20);
            let mut search = Search::from(0);
            for byte in text.bytes().cycle().take(20_000) {
                log.push(&[byte]);
                assert_eq!(matcher.find(&mut search, &log), None);
            }
            assert!(search.work <= 20_000, "{} for {text:?}", search.work);
            log.push(b"\nroot login: never");
            let hit = matcher.find(&mut search, &log).map(|hit| (hit.start, hit.end));
            assert_eq!(hit, Some((20_001, 20_001 + 17)), "{text:?}");
        }
    }

    #[test]
    fn a_near_hit_does_not_pay_for_a_long_log() {
        let matcher = Matcher::new(["absent", "near"]);
        let mut log = Scrollback::new(1 << 20);
        log.push(b"near");
        log.push(&[b'.'; 500_000]);
        let mut search = Search::from(0);
        assert_eq!(matcher.find(&mut search, &log).map(|hit| hit.end), Some(4));
        assert!(search.work <= 2 * BLOCK, "{}", search.work);
    }

    proptest! {
        #[test]
        fn any_split_gives_what_the_naive_twin_gives(
            patterns in prop::collection::vec(prop::collection::vec(b'a'..=b'c', 0..5), 1..=5),
            stream in prop::collection::vec(b'a'..=b'c', 0..60),
            cuts in prop::collection::vec(1usize..8, 0..60),
            from in 0usize..4,
        ) {
            let from = from.min(stream.len());
            let expected = naive(&patterns, &stream, from);
            let matcher = Matcher::new(&patterns);

            let mut whole = Scrollback::new(1024);
            whole.push(&stream);
            prop_assert_eq!(matcher.find(&mut Search::from(from as u64), &whole), expected);

            let mut log = Scrollback::new(1024);
            let mut search = Search::from(from as u64);
            let mut rest = &stream[..];
            let mut found = matcher.find(&mut search, &log);
            for cut in cuts.iter().copied().chain([stream.len()]) {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                log.push(now);
                rest = later;
                found = found.or_else(|| matcher.find(&mut search, &log));
            }
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn blocks_do_not_show(gap in 4000usize..4200, len in 1usize..6000) {
            let needle: Vec<u8> = core::iter::repeat_n(b'n', len).collect();
            let mut stream: Vec<u8> = core::iter::repeat_n(b'.', gap).collect();
            stream.extend_from_slice(&needle);
            let mut log = Scrollback::new(1 << 16);
            log.push(&stream);
            let hit = Matcher::new([&needle]).find(&mut Search::from(0), &log);
            prop_assert_eq!(hit.map(|h| h.start), Some(gap as u64));
        }
    }
}
