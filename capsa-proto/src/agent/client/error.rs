//! Why an operation could not begin or did not finish.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::agent::protocol::{FrameError, MAX_PAYLOAD, MessageError, VERSION};
use crate::plan::AgentTransport;

/// Why an operation did not finish.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The agent has not answered on any transport.
    #[error("the agent in the guest has not answered for {waited:?}: {}", cause(.transports, .refused))]
    NoAnswer {
        /// How long the operation waited.
        waited: Duration,
        /// The transports of the VM.
        transports: Vec<AgentTransport>,
        /// The last answer that was not accepted.
        refused: Option<AgentViolation>,
    },

    /// The agent has answered, and the guest has not finished booting.
    #[error(
        "the guest has not reached its root file system for {waited:?}, although its agent answers: \
         see its console"
    )]
    NotReady {
        /// How long the operation waited.
        waited: Duration,
    },

    /// The agent runs as many operations as it can.
    #[error("the agent has run other operations for {waited:?}, as many as it can at once")]
    Busy {
        /// How long the operation waited.
        waited: Duration,
    },

    /// The time limit of the operation has passed, and the agent has ended it.
    #[error("the operation was ended at its time limit, after {waited:?}")]
    TimedOut {
        /// How long the operation took.
        waited: Duration,
    },

    /// The agent has not ended the operation, which was cancelled or has reached its time limit.
    #[error("the agent has not ended the cancelled operation for {waited:?}")]
    NotCancelled {
        /// How long the client waited.
        waited: Duration,
    },

    /// The guest was reset.
    #[error("the guest rebooted before the operation had finished")]
    Rebooted,

    /// The VM has ended.
    #[error("the guest ended before the operation had finished")]
    GuestEnded,

    /// The agent has closed the connection: its process in the guest has ended.
    #[error("the agent in the guest closed the connection before the operation had finished")]
    Disconnected,

    /// The agent broke the protocol. All its operations have ended.
    #[error("the agent in the guest broke the protocol: {0}")]
    Protocol(#[source] AgentViolation),
}

/// What an agent must not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AgentViolation {
    /// The bytes are no frames.
    #[error(transparent)]
    Frame(FrameError),
    /// A frame is no message.
    #[error(transparent)]
    Message(MessageError),
    /// The agent has another version.
    #[error("its protocol has version {0}, and this program's has version {VERSION}")]
    Version(u16),
    /// The nonce is not that of this VM.
    #[error("it does not have this VM's nonce, so it is another program")]
    WrongNonce,
    /// A message that is not allowed now.
    #[error("{0} is not allowed at this point")]
    Unexpected(&'static str),
    /// A message for an operation that does not run.
    #[error("a message for operation {0}, which does not run")]
    UnknownOperation(u32),
    /// More output than the window allows.
    #[error("{got} bytes of output in a window of {window}")]
    OutputBeyondWindow {
        /// The length of the message.
        got: usize,
        /// What was allowed.
        window: u32,
    },
    /// The agent returned more of the window than it had taken.
    #[error("it returned {0} bytes of input that it had not received")]
    WindowBeyondInput(u32),
    /// An operation of this kind cannot end so.
    #[error("an operation ended in a way that its kind does not have")]
    ImpossibleEnd,
}

/// Why an operation cannot begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OperationRefused {
    /// The command has no program.
    #[error("the command is empty: it needs at least the name of a program")]
    Empty,
    /// A text has a NUL byte.
    #[error("{0} has a NUL byte, which no text for a kernel can have")]
    Nul(&'static str),
    /// The name of an environment variable is empty or has `=`.
    #[error("the name of an environment variable is empty or has `=`")]
    EnvName,
    /// It is too large for one message.
    #[error(
        "the operation takes {0} bytes, at most {MAX_PAYLOAD} are possible: pass data on its input"
    )]
    TooLarge(usize),
    /// Too many operations have begun and were not taken.
    #[error("{0} operations have begun and have not been taken: wait for the end of some")]
    TooMany(usize),
}

/// The likely causes of an agent that does not answer.
fn cause(transports: &[AgentTransport], refused: &Option<AgentViolation>) -> String {
    if let Some(refused) = refused {
        return alloc::format!("the last answer was not accepted: {refused}");
    }
    let drivers = transports.iter().map(|transport| match transport {
        AgentTransport::Vsock => "vsock (vmw_vsock_virtio_transport)",
        AgentTransport::VirtioSerial => "virtio-serial (virtio_console)",
        AgentTransport::SerialPort => "the second serial port (8250)",
    });
    alloc::format!(
        "the guest is still booting, its init has ended the agent, or its kernel has no driver for {}",
        drivers.collect::<Vec<_>>().join(" and none for ")
    )
}
