//! [`Error`]: the error type of the public API. Its variants are those of the specification.

use std::fmt;
use std::io;
use std::time::Duration;

use capsa_io::run_dir::LockTimeout;
use capsa_proto::agent::{AgentError, OperationRefused};
use capsa_proto::capabilities::{Violation, ViolationKind};
use capsa_proto::console::{FaultReport, NearMatch, ScriptError};
use capsa_proto::host::Reason;
use capsa_proto::lifecycle::{InvalidState, StartError, StopReport};
use capsa_proto::spec::GuestOs;
use capsa_proto::text::escape_control_line;

use crate::backend::Rejection;

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// The error type of the public API.
///
/// The `Display` form is for people: it has every violation with its remedy, one per line. The `Debug`
/// form, which `unwrap` and a `main` that returns an error print, shows the variant and its fields; in
/// tests, [`testing::Failure`](crate::testing::Failure) prints the `Display` form. `source()` is the
/// error of the system or of a file, if there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No backend can be used on this host.
    #[error("no suitable hypervisor backend available{}", list(.rejected))]
    NoBackendAvailable {
        /// Each backend with all its blockers.
        rejected: Vec<Rejection>,
    },

    /// The requested backend does not exist or cannot be used on this host.
    #[error("backend '{name}' is not available{}", list(.reasons))]
    BackendUnavailable {
        /// The name of the backend.
        name: String,
        /// All its blockers.
        reasons: Vec<Reason>,
    },

    /// The configuration is valid, but the backend does not support it.
    #[error("feature not supported{0}")]
    UnsupportedFeature(Violations),

    /// The configuration is invalid. Holds all violations.
    #[error("invalid configuration{0}")]
    InvalidConfig(Violations),

    /// A required setting is missing.
    #[error("missing required configuration{0}")]
    MissingConfig(Violations),

    /// The backend does not support this guest operating system.
    #[error("guest OS not supported by backend: {0:?}")]
    UnsupportedGuestOs(GuestOs),

    /// The run directory could not be created, because another process held the lock of its base
    /// directory for more than [`LOCK_TIMEOUT`](crate::host::LOCK_TIMEOUT). Nothing was started.
    #[error("run directory not created: {0}")]
    RunDirLocked(#[source] LockTimeout),

    /// The VM did not reach [`VmStatus::Running`](crate::VmStatus::Running). If a process exited or was
    /// not ready in time, the error holds the last lines of its standard error.
    #[error("VM failed to start: {0}")]
    StartFailed(#[source] StartError),

    /// The VM was not started yet, or has ended;
    /// [`stop_report`](crate::VmHandle::stop_report) returns how.
    #[error("VM is not running")]
    NotRunning,

    /// The VM was started before. A VM starts once.
    #[error("VM was already started")]
    AlreadyRunning,

    /// The VM was built without a console, or with one on standard input and output.
    #[error("console not enabled for this VM")]
    ConsoleNotEnabled,

    /// The VM was built without a vsock device.
    #[error("vsock not enabled for this VM")]
    VsockNotEnabled,

    /// The backend must know the vsock ports before the start, and this port was not declared for
    /// this direction.
    #[error("vsock port {port} was not declared when the VM was built: add it with `vsock_port`")]
    VsockPortNotNamed {
        /// The port number.
        port: u32,
    },

    /// The VM was built without an agent.
    #[error(
        "the VM has no agent in its guest: build it with `agent(AgentMode::Auto)` or \
         `AgentMode::Required`"
    )]
    AgentNotEnabled,

    /// The agent in the guest did not finish an operation.
    #[error(transparent)]
    Agent(AgentError),

    /// An operation for the agent is invalid.
    #[error(transparent)]
    Operation(#[from] OperationRefused),

    /// The guest could not do what the agent was asked for.
    #[error("{operation} failed in the guest: {}", errno_text(*.errno))]
    GuestErrno {
        /// What failed, and its object.
        operation: String,
        /// The error number of Linux.
        errno: i32,
    },

    /// The VM was built without a network.
    #[error("network not enabled for this VM: build it with `NetworkMode::Nat`, the default")]
    NetworkNotEnabled,

    /// The VM was built without this service.
    #[error(
        "service {address} was not declared when the VM was built: add it with `owner_service`"
    )]
    ServiceNotNamed {
        /// The name and the port.
        address: String,
    },

    /// The guest has no listener on this vsock port.
    #[error("connection refused: the guest has no listener on vsock port {port}")]
    VsockRefused {
        /// The port number.
        port: u32,
    },

    /// The time limit of a wait passed. Nothing is consumed: a later wait sees the same bytes.
    #[error(fmt = fmt_timeout)]
    Timeout {
        /// What the call waited for.
        expected: String,
        /// How long the call waited.
        waited: Duration,
        /// The last console output.
        tail: String,
        /// A possible cause: a fault of the guest, or output that nearly matches the pattern.
        hint: Option<String>,
    },

    /// The list of patterns to wait for is empty.
    #[error("no pattern to wait for: the list of patterns is empty, and needs at least one")]
    NoPatterns,

    /// The guest ended before the wait or the command was over. Nothing is consumed.
    #[error(fmt = fmt_guest_ended)]
    GuestEnded {
        /// How the VM ended.
        how: Box<StopReport>,
        /// What the call waited for.
        expected: String,
        /// How long the call waited.
        waited: Duration,
        /// The last console output.
        tail: String,
        /// A possible cause: a fault of the guest, or output that nearly matches the pattern.
        hint: Option<String>,
    },

    /// The console closed while the VM runs, before the pattern matched. Nothing is consumed.
    #[error(fmt = fmt_pattern_not_found)]
    PatternNotFound {
        /// What the call waited for.
        pattern: String,
        /// How long the call waited.
        waited: Duration,
        /// The last console output.
        tail: String,
        /// A possible cause: a fault of the guest, or output that nearly matches the pattern.
        hint: Option<String>,
    },

    /// The guest's kernel panicked before the wait was over. Nothing is consumed. The VM may have
    /// ended or may hang, depending on the guest's kernel and the hypervisor.
    #[error(fmt = fmt_kernel_panic)]
    KernelPanic {
        /// What the call waited for.
        expected: String,
        /// The first line of the panic.
        line: String,
        /// The last console output.
        tail: String,
    },

    /// The guest did not finish booting: it runs an emergency shell, or asks for a password to
    /// enter one. Nothing is consumed.
    #[error(fmt = fmt_emergency_shell)]
    EmergencyShell {
        /// What the call waited for.
        expected: String,
        /// The console line that shows the emergency shell.
        line: String,
        /// The last console output.
        tail: String,
    },

    /// The guest refused the username or the password.
    #[error("login as {username:?} refused by the guest")]
    LoginIncorrect {
        /// The username.
        username: String,
    },

    /// A login or a command failed.
    #[error(transparent)]
    Script(ScriptError),

    /// The guest could not mount a share.
    #[error("the guest cannot mount its shares: {}", escape_control_line(.output.trim()))]
    SharesNotMounted {
        /// What the guest's `mkdir` or `mount` printed.
        output: String,
    },

    /// The hypervisor or a helper process failed.
    #[error("hypervisor error: {0}")]
    Hypervisor(String),

    /// A system call failed.
    #[error("I/O error: {0}")]
    Io(#[from] io::Error),
}

