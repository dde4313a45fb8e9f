//! [`AgentClient`]: the host's end of the agent's protocol, without I/O and without a clock.
//!
//! It looks for the agent on every transport of the VM, begins a session with the first that answers, and
//! carries out the owner's operations: it queues them until the guest is ready, keeps their outputs within
//! windows, and ends them when the session ends.
//!
//! The agent runs in a hostile guest. Before it has proved itself with the nonce, everything else that
//! arrives is discarded. After that, whatever breaks the protocol ends the session and all operations in it
//! with an [`AgentViolation`], and a new session begins. Memory is bounded: by the windows of each
//! operation, by [`MAX_BEGUN`] operations, and by what one call passes.

mod error;
#[cfg(feature = "fuzz")]
pub(super) mod fuzz;
mod link;
mod operation;
mod owner;
mod session;
mod table;
#[cfg(test)]
mod tests;

use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::mem;
use core::time::Duration;

use crate::agent::protocol::{HostMessage, MAX_OPERATIONS, NONCE_LEN, OutputStream};
use crate::plan::{AgentPlan, AgentTransport, VsockRoute};
use crate::time::{Deadline, Instant};
use link::{AgentConnection, AgentLink};
#[cfg(feature = "fuzz")]
use operation::OperationEntry;
use operation::OperationStage;
use table::{OperationQueue, OperationTable};

pub use error::{AgentError, AgentViolation, OperationRefused};
pub use operation::INPUT_QUEUE;
pub use table::{MAX_BEGUN, OperationHandle};

/// How long an operation waits until it runs.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// How long a cancelled operation may take to end.
pub const CANCEL_LIMIT: Duration = Duration::from_secs(10);

/// The time between two sync marks while the guest boots or an operation waits.
const MARK_EVERY: Duration = Duration::from_millis(500);

/// The time between two sync marks when the agent has not answered for [`ANSWER_LIMIT`].
const MARK_IDLE: Duration = Duration::from_secs(10);

/// How many sync marks have the same number.
const MARKS_PER_NUMBER: u32 = 20;

/// How long the end of a connection waits for the end of the VM, or a reboot, which explains it.
const EXPLANATION_DELAY: Duration = Duration::from_secs(1);

/// How long a vsock device may take to confirm a connection.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(3);

/// From this number of bytes on, messages stay in their operations until the transport has taken some.
const OUTGOING_LIMIT: usize = 64 * 1024;

/// How far the agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AgentState {
    /// The VM has not started.
    Waiting,
    /// The agent has not answered since the guest booted, or its last session has ended.
    Connecting,
    /// The agent has answered, and the guest has not reached its final root.
    Booting,
    /// Operations run.
    Ready,
    /// The VM has ended.
    Ended,
}

/// What happened to an operation, or to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AgentEvent {
    /// The [state](AgentClient::state) changed.
    State,
    /// The process of a command was started.
    Started(OperationHandle),
    /// An output has new bytes. Reported once until the owner takes this event.
    Output(OperationHandle, OutputStream),
    /// The input takes bytes again, after a write that it did not accept in full.
    Writable(OperationHandle),
    /// The operation has ended; [`AgentClient::take_end`] returns how.
    Ended(OperationHandle),
}

/// The host's end of the agent's protocol.
///
/// # Driving
///
/// 1. Connect the transports that [`poll_connect`](Self::poll_connect) returns, and call
///    [`handle_connected`](Self::handle_connected).
/// 2. For each transport that [is open](Self::is_open), write from [`outgoing`](Self::outgoing), and pass
///    what was read to [`handle_bytes`](Self::handle_bytes). Close one that is not open.
/// 3. When [`poll_timeout`](Self::poll_timeout) has passed, call [`handle_timeout`](Self::handle_timeout).
/// 4. The owner takes events from [`poll_event`](Self::poll_event).
#[derive(Debug)]
pub struct AgentClient {
    links: Vec<AgentLink>,
    nonce: Option<[u8; NONCE_LEN]>,
    state: AgentState,
    state_changed: bool,
    /// The number of the session that runs or is looked for.
    session: u64,
    /// The transport of the session.
    active: Option<AgentTransport>,
    /// Its connection has ended, and at this time the session ends.
    lost_until: Option<Instant>,
    /// When the search for the agent began.
    searching_since: Instant,
    next_mark: Instant,
    /// How many sync marks have this session's number.
    marks: u32,
    /// The last answer that was not accepted.
    refused: Option<AgentViolation>,
    connects: VecDeque<AgentTransport>,
    table: OperationTable,
    running: usize,
    /// How many operations wait; the queue may have places of others that have ended.
    waiting_count: usize,
    waiting: OperationQueue,
    sending: OperationQueue,
    reporting: OperationQueue,
    deadlines: BTreeSet<(Instant, OperationHandle)>,
}

