//! What a kernel command line refuses.

use alloc::string::String;
use core::fmt;

/// Why a command line, or a piece of one, was refused.
///
/// Values are never quoted in the message: a command line may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CmdlineError {
    /// A byte that cannot be there: a control byte, a double quote, or in a key a blank or `=`.
    #[error("byte {byte:#04x} at offset {at} of {place} is not allowed on a kernel command line")]
    ForbiddenByte {
        /// The text that holds it.
        place: Place,
        /// The byte. 0xa0, part of characters such as "à", is a blank to the kernel.
        byte: u8,
        /// Its offset in that text, in bytes.
        at: usize,
    },
    /// A double quote that is never closed.
    #[error("the double quote at offset {at} of the kernel command line is never closed")]
    UnbalancedQuote {
        /// Offset of the last quote in the parsed text, in bytes.
        at: usize,
    },
    /// An argument without a key, such as `=value` or the empty text.
    #[error("a kernel command line argument has no key")]
    EmptyKey,
    /// `--` as an argument. It ends the kernel's own arguments; use
    /// [`init_arg`](super::KernelCmdline::init_arg). The kernel ignores all that follows a second.
    #[error("`--` is not an argument: it separates the kernel's arguments from those of init")]
    DoubleDash,
    /// The line is longer than the kernel takes; it would be cut without a word.
    #[error("the kernel command line has {len} bytes, at most {max} are taken")]
    TooLong {
        /// Bytes of the line.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
}

/// The text in which a [`CmdlineError::ForbiddenByte`] stands.
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
            // A key that came this far was checked, so it holds nothing that garbles a message.
            Self::ValueOf(key) => write!(f, "the value of `{key}`"),
            Self::InitArg => f.write_str("an argument for init"),
            Self::Override => f.write_str("the override"),
            Self::Line => f.write_str("the line"),
        }
    }
}
