//! One argument of the kernel command line.
//!
//! A [`CmdlineArg`] is a plain value and may contain any text; [`KernelCmdline`] checks it when it is
//! added.
//!
//! [`KernelCmdline`]: super::KernelCmdline

use alloc::string::{String, ToString};

use super::{CmdlineError, text};

/// A single kernel command line argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CmdlineArg {
    /// `key=value`; the value may be empty and may contain blanks.
    KeyValue {
        /// The text before the first `=`.
        key: String,
        /// The text after it, without quotes.
        value: String,
    },
    /// An argument without a value: `ro`, `quiet`.
    Flag(String),
}

impl CmdlineArg {
    /// Parses one argument: a pair if there is a `=`, otherwise a flag.
    ///
    /// The whole text is one argument, including blanks. One pair of double quotes around the value or
    /// around the whole text is removed, as the kernel does.
    ///
    /// ```
    /// # use capsa_proto::cmdline::CmdlineArg;
    /// assert_eq!(CmdlineArg::parse("quiet"), CmdlineArg::flag("quiet"));
    /// assert_eq!(CmdlineArg::parse("root=LABEL=x"), CmdlineArg::kv("root", "LABEL=x"));
    /// assert_eq!(CmdlineArg::parse("a=1 b=2"), CmdlineArg::kv("a", "1 b=2"));
    /// assert_eq!(CmdlineArg::parse("a=\"1 2\""), CmdlineArg::kv("a", "1 2"));
    /// ```
    pub fn parse(s: impl AsRef<str>) -> Self {
        let (key, value) = split_word(s.as_ref());
        match value {
            Some(value) => Self::kv(key, value),
            None => Self::flag(key),
        }
    }

    /// The argument `key=value`.
    pub fn kv(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self::KeyValue { key: key.into(), value: value.into() }
    }

    /// The argument `name`, without a value.
    pub fn flag(name: impl Into<String>) -> Self {
        Self::Flag(name.into())
    }

    /// The key, or the name of the flag.
    pub fn key(&self) -> &str {
        match self {
            Self::KeyValue { key, .. } | Self::Flag(key) => key,
        }
    }

    /// The value; a flag has none.
    pub fn value(&self) -> Option<&str> {
        match self {
            Self::KeyValue { value, .. } => Some(value),
            Self::Flag(_) => None,
        }
    }

    pub(super) fn same_key(&self, key: &str) -> bool {
        same_key(self.key(), key)
    }

    pub(super) fn check(&self) -> Result<(), CmdlineError> {
        match self {
            // `--=x` has a value, so the kernel does not stop at it. It is rejected anyway, because it is
            // most likely a mistake.
            Self::KeyValue { key, value } => {
                text::check_key(key)?;
                text::check_value(key, value)
            }
            Self::Flag(name) => text::check_key(name),
        }
    }

    pub(super) fn write_to(&self, line: &mut String) {
        line.push_str(self.key());
        if let Some(value) = self.value() {
            line.push('=');
            text::write_value(line, value);
        }
    }
}

impl From<&str> for CmdlineArg {
    fn from(s: &str) -> Self {
        Self::parse(s)
    }
}

impl From<String> for CmdlineArg {
    fn from(s: String) -> Self {
        Self::parse(s)
    }
}

/// Key comparison as the kernel's `parameq` does it: `-` and `_` are the same.
pub(super) fn same_key(a: &str, b: &str) -> bool {
    let fold = |b: u8| if b == b'-' { b'_' } else { b };
    a.len() == b.len() && a.bytes().map(fold).eq(b.bytes().map(fold))
}

/// Splits a word at its `=` and removes the quotes.
///
/// A `=` at the very start does not split, as in the kernel: such a word has no key.
pub(super) fn split_word(word: &str) -> (String, Option<String>) {
    let (whole, quoted) = unquote(word);
    let equals = whole.bytes().skip(1).position(|b| b == b'=').map(|i| i + 1);
    match equals {
        Some(i) => {
            let value = &whole[i + 1..];
            let value = if quoted { value } else { unquote(value).0 };
            (whole[..i].to_string(), Some(value.to_string()))
        }
        None => (whole.to_string(), None),
    }
}

fn unquote(text: &str) -> (&str, bool) {
    match text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
        Some(inner) => (inner, true),
        None => (text, false),
    }
}
