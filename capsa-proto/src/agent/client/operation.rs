//! [`OperationEntry`]: an operation with its buffers, what it has to send and what it has to report.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::error::{AgentError, AgentViolation, OperationRefused};
use crate::agent::protocol::{
    FieldWriter, HostMessage, INITIAL_WINDOW, MAX_PAYLOAD, Operation, OperationEnd, OutputStream,
    TerminalSize,
};
use crate::time::Instant;

/// How many bytes of input wait for the agent, for each operation.
pub const INPUT_QUEUE: usize = 256 * 1024;

/// The longest input in one message. Messages of other operations go between two of them.
const INPUT_CHUNK: usize = 16 * 1024;

/// Taken output is reported to the agent in parts of at least this size.
const WINDOW_STEP: u32 = INITIAL_WINDOW / 4;

/// How far an operation is.
#[derive(Debug)]
pub(super) enum OperationStage {
    /// Not sent.
    Waiting(Box<Operation>),
    Running,
    Finished(Result<OperationEnd, AgentError>),
}

/// What there is to tell the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OperationReport {
    Started = 1,
    Stdout = 2,
    Stderr = 4,
    Room = 8,
    Ended = 16,
}

/// An operation.
#[derive(Debug)]
pub(super) struct OperationEntry {
    pub(super) stage: OperationStage,
    pub(super) is_command: bool,
    pub(super) begun: Instant,
    pub(super) time_limit: Option<Instant>,
    /// When the client has to look at it again.
    pub(super) deadline: Option<Instant>,
    pub(super) pid: Option<u32>,
    /// It has ended for the owner, and the agent still runs it.
    pub(super) is_stuck: bool,
    /// The owner has dropped it.
    pub(super) is_orphan: bool,
    pub(super) is_late: bool,
    pub(super) cancelled: Option<Instant>,
    reports: u8,
    outputs: [OutputWindow; 2],
    input: InputWindow,
    // What has to be sent.
    sends_cancel: bool,
    signals: u64,
    resize: Option<TerminalSize>,
}

/// An output.
#[derive(Debug)]
struct OutputWindow {
    bytes: VecDeque<u8>,
    /// How many bytes the agent may send.
    window: u32,
    /// How many bytes were taken and not reported to the agent.
    taken: u32,
    is_ignored: bool,
}

/// The input.
#[derive(Debug)]
struct InputWindow {
    bytes: VecDeque<u8>,
    /// How many bytes the agent takes.
    window: u32,
    is_open: bool,
    sends_end: bool,
    /// A write was not accepted in full.
    wants_room: bool,
}

impl OperationEntry {
    pub(super) fn new(operation: Operation, begun: Instant, time_limit: Option<Instant>) -> Self {
        let has_input = match &operation {
            Operation::Run(command) => command.has_input,
            Operation::WriteFile { .. } => true,
            _ => false,
        };
        let output = || OutputWindow {
            bytes: VecDeque::new(),
            window: INITIAL_WINDOW,
            taken: 0,
            is_ignored: false,
        };
        Self {
            is_command: matches!(operation, Operation::Run(_)),
            stage: OperationStage::Waiting(Box::new(operation)),
            begun,
            time_limit,
            deadline: None,
            pid: None,
            is_stuck: false,
            is_orphan: false,
            is_late: false,
            cancelled: None,
            reports: 0,
            outputs: [output(), output()],
            input: InputWindow {
                bytes: VecDeque::new(),
                window: INITIAL_WINDOW,
                is_open: has_input,
                sends_end: false,
                wants_room: false,
            },
            sends_cancel: false,
            signals: 0,
            resize: None,
        }
    }

    pub(super) const fn is_running(&self) -> bool {
        matches!(self.stage, OperationStage::Running)
    }

    /// Whether the agent runs it.
    pub(super) const fn is_live(&self) -> bool {
        self.is_running() || self.is_stuck
    }

    pub(super) const fn is_finished(&self) -> bool {
        matches!(self.stage, OperationStage::Finished(_))
    }

    // The owner.

