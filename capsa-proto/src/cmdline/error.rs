//! [`CmdlineError`]: why a kernel command line, or a part of one, is rejected.

use alloc::string::String;
use core::fmt;

/// Why a kernel command line, or a part of one, is rejected.
///
/// Values are never quoted in the message: a command line may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CmdlineError {
    /// A byte that is not allowed: a control byte, a double quote, or in a key a blank or `=`.
    #[error("byte {byte:#04x} at offset {at} of {place} is not allowed on a kernel command line")]
    ForbiddenByte {
        /// The text that contains the byte.
        place: Place,
        /// The byte. The kernel treats 0xa0, part of characters such as "à", as a blank.
        byte: u8,
        /// Its offset in that text, in bytes.
        at: usize,
    },
    /// A double quote is not closed.
    #[error("the double quote at offset {at} of the kernel command line is not closed")]
    UnbalancedQuote {
        /// Offset of the last quote in the parsed text, in bytes.
        at: usize,
    },
    /// An argument without a key, such as `=value` or the empty text.
    #[error("a kernel command line argument has no key")]
    EmptyKey,
    /// `--` as an argument. It ends the kernel's own arguments; use
    /// [`init_arg`](super::KernelCmdline::init_arg). The kernel ignores all that follows a second.
    #[error("`--` is not an argument: it separates kernel arguments from init arguments")]
    DoubleDash,
    /// The line is longer than the kernel accepts. The kernel would truncate it silently.
    #[error("the kernel command line has {len} bytes; the kernel accepts at most {max}")]
    TooLong {
        /// Bytes of the line.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
}

/// The text that contains a [`CmdlineError::ForbiddenByte`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// A key, or the name of a flag.
    Key,
    /// The value of this key.
    ValueOf(String),
    /// An argument for init.
    InitArg,
    /// The text that overrides the whole line.
    Override,
    /// The text that was parsed.
    Line,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key => f.write_str("a key"),
            // The key was checked before, so it has no control bytes.
            Self::ValueOf(key) => write!(f, "the value of `{key}`"),
            Self::InitArg => f.write_str("an argument for init"),
            Self::Override => f.write_str("the override"),
            Self::Line => f.write_str("the line"),
        }
    }
}
