//! What can go wrong, with the variants the specification names.

use std::fmt;
use std::io;
use std::time::Duration;

use capsa_proto::capabilities::{Violation, ViolationKind};
use capsa_proto::console::{FaultReport, NearMatch, ScriptError};
use capsa_proto::host::Reason;
use capsa_proto::lifecycle::{InvalidState, StopReport};
use capsa_proto::spec::GuestOs;
use capsa_proto::text::escape_control_line;

use crate::backends::Rejection;

/// A result of Capsa's.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong. `{:?}` is what `{}` is: a `main` that returns an error and an `unwrap` print it
/// by the former, and whoever reads that wants all problems and their remedies, a line each.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No backend can be used on this host.
    #[error("no suitable hypervisor backend available{}", list(.rejected))]
    NoBackendAvailable {
        /// Each backend, and everything against it.
        rejected: Vec<Rejection>,
    },

    /// The backend that was asked for cannot be used on this host, or is none.
    #[error("backend '{name}' is not available{}", list(.reasons))]
    BackendUnavailable {
        /// Its name.
        name: String,
        /// Everything against it.
        reasons: Vec<Reason>,
    },

    /// What was asked for is sound, but the backend cannot do it.
    #[error("feature not supported{0}")]
    UnsupportedFeature(Violations),

    /// What was asked for cannot be. All problems at once.
    #[error("invalid configuration{0}")]
    InvalidConfig(Violations),

    /// Something that must be given was not.
    #[error("missing required configuration{0}")]
    MissingConfig(Violations),

    /// The backend does not run this guest operating system.
    #[error("guest OS not supported by backend: {0:?}")]
    UnsupportedGuestOs(GuestOs),

    /// The machine did not get to run. The text has the hypervisor's last words.
    #[error("VM failed to start: {0}")]
    StartFailed(String),

    /// The machine was never started.
    #[error("VM is not running")]
    NotRunning,

    /// The machine was started before; one machine starts once.
    #[error("VM was already started")]
    AlreadyRunning,

    /// The machine was built without a console, or with one on standard input and output.
    #[error("console not enabled for this VM")]
    ConsoleNotEnabled,

    /// The machine was built without a vsock device.
    #[error("vsock not enabled for this VM")]
    VsockNotEnabled,

    /// The backend must know the vsock ports before the start, and this one was not named for this
    /// direction.
    #[error("vsock port {port} was not named when the VM was built (`vsock_port`)")]
    VsockPortNotNamed {
        /// The port.
        port: u32,
    },

    /// Nobody listens on that vsock port of the guest.
    #[error("nobody listens on vsock port {port} of the guest")]
    VsockRefused {
        /// The port.
        port: u32,
    },

    /// Time ran out. Nothing was consumed: a later wait sees the same bytes.
    #[error(
        "operation timed out after {waited:?} waiting for {expected}{}{}",
        why(.hint), last(.tail)
    )]
    Timeout {
        /// What was waited for.
        expected: String,
        /// How long.
        waited: Duration,
        /// The last of what the console said instead.
        tail: String,
        /// What may be the reason: the guest is in trouble, or said almost what was waited for.
        hint: Option<String>,
    },

    /// The machine ended, or its console closed, before the pattern came. Nothing was consumed.
    #[error(
        "pattern not found in console output: {pattern}: {}, {waited:?} after the wait began{}{}",
        end(.ended), why(.hint), last(.tail)
    )]
    PatternNotFound {
        /// What was waited for.
        pattern: String,
        /// How long.
        waited: Duration,
        /// How the machine ended. `None` when its console closed and it runs on.
        ended: Option<Box<StopReport>>,
        /// The last of what the console said instead.
        tail: String,
        /// What may be the reason: the guest is in trouble, or said almost what was waited for.
        hint: Option<String>,
    },

    /// The guest's kernel panicked before what was waited for came. Nothing was consumed. The
    /// machine may have ended of it or hang, as its kernel and its hypervisor have it.
    #[error("guest kernel panicked while waiting for {expected}: {line}{}", last(.tail))]
    KernelPanic {
        /// What was waited for.
        expected: String,
        /// The panic's first line.
        line: String,
        /// The last of what the console said.
        tail: String,
    },

    /// The guest did not boot through: it is in an emergency shell, or asks for the password of one.
    /// Nothing was consumed.
    #[error("guest is in an emergency shell, while waiting for {expected}: {line}{}", last(.tail))]
    EmergencyShell {
        /// What was waited for.
        expected: String,
        /// The line that told.
        line: String,
        /// The last of what the console said.
        tail: String,
    },

    /// The guest refused the username or the password.
    #[error("login as {username:?} refused by the guest")]
    LoginIncorrect {
        /// Who tried.
        username: String,
    },

    /// A login or a command could not be carried through.
    #[error(transparent)]
    Script(ScriptError),

    /// The hypervisor, or a helper of it, failed.
    #[error("hypervisor error: {0}")]
    Hypervisor(String),

    /// A system call failed.
    #[error("IO error: {0}")]
    Io(#[from] io::Error),
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// The right variant for these problems.
    pub(crate) fn from_violations(violations: Vec<Violation>) -> Self {
        let all = |kind| violations.iter().all(|v| v.kind == kind);
        if all(ViolationKind::NotGiven) {
            Self::MissingConfig(Violations(violations))
        } else if all(ViolationKind::Unsupported) {
            Self::UnsupportedFeature(Violations(violations))
        } else {
            Self::InvalidConfig(Violations(violations))
        }
    }

    /// The problems, where this is about a configuration.
    pub fn violations(&self) -> &[Violation] {
        match self {
            Self::UnsupportedFeature(v) | Self::InvalidConfig(v) | Self::MissingConfig(v) => &v.0,
            _ => &[],
        }
    }
}

