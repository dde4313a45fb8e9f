//! [`Wakers`]: the wakers of the futures that wait for one VM.
//!
//! They are stored by what they wait for, so that an event takes its wakers and touches no other.
//! Each waiter has at most one waker, so repeated polls and cancelled waits do not accumulate.

use std::collections::BTreeMap;
use std::mem;
use std::task::Waker;
use std::time::Instant;

use crate::embed::{AgentEvent, OperationHandle, OutputStream, ReaderId, WaitId};

/// What a future waits for, and which future it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitKey {
    Status(WaiterId),
    Data(ReaderId),
    Writable(WaiterId),
    Ended(WaitId),
    Operation(OperationHandle, OperationPart),
    Timer(Instant, WaiterId),
}

/// The part of an operation of the agent that a future waits for. Each has one waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OperationPart {
    Stdout,
    Stderr,
    Input,
    End,
}

impl OperationPart {
    pub(crate) const ALL: [Self; 4] = [Self::Stdout, Self::Stderr, Self::Input, Self::End];
}

/// Distinguishes waiters for the same event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WaiterId(u64);

#[derive(Debug, Default)]
pub(super) struct Wakers {
    status: BTreeMap<WaiterId, Waker>,
    data: BTreeMap<ReaderId, Waker>,
    writable: BTreeMap<WaiterId, Waker>,
    ended: BTreeMap<WaitId, Waker>,
    operations: BTreeMap<(OperationHandle, OperationPart), Waker>,
    timers: BTreeMap<(Instant, WaiterId), Waker>,
    last_id: u64,
    /// Wakers that were replaced or removed. They must not be dropped under a lock.
    discarded: Vec<Waker>,
}

impl Wakers {
    pub(super) fn waiter_id(&mut self) -> WaiterId {
        self.last_id += 1;
        WaiterId(self.last_id)
    }

    pub(super) fn insert(&mut self, key: WaitKey, waker: Waker) {
        let replaced = match key {
            WaitKey::Status(id) => self.status.insert(id, waker),
            WaitKey::Data(reader) => self.data.insert(reader, waker),
            WaitKey::Writable(id) => self.writable.insert(id, waker),
            WaitKey::Ended(wait) => self.ended.insert(wait, waker),
            WaitKey::Operation(handle, part) => self.operations.insert((handle, part), waker),
            WaitKey::Timer(at, id) => self.timers.insert((at, id), waker),
        };
        self.discarded.extend(replaced);
    }

    pub(super) fn remove(&mut self, key: WaitKey) {
        let removed = match key {
            WaitKey::Status(id) => self.status.remove(&id),
            WaitKey::Data(reader) => self.data.remove(&reader),
            WaitKey::Writable(id) => self.writable.remove(&id),
            WaitKey::Ended(wait) => self.ended.remove(&wait),
            WaitKey::Operation(handle, part) => self.operations.remove(&(handle, part)),
            WaitKey::Timer(at, id) => self.timers.remove(&(at, id)),
        };
        self.discarded.extend(removed);
    }

    /// Takes the wakers that were replaced or removed.
    pub(super) fn take_discarded(&mut self) -> Vec<Waker> {
        mem::take(&mut self.discarded)
    }

    /// Moves the wakers that wait for a status to `wake`.
    pub(super) fn take_status(&mut self, wake: &mut Vec<Waker>) {
        wake.extend(mem::take(&mut self.status).into_values());
    }

    /// Moves the wakers that wait for output to `wake`.
    pub(super) fn take_data(&mut self, wake: &mut Vec<Waker>) {
        wake.extend(mem::take(&mut self.data).into_values());
    }

    /// Moves the wakers that wait for room for input to `wake`.
    pub(super) fn take_writable(&mut self, wake: &mut Vec<Waker>) {
        wake.extend(mem::take(&mut self.writable).into_values());
    }

    /// Moves the waker that waits for the end of `wait` to `wake`.
    pub(super) fn take_ended(&mut self, wait: WaitId, wake: &mut Vec<Waker>) {
        wake.extend(self.ended.remove(&wait));
    }

    /// Moves the wakers that wait for what happened to an operation, or for any change of the agent's state,
    /// to `wake`.
    pub(super) fn take_agent(&mut self, event: AgentEvent, wake: &mut Vec<Waker>) {
        let (handle, parts) = match event {
            AgentEvent::Output(handle, OutputStream::Stdout) => {
                (handle, &[OperationPart::Stdout][..])
            }
            AgentEvent::Output(handle, OutputStream::Stderr) => {
                (handle, &[OperationPart::Stderr][..])
            }
            AgentEvent::Writable(handle) => (handle, &[OperationPart::Input][..]),
            AgentEvent::Ended(handle) => (handle, &OperationPart::ALL[..]),
            _ => return self.take_status(wake),
        };
        wake.extend(parts.iter().filter_map(|part| self.operations.remove(&(handle, *part))));
    }

    /// Moves the wakers whose time has come to `wake`.
    pub(super) fn take_due(&mut self, now: Instant, wake: &mut Vec<Waker>) {
        while let Some(timer) = self.timers.first_entry()
            && timer.key().0 <= now
        {
            wake.push(timer.remove());
        }
    }

    /// Moves all wakers to `wake`.
    pub(super) fn take_all(&mut self, wake: &mut Vec<Waker>) {
        let Self { status, data, writable, ended, operations, timers, last_id, discarded } =
            mem::take(self);
        (self.last_id, self.discarded) = (last_id, discarded);
        wake.extend(status.into_values().chain(data.into_values()).chain(writable.into_values()));
        wake.extend(ended.into_values().chain(timers.into_values()));
        wake.extend(operations.into_values());
    }

    /// The time of the first timer.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.keys().next().map(|(at, _)| *at)
    }
}
