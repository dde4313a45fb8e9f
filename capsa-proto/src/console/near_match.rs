//! [`NearMatch`]: what a guest said that is almost what was waited for, for the error of that wait.
//!
//! Looked at are the last [`WINDOW`] bytes and the first [`PATTERNS`] literals: once per literal as
//! it is, and once for each way in which text is taken for the same by a person and not by a machine.

use super::kernel_log::find_across_kernel_log;
use super::{Pattern, Stripper};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use memchr::memmem;

const WINDOW: usize = 64 << 10;
/// Where messages of the kernel are looked through, which is slower.
const CUT_WINDOW: usize = 4 << 10;
const PATTERNS: usize = 16;
/// Longer literals are left out.
const LONGEST: usize = 4096;
/// How much is shown of what came instead.
const SHOWN: usize = 24;

/// What came close to a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NearMatch {
    /// The text was there, but for something that is easily overlooked.
    But {
        /// The pattern.
        pattern: String,
        /// What is different: letter case, escape sequences, line ends, messages of the kernel.
        difference: &'static str,
        /// What was there.
        said: String,
    },
    /// The beginning was there, and then something else.
    Prefix {
        /// The pattern.
        pattern: String,
        /// As much of it as was there.
        said: String,
        /// What came instead of the rest. Empty: nothing has come yet.
        instead: String,
    },
    /// Nothing of it was there, and what was tells what the guest is at.
    Instead {
        /// The last line, escape sequences and messages of the kernel taken out.
        said: String,
        /// What that means.
        meaning: &'static str,
    },
}

impl fmt::Display for NearMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::But { pattern, difference, said } => {
                write!(f, "{pattern} was there but for {difference}: {said:?}")
            }
            Self::Prefix { pattern, said, instead } if instead.is_empty() => {
                write!(f, "of {pattern} there was {said:?}, and then nothing")
            }
            Self::Prefix { pattern, said, instead } => {
                write!(f, "of {pattern} there was {said:?}, and then {instead:?}")
            }
            Self::Instead { said, meaning } if said.is_empty() => f.write_str(meaning),
            Self::Instead { said, meaning } => write!(f, "the last line is {said:?}: {meaning}"),
        }
    }
}

/// What in these bytes comes closest to one of the patterns.
pub(super) fn near_match(patterns: &[Pattern], unread: &[u8]) -> Option<NearMatch> {
    let unread = &unread[unread.len().saturating_sub(WINDOW)..];
    let literals = || {
        let all = patterns.iter().filter_map(|p| Some((p, p.as_literal()?))).take(PATTERNS);
        all.filter(|(_, literal)| (1..=LONGEST).contains(&literal.len()))
    };
    for normalization in NORMALIZATIONS {
        let text = NormalizedText::of(unread, normalization);
        for (pattern, literal) in literals() {
            let literal = NormalizedText::of(literal, normalization);
            if literal.bytes.is_empty() {
                continue;
            }
            if let Some(start) = memmem::rfind(&text.bytes, &literal.bytes) {
                let end = text.places[start + literal.bytes.len() - 1] + 1;
                let said = shown(&unread[text.places[start]..end]);
                let pattern = pattern.to_string();
                return Some(NearMatch::But {
                    pattern,
                    difference: normalization.difference,
                    said,
                });
            }
        }
    }
    for (pattern, literal) in literals() {
        let last = &unread[unread.len().saturating_sub(CUT_WINDOW)..];
        if let Some(place) = find_across_kernel_log(last, literal) {
            let difference = "messages of the kernel in it";
            let (pattern, said) = (pattern.to_string(), shown(&last[place]));
            return Some(NearMatch::But { pattern, difference, said });
        }
    }
    let best = literals().map(|(pattern, literal)| (longest_prefix(literal, unread), pattern));
    let ((len, end), pattern) = best.max_by_key(|((len, _), _)| *len)?;
    let whole = pattern.as_literal()?.len();
    // A letter or two of a long pattern are everywhere.
    if len < 4 && (len < 2 || 2 * len < whole) {
        return None;
    }
    let instead = &unread[end..unread.len().min(end + SHOWN)];
    Some(NearMatch::Prefix {
        pattern: pattern.to_string(),
        said: shown(&unread[end - len..end]),
        instead: shown(instead),
    })
}

/// A way to take texts for the same.
#[derive(Clone, Copy)]
struct Normalization {
    difference: &'static str,
    escapes: bool,
    case: bool,
    line_ends: bool,
}