impl AgentClient {
    /// A client of the agent in this plan.
    pub fn of_plan(plan: &AgentPlan) -> Self {
        let has_handshake = matches!(plan.vsock_route(), Some(VsockRoute::Handshake(_)));
        Self::new(&plan.transports, has_handshake)
    }

    /// A client of an agent with these transports. A vsock connection begins with the handshake of
    /// [`codec::vsock`](crate::codec::vsock) if it has one.
    pub fn new(transports: &[AgentTransport], has_handshake: bool) -> Self {
        let link = |transport: &AgentTransport| AgentLink::new(*transport, has_handshake);
        Self {
            links: transports.iter().map(link).collect(),
            nonce: None,
            state: AgentState::Waiting,
            state_changed: false,
            session: 1,
            active: None,
            lost_until: None,
            searching_since: Instant::ZERO,
            next_mark: Instant::ZERO,
            marks: 0,
            refused: None,
            connects: VecDeque::new(),
            table: OperationTable::default(),
            running: 0,
            waiting_count: 0,
            waiting: OperationQueue::default(),
            sending: OperationQueue::default(),
            reporting: OperationQueue::default(),
            deadlines: BTreeSet::new(),
        }
    }

    /// Sets the nonce, without which no agent is accepted.
    pub const fn set_nonce(&mut self, nonce: [u8; NONCE_LEN]) {
        self.nonce = Some(nonce);
    }

    // The VM.

    /// The guest boots: the search for its agent begins.
    pub fn handle_started(&mut self, now: Instant) {
        if self.state == AgentState::Waiting {
            self.search(now, now);
        }
    }

    /// The guest was reset. All operations that run have ended.
    pub fn handle_reboot(&mut self, now: Instant) {
        if !matches!(self.state, AgentState::Waiting | AgentState::Ended) {
            self.refused = None;
            self.end_session(now, now, &AgentError::Rebooted);
        }
    }

    /// The VM has ended.
    pub fn handle_ended(&mut self) {
        self.set_state(AgentState::Ended);
        self.active = None;
        self.links.iter_mut().for_each(AgentLink::close);
        for handle in self.table.handles() {
            self.finish(handle, Err(AgentError::GuestEnded));
        }
    }

    // The driver.

    /// The next transport to connect. An answer is [`handle_connected`](Self::handle_connected) or
    /// [`handle_closed`](Self::handle_closed).
    pub fn poll_connect(&mut self) -> Option<AgentTransport> {
        self.connects.pop_front()
    }

    /// The transport is connected. The hypervisor has inherited the other end, or its vsock device has
    /// accepted the connection.
    pub fn handle_connected(&mut self, now: Instant, transport: AgentTransport) {
        let (state, session) = (self.state, self.session);
        let is_over = state == AgentState::Ended || self.active.is_some();
        if let Some(link) = self.link(transport).filter(|_| !is_over) {
            link.handle_connected(now);
            if state == AgentState::Connecting {
                link.mark(session);
            }
        }
    }

    /// The connection could not be made, was closed by its other end, or cannot be used any more.
    pub fn handle_closed(&mut self, now: Instant, transport: AgentTransport) {
        let Some(link) = self.link(transport) else { return };
        let was_open = matches!(link.state, AgentConnection::Open);
        link.close();
        if was_open && self.active.is_none() {
            self.renumber();
        }
        if self.active == Some(transport) {
            self.lost_until = Some(now + EXPLANATION_DELAY);
        }
    }

    /// Whether the transport is connected and in use.
    pub fn is_open(&self, transport: AgentTransport) -> bool {
        self.links.iter().any(|link| link.transport == transport && link.is_connected())
    }

    /// Takes bytes that were read from a transport.
    pub fn handle_bytes(&mut self, now: Instant, transport: AgentTransport, bytes: &[u8]) {
        let (active, session) = (self.active, self.session);
        let Some(link) = self.link(transport) else { return };
        let was_open = matches!(link.state, AgentConnection::Open);
        let bytes = link.take_handshake(bytes);
        if !matches!(link.state, AgentConnection::Open) || active.is_some_and(|it| it != transport)
        {
            return;
        }
        if !was_open {
            link.mark(session);
        }
        let mut decoder = mem::take(&mut link.decoder);
        decoder.handle_bytes(bytes);
        loop {
            let found = decoder.poll().map_err(AgentViolation::Frame);
            let taken = match found {
                Ok(None) => break,
                Ok(Some(found)) if self.active.is_some() => self.handle_frame(found),
                Ok(Some(found)) => self.handle_answer(now, transport, found),
                Err(error) => Err(error),
            };
            if let Err(violation) = taken {
                decoder.resync();
                self.handle_violation(now, transport, violation);
                // What follows is from the session that has ended.
                if self.state == AgentState::Ended || !self.is_open(transport) {
                    return;
                }
            }
        }
        if let Some(link) = self.link(transport) {
            link.decoder = decoder;
        }
    }

