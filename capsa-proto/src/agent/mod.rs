//! The guest agent: the protocol between Capsa and the program `capsa-agent` in a guest, and the host's end
//! of it.
//!
//! The agent runs beside the guest's init and carries out **operations** for the host: it runs commands,
//! reads and writes files, mounts shares, and powers the guest off.
//!
//! | item | what it is |
//! | --- | --- |
//! | [`AgentClient`] | the host's end: finds the agent, and carries out operations |
//! | [`protocol`] | frames and messages; compiled into the guest's program as well |
//!
//! The host connects, and the guest never decides what the host does next: every byte that arrives here is
//! hostile. A message that breaks the protocol ends the session, not the VM.

mod client;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
pub mod protocol;

pub use client::{
    ANSWER_LIMIT, AgentClient, AgentError, AgentEvent, AgentState, AgentViolation, CANCEL_LIMIT,
    INPUT_QUEUE, MAX_BEGUN, OperationHandle, OperationRefused,
};
