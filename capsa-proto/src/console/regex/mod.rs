//! [`Regex`]: a regular expression that is looked for as bytes come, and where it matched.
//!
//! `regex-automata` parses and compiles; what runs is a [`Walk`] over its automaton. Its own
//! engines report a match one byte late, so that `$` and `\b` can be decided, and that byte may never
//! come after a prompt. Without assertions, which are refused, a match is known with its last byte.
//!
//! The automaton forwards finds the **earliest end** of any match. The automaton backwards then
//! finds the leftmost beginning of the matches that end there, once, in what is still in the log.

mod prefilter;
mod walk;

use super::PatternError;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use regex_automata::nfa::thompson::pikevm::PikeVM;
use regex_automata::nfa::thompson::{self, NFA, WhichCaptures};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, PatternID};
use regex_syntax::hir::Look;

pub(super) use prefilter::Prefilter;
pub(super) use walk::Walk;

/// The longest expression, as written.
const SOURCE_MAX: usize = 4096;
/// The most that one compiled automaton may take.
const NFA_MAX: usize = 256 << 10;
/// The longest match whose groups are worked out; of a longer one only the whole is known. The work
/// for groups is the match's length times the size of the expression.
const GROUPS_MAX: usize = 64 << 10;

/// A compiled regular expression. Clones share it.
#[derive(Clone)]
pub(super) struct Regex(Arc<Compiled>);

struct Compiled {
    source: alloc::string::String,
    forward: NFA,
    backward: NFA,
    /// For the groups, where there are any.
    groups: Option<PikeVM>,
    matches_nothing: bool,
    prefilter: Option<Prefilter>,
}

impl Regex {
    pub(super) fn new(source: &str) -> Result<Self, PatternError> {
        let too_big = || PatternError::TooBig { len: source.len() };
        if source.len() > SOURCE_MAX {
            return Err(too_big());
        }
        let config = syntax::Config::new().unicode(false).utf8(false).nest_limit(64);
        let hir = syntax::parse_with(source, &config).map_err(|error| {
            // It shows where, on lines of its own; the last says what.
            let text = error.to_string();
            let why = text.lines().last().unwrap_or_default();
            let why = why.strip_prefix("error: ").unwrap_or(why).to_string();
            PatternError::Syntax { pattern: source.into(), why }
        })?;
        if let Some(look) = hir.properties().look_set().iter().next() {
            let (assertion, instead) = in_place_of(look);
            return Err(PatternError::Assertion { pattern: source.into(), assertion, instead });
        }
        let compile = |reverse, captures| {
            let config = thompson::Config::new()
                .utf8(false)
                .reverse(reverse)
                .nfa_size_limit(Some(NFA_MAX))
                .which_captures(captures);
            thompson::Compiler::new().configure(config).build_from_hir(&hir).map_err(|_| too_big())
        };
        let groups = match hir.properties().explicit_captures_len() {
            0 => None,
            _ => {
                let nfa = compile(false, WhichCaptures::All)?;
                Some(PikeVM::new_from_nfa(nfa).map_err(|_| too_big())?)
            }
        };
        Ok(Self(Arc::new(Compiled {
            source: source.into(),
            forward: compile(false, WhichCaptures::None)?,
            backward: compile(true, WhichCaptures::None)?,
            groups,
            matches_nothing: hir.properties().minimum_len() == Some(0),
            prefilter: Prefilter::of(&hir),
        })))
    }

    pub(super) fn source(&self) -> &str {
        &self.0.source
    }

    pub(super) fn matches_nothing(&self) -> bool {
        self.0.matches_nothing
    }

    /// What a text must have for a match to be in it.
    pub(super) fn prefilter(&self) -> Option<&Prefilter> {
        self.0.prefilter.as_ref()
    }

    /// A walk that finds the earliest end.
    pub(super) fn walk(&self) -> Walk {
        Walk::new(&self.0.forward, Anchored::No)
    }

    /// Goes on with a walk: how many of these bytes it took to come to the end of a match.
    pub(super) fn advance(&self, walk: &mut Walk, bytes: &[u8]) -> Option<usize> {
        walk.advance(&self.0.forward, bytes)
    }