    /// The bytes that wait to be written to a transport. The driver removes what was taken.
    pub fn outgoing(&mut self, transport: AgentTransport) -> Option<&mut VecDeque<u8>> {
        if self.active == Some(transport) && self.lost_until.is_none() {
            self.fill(transport);
        }
        self.link(transport).map(|link| &mut link.outgoing)
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let mark = (self.state == AgentState::Connecting)
            .then_some(Deadline { at: self.next_mark, why: "search for the agent" });
        let lost = self.lost_until.map(|at| Deadline { at, why: "end of the agent's connection" });
        let mark = Deadline::earliest(mark, lost);
        let operation = self.deadlines.first();
        let operation =
            operation.map(|(at, _)| Deadline { at: *at, why: "operation of the agent" });
        match self.state {
            AgentState::Waiting | AgentState::Ended => None,
            _ => Deadline::earliest(mark, operation),
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|deadline| deadline.at > now) {
            return;
        }
        if self.lost_until.is_some_and(|at| at <= now) {
            self.end_session(now, now, &AgentError::Disconnected);
        }
        if self.state == AgentState::Connecting && self.next_mark <= now {
            self.mark(now);
        }
        while let Some((at, handle)) = self.deadlines.first().copied()
            && at <= now
        {
            self.deadlines.remove(&(at, handle));
            self.handle_deadline(now, handle);
        }
    }

    /// Moves messages to the transport of the session.
    fn fill(&mut self, transport: AgentTransport) {
        let Some(n) = self.links.iter().position(|link| link.transport == transport) else {
            return;
        };
        let mut bytes = Vec::new();
        while self.links[n].outgoing.len() < OUTGOING_LIMIT {
            bytes.clear();
            if !self.write_begin(&mut bytes) && !self.write_message(&mut bytes) {
                break;
            }
            self.links[n].outgoing.extend(&bytes);
        }
    }

    /// Begins an operation that waits, if one can begin.
    fn write_begin(&mut self, bytes: &mut Vec<u8>) -> bool {
        if self.state != AgentState::Ready || self.running == MAX_OPERATIONS {
            return false;
        }
        while let Some(handle) = self.waiting.pop(&self.table) {
            let Some(entry) = self.table.entry_mut(handle) else { continue };
            if !matches!(entry.stage, OperationStage::Waiting(_)) {
                continue;
            }
            if let OperationStage::Waiting(operation) =
                mem::replace(&mut entry.stage, OperationStage::Running)
            {
                HostMessage::Begin(handle.0, *operation).write(bytes);
            }
            self.running += 1;
            self.waiting_count -= 1;
            if entry.has_message() {
                self.sending.push(handle);
            }
            self.arm(handle);
            return true;
        }
        false
    }

    /// Writes the next message of an operation. They take turns.
    fn write_message(&mut self, bytes: &mut Vec<u8>) -> bool {
        while let Some(handle) = self.sending.pop(&self.table) {
            let Some(entry) = self.table.entry_mut(handle) else { continue };
            if !entry.has_message() {
                continue;
            }
            entry.write_message(handle.0, bytes);
            if entry.has_message() {
                self.sending.push(handle);
            }
            if entry.has_reports() {
                self.reporting.push(handle);
            }
            return true;
        }
        false
    }
}

#[cfg(feature = "fuzz")]
impl AgentClient {
    /// Checks the counts and the bounds.
    ///
    /// # Panics
    ///
    /// When a law does not hold.
    pub(crate) fn check_laws(&self) {
        let entries: Vec<_> =
            self.table.handles().into_iter().filter_map(|it| self.table.entry(it)).collect();
        let count = |is: fn(&OperationEntry) -> bool| entries.iter().filter(|it| is(it)).count();
        assert_eq!(count(OperationEntry::is_live), self.running, "operations that run");
        assert!(self.running <= MAX_OPERATIONS, "too many operations");
        let waiting = count(|entry| matches!(entry.stage, OperationStage::Waiting(_)));
        assert_eq!(waiting, self.waiting_count, "operations that wait");
        assert_eq!(count(|entry| entry.deadline.is_some()), self.deadlines.len(), "deadlines");
        entries.iter().for_each(|entry| entry.check_laws());
    }

    /// Whether no operation is left.
    pub(crate) fn is_idle(&self) -> bool {
        self.table.handles().is_empty() && self.deadlines.is_empty()
    }
}
