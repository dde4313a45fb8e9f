//! [`ExitStatus`]: how a command in the guest ended.

use std::fmt;

/// How a command in the guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus(StatusKind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StatusKind {
    Exited(i32),
    Signaled(i32),
}

impl ExitStatus {
    pub(super) const fn exited(status: i32) -> Self {
        Self(StatusKind::Exited(status))
    }

    pub(super) const fn signaled(number: i32) -> Self {
        Self(StatusKind::Signaled(number))
    }

    /// Whether it exited with status 0.
    pub const fn success(&self) -> bool {
        matches!(self.0, StatusKind::Exited(0))
    }

    /// Its exit status; `None` if a signal ended it.
    pub const fn code(&self) -> Option<i32> {
        match self.0 {
            StatusKind::Exited(status) => Some(status),
            StatusKind::Signaled(_) => None,
        }
    }

    /// The number of the signal that ended it, as Linux numbers them.
    pub const fn signal(&self) -> Option<i32> {
        match self.0 {
            StatusKind::Exited(_) => None,
            StatusKind::Signaled(number) => Some(number),
        }
    }
}

impl fmt::Display for ExitStatus {
    /// `exit status 1`, `signal 9`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            StatusKind::Exited(status) => write!(f, "exit status {status}"),
            StatusKind::Signaled(number) => write!(f, "signal {number}"),
        }
    }
}
