//! The guest's console on this program's standard input and output.
//!
//! Console output is taken only when standard output has accepted the bytes taken before: a slow
//! standard output pauses the guest, and no byte is lost. [`input`] has the other direction. The rule:
//! nothing here blocks.

pub(crate) mod escape;
pub(crate) mod input;
pub(crate) mod output;
pub(crate) mod poll_set;
pub(crate) mod terminal;

use std::io::{self, IsTerminal};

use capsa::embed::{ReaderId, Vm};

use crate::reporter::Reporter;
use crate::stdio::input::{InputTarget, StdinWriter};
use crate::stdio::output::OutputWriter;

/// Standard input and output, with the bytes between them and the guest.
#[derive(Debug)]
pub(crate) struct Stdio {
    reader: ReaderId,
    pub(crate) input: StdinWriter,
    pub(crate) output: OutputWriter,
}

impl Stdio {
    /// Uses standard input and output. A terminal becomes raw.
    pub(crate) fn new(reader: ReaderId, reporter: &Reporter) -> io::Result<Self> {
        let output = OutputWriter::new()?;
        if io::stdin().is_terminal() && io::stderr().is_terminal() {
            reporter.info("Ctrl-] q asks the guest to power off, Ctrl-] k kills the VM");
        }
        Ok(Self { reader, input: StdinWriter::new(InputTarget::Console)?, output })
    }

    /// Moves pending bytes both ways. Output is taken while at most `buffer` bytes of it wait.
    pub(crate) fn transfer(&mut self, vm: &mut Vm, buffer: usize) {
        if self.output.unwritten() <= buffer {
            self.output.put(vm.take(self.reader));
        }
        self.input.transfer(vm);
    }

    /// Discards the output that was not taken, and returns its size.
    pub(crate) fn untaken(&self, vm: &mut Vm) -> usize {
        if self.output.is_broken() { 0 } else { vm.take(self.reader).len() }
    }
}
