//! [`Regex`]: a regular expression that is matched as bytes arrive.
//!
//! `regex-automata` parses and compiles the expression to an NFA; a [`LazyDfa`] of our own runs it.
//! The engines of `regex-automata` report a match one byte late, to decide `$` and `\b`, and after a
//! prompt that byte may never come. Here assertions are rejected, so a match is known at its last byte.
//!
//! The forward automaton finds the **earliest end** of any match. The reverse automaton then finds the
//! leftmost start of the matches that end there, once, in the bytes that the scrollback still has.

mod lazy_dfa;
mod prefilter;

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

pub(super) use lazy_dfa::LazyDfa;
pub(super) use prefilter::Prefilter;

/// The maximum length of an expression.
const SOURCE_MAX: usize = 4096;
/// The maximum size of one compiled automaton.
const NFA_MAX: usize = 256 << 10;
/// The longest match whose groups are computed; of a longer one only the whole match is reported.
/// Computing groups costs the length of the match times the size of the expression.
const GROUPS_MAX: usize = 64 << 10;

/// A compiled regular expression. Clones share it.
#[derive(Clone)]
pub(super) struct Regex(Arc<Compiled>);

struct Compiled {
    source: alloc::string::String,
    forward: NFA,
    backward: NFA,
    /// Computes the groups, if the expression has any.
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
            // The last line of the error is the reason; the others show the position.
            let text = error.to_string();
            let why = text.lines().last().unwrap_or_default();
            let why = why.strip_prefix("error: ").unwrap_or(why).to_string();
            PatternError::Syntax { pattern: source.into(), why }
        })?;
        if let Some(look) = hir.properties().look_set().iter().next() {
            let (assertion, instead) = assertion_advice(look);
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

    /// The literal that every match contains, if there is one.
    pub(super) fn prefilter(&self) -> Option<&Prefilter> {
        self.0.prefilter.as_ref()
    }

    /// A search for the earliest end of a match.
    pub(super) fn lazy_dfa(&self) -> LazyDfa {
        LazyDfa::new(&self.0.forward, Anchored::No)
    }

    /// Feeds bytes to a search. Returns the number of bytes up to the end of a match.
    pub(super) fn advance(&self, dfa: &mut LazyDfa, bytes: &[u8]) -> Option<usize> {
        dfa.advance(&self.0.forward, bytes)
    }

    /// The leftmost start of a match that ends at the end of `bytes`.
    pub(super) fn begin(&self, bytes: &[u8]) -> usize {
        let mut dfa = LazyDfa::new(&self.0.backward, Anchored::Yes);
        dfa.advance_back(&self.0.backward, bytes).unwrap_or(bytes.len())
    }

    /// The ranges of the groups in a match; the first is the whole match.
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

/// An assertion as it is written, and the advice what to write instead.
fn assertion_advice(look: Look) -> (&'static str, &'static str) {
    const LINE_BEGIN: &str = r"write \n before the start of the line";
    const LINE_END: &str = r"write \r?\n for the end of a line, and nothing after a prompt";
    const WORD: &str = r"write the characters that may come there, e.g. [^\w]";
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

    fn error(pattern: &str) -> alloc::string::String {
        Regex::new(pattern).expect_err("invalid").to_string()
    }

    #[test]
    fn regex_with_assertion_is_rejected_with_advice() {
        for (pattern, expected) in [
            (
                "login: $",
                r#"regular expression "login: $" has the assertion $, which is unsupported: write \r?\n for the end of a line, and nothing after a prompt"#,
            ),
            (
                "(?m)^root",
                r#"regular expression "(?m)^root" has the assertion ^, which is unsupported: write \n before the start of the line"#,
            ),
            (
                r"a\b",
                r#"regular expression "a\\b" has the assertion \b, which is unsupported: write the characters that may come there, e.g. [^\w]"#,
            ),
            ("(", r#"regular expression "(" is invalid: unclosed group"#),
            (r"\p{L}", r#"regular expression "\\p{L}" is invalid: Unicode not allowed here"#),
            (
                "((a{100}){100}){100}",
                "regular expression of 20 bytes is too large: use fewer or shorter repetitions",
            ),
        ] {
            assert_eq!(error(pattern), expected);
        }
        assert!(error(&"a".repeat(5000)).contains("too large"));
        assert!(error(&"(".repeat(100)).contains("is invalid"));
    }

    #[test]
    fn regex_groups_are_ranges_in_match() {
        let regex = Regex::new(r"(\w+)@(\w+)(:~)?[#$] ").unwrap();
        let groups = regex.groups(b"root@vm# ");
        assert_eq!(groups, [Some(0..9), Some(0..4), Some(5..7), None]);
        assert_eq!(regex.groups(&[b'x'; GROUPS_MAX + 1])[1..], [None, None, None]);
        assert_eq!(Regex::new("a+").unwrap().groups(b"a"), [Some(0..1)]);
    }

    #[test]
    fn lazy_dfa_memory_is_bounded() {
        // Its DFA states encode which of the last 14 bytes were an `a`.
        let regex = Regex::new("a[ab]{14}c").unwrap();
        let mut random = fastrand::Rng::with_seed(3);
        let mut stream: Vec<u8> = (0..200_000).map(|_| random.u8(b'a'..=b'b')).collect();
        let mut dfa = regex.lazy_dfa();
        assert_eq!(regex.advance(&mut dfa, &stream), None);
        assert!(dfa.memory() < 1 << 20, "{}", dfa.memory());
        stream.extend_from_slice(b"aaaaaaaaaaaaaaac");
        assert_eq!(regex.advance(&mut regex.lazy_dfa(), &stream), Some(stream.len()));
    }
}