impl From<InvalidState> for Error {
    fn from(refused: InvalidState) -> Self {
        match refused {
            InvalidState::AlreadyStarted => Self::AlreadyRunning,
            InvalidState::NotStarted => Self::NotRunning,
        }
    }
}

impl From<ScriptError> for Error {
    fn from(error: ScriptError) -> Self {
        match error {
            ScriptError::TimedOut { expected, waited, tail, fault, near_match } => Self::Timeout {
                expected,
                waited,
                tail: lossy(&tail),
                hint: hint(fault, near_match.map(|found| *found)),
            },
            ScriptError::Closed { expected, waited, tail, fault, near_match } => {
                Self::PatternNotFound {
                    pattern: expected,
                    waited,
                    ended: None,
                    tail: lossy(&tail),
                    hint: hint(fault, near_match.map(|found| *found)),
                }
            }
            ScriptError::KernelPanic { expected, line, tail } => {
                Self::KernelPanic { expected, line, tail: lossy(&tail) }
            }
            ScriptError::EmergencyShell { expected, line, tail } => {
                Self::EmergencyShell { expected, line, tail: lossy(&tail) }
            }
            ScriptError::LoginIncorrect { username } => Self::LoginIncorrect { username },
            other => Self::Script(other),
        }
    }
}

/// What may be the reason that nothing was found. GuestFault explains more than a near miss.
pub(crate) fn hint(fault: Option<FaultReport>, near_match: Option<NearMatch>) -> Option<String> {
    fault.map(|fault| fault.to_string()).or(near_match.map(|found| found.to_string()))
}

/// Every problem of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violations(pub Vec<Violation>);

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&list(&self.0))
    }
}

/// `: it` for one, a line each for more.
fn list<T: fmt::Display>(items: &[T]) -> String {
    match items {
        [] => String::new(),
        [one] => format!(": {one}"),
        more => more.iter().map(|item| format!("\n  - {item}")).collect(),
    }
}

/// Bytes of the console as text, once.
pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// How a machine ended, or that its console did.
fn end(ended: &Option<Box<StopReport>>) -> String {
    match ended {
        Some(report) => report.to_string(),
        None => "the console closed".into(),
    }
}

/// What may be the reason, for the middle of a message. It may quote the guest.
fn why(hint: &Option<String>) -> String {
    hint.as_ref().map(|hint| format!("; {}", escape_control_line(hint))).unwrap_or_default()
}

/// The last lines of a console, for the end of a message.
fn last(tail: &str) -> String {
    let lines: Vec<&str> = tail.trim_end().lines().collect();
    match lines.as_slice() {
        [] => "; the console said nothing".into(),
        lines => {
            let last =
                lines[lines.len().saturating_sub(8)..].iter().copied().map(escape_control_line);
            let last: Vec<_> = last.collect();
            format!("; the console last said:\n  | {}", last.join("\n  | "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_leaves_main_reads_as_it_is_meant_to() {
        let missing = |field: &str| Violation {
            field: field.into(),
            backend: None,
            kind: ViolationKind::Missing,
            reason: "./vmlinuz does not exist".into(),
            remedy: "check the path".into(),
        };
        let error = Error::from_violations(vec![missing("kernel"), missing("initrd")]);
        assert_eq!(format!("{error:?}"), error.to_string());
        assert!(error.to_string().contains("\n  - "), "{error}");
    }

    #[test]
    fn what_a_guest_said_cannot_command_the_terminal_that_shows_it() {
        let tail = "boot\r\n\x1b]0;owned\x07# \u{9b}2J".to_owned();
        let pattern = "\"$ \"".into();
        let waited = Duration::from_millis(1500);
        let error = Error::PatternNotFound { pattern, waited, ended: None, tail, hint: None };
        let text = error.to_string();
        let begin = "pattern not found in console output: \"$ \": the console closed, 1.5s after the \
                     wait began; the console last said:";
        assert!(text.starts_with(begin), "{text}");
        assert!(text.ends_with("\n  | boot\n  | \\u{1b}]0;owned\\u{7}# \\u{9b}2J"), "{text}");
    }
}
