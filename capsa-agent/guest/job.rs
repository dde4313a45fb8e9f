//! One operation: its process, its pipes, and how it ends.

use alloc::rc::Rc;

use crate::child::ChildStreams;
use crate::guest::BootedGuest;
use crate::protocol::{Operation, OperationEnd, OutputStream, TerminalSize};
use crate::sys::{self, ChildEnd, Errno, Fd, Outcome, SIGKILL};

/// How long the output of a terminal is awaited after the command has ended: the kernel passes it on later.
const TERMINAL_GRACE: u64 = 50;

/// Both outputs.
pub(crate) const STREAMS: [OutputStream; 2] = [OutputStream::Stdout, OutputStream::Stderr];

/// A running operation.
pub(crate) struct OperationProcess {
    pub(crate) pid: i32,
    is_command: bool,
    pub(crate) is_terminal: bool,
    /// Reads what the process reports: see [`crate::child`].
    pub(crate) status: Option<Fd>,
    errno: Option<i32>,
    pub(crate) input: Option<Rc<Fd>>,
    pub(crate) outputs: [Option<Rc<Fd>>; 2],
    /// How many bytes of the outputs are still to be read after the end of the process.
    left: [usize; 2],
    end: Option<ChildEnd>,
    ended_at: u64,
    is_cancelled: bool,
}

/// The process that [`OperationProcess::start`] returns in.
pub(crate) enum Forked {
    /// The agent.
    Agent(OperationProcess),
    /// The process of the operation: its streams, and where it reports.
    Child(ChildStreams, Fd),
}

/// What reading an output gave.
pub(crate) enum OutputRead {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// No more will come.
    End,
}

impl OperationProcess {
    /// Starts the process of an operation. Returns in both processes.
    pub(crate) fn start(operation: &Operation, guest: &BootedGuest) -> Outcome<Forked> {
        let (status, child_status) = sys::pipe()?;
        status.set_nonblocking();
        let command = match operation {
            Operation::Run(command) => Some(command),
            _ => None,
        };
        let mut job = Self {
            pid: 0,
            is_command: command.is_some(),
            is_terminal: false,
            status: Some(status),
            errno: None,
            input: None,
            outputs: [None, None],
            left: [0; 2],
            end: None,
            ended_at: 0,
            is_cancelled: false,
        };
        let streams = if let Some(size) = command.and_then(|command| command.terminal) {
            let terminal = Rc::new(guest.open_terminal()?);
            terminal.set_terminal_size(size.rows, size.columns)?;
            job.is_terminal = true;
            job.input = Some(Rc::clone(&terminal));
            job.outputs[0] = Some(terminal);
            None
        } else {
            let has_input = match operation {
                Operation::Run(command) => command.has_input,
                Operation::WriteFile { .. } => true,
                _ => false,
            };
            let mut streams = [None, None, None];
            if has_input {
                let (child, ours) = sys::pipe()?;
                ours.set_nonblocking();
                job.input = Some(Rc::new(ours));
                streams[0] = Some(child);
            }
            for (output, stream) in job.outputs.iter_mut().zip(&mut streams[1..]) {
                let (ours, child) = sys::pipe()?;
                ours.set_nonblocking();
                *output = Some(Rc::new(ours));
                *stream = Some(child);
            }
            Some(streams)
        };
        if let Some(pid) = sys::fork()? {
            job.pid = pid;
            return Ok(Forked::Agent(job));
        }
        let streams = match (streams, &job.outputs[0]) {
            (Some(pipes), _) => ChildStreams::Pipes(pipes),
            (None, Some(terminal)) => ChildStreams::Terminal(Rc::clone(terminal)),
            (None, None) => sys::exit(127),
        };
        Ok(Forked::Child(streams, child_status))
    }

    /// Reads what the process reports. Whether a command was started.
    pub(crate) fn read_status(&mut self) -> bool {
        let Some(status) = &self.status else { return false };
        let mut errno = [0; 4];
        let is_started = match status.read(&mut errno) {
            Err(Errno::EAGAIN) => return false,
            Ok(4) => {
                self.errno = Some(i32::from_le_bytes(errno));
                false
            }
            _ => self.is_command,
        };
        self.status = None;
        is_started
    }

    /// Reads from an output.
    pub(crate) fn read_output(&mut self, stream: usize, to: &mut [u8]) -> OutputRead {
        let Some(output) = &self.outputs[stream] else { return OutputRead::Nothing };
        let limit = match self.end {
            Some(_) if !self.is_terminal => to.len().min(self.left[stream]),
            _ => to.len(),
        };
        if limit == 0 {
            self.outputs[stream] = None;
            return OutputRead::End;
        }
        match output.read(&mut to[..limit]) {
            Err(Errno::EAGAIN) if !self.is_drained() => OutputRead::Nothing,
            Ok(n) if n > 0 => {
                self.left[stream] = self.left[stream].saturating_sub(n);
                OutputRead::Bytes(n)
            }
            // The kernel reports `EIO` when the last process has closed a terminal.
            _ => {
                self.outputs[stream] = None;
                OutputRead::End
            }
        }
    }

    /// Whether an output that has nothing now will have nothing more.
    fn is_drained(&self) -> bool {
        self.end.is_some() && (!self.is_terminal || sys::now() >= self.ended_at + TERMINAL_GRACE)
    }

    /// Whether the process has ended, so that only its output is awaited. Processes in the background may keep
    /// the outputs open.
    pub(crate) fn is_draining(&self) -> bool {
        self.end.is_some()
    }

    /// The process has ended and is reaped. Whether a command was started that was not known to be.
    pub(crate) fn handle_end(&mut self, end: ChildEnd) -> bool {
        let is_started = self.read_status();
        self.end = Some(end);
        self.ended_at = sys::now();
        self.input = None;
        for (left, output) in self.left.iter_mut().zip(&self.outputs) {
            *left = output.as_ref().map_or(0, |output| output.readable_bytes());
        }
        is_started
    }

    /// How the operation ended, when its process has ended and its output is read.
    pub(crate) fn end(&self) -> Option<OperationEnd> {
        let end = self.end?;
        if self.is_cancelled {
            return Some(OperationEnd::Cancelled);
        }
        if self.outputs.iter().any(Option::is_some) {
            return None;
        }
        Some(match (self.errno, end) {
            (Some(0), _) => OperationEnd::Done,
            (Some(errno), _) => OperationEnd::Failed(errno),
            (None, _) if !self.is_command => OperationEnd::Failed(Errno::EIO.0),
            (None, ChildEnd::Exited(status)) => OperationEnd::Exited(status),
            (None, ChildEnd::Signaled(number)) => OperationEnd::Signaled(number),
        })
    }

    /// Sends a signal to the process group.
    pub(crate) fn signal(&self, number: i32) {
        // After its end, the id may belong to another process.
        if self.end.is_none() {
            // The process becomes the leader of its group a moment after the fork.
            let _ = sys::kill(-self.pid, number).or_else(|_| sys::kill(self.pid, number));
        }
    }

    /// Kills the process group.
    pub(crate) fn cancel(&mut self) {
        self.is_cancelled = true;
        self.signal(SIGKILL);
    }

    pub(crate) fn resize(&self, size: TerminalSize) {
        if let Some(terminal) = self.outputs[0].as_ref().filter(|_| self.is_terminal) {
            let _ = terminal.set_terminal_size(size.rows, size.columns);
        }
    }
}
