//! [`HostPath`]: a validated path on the host.
//!
//! Control channels are JSON and hypervisor options are text, so paths must be UTF-8, absolute and free
//! of NUL bytes. Other paths are rejected where they enter; code that has a [`HostPath`] can rely on it.

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
    /// The path contains a NUL byte, which system calls do not accept.
    #[error("path contains a NUL byte: {0:?}")]
    Nul(String),
}

impl HostPath {
    /// Validates a path.
    ///
    /// # Errors
    ///
    /// When the path is relative or contains a NUL byte.
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
    /// When `name` contains a NUL byte, which is a bug in Capsa.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        assert!(!name.contains('\0'), "a file name contains a NUL byte");
        let mut joined = self.0.trim_end_matches('/').to_owned();
        joined.push('/');
        joined.push_str(name);
        Self(joined)
    }

    /// The directory that contains it; `None` for `/`. Compares no files: a `..` is kept.
    pub fn parent(&self) -> Option<Self> {
        let (parent, name) = self.0.trim_end_matches('/').rsplit_once('/')?;
        let parent = parent.trim_end_matches('/');
        (!name.is_empty()).then(|| Self(if parent.is_empty() { "/" } else { parent }.to_owned()))
    }

    /// The path with `suffix` at the end of its last name.
    ///
    /// # Panics
    ///
    /// As [`HostPath::join`].
    #[must_use]
    pub(crate) fn with_suffix(&self, suffix: &str) -> Self {
        assert!(!suffix.contains('\0'), "a suffix contains a NUL byte");
        let mut longer = self.0.clone();
        longer.push_str(suffix);
        Self(longer)
    }

    /// Whether this is `directory` or a path below it. Compares text: both must be resolved.
    pub(crate) fn is_within(&self, directory: &Self) -> bool {
        let directory = directory.0.trim_end_matches('/');
        self.0.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
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
    fn host_path_relative_or_nul_is_rejected() {
        assert!(matches!(HostPath::new("a/b"), Err(PathError::Relative(_))));
        assert!(matches!(HostPath::new("/a\0b"), Err(PathError::Nul(_))));
        assert!(matches!(HostPath::new(""), Err(PathError::Relative(_))));
    }

    #[test]
    fn host_path_is_within_compares_whole_names() {
        let path = |text| HostPath::new(text).unwrap();
        for (text, directory, within) in [
            ("/a/b", "/a", true),
            ("/a/b", "/a/", true),
            ("/a/b", "/a/b", true),
            ("/a/b", "/", true),
            ("/ab", "/a", false),
            ("/a", "/a/b", false),
        ] {
            assert_eq!(path(text).is_within(&path(directory)), within, "{text} in {directory}");
        }
    }

    #[test]
    fn host_path_join_adds_one_slash() {
        let root = HostPath::new("/").unwrap();
        assert_eq!(root.join("a").as_str(), "/a");
        assert_eq!(HostPath::new("/a/").unwrap().join("b").as_str(), "/a/b");
    }
}
