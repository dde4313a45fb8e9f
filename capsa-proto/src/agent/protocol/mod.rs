//! Frames and messages of the guest agent's protocol.
//!
//! The program in the guest compiles the files of this directory, too. They use `core` and `alloc` only and
//! refer to each other through `super`.
//!
//! # Session
//!
//! A transport is a stream of bytes: a vsock connection, a virtio-serial port or a serial port. It may
//! contain the rest of an earlier session, because a guest may reboot at any time. So a session begins with a
//! **sync mark**, which cannot be mistaken for a frame:
//!
//! 1. The host sends a sync mark with a new session number, and repeats it until the agent answers.
//! 2. The agent discards everything before a sync mark. It answers with the same mark and
//!    [`GuestMessage::Hello`], which has its version and the nonce that proves that it is the agent of this
//!    VM. A mark with another number ends all operations and begins a new session. A mark with the same
//!    number has no effect.
//! 3. The host discards everything before the mark with its number. From then on, both sides send frames.
//!
//! # Operations
//!
//! [`HostMessage::Begin`] starts an operation under an id that no running operation has. It has at most one
//! input and two outputs, each a stream of bytes with a window: a sender may have at most
//! [`INITIAL_WINDOW`] bytes on the way that the receiver has not returned with a `Window` message.
//! [`GuestMessage::Finished`] is the last message of an operation and follows all of its output. Messages
//! for an operation that has finished cross it on the way, and have no effect.

mod bytes;
mod frame;
mod message;
mod server;

pub use bytes::{Field, FieldReader, FieldWriter, List};
pub use frame::{
    Frame, FrameDecoder, FrameError, FrameEvent, HEADER_LEN, MAX_PAYLOAD, SYNC_LEN, put_frame,
    put_sync,
};
pub use message::{
    CommandSpec, FileEntry, FileKind, GuestMessage, GuestState, HostMessage, MessageError,
    MountSpec, Operation, OperationEnd, OperationId, OutputStream, PowerAction, TerminalSize,
    WriteMode,
};
pub use server::{AgentServer, ServerEvent};

/// The version of the protocol. Both ends must have the same, because Capsa brings its own agent.
pub const VERSION: u16 = 1;

/// How many bytes of a stream may be on the way before the receiver has returned any.
pub const INITIAL_WINDOW: u32 = 256 * 1024;

/// How many operations may run at once.
pub const MAX_OPERATIONS: usize = 256;

/// The vsock port on which the agent listens: only root can listen on a port below 1024.
pub const VSOCK_PORT: u32 = 1023;

/// The name of the virtio-serial port.
pub const SERIAL_NAME: &str = "capsa.agent";

/// The length of the nonce in bytes.
pub const NONCE_LEN: usize = 32;
