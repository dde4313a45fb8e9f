//! The guest's console on this program's standard input and output.
//!
//! Standard input is read only when the VM has accepted the bytes read before. Console output is
//! taken only when standard output has accepted the bytes taken before: a slow standard output
//! pauses the guest, and no byte is lost. The rule: nothing here blocks.

pub(crate) mod escape;
pub(crate) mod output;
pub(crate) mod poll_set;
pub(crate) mod terminal;

use std::io::{self, ErrorKind, IsTerminal};
use std::os::fd::AsFd;
use std::time::Duration;

use capsa::embed::{ReaderId, Vm};
use nix::errno::Errno;
use nix::unistd::read;

use crate::reporter::Reporter;
use crate::stdio::escape::{EscapeCommand, EscapeParser};
use crate::stdio::output::StdoutWriter;
use crate::stdio::poll_set::PollSet;
use crate::stdio::terminal::RawTerminal;

/// Bytes read from standard input at once.
const CHUNK: usize = 4096;

/// Standard input and output, with the bytes between them and the guest.
#[derive(Debug)]
pub(crate) struct Stdio {
    reader: ReaderId,
    pub(crate) output: StdoutWriter,
    /// Restored when dropped.
    terminal: Option<RawTerminal>,
    escape: EscapeParser,
    input_open: bool,
    /// Input that the VM has not accepted yet.
    pending_input: Vec<u8>,
}

/// What was read from standard input.
#[derive(Debug, Default)]
pub(crate) struct StdinRead {
    pub(crate) bytes: Vec<u8>,
    pub(crate) commands: Vec<EscapeCommand>,
}

impl Stdio {
    /// Uses standard input and output. A terminal becomes raw.
    pub(crate) fn new(reader: ReaderId, reporter: &Reporter) -> io::Result<Self> {
        let output = StdoutWriter::new()?;
        if io::stdin().is_terminal() && io::stderr().is_terminal() {
            reporter.info("Ctrl-] q asks the guest to power off, Ctrl-] k kills the VM");
        }
        Ok(Self {
            reader,
            output,
            terminal: RawTerminal::enter()?,
            escape: EscapeParser::default(),
            input_open: true,
            pending_input: Vec::new(),
        })
    }

    /// Whether standard input is open. While it is, no control client owns the console's input.
    pub(crate) fn is_input_open(&self) -> bool {
        self.input_open
    }

    /// Adds standard input to the descriptors to poll, if its bytes can be accepted.
    pub(crate) fn register<'fd, Source: Copy>(
        &'fd self,
        poll_set: &mut PollSet<'fd, Source>,
        stdin: &'fd io::Stdin,
        input: Option<Source>,
    ) {
        if let Some(input) = input.filter(|_| self.wants_input()) {
            poll_set.readable(input, stdin.as_fd());
        }
    }

    fn wants_input(&self) -> bool {
        self.input_open
            && self.pending_input.is_empty()
            && self.terminal.as_ref().is_none_or(RawTerminal::is_foreground)
    }

    /// Moves pending bytes both ways. Output is taken while at most `buffer` bytes of it wait.
    pub(crate) fn transfer(&mut self, vm: &mut Vm, buffer: usize) {
        if let Some(terminal) = &mut self.terminal {
            terminal.follow_foreground();
        }
        if self.output.unwritten() <= buffer {
            self.output.put(vm.take(self.reader));
        }
        self.write_to_guest(vm);
    }

    /// Discards the output that was not taken, and returns its size.
    pub(crate) fn untaken(&self, vm: &mut Vm) -> usize {
        if self.output.is_broken() { 0 } else { vm.take(self.reader).len() }
    }

    /// Reads standard input, and writes its bytes to the guest.
    pub(crate) fn read_input(&mut self, vm: &mut Vm) -> StdinRead {
        let mut chunk = [0; CHUNK];
        let may_read = || self.terminal.as_ref().is_none_or(RawTerminal::is_foreground);
        let was_allowed = may_read();
        let read = match read(io::stdin(), &mut chunk) {
            Ok(n @ 1..) => &chunk[..n],
            // The shell has moved this program into the background after the poll.
            Err(Errno::EIO) if !(was_allowed && may_read()) => return StdinRead::default(),
            Err(Errno::EINTR | Errno::EAGAIN) => return StdinRead::default(),
            // End of file, a closed terminal or a directory: there is no more input.
            Ok(0) | Err(_) => {
                self.input_open = false;
                return StdinRead::default();
            }
        };
        let (bytes, commands) = match self.terminal {
            None => (read.to_vec(), Vec::new()),
            Some(_) => self.escape.split(read),
        };
        self.pending_input.extend_from_slice(&bytes);
        self.write_to_guest(vm);
        StdinRead { bytes, commands }
    }

    /// Restores the terminal until [`Stdio::resume`].
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

    /// When to call [`Stdio::transfer`] again although nothing is ready.
    pub(crate) fn next_check(&self) -> Option<Duration> {
        self.terminal.as_ref().and_then(RawTerminal::next_check)
    }

    fn write_to_guest(&mut self, vm: &mut Vm) {
        if self.pending_input.is_empty() {
            return;
        }
        match vm.write(&self.pending_input) {
            Ok(taken) => drop(self.pending_input.drain(..taken)),
            Err(error) => {
                debug_assert_eq!(error.kind(), ErrorKind::BrokenPipe);
                self.pending_input.clear();
                self.input_open = false;
            }
        }
    }
}