const NORMALIZATIONS: [Normalization; 4] = [
    Normalization {
        difference: "escape sequences in it",
        escapes: true,
        case: false,
        line_ends: false,
    },
    Normalization { difference: "letter case", escapes: false, case: true, line_ends: false },
    Normalization {
        difference: "its line ends, which are \\r\\n",
        escapes: false,
        case: false,
        line_ends: true,
    },
    Normalization {
        difference: "letter case, line ends and escape sequences",
        escapes: true,
        case: true,
        line_ends: true,
    },
];

/// A text without what a way overlooks, and where each byte was.
struct NormalizedText {
    bytes: Vec<u8>,
    places: Vec<usize>,
}

impl NormalizedText {
    fn of(text: &[u8], normalization: Normalization) -> Self {
        let mut normal = Self { bytes: Vec::new(), places: Vec::new() };
        let mut stripper = Stripper::default();
        for (place, &byte) in text.iter().enumerate() {
            let hidden = normalization.escapes && !stripper.is_text(byte)
                || normalization.line_ends && byte == b'\r';
            if !hidden {
                normal.bytes.push(if normalization.case {
                    byte.to_ascii_lowercase()
                } else {
                    byte
                });
                normal.places.push(place);
            }
        }
        normal
    }
}

/// The longest beginning of `literal` that is in `text`, the last such, and where it ends. Linear
/// (Knuth, Morris and Pratt).
fn longest_prefix(literal: &[u8], text: &[u8]) -> (usize, usize) {
    let mut shorter = vec![0; literal.len()];
    let mut len = 0;
    for i in 1..literal.len() {
        while len > 0 && literal[i] != literal[len] {
            len = shorter[len - 1];
        }
        len += usize::from(literal[i] == literal[len]);
        shorter[i] = len;
    }
    let (mut len, mut best) = (0, (0, 0));
    for (i, &byte) in text.iter().enumerate() {
        while len > 0 && (len == literal.len() || literal[len] != byte) {
            len = shorter[len - 1];
        }
        len += usize::from(literal[len] == byte);
        if len >= best.0 {
            best = (len, i + 1);
        }
    }
    best
}

fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn near(patterns: &[&str], text: &str) -> String {
        let patterns: Vec<Pattern> = patterns.iter().map(Pattern::literal).collect();
        near_match(&patterns, text.as_bytes()).map(|near| near.to_string()).unwrap_or_default()
    }

    #[test]
    fn what_came_close_is_named() {
        for (patterns, text, expected) in [
            (
                &["Login:"][..],
                "guest login: ",
                r#""Login:" was there but for letter case: "login:""#,
            ),
            (
                &["root@vm:~# "],
                "\x1b[1;32mroot@vm\x1b[0m:~# ",
                r#""root@vm:~# " was there but for escape sequences in it: "root@vm\u{1b}[0m:~# ""#,
            ),
            (
                &["a\nb"],
                "a\r\nb",
                r#""a\nb" was there but for its line ends, which are \r\n: "a\r\nb""#,
            ),
            (
                &["Ready\n# "],
                "\x1b[1mREADY\x1b[0m\r\n# ",
                r#""Ready\n# " was there but for letter case, line ends and escape sequences: "READY\u{1b}[0m\r\n# ""#,
            ),
            (
                &["capsa login:"],
                "capsa lo[    4.812345] crng\r\ngin: ",
                r#""capsa login:" was there but for messages of the kernel in it: "capsa lo[    4.812345] crng\r\ngin:""#,
            ),
            (
                &["never", "System ready"],
                "System rebooting now",
                r#"of "System ready" there was "System re", and then "booting now""#,
            ),
            (&["ready"], "not rea", r#"of "ready" there was "rea", and then nothing"#),
            (&["a long pattern"], "an ape", ""),
            (&["x"], "", ""),
            (&[""], "x", ""),
            (&[], "x", ""),
        ] {
            assert_eq!(near(patterns, text), expected);
        }
    }

    proptest! {
        #[test]
        fn the_longest_prefix_is_that_of_the_naive_twin(
            literal in "[ab]{1,6}", text in "[abc]{0,30}",
        ) {
            let (literal, text) = (literal.as_bytes(), text.as_bytes());
            let naive = (0..=literal.len())
                .rev()
                .find_map(|len| {
                    let ends = (len..=text.len()).rev();
                    ends.into_iter().find(|&end| text[..end].ends_with(&literal[..len])).map(|end| (len, end))
                })
                .unwrap();
            prop_assert_eq!(longest_prefix(literal, text).0, naive.0);
            if naive.0 > 0 {
                prop_assert_eq!(longest_prefix(literal, text), naive);
            }
        }
    }
}
