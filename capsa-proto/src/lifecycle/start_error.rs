//! [`StartError`]: why a VM did not start.

use alloc::string::String;
use alloc::sync::Arc;
use core::error::Error;
use core::fmt;
use core::time::Duration;

use super::Exit;

/// Why a VM did not start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartError {
    /// A process could not be started.
    Launch {
        /// The name of the process, such as `qemu` or `virtiofsd for /workspace`.
        process: String,
        /// The error of the system.
        cause: Cause,
    },
    /// A process exited before the VM was running.
    Exited {
        /// The name of the process.
        process: String,
        /// How it exited, with the last lines of its standard error.
        exit: Exit,
    },
    /// The hypervisor rejected a message that starts the VM, or closed the channel without a reply.
    Rejected {
        /// The name of the hypervisor process.
        process: String,
        /// What the message should do, as a verb phrase: `start the guest`.
        step: &'static str,
        /// The reason, in the words of the hypervisor.
        reason: String,
    },
    /// The hypervisor failed in another way: it closed a channel, or a vCPU failed.
    Failed {
        /// The name of the hypervisor process.
        process: String,
        /// What it did: `closed its control channel`.
        reason: String,
    },
    /// A process was not ready in time.
    TimedOut {
        /// The name of the process.
        process: String,
        /// What the VM waited for.
        waiting_for: String,
        /// The limit.
        after: Duration,
        /// The last lines of the process on standard error.
        stderr_tail: String,
    },
    /// The VM ended in another way before it was running; for example, it was stopped.
    Ended {
        /// How, as in the stop report.
        how: String,
    },
}

impl StartError {
    /// Adds what is known of a process at its exit: the last lines on standard error explain a
    /// timeout.
    pub(super) fn add_exit(&mut self, name: &str, exit: &Exit) {
        if let Self::TimedOut { process, stderr_tail, .. } = self
            && process == name
            && stderr_tail.is_empty()
        {
            stderr_tail.clone_from(&exit.stderr_tail);
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Launch { process, cause } => write!(f, "cannot start {process}: {cause}"),
            Self::Exited { process, exit } => write!(f, "{process} {exit}"),
            Self::Rejected { process, step, reason } => {
                write!(f, "{process} failed to {step}: {reason}")
            }
            Self::Failed { process, reason } => write!(f, "{process} {reason}"),
            Self::TimedOut { waiting_for, after, stderr_tail, .. } => {
                write!(f, "timed out after {after:?}, waiting until {waiting_for}")?;
                match stderr_tail.trim() {
                    "" => Ok(()),
                    stderr => write!(f, ": {stderr}"),
                }
            }
            Self::Ended { how } => f.write_str(how),
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Launch { cause, .. } => Some(&*cause.0),
            _ => None,
        }
    }
}

/// The error behind another one, shared, so that the report which contains it can be cloned. Two
/// causes are equal if their texts are.
#[derive(Debug, Clone)]
pub struct Cause(Arc<dyn Error + Send + Sync>);

impl Cause {
    /// Wraps an error.
    pub fn new(error: impl Into<alloc::boxed::Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }

    /// The error.
    pub fn error(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0
    }
}

impl PartialEq for Cause {
    fn eq(&self, other: &Self) -> bool {
        use alloc::string::ToString as _;
        self.to_string() == other.to_string()
    }
}

impl Eq for Cause {}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