impl Error {
    /// Chooses the variant for these violations.
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

    /// The error of a build whose run directory could not be created.
    pub(crate) fn from_run_dir(error: io::Error) -> Self {
        if let Some(timeout) = LockTimeout::of(&error) {
            return Self::RunDirLocked(timeout.clone());
        }
        Self::from_violations(vec![run_dir_violation(&error)])
    }

    /// The error of a wait that failed, on a VM that has ended if there is a `report`.
    #[cfg(feature = "async")]
    pub(crate) fn with_end(self, report: Option<StopReport>) -> Self {
        match (self, report) {
            (Self::PatternNotFound { pattern, waited, tail, hint }, Some(how)) => {
                Self::GuestEnded { how: Box::new(how), expected: pattern, waited, tail, hint }
            }
            (error, _) => error,
        }
    }

    /// The violations of a configuration error; empty for any other error.
    pub fn violations(&self) -> &[Violation] {
        match self {
            Self::UnsupportedFeature(v) | Self::InvalidConfig(v) | Self::MissingConfig(v) => &v.0,
            _ => &[],
        }
    }

    /// The last console output, at most 2 KiB, of a wait or a command that failed. `Display` contains its
    /// last eight lines when it is formatted with `{:#}`.
    pub fn tail(&self) -> Option<&str> {
        match self {
            Self::Timeout { tail, .. }
            | Self::GuestEnded { tail, .. }
            | Self::PatternNotFound { tail, .. }
            | Self::KernelPanic { tail, .. }
            | Self::EmergencyShell { tail, .. } => Some(tail),
            _ => None,
        }
    }
}

