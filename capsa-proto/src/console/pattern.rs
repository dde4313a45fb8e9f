//! [`Pattern`]: what a wait looks for, a literal or a regular expression.
//!
//! Both work on bytes and look at each byte once, whatever a guest sends.

#[cfg(feature = "regex")]
use super::regex::Regex;
use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;
use memchr::memmem::Finder;

/// What a wait looks for.
///
/// ```
/// use capsa_proto::console::Pattern;
///
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

/// Why something is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// It is no regular expression.
    #[error("regular expression {pattern:?} is not well-formed: {why}")]
    Syntax {
        /// What was given.
        pattern: String,
        /// What is wrong, and where.
        why: String,
    },
    /// It depends on what surrounds the match, which a wait cannot see: it would have to wait for
    /// the next byte, which at a prompt never comes.
    #[error("regular expression {pattern:?} has the assertion {assertion}; {instead}")]
    Assertion {
        /// What was given.
        pattern: String,
        /// The assertion, as it is written.
        assertion: &'static str,
        /// What to write instead.
        instead: &'static str,
    },
    /// It is longer than 4 KiB, or needs more than 256 KiB when it is compiled.
    #[error("regular expression of {len} bytes is too big; ask for fewer or shorter repetitions")]
    TooBig {
        /// Its length.
        len: usize,
    },
}

impl Pattern {
    /// Exactly these bytes. An empty literal is found at once.
    pub fn literal(bytes: impl AsRef<[u8]>) -> Self {
        Self { kind: PatternKind::Literal(Box::new(Finder::new(bytes.as_ref()).into_owned())) }
    }

    /// A regular expression, in the syntax of the crate `regex`, on bytes.
    ///
    /// A match ends **as soon as it can**: `\d+` is found at the first digit, and `a*` at once. Say
    /// what comes after: `(\d+)\r\n`. Classes are those of ASCII, `.` is any byte but `\n`, and lines
    /// of a guest end with `\r\n`.
    ///
    /// # Errors
    ///
    /// When it is not well-formed, too big, or has an assertion (`^`, `$`, `\b`): a wait is over with
    /// the last byte of its match and cannot look past it.
    #[cfg(feature = "regex")]
    pub fn regex(pattern: &str) -> Result<Self, PatternError> {
        Ok(Self { kind: PatternKind::Regex(Regex::new(pattern)?) })
    }

    /// The bytes of a literal.
    pub fn as_literal(&self) -> Option<&[u8]> {
        match &self.kind {
            PatternKind::Literal(finder) => Some(finder.needle()),
            #[cfg(feature = "regex")]
            PatternKind::Regex(_) => None,
        }
    }

    /// Whether text can be passed over for want of a literal of this regular expression.
    #[cfg(all(test, feature = "regex"))]
    pub(super) fn has_prefilter(&self) -> bool {
        matches!(&self.kind, PatternKind::Regex(regex) if regex.prefilter().is_some())
    }

    /// Whether it is found where there is nothing.
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