    /// The leftmost beginning of a match that ends with `bytes`.
    pub(super) fn begin(&self, bytes: &[u8]) -> usize {
        let mut walk = Walk::new(&self.0.backward, Anchored::Yes);
        walk.back(&self.0.backward, bytes).unwrap_or(bytes.len())
    }

    /// Where the groups are in a match, the whole first.
    pub(super) fn groups(&self, matched: &[u8]) -> Vec<Option<Range<usize>>> {
        let whole = Some(0..matched.len());
        let Some(vm) = &self.0.groups else { return vec![whole] };
        let mut groups = vec![None; vm.get_nfa().group_info().group_len(PatternID::ZERO)];
        groups[0] = whole;
        if matched.len() <= GROUPS_MAX {
            let mut found = vm.create_captures();
            let input = Input::new(matched).anchored(Anchored::Yes);
            vm.captures(&mut vm.create_cache(), input, &mut found);
            for (n, group) in groups.iter_mut().enumerate().skip(1) {
                *group = found.get_group(n).map(|span| span.range());
            }
        }
        groups
    }
}

/// An assertion as it is written, and what to write instead.
fn in_place_of(look: Look) -> (&'static str, &'static str) {
    const LINE_BEGIN: &str = r"write \n before what the line begins with";
    const LINE_END: &str = r"write \r?\n for the end of a line, or nothing after a prompt";
    const WORD: &str = r"write what comes there, such as [^\w]";
    match look {
        Look::Start | Look::StartLF | Look::StartCRLF => ("^", LINE_BEGIN),
        Look::End | Look::EndLF | Look::EndCRLF => ("$", LINE_END),
        Look::WordAsciiNegate | Look::WordUnicodeNegate => (r"\B", WORD),
        _ => (r"\b", WORD),
    }
}

impl fmt::Debug for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Regex({:?})", self.source())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(pattern: &str) -> alloc::string::String {
        Regex::new(pattern).expect_err("refused").to_string()
    }

    #[test]
    fn what_would_have_to_wait_for_the_next_byte_is_refused_with_a_way_out() {
        for (pattern, expected) in [
            (
                "login: $",
                r#"regular expression "login: $" has the assertion $; write \r?\n for the end of a line, or nothing after a prompt"#,
            ),
            (
                "(?m)^root",
                r#"regular expression "(?m)^root" has the assertion ^; write \n before what the line begins with"#,
            ),
            (
                r"a\b",
                r#"regular expression "a\\b" has the assertion \b; write what comes there, such as [^\w]"#,
            ),
            ("(", r#"regular expression "(" is not well-formed: unclosed group"#),
            (
                r"\p{L}",
                r#"regular expression "\\p{L}" is not well-formed: Unicode not allowed here"#,
            ),
            (
                "((a{100}){100}){100}",
                "regular expression of 20 bytes is too big; ask for fewer or shorter repetitions",
            ),
        ] {
            assert_eq!(refused(pattern), expected);
        }
        assert!(refused(&"a".repeat(5000)).contains("too big"));
        assert!(refused(&"(".repeat(100)).contains("not well-formed"));
    }

    #[test]
    fn groups_are_where_they_matched() {
        let regex = Regex::new(r"(\w+)@(\w+)(:~)?[#$] ").unwrap();
        let groups = regex.groups(b"root@vm# ");
        assert_eq!(groups, [Some(0..9), Some(0..4), Some(5..7), None]);
        assert_eq!(regex.groups(&[b'x'; GROUPS_MAX + 1])[1..], [None, None, None]);
        assert_eq!(Regex::new("a+").unwrap().groups(b"a"), [Some(0..1)]);
    }

    #[test]
    fn memory_is_bounded_and_the_answer_is_the_same() {
        // Its states remember which of the last 14 bytes were an `a`.
        let regex = Regex::new("a[ab]{14}c").unwrap();
        let mut random = fastrand::Rng::with_seed(3);
        let mut stream: Vec<u8> = (0..200_000).map(|_| random.u8(b'a'..=b'b')).collect();
        let mut walk = regex.walk();
        assert_eq!(regex.advance(&mut walk, &stream), None);
        assert!(walk.memory() < 1 << 20, "{}", walk.memory());
        stream.extend_from_slice(b"aaaaaaaaaaaaaaac");
        assert_eq!(regex.advance(&mut regex.walk(), &stream), Some(stream.len()));
    }
}
