//! The guest's console on this program's standard input and output.
//!
//! Standard input is read when the machine has taken what was read before; the machine's console is
//! taken when standard output has taken what was taken before, and the guest waits rather than lose
//! a byte. The rule: nothing here blocks.

pub(crate) mod escape;
pub(crate) mod output;
pub(crate) mod terminal;
pub(crate) mod watch;

use std::io::{self, ErrorKind, IsTerminal};
use std::os::fd::AsFd;

use capsa::embed::{ReaderId, Vm};
use nix::errno::Errno;
use nix::unistd::read;

use crate::stdio::escape::{Escape, Order};
use crate::stdio::output::Output;
use crate::stdio::terminal::RawTerminal;
use crate::stdio::watch::Watch;
use crate::voice::Voice;

/// Bytes read from standard input at once.
const CHUNK: usize = 4096;

/// Standard input and output, and what is on its way between them and the guest.
#[derive(Debug)]
pub(crate) struct Stdio {
    reader: ReaderId,
    pub(crate) output: Output,
    /// Given back when dropped.
    terminal: Option<RawTerminal>,
    escape: Escape,
    input_open: bool,
    /// Read, and not yet taken by the machine.
    for_guest: Vec<u8>,
}

/// What reading standard input brought.
#[derive(Debug, Default)]
pub(crate) struct Typed {
    pub(crate) bytes: Vec<u8>,
    pub(crate) orders: Vec<Order>,
}

impl Stdio {
    /// Takes standard input and output; a terminal becomes raw.
    pub(crate) fn new(reader: ReaderId, voice: &Voice) -> io::Result<Self> {
        let output = Output::new()?;
        if io::stdin().is_terminal() && io::stderr().is_terminal() {
            voice.say("Ctrl-] q asks the guest to power off, Ctrl-] k cuts its power");
        }
        Ok(Self {
            reader,
            output,
            terminal: RawTerminal::enter()?,
            escape: Escape::default(),
            input_open: true,
            for_guest: Vec::new(),
        })
    }

    /// Whether what is typed here goes to the guest, so that nobody else types.
    pub(crate) fn types(&self) -> bool {
        self.input_open
    }

    /// Adds standard input, while what is typed is wanted.
    pub(crate) fn watch<'fd, Who: Copy>(
        &'fd self,
        watch: &mut Watch<'fd, Who>,
        stdin: &'fd io::Stdin,
        input: Option<Who>,
    ) {
        if let Some(input) = input.filter(|_| self.wants_input()) {
            watch.readable(input, stdin.as_fd());
        }
    }

    fn wants_input(&self) -> bool {
        self.input_open
            && self.for_guest.is_empty()
            && self.terminal.as_ref().is_none_or(RawTerminal::is_foreground)
    }

    /// Hands on what waits, both ways.
    pub(crate) fn refill(&mut self, vm: &mut Vm) {
        if self.output.is_empty() {
            self.output.put(vm.take(self.reader));
        }
        self.write_to_guest(vm);
    }

    /// Reads what was typed. The bytes among it are on their way to the guest already.
    pub(crate) fn read_input(&mut self, vm: &mut Vm) -> Typed {
        let mut chunk = [0; CHUNK];
        let read = match read(io::stdin(), &mut chunk) {
            Ok(n @ 1..) => &chunk[..n],
            Err(Errno::EINTR | Errno::EAGAIN) => return Typed::default(),
            // The end, a terminal that is gone, a directory: no more input.
            Ok(0) | Err(_) => {
                self.input_open = false;
                return Typed::default();
            }
        };
        let (bytes, orders) = match self.terminal {
            None => (read.to_vec(), Vec::new()),
            Some(_) => self.escape.split(read),
        };
        self.for_guest.extend_from_slice(&bytes);
        self.write_to_guest(vm);
        Typed { bytes, orders }
    }

    /// Gives the terminal back for a while.
    pub(crate) fn suspend(&self) {
        if let Some(terminal) = &self.terminal {
            terminal.suspend();
        }
    }

    /// Takes it again.
    pub(crate) fn resume(&self) {
        if let Some(terminal) = &self.terminal {
            // Where the terminal is gone, standard input will tell.
            let _ = terminal.resume();
        }
    }

    fn write_to_guest(&mut self, vm: &mut Vm) {
        if self.for_guest.is_empty() {
            return;
        }
        match vm.write(&self.for_guest) {
            Ok(taken) => drop(self.for_guest.drain(..taken)),
            Err(error) => {
                debug_assert_eq!(error.kind(), ErrorKind::BrokenPipe);
                self.for_guest.clear();
                self.input_open = false;
            }
        }
    }
}
