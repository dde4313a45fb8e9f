//! [`NearMatch`]: output that almost matches a pattern, shown in the error of a wait.
//!
//! The search covers the last [`WINDOW`] bytes and the first [`PATTERNS_MAX`] literals. Text and literal
//! are compared under several normalizations, each of which ignores a difference that people overlook.
//! The wrappers of commands are no output.

use super::kernel_log::find_across_kernel_log;
use super::script::without_wrappers;
use super::{Pattern, Stripper};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use memchr::memmem;

const WINDOW: usize = 64 << 10;
/// The last bytes that are searched across kernel messages, which is slower.
const KERNEL_LOG_WINDOW: usize = 4 << 10;
const PATTERNS_MAX: usize = 16;
/// Longer literals are skipped.
const LITERAL_MAX: usize = 4096;
/// How much of the text after a prefix is shown.
const SHOWN_MAX: usize = 24;

/// Output that almost matches a pattern, or that explains why nothing matches.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NearMatch {
    /// The output matches the pattern except for a difference that is easily overlooked.
    Differs {
        /// The pattern.
        pattern: String,
        /// The difference: letter case, escape sequences, line ends, kernel messages.
        difference: &'static str,
        /// The output.
        found: String,
    },
    /// The output matches the start of the pattern.
    Prefix {
        /// The pattern.
        pattern: String,
        /// The matching output.
        found: String,
        /// The output after it. Empty if there is none yet.
        followed_by: String,
    },
    /// No output matches, and the last line shows the state of the guest.
    LastLine {
        /// The last line, without escape sequences and kernel messages.
        line: String,
        /// What the line means.
        explanation: &'static str,
    },
}

impl fmt::Display for NearMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Differs { pattern, difference, found } => {
                write!(f, "{pattern} matches {found:?} except for {difference}")
            }
            Self::Prefix { pattern, found, followed_by } if followed_by.is_empty() => {
                write!(f, "only the start of {pattern} matched: {found:?}, followed by nothing")
            }
            Self::Prefix { pattern, found, followed_by } => {
                write!(
                    f,
                    "only the start of {pattern} matched: {found:?}, followed by {followed_by:?}"
                )
            }
            Self::LastLine { line, explanation } if line.is_empty() => f.write_str(explanation),
            Self::LastLine { line, explanation } => {
                write!(f, "the last line is {line:?}: {explanation}")
            }
        }
    }
}

/// The output in `unread` that comes closest to one of the patterns.
pub(super) fn near_match(patterns: &[Pattern], unread: &[u8]) -> Option<NearMatch> {
    let unread = without_wrappers(&unread[unread.len().saturating_sub(WINDOW)..]);
    let unread = &unread[..];
    let literals = || {
        let all = patterns.iter().filter_map(|p| Some((p, p.as_literal()?))).take(PATTERNS_MAX);
        all.filter(|(_, literal)| (1..=LITERAL_MAX).contains(&literal.len()))
    };
    for normalization in NORMALIZATIONS {
        let text = NormalizedText::of(unread, normalization);
        for (pattern, literal) in literals() {
            let literal = NormalizedText::of(literal, normalization);
            if literal.bytes.is_empty() {
                continue;
            }
            if let Some(start) = memmem::rfind(&text.bytes, &literal.bytes) {
                let end = text.offsets[start + literal.bytes.len() - 1] + 1;
                let found = shown(&unread[text.offsets[start]..end]);
                let pattern = pattern.to_string();
                return Some(NearMatch::Differs {
                    pattern,
                    difference: normalization.difference,
                    found,
                });
            }
        }
    }
    for (pattern, literal) in literals() {
        let last = &unread[unread.len().saturating_sub(KERNEL_LOG_WINDOW)..];
        if let Some(place) = find_across_kernel_log(last, literal) {
            let difference = "kernel messages in it";
            let (pattern, found) = (pattern.to_string(), shown(&last[place]));
            return Some(NearMatch::Differs { pattern, difference, found });
        }
    }
    let best = literals().map(|(pattern, literal)| (longest_prefix(literal, unread), pattern));
    let ((len, end), pattern) = best.max_by_key(|((len, _), _)| *len)?;
    let whole = pattern.as_literal()?.len();
    // One or two letters of a long pattern match anywhere.
    if len < 4 && (len < 2 || 2 * len < whole) {
        return None;
    }
    let followed_by = &unread[end..unread.len().min(end + SHOWN_MAX)];
    Some(NearMatch::Prefix {
        pattern: pattern.to_string(),
        found: shown(&unread[end - len..end]),
        followed_by: shown(followed_by),
    })
}