impl From<InvalidState> for Error {
    fn from(refused: InvalidState) -> Self {
        match refused {
            InvalidState::AlreadyStarted => Self::AlreadyRunning,
            InvalidState::NotStarted | InvalidState::NotRunning => Self::NotRunning,
        }
    }
}

impl From<ScriptError> for Error {
    fn from(error: ScriptError) -> Self {
        match error {
            ScriptError::TimedOut { expected, waited, tail, fault, near_match } => Self::Timeout {
                expected,
                waited,
                tail: lossy(tail),
                hint: hint(fault, near_match.map(|found| *found)),
            },
            ScriptError::Closed { expected, waited, tail, fault, near_match } => {
                Self::PatternNotFound {
                    pattern: expected,
                    waited,
                    tail: lossy(tail),
                    hint: hint(fault, near_match.map(|found| *found)),
                }
            }
            ScriptError::KernelPanic { expected, line, tail } => {
                Self::KernelPanic { expected, line, tail: lossy(tail) }
            }
            ScriptError::EmergencyShell { expected, line, tail } => {
                Self::EmergencyShell { expected, line, tail: lossy(tail) }
            }
            ScriptError::LoginIncorrect { username } => Self::LoginIncorrect { username },
            other => Self::Script(other),
        }
    }
}

/// A possible cause of a failed wait. A fault of the guest takes precedence over a near match.
pub(crate) fn hint(fault: Option<FaultReport>, near_match: Option<NearMatch>) -> Option<String> {
    fault.map(|fault| fault.to_string()).or(near_match.map(|found| found.to_string()))
}

/// A directory in which no run directory can be created.
pub(crate) fn run_dir_violation(error: &io::Error) -> Violation {
    let remedy =
        "set CAPSA_RUN_DIR to a private directory, or to a new one in a directory that exists";
    Violation::new("run_dir", ViolationKind::NoAccess, error.to_string(), remedy)
}

/// All violations of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violations(pub Vec<Violation>);

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&list(&self.0))
    }
}

/// The error numbers of Linux that a command or a file usually has.
fn errno_text(errno: i32) -> String {
    let text = match errno {
        1 => "operation not permitted",
        2 => "no such file or directory",
        5 => "I/O error",
        7 => "argument list too long",
        8 => "the program's format is not supported",
        11 => "too many processes",
        12 => "out of memory",
        13 => "permission denied",
        17 => "the file exists",
        20 => "not a directory",
        21 => "is a directory",
        22 => "invalid argument",
        26 => "the program is being written",
        28 => "no space left on the disk",
        30 => "the file system is read-only",
        36 => "the name is too long",
        39 => "the directory is not empty",
        40 => "too many symbolic links",
        _ => return format!("error number {errno} of Linux"),
    };
    format!("{text} (error number {errno} of Linux)")
}

