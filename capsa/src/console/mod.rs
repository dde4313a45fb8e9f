//! The console of a VM: readers and writers, patterns, commands, and the text that a guest prints.
//!
//! [`VmHandle::console`](crate::VmHandle::console) returns a [`VmConsole`](crate::VmConsole). This
//! module has what its methods take and return. The [manual](crate::manual) has examples.
//!
//! | task | items |
//! | --- | --- |
//! | wait for a literal or a regular expression | [`Pattern`], [`Match`], [`NearMatch`] |
//! | run a command in the guest's shell | [`CommandOutput`], [`RunningCommand`], [`ScriptError`] |
//! | read and write concurrently | [`ConsoleReader`], [`ConsoleWriter`], [`Lines`] |
//! | copy the output to a file | [`ConsoleLog`], [`Logged`] |
//! | choose what a full scrollback does | [`Overflow`] |
//! | recognise a guest that cannot boot | [`GuestFault`], [`FaultReport`] |
//! | print what a guest wrote | [`escape_control`], [`escape_control_line`], [`Stripper`] |
//!
//! **What a guest prints is hostile.** Escape control characters before it reaches a terminal.

#[cfg(feature = "async")]
mod command;
#[cfg(feature = "async")]
mod log;
#[cfg(feature = "async")]
mod reader;
#[cfg(all(feature = "async", feature = "tokio"))]
mod tokio;
#[cfg(feature = "async")]
pub(crate) mod vm_console;
#[cfg(feature = "async")]
mod writer;

#[cfg(feature = "async")]
#[cfg_attr(docsrs, doc(cfg(feature = "async")))]
pub use command::RunningCommand;
#[cfg(feature = "async")]
#[cfg_attr(docsrs, doc(cfg(feature = "async")))]
pub use log::{ConsoleLog, Logged};
#[cfg(feature = "async")]
#[cfg_attr(docsrs, doc(cfg(feature = "async")))]
pub use reader::{ConsoleReader, Lines};
#[cfg(feature = "async")]
#[cfg_attr(docsrs, doc(cfg(feature = "async")))]
pub use vm_console::Match;
#[cfg(feature = "async")]
#[cfg_attr(docsrs, doc(cfg(feature = "async")))]
pub use writer::ConsoleWriter;

pub use capsa_proto::console::{
    CommandOutput, FaultReport, GuestFault, NearMatch, Overflow, Pattern, PatternError,
    SHUTDOWN_COMMAND, ScriptError, Stripper,
};
pub use capsa_proto::text::{escape_control, escape_control_line};
