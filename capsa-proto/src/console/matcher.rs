//! [`Matcher`]: finds which of several patterns matches first in a stream.
//!
//! **The match with the earliest end wins; at a tie, the pattern listed first.** Later bytes cannot
//! change that result, so it does not depend on how the stream was split into reads. (The earliest
//! *start* would depend on it: a long pattern that started first may be incomplete when a short one
//! has matched.)
//!
//! The rule holds for literals and regular expressions. The work is linear in the output.

use super::pattern::PatternKind;
use super::{Pattern, Scrollback};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use memchr::memmem::Finder;

/// Patterns are searched block by block. Without blocks, each wait whose match is near would search
/// the whole scrollback for the patterns that do not occur.
const BLOCK: u64 = 4096;

/// A match of one pattern: which, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatternMatch {
    /// The index of the pattern in the order given to [`Matcher::new`].
    pub pattern: usize,
    /// The offset of the first byte of the match.
    pub start: u64,
    /// The offset one past the last byte of the match.
    pub end: u64,
}

/// A set of patterns to search for.
///
/// An empty pattern matches immediately, where the search starts. Without patterns nothing ever
/// matches, which makes a wait for the end of the stream.
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
    /// Whether there is a pattern with matches of unlimited length.
    is_unbounded: bool,
}

/// The progress of one search: the part of a wait that changes.
///
/// A search reads each new byte once per pattern. For a literal it also reads the `len - 1` bytes
/// before the new ones, where a match may have started. Each regular expression uses up to 512 KiB.
#[derive(Debug, Clone)]
pub struct Search {
    from: u64,
    scanned: u64,
    found: Option<PatternMatch>,
    /// The progress of each pattern that is a regular expression.
    #[cfg(feature = "regex")]
    regexes: Vec<Option<RegexProgress>>,
    /// Bytes read, summed over the patterns.
    #[cfg(test)]
    work: u64,
}

/// The progress of the search for one regular expression.
#[cfg(feature = "regex")]
#[derive(Debug, Clone)]
struct RegexProgress {
    /// The offset up to which there is no match.
    searched: u64,
    /// The offset up to which the automaton ran, for when it is back in its start state.
    fed: u64,
    dfa: super::regex::LazyDfa,
}

impl Matcher {
    /// A matcher for these literals. Their order gives their indices.
    pub fn new(literals: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        Self::of(literals.into_iter().map(Pattern::literal))
    }

    /// A matcher for these patterns. Their order gives their indices.
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

    /// The offsets of the groups of a match; the first is the whole match, the only one of a literal.
    /// A group that did not take part is `None`, like all groups in a match longer than 64 KiB.
    pub(crate) fn groups(&self, found: &PatternMatch, log: &Scrollback) -> Vec<Option<Range<u64>>> {
        let start = found.start.max(log.start()).min(found.end);
        match &self.patterns[found.pattern].kind {
            PatternKind::Literal(_) => vec![Some(start..found.end)],
            #[cfg(feature = "regex")]
            PatternKind::Regex(regex) => {
                let matched = &log.since(start)[..(found.end - start) as usize];
                let place = |n| start + n as u64;
                let groups = regex.groups(matched).into_iter();
                groups.map(|g| g.map(|g| place(g.start)..place(g.end))).collect()
            }
        }
    }