    /// How many bytes were accepted; `None` if the input is closed.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        if !self.input.is_open || self.is_finished() {
            return None;
        }
        let n = bytes.len().min(INPUT_QUEUE.saturating_sub(self.input.bytes.len()));
        self.input.bytes.extend(&bytes[..n]);
        self.input.wants_room |= n < bytes.len();
        Some(n)
    }

    pub(super) fn end_input(&mut self) {
        self.input.sends_end |= self.input.is_open;
        self.input.is_open = false;
    }

    pub(super) fn read(&mut self, stream: OutputStream, into: &mut [u8]) -> usize {
        let output = self.output(stream);
        let n = output.bytes.len().min(into.len());
        let (front, back) = output.bytes.as_slices();
        let split = front.len().min(n);
        into[..split].copy_from_slice(&front[..split]);
        into[split..n].copy_from_slice(&back[..n - split]);
        output.bytes.drain(..n);
        if !output.is_ignored {
            output.taken += n as u32;
        }
        n
    }

    pub(super) fn take_output(&mut self, stream: OutputStream) -> Vec<u8> {
        let output = self.output(stream);
        if !output.is_ignored {
            output.taken += output.bytes.len() as u32;
        }
        core::mem::take(&mut output.bytes).into()
    }

    /// Numbers that no signal has are left out.
    pub(super) fn signal(&mut self, number: i32) {
        if (1..=64).contains(&number) && self.is_command {
            self.signals |= 1 << (number - 1);
        }
    }

    pub(super) fn resize(&mut self, size: TerminalSize) {
        if self.is_command {
            self.resize = Some(size);
        }
    }

    pub(super) fn cancel(&mut self, now: Instant) {
        if self.cancelled.is_none() {
            self.cancelled = Some(now);
            self.sends_cancel = true;
            self.input.is_open = false;
            self.input.sends_end = false;
            self.input.bytes.clear();
        }
    }

    /// Output that arrived and that arrives later is discarded.
    pub(super) fn discard_output(&mut self) {
        self.is_orphan = true;
        self.ignore_output(OutputStream::Stdout);
        self.ignore_output(OutputStream::Stderr);
    }

    pub(super) fn ignore_output(&mut self, stream: OutputStream) {
        self.close_output(stream);
        self.output(stream).bytes = VecDeque::new();
    }

    /// What has arrived can be read. It takes no place in the window any more.
    pub(super) fn close_output(&mut self, stream: OutputStream) {
        let output = self.output(stream);
        if !core::mem::replace(&mut output.is_ignored, true) {
            output.taken += output.bytes.len() as u32;
        }
    }

    // The agent.

    pub(super) fn handle_output(
        &mut self,
        stream: OutputStream,
        bytes: &[u8],
    ) -> Result<(), AgentViolation> {
        let is_stuck = self.is_stuck;
        let output = self.output(stream);
        let (got, window) = (bytes.len(), output.window);
        let Some(left) = u32::try_from(got).ok().and_then(|got| window.checked_sub(got)) else {
            return Err(AgentViolation::OutputBeyondWindow { got, window });
        };
        output.window = left;
        if output.is_ignored || is_stuck {
            output.taken += got as u32;
        } else {
            output.bytes.extend(bytes);
            self.reports |= match stream {
                OutputStream::Stdout if got > 0 => OperationReport::Stdout as u8,
                OutputStream::Stderr if got > 0 => OperationReport::Stderr as u8,
                _ => 0,
            };
        }
        Ok(())
    }

    pub(super) fn handle_window(&mut self, bytes: u32) -> Result<(), AgentViolation> {
        let window = self.input.window.checked_add(bytes).filter(|n| *n <= INITIAL_WINDOW);
        self.input.window = window.ok_or(AgentViolation::WindowBeyondInput(bytes))?;
        Ok(())
    }

    /// Whether an operation of this kind may end so.
    pub(super) const fn can_end(&self, end: OperationEnd) -> bool {
        match end {
            OperationEnd::Done => !self.is_command,
            OperationEnd::Exited(_) | OperationEnd::Signaled(_) => self.is_command,
            OperationEnd::Failed(_) => true,
            // The agent must have been asked.
            OperationEnd::Cancelled => self.cancelled.is_some() && !self.sends_cancel,
        }
    }

    pub(super) fn finish(&mut self, end: Result<OperationEnd, AgentError>) {
        self.stage = OperationStage::Finished(end);
        self.input.bytes = VecDeque::new();
        self.report(OperationReport::Ended);
    }

    pub(super) const fn report(&mut self, report: OperationReport) {
        self.reports |= report as u8;
    }

    pub(super) const fn has_reports(&self) -> bool {
        self.reports != 0
    }

    /// The end comes last.
    pub(super) fn take_report(&mut self) -> Option<OperationReport> {
        let all = [
            OperationReport::Started,
            OperationReport::Stdout,
            OperationReport::Stderr,
            OperationReport::Room,
            OperationReport::Ended,
        ];
        let report = all.into_iter().find(|report| self.reports & *report as u8 != 0)?;
        self.reports &= !(report as u8);
        Some(report)
    }

    // Messages.

    pub(super) fn has_message(&self) -> bool {
        let input = &self.input;
        self.is_running()
            && (self.sends_cancel
                || self.signals != 0
                || self.resize.is_some()
                || self.outputs.iter().any(|output| output.taken >= WINDOW_STEP)
                || input.window > 0 && !input.bytes.is_empty()
                || input.sends_end && input.bytes.is_empty())
    }

    /// Appends the next message.
    pub(super) fn write_message(&mut self, id: u32, out: &mut Vec<u8>) {
        if self.sends_cancel {
            self.sends_cancel = false;
            return HostMessage::Cancel(id).write(out);
        }
        if self.signals != 0 {
            let number = self.signals.trailing_zeros();
            self.signals &= self.signals - 1;
            return HostMessage::Signal(id, number as i32 + 1).write(out);
        }
        if let Some(size) = self.resize.take() {
            return HostMessage::Resize(id, size).write(out);
        }
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let output = self.output(stream);
            if output.taken >= WINDOW_STEP {
                let taken = core::mem::take(&mut output.taken);
                output.window += taken;
                return HostMessage::Window(id, stream, taken).write(out);
            }
        }
        let input = &mut self.input;
        let (front, _) = input.bytes.as_slices();
        let n = front.len().min(INPUT_CHUNK).min(input.window as usize);
        if n > 0 {
            HostMessage::Input(id, &front[..n]).write(out);
            input.bytes.drain(..n);
            input.window -= n as u32;
            if input.wants_room && input.bytes.len() <= INPUT_QUEUE / 2 {
                input.wants_room = false;
                self.report(OperationReport::Room);
            }
        } else if input.sends_end && input.bytes.is_empty() {
            input.sends_end = false;
            HostMessage::InputEnd(id).write(out);
        }
    }

    fn output(&mut self, stream: OutputStream) -> &mut OutputWindow {
        match stream {
            OutputStream::Stdout => &mut self.outputs[0],
            OutputStream::Stderr => &mut self.outputs[1],
        }
    }
}