/// Which differences a comparison ignores.
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

/// A text without the ignored differences, and the original offset of each byte.
struct NormalizedText {
    bytes: Vec<u8>,
    offsets: Vec<usize>,
}

impl NormalizedText {
    fn of(text: &[u8], normalization: Normalization) -> Self {
        let mut normal = Self { bytes: Vec::new(), offsets: Vec::new() };
        let mut stripper = Stripper::default();
        for (offset, &byte) in text.iter().enumerate() {
            let hidden = normalization.escapes && !stripper.is_text(byte)
                || normalization.line_ends && byte == b'\r';
            if !hidden {
                normal.bytes.push(if normalization.case {
                    byte.to_ascii_lowercase()
                } else {
                    byte
                });
                normal.offsets.push(offset);
            }
        }
        normal
    }
}

/// The length and the end of the longest prefix of `literal` in `text`; the last one of several. Linear
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

    fn describe(patterns: &[&str], text: &str) -> String {
        let patterns: Vec<Pattern> = patterns.iter().map(Pattern::literal).collect();
        near_match(&patterns, text.as_bytes()).map(|found| found.to_string()).unwrap_or_default()
    }

    #[test]
    fn near_match_never_quotes_a_wrapper() {
        let echo = r#"# /bin/sh -c 'printf "%s:%s:%s\n" capsa begin $1;' capsa 0000000000000007 'make OK'"#;
        let output = "capsa:begin:0000000000000007\r\nok\r\ncapsa:end:0000000000000007:0;\r\n";
        let text = format!("{echo}\r\n{output} : 0000000000000007 ok\r\n# ");
        assert_eq!(describe(&["make ok"], &text), "");
        assert_eq!(describe(&["capsa:begin:8"], &text), "");
        assert_eq!(describe(&["OK"], &text), r#""OK" matches "ok" except for letter case"#);
    }

    #[test]
    fn near_match_describes_difference() {
        for (patterns, text, expected) in [
            (
                &["Login:"][..],
                "guest login: ",
                r#""Login:" matches "login:" except for letter case"#,
            ),
            (
                &["root@vm:~# "],
                "\x1b[1;32mroot@vm\x1b[0m:~# ",
                r#""root@vm:~# " matches "root@vm\u{1b}[0m:~# " except for escape sequences in it"#,
            ),
            (
                &["a\nb"],
                "a\r\nb",
                r#""a\nb" matches "a\r\nb" except for its line ends, which are \r\n"#,
            ),
            (
                &["Ready\n# "],
                "\x1b[1mREADY\x1b[0m\r\n# ",
                r#""Ready\n# " matches "READY\u{1b}[0m\r\n# " except for letter case, line ends and escape sequences"#,
            ),
            (
                &["capsa login:"],
                "capsa lo[    4.812345] crng\r\ngin: ",
                r#""capsa login:" matches "capsa lo[    4.812345] crng\r\ngin:" except for kernel messages in it"#,
            ),
            (
                &["never", "System ready"],
                "System rebooting now",
                r#"only the start of "System ready" matched: "System re", followed by "booting now""#,
            ),
            (
                &["ready"],
                "not rea",
                r#"only the start of "ready" matched: "rea", followed by nothing"#,
            ),
            (&["a long pattern"], "an ape", ""),
            (&["x"], "", ""),
            (&[""], "x", ""),
            (&[], "x", ""),
        ] {
            assert_eq!(describe(patterns, text), expected);
        }
    }

    proptest! {
        #[test]
        fn longest_prefix_equals_reference(
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