    /// Searches the bytes that were added to `log` since the last call with this `search`.
    ///
    /// A search that has found a match returns the same match again. Bytes that were dropped before
    /// they were searched are part of no match.
    pub fn find(&self, search: &mut Search, log: &Scrollback) -> Option<PatternMatch> {
        if search.found.is_none() {
            search.found = self.empty_pattern(search.from).or_else(|| self.advance(search, log));
        }
        search.found
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
            let found = self.best_in(search, log, from, upto);
            if found.is_some() {
                return found;
            }
            search.scanned = upto;
        }
        None
    }

    /// The match with the earliest end up to `upto`, given that none ends at or before `scanned`.
    fn best_in(
        &self,
        search: &mut Search,
        log: &Scrollback,
        from: u64,
        upto: u64,
    ) -> Option<PatternMatch> {
        let mut best: Option<PatternMatch> = None;
        for (pattern, Pattern { kind }) in self.patterns.iter().enumerate() {
            // A match of a later pattern must end strictly earlier to win.
            let stop = best.map_or(upto, |best| best.end - 1);
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
    /// A search that starts at `offset`.
    pub const fn from(offset: u64) -> Self {
        Self {
            from: offset,
            scanned: offset,
            found: None,
            #[cfg(feature = "regex")]
            regexes: Vec::new(),
            #[cfg(test)]
            work: 0,
        }
    }

    /// The offset where the search started.
    pub(crate) const fn origin(&self) -> u64 {
        self.from
    }

    /// The first occurrence of a literal that ends after `scanned` and not after `stop`.
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
        self.count_work(bytes);
        let start = start + finder.find(bytes)? as u64;
        Some(start..start + len)
    }

    /// Like [`literal`](Self::literal), for a regular expression. If there is no match, the bytes
    /// before `stop` are not searched again.
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
        if self.regexes.len() <= pattern {
            self.regexes.resize_with(pattern + 1, || None);
        }
        let progress = self.regexes[pattern]
            .get_or_insert_with(|| RegexProgress::new(scanned, regex.lazy_dfa()));
        if progress.searched != scanned {
            // Bytes were dropped before they were searched. No match spans them.
            progress.fed = scanned;
            progress.dfa.restart();
        }
        let stop = stop.max(scanned);
        progress.searched = stop;
        let begin = progress.resume_at(regex, log, scanned, from, stop)?;
        let bytes = &log.since(begin)[..(stop - begin) as usize];
        progress.fed = stop;
        let end = regex.advance(&mut progress.dfa, bytes).map(|len| begin + len as u64);
        self.count_work(bytes);
        let end = end?;
        let before = log.since(from);
        let start = from + regex.begin(&before[..(end - from) as usize]) as u64;
        Some(start..end)
    }

    fn count_work(&mut self, _bytes: &[u8]) {
        #[cfg(test)]
        {
            self.work += _bytes.len() as u64;
        }
    }

    /// The offset before which no match of `matcher` can start any more: this search does not need the
    /// bytes before it.
    pub(super) fn earliest_start(&self, matcher: &Matcher) -> u64 {
        match self.found {
            Some(found) => found.start,
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
    fn new(at: u64, dfa: super::regex::LazyDfa) -> Self {
        Self { searched: at, fed: at, dfa }
    }

    /// The offset from which the automaton has to run, if it has to run before `stop`. No byte is fed
    /// to it twice.
    fn resume_at(
        &self,
        regex: &super::regex::Regex,
        log: &Scrollback,
        scanned: u64,
        from: u64,
        stop: u64,
    ) -> Option<u64> {
        let prefilter = regex.prefilter().filter(|_| self.dfa.is_at_start());
        let Some(prefilter) = prefilter else { return Some(scanned) };
        // The literal may have started before the new bytes.
        let look = scanned.saturating_sub(prefilter.len() as u64 - 1).max(from);
        let place = look + prefilter.find(&log.since(look)[..(stop - look) as usize])? as u64;
        let earliest = self.fed.max(from);
        let before = &log.since(earliest)[..place.saturating_sub(earliest) as usize];
        let line = memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
        Some(earliest + line as u64)
    }
}

/// A slow reference implementation: for each end, in order, is there a pattern that ends here?
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
    fn matcher_earliest_end_wins_then_first_listed() {
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
    fn matcher_pattern_split_across_reads_matches() {
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
    fn matcher_bytes_before_origin_never_match() {
        let mut log = Scrollback::new(64);
        log.push(b"abab");
        let hit = Matcher::new(["ab"]).find(&mut Search::from(1), &log);
        assert_eq!(hit, Some(PatternMatch { pattern: 0, start: 2, end: 4 }));
    }

    #[test]
    fn search_after_dropped_bytes_continues() {
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
    fn search_reads_each_byte_once_plus_overlap() {
        let patterns = ["needle", "pin"];
        let matcher = Matcher::new(patterns);
        let mut log = Scrollback::new(1 << 20);
        let mut search = Search::from(0);
        let (polls, chunk) = (1000u64, 100u64);
        for _ in 0..polls {
            log.push(&[b'.'; 100]);
            assert_eq!(matcher.find(&mut search, &log), None);
            // Without new bytes there is no work.
            assert_eq!(matcher.find(&mut search, &log), None);
        }
        let fresh = polls * chunk * patterns.len() as u64;
        let overlap = (polls - 1) * ((6 - 1) + (3 - 1));
        assert_eq!(search.work, fresh + overlap);
    }

    #[cfg(feature = "regex")]
    #[test]
    fn search_frequent_prefilter_hits_stay_linear() {
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
    fn search_near_match_reads_one_block() {
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
        fn matcher_any_chunking_equals_reference(
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
        fn matcher_match_across_blocks_is_found(gap in 4000usize..4200, len in 1usize..6000) {
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
