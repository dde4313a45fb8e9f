//! Standard input as the guest's input, and the terminal that is raw meanwhile.
//!
//! Standard input is read only when the VM has accepted the bytes read before. The rule: nothing here
//! blocks.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::time::Duration;

use capsa::embed::{OperationHandle, Vm};
use nix::errno::Errno;
use nix::unistd::read;

use super::escape::{EscapeCommand, EscapeParser};
use super::poll_set::PollSet;
use super::terminal::RawTerminal;

/// Bytes read from standard input at once.
const CHUNK: usize = 4096;

/// Standard input, and its bytes that the guest has not accepted.
#[derive(Debug)]
pub(crate) struct StdinWriter {
    target: InputTarget,
    /// Restored when dropped.
    terminal: Option<RawTerminal>,
    escape: EscapeParser,
    is_open: bool,
    /// Input that the VM has not accepted yet.
    pending: Vec<u8>,
}

/// What standard input goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputTarget {
    /// The guest's console.
    Console,
    /// A command of the guest agent.
    Command(OperationHandle),
}

/// What was read from standard input.
#[derive(Debug, Default)]
pub(crate) struct StdinRead {
    pub(crate) bytes: Vec<u8>,
    pub(crate) commands: Vec<EscapeCommand>,
}

impl StdinWriter {
    /// Uses standard input. A terminal becomes raw.
    pub(crate) fn new(target: InputTarget) -> io::Result<Self> {
        Ok(Self {
            target,
            terminal: RawTerminal::enter()?,
            escape: EscapeParser::default(),
            is_open: true,
            pending: Vec::new(),
        })
    }

    /// Whether standard input is open. While it is, no control client owns the console's input.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Adds standard input to the descriptors to poll, if its bytes can be accepted.
    pub(crate) fn register<'fd, Source: Copy>(
        &self,
        poll_set: &mut PollSet<'fd, Source>,
        stdin: &'fd io::Stdin,
        source: Source,
    ) {
        let is_foreground = || self.terminal.as_ref().is_none_or(RawTerminal::is_foreground);
        if self.is_open && self.pending.is_empty() && is_foreground() {
            poll_set.readable(source, stdin.as_fd());
        }
    }

    /// Writes pending bytes to the guest, and follows the terminal's foreground.
    pub(crate) fn transfer(&mut self, vm: &mut Vm) {
        if let Some(terminal) = &mut self.terminal {
            terminal.follow_foreground();
        }
        self.write_to_guest(vm);
    }

    /// Reads standard input, and writes its bytes to the guest.
    pub(crate) fn read(&mut self, vm: &mut Vm) -> StdinRead {
        let mut chunk = [0; CHUNK];
        let may_read = || self.terminal.as_ref().is_none_or(RawTerminal::is_foreground);
        let was_allowed = may_read();
        let bytes = match read(io::stdin(), &mut chunk) {
            Ok(n @ 1..) => &chunk[..n],
            // The shell has moved this program into the background after the poll.
            Err(Errno::EIO) if !(was_allowed && may_read()) => return StdinRead::default(),
            Err(Errno::EINTR | Errno::EAGAIN) => return StdinRead::default(),
            // End of file, a closed terminal or a directory: there is no more input.
            Ok(0) | Err(_) => {
                self.is_open = false;
                self.write_to_guest(vm);
                return StdinRead::default();
            }
        };
        let (bytes, commands) = match self.terminal {
            None => (bytes.to_vec(), Vec::new()),
            Some(_) => self.escape.split(bytes),
        };
        self.pending.extend_from_slice(&bytes);
        self.write_to_guest(vm);
        StdinRead { bytes, commands }
    }

    /// Restores the terminal until [`StdinWriter::resume`].
    pub(crate) fn suspend(&self) {
        if let Some(terminal) = &self.terminal {
            terminal.suspend();
        }
    }

    /// Makes the terminal raw again.
    pub(crate) fn resume(&mut self) {
        if let Some(terminal) = &mut self.terminal {
            // If the terminal is closed, reading standard input returns the error.
            let _ = terminal.resume();
        }
    }

    /// When to call [`StdinWriter::transfer`] again although nothing is ready.
    pub(crate) fn next_check(&self) -> Option<Duration> {
        self.terminal.as_ref().and_then(RawTerminal::next_check)
    }

    fn write_to_guest(&mut self, vm: &mut Vm) {
        if self.pending.is_empty() {
            return self.end_input(vm);
        }
        let written = match self.target {
            InputTarget::Console => vm.write(&self.pending),
            InputTarget::Command(handle) => vm.write_input(handle, &self.pending),
        };
        match written {
            Ok(taken) => drop(self.pending.drain(..taken)),
            Err(error) => {
                debug_assert_eq!(error.kind(), ErrorKind::BrokenPipe);
                self.pending.clear();
                self.is_open = false;
            }
        }
    }

    /// Ends the input of a command after the end of standard input. The console has no such end.
    fn end_input(&self, vm: &mut Vm) {
        if let InputTarget::Command(handle) = self.target
            && !self.is_open
        {
            vm.end_input(handle);
        }
    }
}