/// Checks what the owner asks for.
pub(super) fn check(operation: &Operation) -> Result<(), OperationRefused> {
    let no_nul = |name, bytes: &[u8]| match bytes.contains(&0) {
        true => Err(OperationRefused::Nul(name)),
        false => Ok(()),
    };
    match operation {
        Operation::Run(command) => {
            if command.args.first().is_none_or(Vec::is_empty) {
                return Err(OperationRefused::Empty);
            }
            command.args.iter().try_for_each(|arg| no_nul("an argument", arg))?;
            for (name, value) in &command.env {
                if name.is_empty() || name.contains(&b'=') {
                    return Err(OperationRefused::EnvName);
                }
                no_nul("an environment variable", name)?;
                no_nul("an environment variable", value)?;
            }
            command.cwd.iter().try_for_each(|path| no_nul("the working directory", path))?;
            command.user.iter().try_for_each(|user| no_nul("the user", user))?;
        }
        Operation::ReadFile(path)
        | Operation::Stat(path)
        | Operation::ReadDir(path)
        | Operation::WriteFile { path, .. }
        | Operation::MakeDir { path, .. }
        | Operation::Remove { path, .. } => no_nul("the path", path)?,
        Operation::Mount(mount) => {
            let texts = [&mount.kind, &mount.source, &mount.target, &mount.options];
            texts.into_iter().try_for_each(|text| no_nul("the mount", text))?;
        }
        Operation::PowerOff(_) | Operation::SetClock(_) => {}
    }
    let mut fields = FieldWriter::default();
    fields.put(operation);
    match fields.0.len() {
        0..=MAX_PAYLOAD => Ok(()),
        length => Err(OperationRefused::TooLarge(length)),
    }
}

#[cfg(feature = "fuzz")]
impl OperationEntry {
    /// Checks the windows and the buffers.
    pub(super) fn check_laws(&self) {
        for output in self.outputs.iter().filter(|output| !output.is_ignored && !self.is_stuck) {
            let all = output.bytes.len() as u32 + output.window + output.taken;
            assert!(all == INITIAL_WINDOW || self.is_finished(), "{all} bytes of a window");
            assert!(output.bytes.len() <= INITIAL_WINDOW as usize, "too much output");
        }
        assert!(self.input.bytes.len() <= INPUT_QUEUE && self.input.window <= INITIAL_WINDOW);
        assert!(!(self.is_orphan && self.is_finished() && !self.is_stuck), "it is forgotten");
    }
}
