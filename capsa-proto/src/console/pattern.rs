//! [`Pattern`]: a literal or a regular expression that a wait searches for.
//!
//! Both match bytes, in one pass over the output.

#[cfg(feature = "regex")]
use super::regex::Regex;
use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;
use memchr::memmem::Finder;

/// A literal or a regular expression that a wait searches for.
///
/// ```
/// # use capsa_proto::console::Pattern;
/// assert_eq!(Pattern::literal("login:").to_string(), "\"login:\"");
/// # #[cfg(feature = "regex")]
/// assert_eq!(Pattern::regex(r"root@\w+[#$] ")?.to_string(), r"/root@\w+[#$] /");
/// # Ok::<(), capsa_proto::console::PatternError>(())
/// ```
#[derive(Clone)]
pub struct Pattern {
    pub(super) kind: PatternKind,
}

#[derive(Clone)]
pub(super) enum PatternKind {
    Literal(Box<Finder<'static>>),
    #[cfg(feature = "regex")]
    Regex(Regex),
}

/// Why a pattern is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// The regular expression is malformed.
    #[error("regular expression {pattern:?} is invalid: {why}")]
    Syntax {
        /// The expression.
        pattern: String,
        /// The reason.
        why: String,
    },
    /// The regular expression has an assertion. It depends on the byte after the match, and after a
    /// prompt that byte never comes.
    #[error(
        "regular expression {pattern:?} has the assertion {assertion}, which is unsupported: {instead}"
    )]
    Assertion {
        /// The expression.
        pattern: String,
        /// The assertion, as it is written.
        assertion: &'static str,
        /// What to write instead.
        instead: &'static str,
    },
    /// The regular expression is longer than 4 KiB, or than 256 KiB when compiled.
    #[error("regular expression of {len} bytes is too large: use fewer or shorter repetitions")]
    TooBig {
        /// Its length.
        len: usize,
    },
}

impl Pattern {
    /// Matches exactly these bytes. An empty literal matches immediately.
    pub fn literal(bytes: impl AsRef<[u8]>) -> Self {
        Self { kind: PatternKind::Literal(Box::new(Finder::new(bytes.as_ref()).into_owned())) }
    }

    /// A regular expression on bytes, in the syntax of the crate `regex`.
    ///
    /// A match ends **as early as possible**: `\d+` matches the first digit, and `a*` matches
    /// immediately. Add what follows: `(\d+)\r\n`. Character classes are ASCII, `.` matches any byte
    /// but `\n`, and guest lines end with `\r\n`.
    ///
    /// # Errors
    ///
    /// When the expression is malformed, too large, or has an assertion (`^`, `$`, `\b`): a wait ends at
    /// the last byte of a match and does not see the byte after it.
    #[cfg(feature = "regex")]
    #[cfg_attr(docsrs, doc(cfg(feature = "regex")))]
    pub fn regex(pattern: &str) -> Result<Self, PatternError> {
        Ok(Self { kind: PatternKind::Regex(Regex::new(pattern)?) })
    }

    /// The bytes of a literal; `None` for a regular expression.
    pub fn as_literal(&self) -> Option<&[u8]> {
        match &self.kind {
            PatternKind::Literal(finder) => Some(finder.needle()),
            #[cfg(feature = "regex")]
            PatternKind::Regex(_) => None,
        }
    }

    /// Whether this is a regular expression with a prefilter.
    #[cfg(all(test, feature = "regex"))]
    pub(super) fn has_prefilter(&self) -> bool {
        matches!(&self.kind, PatternKind::Regex(regex) if regex.prefilter().is_some())
    }

    /// Whether the pattern matches the empty string.
    pub(super) fn matches_nothing(&self) -> bool {
        match &self.kind {
            PatternKind::Literal(finder) => finder.needle().is_empty(),
            #[cfg(feature = "regex")]
            PatternKind::Regex(regex) => regex.matches_nothing(),
        }
    }
}

impl From<&str> for Pattern {
    fn from(literal: &str) -> Self {
        Self::literal(literal)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            PatternKind::Literal(finder) => {
                write!(f, "{:?}", String::from_utf8_lossy(finder.needle()))
            }
            #[cfg(feature = "regex")]
            PatternKind::Regex(regex) => write!(f, "/{}/", regex.source()),
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({self})")
    }
}