/// Formats one item as `: item`, several as one line each.
fn list<T: fmt::Display>(items: &[T]) -> String {
    match items {
        [] => String::new(),
        [one] => format!(": {one}"),
        more => more.iter().map(|item| format!("\n  - {item}")).collect(),
    }
}

/// Console bytes as text; invalid UTF-8 becomes U+FFFD.
pub(crate) fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// A possible cause, for the middle of a message. It may quote the guest, so control characters are
/// escaped.
fn why(hint: &Option<String>) -> String {
    hint.as_ref().map(|hint| format!("; {}", escape_control_line(hint))).unwrap_or_default()
}

fn fmt_timeout(
    expected: &str,
    waited: &Duration,
    tail: &str,
    hint: &Option<String>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    write!(f, "operation timed out after {waited:?} waiting for {expected}{}", why(hint))?;
    fmt_tail(tail, f)
}

fn fmt_guest_ended(
    how: &StopReport,
    expected: &str,
    waited: &Duration,
    tail: &str,
    hint: &Option<String>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    write!(f, "guest ended while waiting for {expected}: {how}, {waited:?} after the wait began")?;
    f.write_str(&why(hint))?;
    fmt_tail(tail, f)
}

fn fmt_pattern_not_found(
    pattern: &str,
    waited: &Duration,
    tail: &str,
    hint: &Option<String>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    write!(f, "pattern not found in console output: {pattern}: the console closed, ")?;
    write!(f, "{waited:?} after the wait began{}", why(hint))?;
    fmt_tail(tail, f)
}

fn fmt_kernel_panic(
    expected: &str,
    line: &str,
    tail: &str,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    write!(f, "guest kernel panicked while waiting for {expected}: {line}")?;
    fmt_tail(tail, f)
}

fn fmt_emergency_shell(
    expected: &str,
    line: &str,
    tail: &str,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    write!(f, "guest is in an emergency shell while waiting for {expected}: {line}")?;
    fmt_tail(tail, f)
}

/// The last console lines at the end of a message, for `{:#}` only.
fn fmt_tail(tail: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if !f.alternate() {
        return Ok(());
    }
    let lines: Vec<&str> = tail.trim_end().lines().collect();
    if lines.is_empty() {
        return f.write_str("; no console output");
    }
    f.write_str("; last console output:")?;
    for line in &lines[lines.len().saturating_sub(8)..] {
        write!(f, "\n  | {}", escape_control_line(line))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_lists_violations_and_debug_names_variant() {
        let missing = |field: &str| {
            let reason = "./vmlinuz does not exist";
            Violation::new(field, ViolationKind::Missing, reason, "check the path")
        };
        let error = Error::from_violations(vec![missing("kernel"), missing("initrd")]);
        assert_eq!(error.to_string().matches("\n  - ").count(), 2, "{error}");
        assert!(format!("{error:?}").starts_with("InvalidConfig("), "{error:?}");
    }

    #[test]
    fn display_escapes_control_characters_of_guest() {
        let tail = "boot\r\n\x1b]0;owned\x07# \u{9b}2J".to_owned();
        let pattern = "\"$ \"".into();
        let waited = Duration::from_millis(1500);
        let error = Error::PatternNotFound { pattern, waited, tail, hint: None };
        let message = "pattern not found in console output: \"$ \": the console closed, 1.5s after the \
                       wait began";
        assert_eq!(error.to_string(), message);
        assert!(error.tail().unwrap().starts_with("boot"), "{error:?}");
        let text = format!("{error:#}");
        assert!(text.starts_with(&format!("{message}; last console output:")), "{text}");
        assert!(text.ends_with("\n  | boot\n  | \\u{1b}]0;owned\\u{7}# \\u{9b}2J"), "{text}");
    }
}
