//! Says of an I/O error what failed, and keeps the error as the source.

use std::error::Error;
use std::fmt;
use std::io;

/// An error of the kind of `cause` with the text `what: cause`. Its source is `cause`.
pub fn failed(what: impl Into<String>, cause: io::Error) -> io::Error {
    failed_as(cause.kind(), what, cause)
}

/// Like [`failed`], for a cause of any type.
pub fn failed_as(
    kind: io::ErrorKind,
    what: impl Into<String>,
    cause: impl Error + Send + Sync + 'static,
) -> io::Error {
    io::Error::new(kind, FailedOperation { what: what.into(), cause: Box::new(cause) })
}

#[derive(Debug)]
struct FailedOperation {
    what: String,
    cause: Box<dyn Error + Send + Sync>,
}

impl fmt::Display for FailedOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.cause)
    }
}

impl Error for FailedOperation {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.cause.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_keeps_kind_text_and_source() {
        let cause = io::Error::from_raw_os_error(libc_enoent());
        let error = failed("cannot open /x", cause);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().starts_with("cannot open /x: "), "{error}");
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        assert_eq!(cause.and_then(io::Error::raw_os_error), Some(libc_enoent()));
    }

    fn libc_enoent() -> i32 {
        nix::errno::Errno::ENOENT as i32
    }
}
