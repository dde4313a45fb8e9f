//! What the owner asks of an [`AgentClient`]: operations, their streams and their ends.

use alloc::vec::Vec;
use core::mem;
use core::time::Duration;

use super::operation::{self, OperationEntry, OperationReport, OperationStage};
use super::{
    ANSWER_LIMIT, AgentClient, AgentError, AgentEvent, AgentState, CANCEL_LIMIT, MARK_EVERY,
    OperationHandle, OperationRefused,
};
use crate::agent::protocol::{Operation, OperationEnd, OutputStream, TerminalSize};
use crate::time::Instant;

impl AgentClient {
    /// How far the agent is.
    pub const fn state(&self) -> AgentState {
        self.state
    }

    /// Begins an operation, which the agent ends after `limit`. It waits until the guest is ready, at most
    /// [`ANSWER_LIMIT`], and while [`MAX_OPERATIONS`](crate::agent::protocol::MAX_OPERATIONS) others run.
    ///
    /// # Errors
    ///
    /// When the operation is invalid or there are too many.
    pub fn begin(
        &mut self,
        now: Instant,
        operation: Operation,
        limit: Option<Duration>,
    ) -> Result<OperationHandle, OperationRefused> {
        operation::check(&operation)?;
        let time_limit = limit.map(|limit| now + limit);
        let handle = self.table.add(OperationEntry::new(operation, now, time_limit))?;
        self.waiting_count += 1;
        if self.state == AgentState::Ended {
            self.finish(handle, Err(AgentError::GuestEnded));
            return Ok(handle);
        }
        self.waiting.push(handle);
        self.next_mark = self.next_mark.min(now + MARK_EVERY);
        self.arm(handle);
        Ok(handle)
    }

    /// Queues input and returns how many bytes were accepted: fewer than given when the queue of
    /// [`INPUT_QUEUE`](super::INPUT_QUEUE) bytes is full. [`AgentEvent::Writable`] reports that there is room again. `None` if
    /// the operation has no input, or it was ended, or the operation has ended.
    pub fn write_input(&mut self, handle: OperationHandle, bytes: &[u8]) -> Option<usize> {
        self.change(handle, |entry| entry.write(bytes)).flatten()
    }

    /// Ends the input, after what was written.
    pub fn end_input(&mut self, handle: OperationHandle) {
        self.change(handle, OperationEntry::end_input);
    }

    /// Moves output into `into` and returns the number of bytes: 0 when there is none now. When the
    /// operation has ended, no more follows.
    pub fn read_output(
        &mut self,
        handle: OperationHandle,
        stream: OutputStream,
        into: &mut [u8],
    ) -> usize {
        self.change(handle, |entry| entry.read(stream, into)).unwrap_or(0)
    }

    /// Takes all output that has arrived.
    pub fn take_output(&mut self, handle: OperationHandle, stream: OutputStream) -> Vec<u8> {
        self.change(handle, |entry| entry.take_output(stream)).unwrap_or_default()
    }

    /// Discards an output, what has arrived and what arrives later, so that it does not stop the operation.
    pub fn ignore_output(&mut self, handle: OperationHandle, stream: OutputStream) {
        self.change(handle, |entry| entry.ignore_output(stream));
    }

    /// Kills the process group of a command, and discards the output that has not arrived: an operation ends
    /// after its output, which may wait for a place in the window.
    pub fn kill(&mut self, handle: OperationHandle) {
        self.change(handle, |entry| {
            entry.signal(9);
            entry.close_output(OutputStream::Stdout);
            entry.close_output(OutputStream::Stderr);
        });
    }

    /// Sends a signal of Linux, 1 to 64, to the process group of a command.
    pub fn signal(&mut self, handle: OperationHandle, number: i32) {
        self.change(handle, |entry| entry.signal(number));
    }

    /// Changes the size of a command's terminal.
    pub fn resize(&mut self, handle: OperationHandle, size: TerminalSize) {
        self.change(handle, |entry| entry.resize(size));
    }

    /// Ends an operation: kills the process group of a command. It ends with
    /// [`OperationEnd::Cancelled`], if it does not end by itself before.
    pub fn cancel(&mut self, now: Instant, handle: OperationHandle) {
        let Some(entry) = self.table.entry_mut(handle) else { return };
        match entry.stage {
            OperationStage::Waiting(_) => self.finish(handle, Ok(OperationEnd::Cancelled)),
            OperationStage::Running => {
                entry.cancel(now);
                self.arm(handle);
                self.sending.push(handle);
            }
            OperationStage::Finished(_) => {}
        }
    }

    /// Cancels an operation whose end is of no interest, and forgets it.
    pub fn discard(&mut self, now: Instant, handle: OperationHandle) {
        self.cancel(now, handle);
        let Some(entry) = self.table.entry_mut(handle) else { return };
        entry.discard_output();
        if entry.is_finished() && !entry.is_stuck {
            self.remove(handle);
        }
    }

    /// The process id of a command in the guest; `None` before it was started.
    pub fn pid(&self, handle: OperationHandle) -> Option<u32> {
        self.table.entry(handle)?.pid
    }

    /// Whether the operation has ended, or was taken.
    pub fn has_ended(&self, handle: OperationHandle) -> bool {
        self.table.entry(handle).is_none_or(OperationEntry::is_finished)
    }

    /// How the operation has ended; `None` while it runs, and after [`take_end`](Self::take_end).
    pub fn end(&self, handle: OperationHandle) -> Option<&Result<OperationEnd, AgentError>> {
        match &self.table.entry(handle).filter(|entry| !entry.is_orphan)?.stage {
            OperationStage::Finished(end) => Some(end),
            OperationStage::Waiting(_) | OperationStage::Running => None,
        }
    }

