//! Operations of the guest's agent: commands and files, without the console.
//!
//! An operation begins here and ends with [`AgentEvent::Ended`]; [`Vm::operation_end`] returns how. Its
//! streams have windows: an operation whose output is not taken stops after 256 KiB.

use std::io;
use std::time::Duration;

use capsa_proto::agent::protocol::{Operation, OperationEnd, OutputStream, TerminalSize};
use capsa_proto::agent::{AgentClient, AgentError, AgentState, OperationHandle};
use capsa_proto::time::Instant;

use super::Vm;
use crate::{Error, Result};

impl Vm {
    /// How far the guest's agent is. [`AgentEvent::State`](capsa_proto::agent::AgentEvent::State) reports
    /// changes.
    ///
    /// # Errors
    ///
    /// [`Error::AgentNotEnabled`].
    pub fn agent_state(&self) -> Result<AgentState> {
        self.core.agent().map(AgentClient::state).ok_or(Error::AgentNotEnabled)
    }

    /// Begins an operation in the guest, which the agent ends after `timeout`. It waits until the guest is
    /// ready. [`VmEvent::Agent`](super::VmEvent::Agent) reports what happens to it.
    ///
    /// # Errors
    ///
    /// [`Error::AgentNotEnabled`]; [`Error::NotRunning`] when the VM was not started or has ended;
    /// [`Error::Operation`] when the operation is invalid, or when 1024 have begun.
    pub fn begin_operation(
        &mut self,
        operation: Operation,
        timeout: Option<Duration>,
    ) -> Result<OperationHandle> {
        self.agent_state()?;
        self.check_running()?;
        let begun = self.with_agent(|agent, now| agent.begin(now, operation, timeout));
        Ok(begun.ok_or(Error::AgentNotEnabled)??)
    }

    /// Queues input of an operation and returns how many bytes were accepted: fewer than given when the
    /// queue of 256 KiB is full.
    /// [`AgentEvent::Writable`](capsa_proto::agent::AgentEvent::Writable) reports that there is room again.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` when the operation has no input, or it or its input has ended.
    pub fn write_input(&mut self, handle: OperationHandle, bytes: &[u8]) -> io::Result<usize> {
        let accepted = self.with_agent(|agent, _| agent.write_input(handle, bytes)).flatten();
        accepted.ok_or(io::ErrorKind::BrokenPipe.into())
    }

    /// Ends the input of an operation, after what was written.
    pub fn end_input(&mut self, handle: OperationHandle) {
        self.with_agent(|agent, _| agent.end_input(handle));
    }

    /// Moves output of an operation into `into` and returns the number of bytes: 0 when there is none,
    /// which is the end if the operation has ended.
    pub fn read_operation(
        &mut self,
        handle: OperationHandle,
        stream: OutputStream,
        into: &mut [u8],
    ) -> usize {
        self.with_agent(|agent, _| agent.read_output(handle, stream, into)).unwrap_or(0)
    }

    /// Discards an output of an operation, what has arrived and what arrives later.
    pub fn ignore_operation_output(&mut self, handle: OperationHandle, stream: OutputStream) {
        self.with_agent(|agent, _| agent.ignore_output(handle, stream));
    }

    /// Kills the process group of a command. Output that has not arrived is discarded.
    pub fn kill_command(&mut self, handle: OperationHandle) {
        self.with_agent(|agent, _| agent.kill(handle));
    }

    /// Sends a signal of Linux, 1 to 64, to the process group of a command in the guest.
    pub fn signal_command(&mut self, handle: OperationHandle, number: i32) {
        self.with_agent(|agent, _| agent.signal(handle, number));
    }

    /// Changes the size of a command's terminal.
    pub fn resize_command(&mut self, handle: OperationHandle, size: TerminalSize) {
        self.with_agent(|agent, _| agent.resize(handle, size));
    }

    /// The process id of a command in the guest; `None` before it was started.
    pub fn command_pid(&self, handle: OperationHandle) -> Option<u32> {
        self.core.agent()?.pid(handle)
    }

    /// How an operation has ended; `None` while it runs, and after it was dropped.
    pub fn operation_end(
        &self,
        handle: OperationHandle,
    ) -> Option<std::result::Result<OperationEnd, AgentError>> {
        self.core.agent()?.end(handle).cloned()
    }

    /// Ends an operation: kills the process group of a command.
    pub fn cancel_operation(&mut self, handle: OperationHandle) {
        self.with_agent(|agent, now| agent.cancel(now, handle));
    }

    /// Ends an operation, if it runs: kills the process group of a command. Then forgets it, with the
    /// output that was not read.
    pub fn drop_operation(&mut self, handle: OperationHandle) {
        self.with_agent(|agent, now| agent.discard(now, handle));
    }

    /// Lets `change` use the agent, and moves bytes afterwards.
    fn with_agent<T>(&mut self, change: impl FnOnce(&mut AgentClient, Instant) -> T) -> Option<T> {
        let now = self.clock.now();
        let result = change(self.core.agent_mut()?, now);
        self.io.sync(&mut self.core, now);
        Some(result)
    }
}
