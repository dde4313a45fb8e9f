//! Waits: what reads the console until it has what it wants, and how it ended.

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

use super::serial_port::SerialPort;
use super::{CommandOutput, Cursor, Expect, Outcome, Script, ScriptError};

/// A reader of a console: its place in the scrollback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReaderId(pub(super) u64);

/// A reader whose unread output pauses the guest, and with it the waits of other readers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockingReader {
    /// The reader.
    pub reader: ReaderId,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The bytes that it has not read.
    pub unread: u64,
}

impl fmt::Display for BlockingReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "the reader {name:?}")?,
            None => write!(f, "{:?}", self.reader)?,
        }
        let unread = self.unread;
        write!(f, " has {unread} unread bytes, and the console pauses the guest until it reads")
    }
}

/// A wait that was begun and whose result was not taken yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaitId(pub(super) u64);

/// What a wait does.
pub enum WaitKind {
    /// Waits for a pattern.
    Expect(Box<Expect>),
    /// Runs a script, such as a login or a command.
    Script(Box<dyn Script + Send>),
}

/// How a wait ended.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Ended {
    /// A wait for a pattern.
    Expect(Outcome),
    /// A script.
    Script(Result<CommandOutput, ScriptError>),
}

impl Ended {
    /// Adds what the serial port shows to the error of a wait on a virtio console.
    pub(super) fn explain(&mut self, port: &SerialPort) {
        let (panic, not_opened) = port.explanation();
        match self {
            Self::Expect(
                Outcome::TimedOut { fault, near_match, .. }
                | Outcome::Closed { fault, near_match, .. },
            ) => {
                *fault = fault.take().or(panic);
                *near_match = not_opened.or(near_match.take());
            }
            Self::Script(Err(
                ScriptError::TimedOut { fault, near_match, .. }
                | ScriptError::Closed { fault, near_match, .. },
            )) => {
                *fault = fault.take().or(panic);
                *near_match = not_opened.map(Box::new).or(near_match.take());
            }
            _ => {}
        }
    }
}

/// A wait and its reader.
pub(super) struct PendingWait {
    pub(super) reader: ReaderId,
    /// The reader's place when it was last given something: a cancelled wait returns there.
    pub(super) began: Cursor,
    pub(super) kind: WaitKind,
    pub(super) ended: Option<Ended>,
}

impl fmt::Debug for WaitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A script may hold a password.
        f.write_str(match self {
            Self::Expect(_) => "Expect",
            Self::Script(_) => "Script",
        })
    }
}
