//! A path on the host, checked once.
//!
//! Control channels are JSON and hypervisor options are text, so a path that is not UTF-8, not
//! absolute, or holds a NUL cannot be carried faithfully. It is refused here, where a user's path
//! enters, and everything behind this type may rely on it.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

use serde::Serialize;

/// An absolute UTF-8 path on the host, without NUL bytes.
///
/// ```
/// use capsa_proto::path::HostPath;
///
/// assert_eq!(HostPath::new("/srv/guest")?.join("disk.raw").as_str(), "/srv/guest/disk.raw");
/// assert!(HostPath::new("guest/disk.raw").is_err());
/// # Ok::<(), capsa_proto::path::PathError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct HostPath(String);

/// Why a path cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// The path does not start at the root.
    #[error("path is not absolute: {0:?}")]
    Relative(String),
    /// The path holds a NUL byte, which no system call can carry.
    #[error("path holds a NUL byte: {0:?}")]
    Nul(String),
}

impl HostPath {
    /// Takes a path as text.
    ///
    /// # Errors
    ///
    /// When it is relative or holds a NUL byte. (A path that is not UTF-8 never gets here.)
    pub fn new(path: impl Into<String>) -> Result<Self, PathError> {
        let path = path.into();
        if path.contains('\0') {
            return Err(PathError::Nul(path));
        }
        if !path.starts_with('/') {
            return Err(PathError::Relative(path));
        }
        Ok(Self(path))
    }

    /// `name` inside this directory.
    ///
    /// # Panics
    ///
    /// When `name` holds a NUL: names come from our own code.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        assert!(!name.contains('\0'), "a name of ours holds a NUL");
        let mut joined = self.0.trim_end_matches('/').to_owned();
        joined.push('/');
        joined.push_str(name);
        Self(joined)
    }

    /// The path with `suffix` at the end of its last name.
    ///
    /// # Panics
    ///
    /// As [`HostPath::join`].
    #[must_use]
    pub fn with_suffix(&self, suffix: &str) -> Self {
        assert!(!suffix.contains('\0'), "a suffix of ours holds a NUL");
        let mut longer = self.0.clone();
        longer.push_str(suffix);
        Self(longer)
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for HostPath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_and_nul_are_refused() {
        assert!(matches!(HostPath::new("a/b"), Err(PathError::Relative(_))));
        assert!(matches!(HostPath::new("/a\0b"), Err(PathError::Nul(_))));
        assert!(matches!(HostPath::new(""), Err(PathError::Relative(_))));
    }

    #[test]
    fn join_does_not_double_slashes() {
        let root = HostPath::new("/").unwrap();
        assert_eq!(root.join("a").as_str(), "/a");
        assert_eq!(HostPath::new("/a/").unwrap().join("b").as_str(), "/a/b");
    }
}