    /// Like [`end`](Self::end), and forgets the operation. Output that was not
    /// read is discarded.
    pub fn take_end(
        &mut self,
        handle: OperationHandle,
    ) -> Option<Result<OperationEnd, AgentError>> {
        let entry = self.table.entry_mut(handle).filter(|entry| !entry.is_orphan)?;
        let OperationStage::Finished(end) = &entry.stage else { return None };
        let end = end.clone();
        self.discard(Instant::ZERO, handle);
        Some(end)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<AgentEvent> {
        if mem::take(&mut self.state_changed) {
            return Some(AgentEvent::State);
        }
        loop {
            let handle = self.reporting.pop(&self.table)?;
            let entry = self.table.entry_mut(handle)?;
            let report = entry.take_report().filter(|_| !entry.is_orphan);
            if entry.has_reports() {
                self.reporting.push(handle);
            }
            return Some(match report {
                None => continue,
                Some(OperationReport::Started) => AgentEvent::Started(handle),
                Some(OperationReport::Stdout) => AgentEvent::Output(handle, OutputStream::Stdout),
                Some(OperationReport::Stderr) => AgentEvent::Output(handle, OutputStream::Stderr),
                Some(OperationReport::Room) => AgentEvent::Writable(handle),
                Some(OperationReport::Ended) => AgentEvent::Ended(handle),
            });
        }
    }

    /// Whether an event waits.
    pub fn has_events(&self) -> bool {
        self.state_changed || !self.reporting.is_empty()
    }

    // Inside.

    /// Changes an operation, and queues what it has to send.
    fn change<T>(
        &mut self,
        handle: OperationHandle,
        change: impl FnOnce(&mut OperationEntry) -> T,
    ) -> Option<T> {
        let entry = self.table.entry_mut(handle).filter(|entry| !entry.is_orphan)?;
        let result = change(entry);
        if entry.has_message() {
            self.sending.push(handle);
        }
        Some(result)
    }

    pub(super) fn finish(
        &mut self,
        handle: OperationHandle,
        end: Result<OperationEnd, AgentError>,
    ) {
        let Some(entry) = self.table.entry_mut(handle) else { return };
        self.running -= usize::from(entry.is_live());
        self.waiting_count -= usize::from(matches!(entry.stage, OperationStage::Waiting(_)));
        entry.is_stuck = false;
        if !entry.is_finished() {
            entry.finish(end);
        }
        let is_orphan = entry.is_orphan;
        self.disarm(handle);
        if is_orphan {
            self.remove(handle);
        } else {
            self.reporting.push(handle);
        }
    }

    fn remove(&mut self, handle: OperationHandle) {
        self.disarm(handle);
        self.table.remove(handle);
    }

    fn disarm(&mut self, handle: OperationHandle) {
        if let Some(at) = self.table.entry_mut(handle).and_then(|entry| entry.deadline.take()) {
            self.deadlines.remove(&(at, handle));
        }
    }

    /// Sets the deadline of an operation.
    pub(super) fn arm(&mut self, handle: OperationHandle) {
        self.disarm(handle);
        let Some(entry) = self.table.entry_mut(handle) else { return };
        let at = match (&entry.stage, entry.cancelled) {
            (OperationStage::Finished(_), _) => None,
            (OperationStage::Running, Some(cancelled)) => Some(cancelled + CANCEL_LIMIT),
            (OperationStage::Running, None) => entry.time_limit,
            (OperationStage::Waiting(_), _) => {
                let limit = entry.begun.max(self.searching_since) + ANSWER_LIMIT;
                Some(entry.time_limit.map_or(limit, |at| at.min(limit)))
            }
        };
        entry.deadline = at;
        self.deadlines.extend(at.map(|at| (at, handle)));
    }

    /// The deadline of an operation has passed.
    pub(super) fn handle_deadline(&mut self, now: Instant, handle: OperationHandle) {
        let Some(entry) = self.table.entry_mut(handle) else { return };
        entry.deadline = None;
        let waited = now.since(entry.begun);
        let is_late = entry.time_limit.is_some_and(|at| at <= now);
        match &entry.stage {
            OperationStage::Waiting(_) if is_late && self.state == AgentState::Ready => {
                self.finish(handle, Err(AgentError::TimedOut { waited }));
            }
            // The search may have begun again since.
            OperationStage::Waiting(_)
                if !is_late && now.since(entry.begun.max(self.searching_since)) < ANSWER_LIMIT =>
            {
                self.arm(handle);
            }
            OperationStage::Waiting(_) => {
                let error = match self.state {
                    AgentState::Ready => AgentError::Busy { waited },
                    AgentState::Booting => AgentError::NotReady { waited },
                    _ => AgentError::NoAnswer {
                        waited,
                        transports: self.links.iter().map(|link| link.transport).collect(),
                        refused: self.refused,
                    },
                };
                self.finish(handle, Err(error));
            }
            // A process of the guest may be in a system call that nothing interrupts.
            OperationStage::Running if entry.cancelled.is_some() => {
                entry.finish(Err(AgentError::NotCancelled { waited: CANCEL_LIMIT }));
                entry.is_stuck = true;
                self.reporting.push(handle);
            }
            OperationStage::Running => {
                entry.is_late = true;
                self.cancel(now, handle);
            }
            OperationStage::Finished(_) => {}
        }
    }
}
