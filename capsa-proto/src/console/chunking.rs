//! Tests the rule of the matcher against a slow reference implementation: literals and regular
//! expressions, in streams that are split at random.
//!
//! The reference keeps the set of positions that a pattern can have reached as the bits of a number.
//! It starts at every position; the lowest position left is the earliest end.

use super::{Matcher, Pattern, PatternMatch, Scrollback, Search};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use fastrand::Rng;

/// One bit for each position, including the one after the last byte.
const LONGEST: usize = 63;

/// The number of streams. Each is split in three ways.
const STREAMS: usize = 100_000;

/// How many streams use the same patterns, because compiling takes longer than matching.
const STREAMS_EACH: usize = 10;

/// A pattern as a tree.
enum Tree {
    Nothing,
    Byte(u8),
    Any,
    OneOf(u8, u8),
    Then(Box<Tree>, Box<Tree>),
    Or(Box<Tree>, Box<Tree>),
    Repeat(Box<Tree>, bool),
    Group(Box<Tree>),
}

impl Tree {
    fn random(random: &mut Rng, depth: u32) -> Self {
        let node = if depth == 0 { random.u8(1..4) } else { random.u8(0..10) };
        let mut below = || Box::new(Self::random(random, depth.saturating_sub(1)));
        match node {
            0 => Self::Nothing,
            1 => Self::Byte(*random.choice(b"aabbcc\n").unwrap()),
            2 => Self::Any,
            3 => Self::OneOf(random.u8(b'a'..=b'b'), b'c'),
            4..=6 => Self::Then(below(), below()),
            7 => Self::Or(below(), below()),
            8 => Self::Repeat(below(), depth.is_multiple_of(2)),
            _ => Self::Group(below()),
        }
    }

    fn source(&self) -> String {
        match self {
            Self::Nothing => "(?:)".into(),
            Self::Byte(byte) => char::from(*byte).to_string(),
            Self::Any => ".".into(),
            Self::OneOf(a, b) => format!("[{}{}]", char::from(*a), char::from(*b)),
            Self::Then(a, b) => a.source() + &b.source(),
            Self::Or(a, b) => format!("(?:{}|{})", a.source(), b.source()),
            Self::Repeat(a, lazy) => {
                format!("(?:{}){}", a.source(), if *lazy { "*?" } else { "+" })
            }
            Self::Group(a) => format!("({})", a.source()),
        }
    }

    /// The positions after a match of this pattern that starts at any of `places`.
    fn after(&self, stream: &[u8], places: u64) -> u64 {
        let over = |is: &dyn Fn(u8) -> bool| {
            let bytes = stream.iter().enumerate().filter(|(_, byte)| is(**byte));
            (places & bytes.fold(0, |bits, (place, _)| bits | 1 << place)) << 1
        };
        match self {
            Self::Nothing => places,
            Self::Byte(a) => over(&|byte| byte == *a),
            Self::Any => over(&|byte| byte != b'\n'),
            Self::OneOf(a, b) => over(&|byte| byte == *a || byte == *b),
            Self::Then(a, b) => b.after(stream, a.after(stream, places)),
            Self::Or(a, b) => a.after(stream, places) | b.after(stream, places),
            Self::Group(a) => a.after(stream, places),
            Self::Repeat(a, from_zero) => {
                let mut been = if *from_zero { places } else { a.after(stream, places) };
                loop {
                    let more = been | a.after(stream, been);
                    if more == been {
                        return been;
                    }
                    been = more;
                }
            }
        }
    }
}

/// The reference implementation: the pattern with the earliest end, and its longest match there.
fn naive(trees: &[Tree], stream: &[u8], from: usize) -> Option<PatternMatch> {
    let everywhere = (u64::MAX >> (63 - stream.len())) & (u64::MAX << from);
    let ends = trees.iter().map(|tree| tree.after(stream, everywhere).trailing_zeros());
    let (end, pattern) = ends.enumerate().map(|(i, end)| (end, i)).min()?;
    if end == u64::BITS {
        return None;
    }
    let begins = |start: &usize| trees[pattern].after(stream, 1 << *start) >> end & 1 == 1;
    let start = (from..=end as usize).find(begins)? as u64;
    Some(PatternMatch { pattern, start, end: u64::from(end) })
}

fn literal(tree: &Tree) -> Option<Vec<u8>> {
    match tree {
        Tree::Byte(byte) => Some([*byte].into()),
        Tree::Then(a, b) => Some([literal(a)?, literal(b)?].concat()),
        _ => None,
    }
}

#[test]
fn matcher_random_patterns_equal_reference() {
    let mut random = Rng::with_seed(5);
    let (mut hits, mut regexes, mut gated) = (0, 0, 0);
    for _ in 0..STREAMS / STREAMS_EACH {
        let trees: Vec<Tree> =
            (0..random.usize(1..=5)).map(|_| Tree::random(&mut random, 3)).collect();
        let patterns = trees.iter().map(|tree| match literal(tree) {
            Some(literal) => Pattern::literal(literal),
            None => {
                regexes += 1;
                let regex = Pattern::regex(&tree.source()).expect("well-formed");
                gated += usize::from(regex.has_prefilter());
                regex
            }
        });
        let matcher = Matcher::of(patterns);
        for _ in 0..STREAMS_EACH {
            let stream: Vec<u8> =
                (0..random.usize(0..LONGEST)).map(|_| *random.choice(b"abcd\n").unwrap()).collect();
            let from = random.usize(0..=3).min(stream.len());
            let expected = naive(&trees, &stream, from);
            hits += usize::from(expected.is_some());
            let what = || {
                let sources: Vec<String> = trees.iter().map(Tree::source).collect();
                format!("{sources:?} in {:?}", stream.escape_ascii().to_string())
            };
            for most in [LONGEST, 1, 7] {
                let (mut log, mut search) = (Scrollback::new(64), Search::from(from as u64));
                let (mut rest, mut found) = (&stream[..], matcher.find(&mut search, &log));
                while found.is_none() && !rest.is_empty() {
                    let (now, later) = rest.split_at(random.usize(1..=most).min(rest.len()));
                    log.push(now);
                    rest = later;
                    found = matcher.find(&mut search, &log);
                }
                assert_eq!(found, expected, "{}", what());
            }
        }
    }
    // Both results must be common in these streams.
    assert!(hits > STREAMS / 4 && hits < STREAMS, "{hits} matches");
    assert!(regexes > STREAMS / STREAMS_EACH, "{regexes} regular expressions");
    assert!(gated > 200, "{gated} of them have a prefilter");
}
