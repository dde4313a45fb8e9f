//! [`DnsName`]: a domain name in wire format.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::wire::ParseError;

/// The longest name, with the length bytes of its labels.
const NAME_MAX: usize = 255;
/// The longest label.
const LABEL_MAX: usize = 63;
/// Pointers within one name, at most.
const JUMPS_MAX: usize = 16;

/// A domain name: its labels as they were written, not compressed.
#[derive(Clone, PartialEq, Eq)]
pub struct DnsName(Vec<u8>);

impl DnsName {
    /// The name at `at` of a message, and the position after it.
    ///
    /// # Errors
    ///
    /// See [`ParseError`]. A pointer must point before the part of the name that it ends, so a name
    /// cannot contain itself.
    pub fn parse(message: &[u8], at: usize) -> Result<(Self, usize), ParseError> {
        let mut name = Vec::new();
        let (mut at, mut part) = (at, at);
        let mut after = None;
        let mut jumps = 0;
        loop {
            let len = *message.get(at).ok_or(ParseError::Truncated)?;
            match len {
                0 => break,
                1..=63 => {
                    let end = at + 1 + usize::from(len);
                    name.extend_from_slice(message.get(at..end).ok_or(ParseError::Truncated)?);
                    if name.len() >= NAME_MAX {
                        return Err(ParseError::Malformed);
                    }
                    at = end;
                }
                0xc0.. => {
                    let low = *message.get(at + 1).ok_or(ParseError::Truncated)?;
                    after.get_or_insert(at + 2);
                    let target = usize::from(u16::from_be_bytes([len & 0x3f, low]));
                    jumps += 1;
                    if target >= part || target < super::HEADER_LEN || jumps > JUMPS_MAX {
                        return Err(ParseError::Malformed);
                    }
                    (at, part) = (target, target);
                }
                // Extended labels, which are obsolete.
                64.. => return Err(ParseError::Malformed),
            }
        }
        name.push(0);
        Ok((Self(name), after.unwrap_or(at + 1)))
    }

    /// The name with this text: labels with dots between them, without a dot at the end. `None` when a
    /// label or the whole name is too long, or a label is empty.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut name = Vec::with_capacity(text.len() + 2);
        for label in text.split('.').filter(|_| !text.is_empty()) {
            if !(1..=LABEL_MAX).contains(&label.len()) {
                return None;
            }
            name.push(label.len() as u8);
            name.extend_from_slice(label.as_bytes());
        }
        name.push(0);
        (name.len() <= NAME_MAX).then_some(Self(name))
    }

    /// The name in the expanded data of a record.
    pub(super) fn from_wire(data: &[u8]) -> Self {
        Self(data.to_vec())
    }

    /// The text of the name in lower case, without a dot at the end. `None` when a label has a
    /// character that is not visible ASCII, or that text would confuse: a dot or a backslash.
    pub fn to_text(&self) -> Option<String> {
        let mut text = String::with_capacity(self.0.len());
        for label in self.labels() {
            if !text.is_empty() {
                text.push('.');
            }
            for byte in label {
                if !byte.is_ascii_graphic() || matches!(byte, b'.' | b'\\') {
                    return None;
                }
                text.push(char::from(byte.to_ascii_lowercase()));
            }
        }
        Some(text)
    }

    /// Whether both are the same name: letters in either case are equal.
    pub fn is_same(&self, other: &Self) -> bool {
        // A length byte is at most 63, and so no letter.
        self.0.eq_ignore_ascii_case(&other.0)
    }

    /// Whether it has no label.
    pub fn is_root(&self) -> bool {
        self.0 == [0]
    }

    /// Its wire format.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.0[..];
        core::iter::from_fn(move || {
            let len = usize::from(*rest.first()?);
            let label = rest.get(1..=len).filter(|label| !label.is_empty())?;
            rest = &rest[1 + len..];
            Some(label)
        })
    }
}

impl fmt::Debug for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for label in self.labels() {
            write!(f, "{}.", label.escape_ascii())?;
        }
        Ok(())
    }
}
